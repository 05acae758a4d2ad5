"""Downloads images from a hostile local server: ours, four blocking workers, and img2dataset on the same addresses.

    python -m benchmarks.datacomp_loader                                   # ours, and four blocking workers
    python -m benchmarks.datacomp_loader --img2dataset /path/to/img2dataset

Each answer takes 1.5 s. Four in ten addresses are dead or hostile: errors, slow drips, wrong types, truncated files,
decompression bombs, endless bodies, and redirects or DNS answers that lead to private addresses. The server counts the
requests for private addresses, and an audit hook counts the connections of this process to them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp.abc import AbstractResolver
from PIL import Image

from theworld.datasets import datacomp
from theworld.datasets.datacomp import ImageDownloads, readable
from theworld.inspection.provenance import versions
from theworld.storage.downloads import Downloader, DownloadSettings

ROWS, DEAD = 2000, 0.4
LATENCY = 1.5  # seconds before each answer
ALLOWED = "127.100."  # addresses of this machine that stand for the public internet
BLOCKING_SECONDS = 40.0  # for which the blocking workers are timed
FAULTS = (
    "gone", "broken", "nothing", "drip", "text", "cut", "bomb", "large", "endless", "loop", "to-127.0.0.1",
    "to-169.254.169.254", "to-[::1]", "to-2130706433", "to-[::ffff:127.0.0.1]", "dns", "turns",
)  # fmt: skip
PORT = 18080


def photo() -> bytes:
    file = io.BytesIO()
    noise = random.Random(0).randbytes(64 * 64 * 3)
    Image.frombytes("RGB", (64, 64), noise).resize((512, 512)).save(file, "JPEG")
    return file.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few kilobytes whose header claims 3.6 gigapixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ok(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode() + body


def serve(ready: Any, forbidden: Any) -> None:
    """The server, in a process of its own; counts requests for addresses that are not allowed."""
    good, bad = photo(), bomb()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = unquote((await reader.readuntil(b"\r\n\r\n")).split()[1].decode().strip("/").partition("?")[0])
            if not writer.get_extra_info("sockname")[0].startswith(ALLOWED):
                forbidden.value += 1
            await asyncio.sleep(LATENCY)
            if path == "drip":
                writer.write(ok(b"", length=10_000))
                for _ in range(600):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            elif path == "endless":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(100):
                    writer.write(b"x" * 2**20)
                    await writer.drain()
            elif path.startswith("to-"):
                target = f"http://{path[3:]}:{PORT}/good"
                writer.write(f"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {target}\r\n\r\n".encode())
            else:
                writer.write(
                    {
                        "good": ok(good),
                        "gone": b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n",
                        "broken": b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n",
                        "nothing": b"",
                        "text": ok(b"<html>no image</html>"),
                        "cut": ok(good[: len(good) // 2], length=len(good)),
                        "bomb": ok(bad),
                        "large": ok(b"x", length=2**31),
                        "loop": b"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: /loop\r\n\r\n",
                    }[path]
                )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "0.0.0.0", PORT, backlog=4096)
        ready.set()
        await server.serve_forever()

    asyncio.run(run())


class Names(AbstractResolver):
    """`turns.test` has an allowed address in its first answer only; other names do not exist."""

    def __init__(self) -> None:
        self.asked = Counter[str]()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        self.asked[host] += 1
        if not host.endswith("turns.test") and host != "2130706433":
            raise OSError("no such host")
        address = f"{ALLOWED}9.9" if host != "2130706433" and self.asked[host] == 1 else "127.0.0.1"
        return [{"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        return None


def rows() -> list[dict[str, str]]:
    """Addresses on 400 hosts, six in ten of them good, in random order; each fault is as frequent as the others."""
    dice, made = random.Random(0), []
    for number in range(ROWS):
        fault = FAULTS[number % len(FAULTS)] if number < ROWS * DEAD else "good"
        host = f"{ALLOWED}{number % 4}.{1 + number % 100}"
        if fault == "dns":
            host, fault = f"none{number}.invalid", "good"
        elif fault == "turns":  # the second request, after a redirect, asks DNS again
            host, fault = f"{number}turns.test", f"to-{number}turns.test"
        made.append({"url": f"http://{host}:{PORT}/{fault}?{number}", "text": "a photo"})
    dice.shuffle(made)
    return made


def ours(asked: list[dict[str, str]]) -> dict[str, Any]:
    """Counts by cause, and the connections of this process to addresses that are not allowed."""
    strange = Counter[str]()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple) and not arguments[1][0].startswith(ALLOWED):
            strange[arguments[1][0]] += 1

    sys.addaudithook(watch)
    allow = lambda address, port: address.startswith(ALLOWED)  # noqa: E731
    setattr(datacomp, "Downloader", lambda settings: Downloader(settings, allow, Names()))  # noqa: B010
    downloads = ImageDownloads(settings=DownloadSettings(lookahead=ROWS))
    start = time.perf_counter()
    good = sum(record is not None for record in downloads.read(asked))
    seconds = time.perf_counter() - start
    return {
        "good": good,
        "seconds": round(seconds, 1),
        "good_per_second": round(good / seconds, 1),
        "causes": dict(downloads.causes),
        "forbidden_connections": dict(strange),
    }


def blocking(asked: list[dict[str, str]], workers: int = 4) -> dict[str, Any]:
    """Workers that fetch one address after the other, as this project's first reader did, for a fixed time."""
    end = time.perf_counter() + BLOCKING_SECONDS
    good, lock, waiting = Counter[str](), threading.Lock(), iter(list(asked))

    def work() -> None:
        while time.perf_counter() < end:
            with lock:
                row = next(waiting, None)
            if row is None:
                return
            try:
                with urllib.request.urlopen(row["url"], timeout=10) as answer:
                    found = readable(answer.read(20 * 2**20)) is not None
            except Exception:  # noqa: BLE001 - any fault of an address
                found = False
            good["good" if found else "bad"] += 1

    with ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            pool.submit(work)
    return {**good, "seconds": BLOCKING_SECONDS, "good_per_second": round(good["good"] / BLOCKING_SECONDS, 2)}


