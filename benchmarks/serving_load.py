"""Many clients at one server of nano: no answer lost or mixed up, memory, throughput with and without batches.

python -m benchmarks.serving_load --clients 64 --requests 2000 --output load.json

The server is a process of its own (`theworld serve`). What it should answer is computed first, with
`TheWorld.generate`, one question at a time. Parts, which `--only` selects:

    answers     100 questions: the official client, whole and streamed, curl, and lmms-eval's model of OpenAI's API
    load        all clients, with bad requests (`--bad`) and clients that leave (`--leaving`)
    leaving     how soon the work for a client that leaves ends
    throughput  the same clients with batches and with `--batch-size 1`
    single      one client with batches and with `--batch-size 1`
    restart     the server is killed in mid-load and started again
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

PARTS = ("answers", "load", "leaving", "throughput", "single", "restart")
IMAGE = "data:image/png;base64,AAAA"
BAD: tuple[tuple[dict[str, Any], int], ...] = (
    ({"model": "other"}, 404),
    ({"messages": []}, 400),
    ({"max_token": 3}, 400),
    ({"max_tokens": 10**6}, 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}]}]}, 400),
    ({"num_world_steps": 99}, 400),
    ({"temperature": "warm"}, 400),
)


@dataclass(frozen=True)
class Asked:
    """A question about an image, and what `TheWorld.generate` answers."""

    url: str
    question: str
    answer: str

    def body(self, steps: int, **fields: Any) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": self.url}}
        content = [image, {"type": "text", "text": self.question}]
        messages = [{"role": "user", "content": content}]
        return {"model": "nano", "messages": messages, "num_world_steps": steps, "max_tokens": 16, **fields}


@dataclass
class Outcome:
    """What came of the requests of one load."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # bytes
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        middle, last = self.memory[len(self.memory) // 2] if self.memory else 0, max(self.memory[-1:], default=0)
        good = self.counts["right"]
        return {
            "counts": dict(self.counts),
            "wrong": self.wrong[:5],
            "seconds": round(self.seconds, 1),
            "answers_per_second": round(good / self.seconds, 3),
            "memory_at_half_mib": round(middle / 2**20),
            "memory_at_end_mib": round(last / 2**20),
            "growth_in_second_half": round(last / middle - 1, 4) if middle else None,
            "memory_mib": [round(each / 2**20) for each in self.memory],
        }


def url_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def questions(count: int, steps: int) -> list[Asked]:
    """Scenes of the test split with their questions, and nano's greedy answers in float32."""
    from theworld import TheWorld
    from theworld.datasets.physics import FAMILIES, make_clip, next_questions

    model = TheWorld("nano", dtype="float32", device="cpu")
    found: list[Asked] = []
    for index in itertools.count():
        for family in FAMILIES:
            clip = make_clip(family, "test", index)
            image = Image.fromarray(clip.frames[0])
            url = url_of(image)
            for question in next_questions(clip)[:2]:
                answer = model.generate(image, question.text, max_new_tokens=16, num_world_steps=steps)
                found.append(Asked(url, question.text, answer))
                if len(found) == count:
                    return found
    raise AssertionError


@contextlib.contextmanager
def server(*arguments: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a running server, and its process."""
    command = [sys.executable, "-m", "theworld.cli", "serve", "nano", "--dtype", "float32", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen([*command, "--port", str(port), *arguments], stderr=log, env=dict(os.environ))
        try:
            while "Listening at " not in (text := Path(log.name).read_text()):
                if process.poll() is not None:
                    raise SystemExit(text)
                time.sleep(0.1)
            url = text.partition("Listening at ")[2].partition("/v1")[0]
            while httpx.get(f"{url}/health").status_code != 200:
                time.sleep(0.2)
            yield url, process
        finally:
            process.terminate()
            process.wait(120)
            if "Traceback" in (text := Path(log.name).read_text()):
                print(text, file=sys.stderr)


async def one(client: httpx.AsyncClient, url: str, asked: Asked, steps: int, kind: str) -> str:
    """Makes one request and says what came of it."""
    address = f"{url}/v1/chat/completions"
    if kind == "bad":
        fields, status = random.choice(BAD)
        answer = await client.post(address, json=asked.body(steps, **fields))
        return "refused" if answer.status_code == status and "error" in answer.json() else f"wrong: {answer.text[:200]}"
    if kind == "leaving":
        with contextlib.suppress(httpx.TimeoutException):
            timeout = httpx.Timeout(60, read=random.choice((0.05, 0.5, 2.0)))
            async with client.stream("POST", address, json=asked.body(steps, stream=True), timeout=timeout) as answer:
                async for _ in answer.aiter_lines():
                    break
        return "left"
    if kind == "stream":
        text = ""
        async with client.stream("POST", address, json=asked.body(steps, stream=True)) as answer:
            if answer.status_code == 200:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        content = json.loads(line[6:])
                        if "error" in content:
                            return f"error: {content['error']['code']}"
                        text += "".join(choice["delta"].get("content") or "" for choice in content["choices"])
    else:
        answer = await client.post(address, json=asked.body(steps))
        if answer.status_code == 200:
            text = answer.json()["choices"][0]["message"]["content"]
    if answer.status_code != 200:
        return f"status {answer.status_code}"
    return "right" if text == asked.answer else f"wrong: {text!r} for {asked.answer!r}"


async def load(
    url: str, asked: Sequence[Asked], args: argparse.Namespace, clients: int, requests: int, *, mixed: bool
) -> Outcome:
    """`requests` requests of `clients` clients, each of which makes its next request after its last answer."""
    outcome, numbers = Outcome(), iter(range(requests))
    shares = {"bad": args.bad, "leaving": args.leaving, "stream": 0.4, "whole": 0.6 - args.bad - args.leaving}
    kinds = random.Random(0).choices(list(shares), list(shares.values()), k=requests) if mixed else ["whole"] * requests
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits, verify=False) as client:

        async def work() -> None:
            for number in numbers:
                try:
                    result = await one(client, url, asked[number % len(asked)], args.steps, kinds[number])
                except httpx.TransportError as error:
                    result = f"lost: {type(error).__name__}"
                outcome.counts[result if result in ("right", "refused", "left") else result.partition(":")[0]] += 1
                if result.startswith("wrong"):
                    outcome.wrong.append(result)
                if number % max(1, requests // 50) == 0:
                    with contextlib.suppress(httpx.TransportError):
                        outcome.memory.append(await memory_of(client, url))

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        outcome.seconds = time.perf_counter() - started
        with contextlib.suppress(httpx.TransportError):
            outcome.memory.append(await memory_of(client, url))
    return outcome


async def memory_of(client: httpx.AsyncClient, url: str) -> float:
    lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return float(next(line for line in lines if line.startswith("process_resident_memory_bytes")).split()[1])


def lmms_eval_answers(url: str, name: str, asked: Sequence[tuple[Image.Image, str]], max_new_tokens: int) -> list[str]:
    """What lmms-eval's model of OpenAI's API gets from a server for questions about images."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.chat.openai import OpenAICompatible

    def messages(document: tuple[Image.Image, str]) -> list[dict[str, Any]]:
        image, question = document
        content = [{"type": "image", "url": image}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    client = OpenAICompatible(model_version=name, base_url=f"{url}/v1", api_key="unused", timeout=600, num_concurrent=4)
    client.task_dict = {"task": {"test": list(asked)}}
    decoding = {"max_new_tokens": max_new_tokens, "temperature": 0, "top_p": 1.0}
    found = client.generate_until(
        [
            Instance(
                "generate_until",
                ("", messages, decoding, number, "task", "test"),
                0,
                {"task": "task", "doc_id": number, "repeats": 1},
            )
            for number in range(len(asked))
        ]
    )
    return [each.text for each in found]


def curl_answer(url: str, body: dict[str, Any]) -> str:
    """The answer that curl gets, as in docs/serving.md."""
    command = ["curl", "--silent", "--fail", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", "@-"], input=json.dumps(body).encode(), capture_output=True, check=True)
    answer: str = json.loads(done.stdout)["choices"][0]["message"]["content"]
    return answer


def image_of(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def client_answers(asked: Sequence[Asked], steps: int) -> dict[str, Any]:
    """How many answers of the official client, whole and streamed, of curl and of lmms-eval equal `generate`'s."""
    import openai

    equal = streamed = curl = 0
    with server("--steps", str(steps)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        for each in asked:
            body = each.body(steps)
            call = {name: body[name] for name in ("model", "messages", "max_tokens")}
            extra = {"num_world_steps": steps}
            whole = client.chat.completions.create(**call, extra_body=extra)
            equal += whole.choices[0].message.content == each.answer
            pieces = client.chat.completions.create(**call, extra_body=extra, stream=True)
            streamed += "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == each.answer
            curl += curl_answer(url, body) == each.answer
        lmms_eval = lmms_eval_answers(url, "nano", [(image_of(each.url), each.question) for each in asked], 16)
    return {
        "questions": len(asked),
        "equal_to_generate": equal,
        "streamed_equal": streamed,
        "curl_equal": curl,
        "lmms_eval_equal": sum(text == each.answer for text, each in zip(lmms_eval, asked, strict=True)),
    }


def freed(asked: Sequence[Asked], steps: int, repeats: int = 10) -> dict[str, Any]:
    """Seconds from a client's leaving, in the middle of a rollout or of its answer, until nothing runs for it."""
    seconds: dict[str, list[float]] = {"rollout": [], "answer": []}
    with server() as (url, _), httpx.Client(timeout=60, verify=False) as watching:

        def busy() -> bool:
            lines = watching.get(f"{url}/metrics").text.splitlines()
            return any(line in lines for line in ("theworld_jobs_running 1.0", "theworld_requests_in_progress 1.0"))

        for number in range(repeats):
            each = asked[number % len(asked)]
            for kind, found in seconds.items():
                # steps are imagined with a seed of their own, and a streamed answer is left after its first piece
                body = each.body(steps if kind == "rollout" else 0, seed=number, stream=True)
                wait = httpx.Timeout(60, read=0.2 * (1 + number % 5) if kind == "rollout" else 60)
                with (
                    httpx.Client(timeout=wait, verify=False) as client,
                    contextlib.suppress(httpx.ReadTimeout),
                    client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
                ):
                    next(answer.iter_lines())
                left = time.perf_counter()
                while busy():
                    time.sleep(0.01)
                found.append(time.perf_counter() - left)
    return {
        kind: {"max_s": round(max(found), 3), "all_s": [round(s, 3) for s in found]} for kind, found in seconds.items()
    }


async def restarted(asked: Sequence[Asked], args: argparse.Namespace) -> dict[str, Any]:
    """Counts of a load in whose middle the server is killed and started again at the same port."""
    with server() as (url, process):
        port = int(url.rpartition(":")[2])
        running = asyncio.create_task(load(url, asked, args, args.clients, args.requests, mixed=True))
        await asyncio.sleep(args.kill_after)
        process.kill()
        process.wait()
        first = await running
    with server(port=port) as (url, _):
        second = await load(url, asked, args, args.clients, min(args.requests, 2 * args.clients), mixed=True)
    return {"killed": first.summary()["counts"], "started_again": second.summary()["counts"]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4, help="world steps of each question")
    parser.add_argument("--bad", type=float, default=0.10, help="share of bad requests")
    parser.add_argument("--leaving", type=float, default=0.05, help="share of clients that leave early")
    parser.add_argument("--batch-size", default="16")
    parser.add_argument("--cache", type=int, default=256, help="MiB of latents; 0 imagines each question's image again")
    parser.add_argument("--compared", type=int, help="requests of throughput and single; default: a tenth")
    parser.add_argument("--kill-after", type=float, default=10.0, help="seconds of load before the server is killed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    asked = questions(args.questions, args.steps)
    cache = ("--cache", str(args.cache))
    batches, alone = ("--batch-size", args.batch_size, *cache), ("--batch-size", "1", *cache)
    compared = args.compared or args.requests // 10
    rows: dict[str, Any] = {"arguments": {**vars(args), "output": str(args.output)}}

    def measure(part: str, settings: tuple[str, ...], clients: int, requests: int, mixed: bool = False) -> None:
        with server(*settings) as (url, _):
            asyncio.run(load(url, asked, args, clients, clients, mixed=False))  # to warm up
            outcome = asyncio.run(load(url, asked, args, clients, requests, mixed=mixed))
        name = f"{part}, batch size {settings[1]}"
        rows[name] = outcome.summary()
        print(json.dumps({name: rows[name]}), flush=True)

    if "answers" in args.only:
        rows["answers"] = client_answers(asked, args.steps)
        print(json.dumps({"answers": rows["answers"]}), flush=True)
    if "load" in args.only:
        measure("load", batches, args.clients, args.requests, mixed=True)
    if "leaving" in args.only:
        rows["leaving"] = freed(asked, args.steps)
        print(json.dumps({"leaving": rows["leaving"]}), flush=True)
    for part, clients in (("throughput", args.clients), ("single", 1)):
        if part in args.only:
            measure(part, batches, clients, compared)
            measure(part, alone, clients, compared)
    if "restart" in args.only:
        rows["restart"] = asyncio.run(restarted(asked, args))
        print(json.dumps({"restart": rows["restart"]}), flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    wrong = sum(
        row["counts"].get("wrong", 0) + row["counts"].get("lost", 0) for row in rows.values() if "counts" in row
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
