"""Downloads: every fault of an address has its cause, nothing private is opened, and results keep their order."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from PIL import Image

from theworld.storage.downloads import CAUSES, Downloader, DownloadSettings, is_public

PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"  # two addresses of this machine; the tests allow the first one only
QUICK = DownloadSettings(timeout=1.0, back_off=0.01, max_bytes=100_000, lookahead=16, concurrency=8)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 0, 0)).save(file, "PNG")
    return file.getvalue()


GOOD = png()


def ok(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "HTTP/1.1 200 OK",
        "Connection: close",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def redirect(target: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()


class Server:
    """A web server of raw answers, on the public and the private address; counts requests by address and path."""

    def __init__(self) -> None:
        self.requests = Counter[tuple[str, str]]()
        self.connections = Counter[str]()
        self.loop = asyncio.new_event_loop()
        self.port = 0
        started = threading.Event()

        async def serve() -> None:
            first = await asyncio.start_server(self.answer, PUBLIC, 0)
            self.port = first.sockets[0].getsockname()[1]
            self.servers = [first, await asyncio.start_server(self.answer, PRIVATE, self.port)]
            started.set()

        def run() -> None:
            self.loop.create_task(serve())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        started.wait()

    def close(self) -> None:
        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def url(self, path: str, host: str = PUBLIC) -> str:
        return f"http://{host}:{self.port}/{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = writer.get_extra_info("sockname")[0]
        self.connections[host] += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1].strip("/").partition("?")[0]
            self.requests[host, path] += 1
            count = self.requests[host, path]
            if path.startswith("wait-"):
                await asyncio.sleep(float(path[5:].partition("-")[0]))
                writer.write(ok(GOOD))
            elif path == "drip":
                writer.write(ok(b"", length=1000))
                for _ in range(100):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            elif path == "second-time":
                writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n" if count == 1 else ok(GOOD))
            else:
                writer.write(self.raw(path))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    def raw(self, path: str) -> bytes:
        answers = {
            "good": ok(GOOD),
            "text": ok(b"<html>no image</html>"),
            "gone": b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n",
            "broken": b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n",
            "nothing": b"",
            "cut": ok(GOOD[:50], length=len(GOOD)),
            "status": b"SPAM 200\r\n\r\n",
            "headers": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc",
            "large": ok(b"x" * 200_000),
            "endless": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000,
            "zipped": ok(b"abc", "Content-Encoding: gzip"),
            "private": ok(GOOD, "X-Robots-Tag: noindex, nofollow"),
            "bots": ok(GOOD, "X-Robots-Tag: somebot: noai"),
            "to-good": redirect("/good"),
            "to-file": redirect("file:///etc/hostname"),
            "to-loop": redirect("/to-loop"),
            "to-localhost": redirect(self.url("good", "localhost")),
            "to-mapped": redirect(self.url("good", f"[::ffff:{PRIVATE}]")),
            "to-decimal": redirect(self.url("good", "2130706433")),
            "to-private": redirect(self.url("good", PRIVATE)),
            "to-v6": redirect(self.url("good", "[::1]")),
            "to-metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        }
        return answers[path]


class Names(AbstractResolver):
    """`good.test` is public; `turns.test` is so in its first answer only; `both.test` has a private address as well."""

    def __init__(self) -> None:
        self.asked = Counter[str]()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        self.asked[host] += 1
        known = {"good.test": [PUBLIC], "both.test": [PRIVATE, "127.0.0.1"], "localhost": [PRIVATE]}
        known["turns.test"] = [PUBLIC if self.asked[host] == 1 else PRIVATE]
        known["2130706433"] = [PRIVATE]
        if host not in known:
            raise OSError("no such host")
        return [
            {"hostname": host, "host": one, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for one in known[host]
        ]

    async def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def downloader(settings: DownloadSettings = QUICK) -> Downloader:
    return Downloader(settings, allow=lambda address, port: address == PUBLIC, resolver=Names())


def causes(addresses: list[str], settings: DownloadSettings = QUICK) -> list[str | None]:
    with downloader(settings) as made:
        return [result.cause for result in made.map(addresses, str)]


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("good", None), ("second-time", None), ("to-good", None), ("gone", "refused"), ("broken", "server"),
        ("nothing", "connection"), ("cut", "connection"), ("status", "connection"), ("headers", "connection"),
        ("chunks", "connection"), ("large", "size"), ("endless", "size"), ("zipped", "image"), ("private", "opt-out"),
        ("bots", "opt-out"), ("drip", "timeout"), ("to-loop", "redirects"), ("to-file", "address"),
    ],
)  # fmt: skip
def test_every_fault_has_its_cause(server: Server, path: str, cause: str | None) -> None:
    assert causes([server.url(path)]) == [cause]
    assert cause is None or cause in CAUSES


@pytest.mark.parametrize(
    "address",
    ["", "hello", "ftp://good.test/a", "file:///etc/hostname", "http://", "http://good.test:99999/", "http://[::1", "http://a..b/",
     "data:image/png;base64,AAAA", "http://" + "a" * 300 + "/"],
)  # fmt: skip
def test_what_is_no_web_address(address: str) -> None:
    assert causes([address])[0] in ("address", "dns")


def test_spaces_and_other_alphabets_are_quoted(server: Server) -> None:
    server.requests.clear()
    assert causes([server.url("große katze.png", "good.test")]) != ["address"]
    assert (PUBLIC, "gro%C3%9Fe%20katze.png") in server.requests


@pytest.mark.parametrize("target", ["to-private", "to-localhost", "to-decimal", "to-mapped", "to-v6", "to-metadata"])
def test_nothing_private_is_opened(server: Server, target: str) -> None:
    """Neither directly nor by a redirect: the private server sees no connection."""
    server.connections.clear()
    direct = {"to-private": PRIVATE, "to-localhost": "localhost", "to-decimal": "2130706433", "to-v6": "[::1]"}
    addresses = [server.url(target)]
    if target in direct:
        addresses.append(server.url("good", direct[target]))
    assert set(causes(addresses)) == {"address" if target == "to-decimal" else "private"}  # aiohttp refuses such a host
    assert server.connections[PRIVATE] == 0


def test_the_connection_is_checked_and_not_an_earlier_dns_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.connections.clear()
    monkeypatch.setenv("http_proxy", server.url("", PRIVATE))
    monkeypatch.setenv("HTTP_PROXY", server.url("", PRIVATE))
    names = Names()
    with Downloader(QUICK, allow=lambda address, port: address == PUBLIC, resolver=names) as made:
        made._session.connector._use_dns_cache = False  # type: ignore[union-attr]  # asks again
        found = [result.cause for url in 2 * [server.url("good", "turns.test")] for result in made.map([url], str)]
        both = [result.cause for result in made.map([server.url("good", "both.test")], str)]
    assert found == [None, "private"]
    assert names.asked["turns.test"] == 2
    assert both == ["private"]
    assert server.connections[PRIVATE] == 0


ADDRESSES = {
    True: "8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808",
    False: "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 169.254.169.254 0.0.0.0 224.0.0.1 255.255.255.255 ::1 "
    ":: fe80::1%eth0 fc00::1 fec0::1 ff02::1 ::ffff:127.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1 ::ffff:169.254.169.254 "
    "fd00:ec2::254",
}


@pytest.mark.parametrize(
    ("address", "public"), [(one, public) for public in ADDRESSES for one in ADDRESSES[public].split()]
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_results_keep_their_order_and_downloads_do_not_wait_for_each_other(server: Server) -> None:
    rows = [(number, server.url(f"wait-0.{3 - number % 3}-{number}")) for number in range(24)]
    settings = DownloadSettings(timeout=20, lookahead=24, concurrency=24, per_host=24)
    with downloader(settings) as made:
        began = time.monotonic()
        results = list(made.map(rows, lambda row: row[1]))
        spent = time.monotonic() - began
    assert [result.row for result in results] == rows
    assert all(result.content == GOOD for result in results)
    assert spent < 0.5 * sum(0.1 * (3 - number % 3) for number, _ in rows), "several at a time"


def test_only_so_many_rows_are_read_ahead_and_a_host_gets_so_many_connections(server: Server) -> None:
    taken = []

    def rows() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield server.url("good")

    with downloader() as made:
        results = made.map(rows(), str)
        assert next(results).content == GOOD
        assert len(taken) == QUICK.lookahead
        results.close()  # type: ignore[attr-defined]


def test_waiting_for_ones_turn_at_a_host_is_no_time_out(server: Server) -> None:
    """Twelve downloads, two at a time, take three times as long as one attempt may."""
    rows = [server.url(f"wait-0.25-{number}") for number in range(12)]
    settings = DownloadSettings(timeout=0.5, per_host=2)
    assert causes(rows, settings) == [None] * 12