def img2dataset(program: str, asked: list[dict[str, str]]) -> dict[str, Any]:
    """img2dataset's own command on the same addresses, with as many downloads at a time."""
    folder = Path(tempfile.mkdtemp())
    (folder / "urls.txt").write_text("\n".join(row["url"] for row in asked))
    start = time.perf_counter()
    subprocess.run(
        [program, "--url_list", folder / "urls.txt", "--output_folder", folder / "out", "--processes_count", "1",
         "--thread_count", "256", "--timeout", "10", "--retries", "2", "--resize_mode", "no",
         "--output_format", "webdataset", "--input_format", "txt"],
        check=True, capture_output=True, env={"NO_ALBUMENTATIONS_UPDATE": "1", "PATH": "/usr/bin:/bin"}, timeout=900,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    stats = [json.loads(path.read_text()) for path in (folder / "out").glob("*_stats.json")]
    good = sum(one["successes"] for one in stats)
    shutil.rmtree(folder)
    return {"good": good, "seconds": round(seconds, 1), "good_per_second": round(good / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset", help="the command of an environment that has img2dataset")
    given = parser.parse_args()
    ready, forbidden = multiprocessing.Event(), multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(ready, forbidden), daemon=True)
    server.start()
    ready.wait()
    asked = rows()
    found: dict[str, Any] = {"ours": ours(asked)}
    found["ours"]["forbidden_requests_at_the_server"] = forbidden.value
    found["four blocking workers"] = blocking(asked)
    found["forbidden_requests_of_the_blocking_workers"] = forbidden.value
    before = forbidden.value
    if given.img2dataset:
        found["img2dataset"] = img2dataset(given.img2dataset, asked)
        found["img2dataset"]["forbidden_requests_at_the_server"] = forbidden.value - before
    ratio = found["ours"]["good_per_second"] / max(found["four blocking workers"]["good_per_second"], 1e-9)
    print(json.dumps({**found, "ours_over_blocking": round(ratio, 1), "versions": versions()}, indent=1))
    server.terminate()


if __name__ == "__main__":
    main()
