"""nano in vLLM: are its answers those of `TheWorld.generate`, does its LoRA act, and how many answers per second?

make test-vllm                                            # installs vLLM into build/vllm, and runs `answers`
build/vllm/bin/python -m benchmarks.vllm_serving --only throughput --output vllm.json

The servers are processes of their own: vLLM's with the plug-in, and `theworld serve`. Parts, which `--only` selects:

    answers     the tokens of greedy answers with world tokens, of 32 clients at once and again one by one, beside our
                own with the LoRA and without it
    throughput  32 clients at both servers, with N world steps and with none, about images that are new and that are
                known; wall time and processor time
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from PIL import Image

from benchmarks.serving_load import server, url_of
from theworld import TheWorld
from theworld.datasets.physics import FAMILIES, make_clip, next_questions
from theworld.serving.latents import LatentCache
from theworld.serving.settings import ServerSettings
from theworld.storage.hub import resolve

PARTS = ("answers", "throughput")
TIE = 1e-3  # of logits, whose sums are computed in another order in vLLM
NEW_TOKENS = 16
BATCH = 10
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # all cores compute, as those of `theworld serve` do
}


@dataclass(frozen=True)
class Asked:
    """A question about an image, the greedy tokens of the answer, and by how much each was ahead of the next."""

    image: Image.Image
    question: str
    tokens: tuple[int, ...] = ()
    lead: tuple[float, ...] = ()

    def body(self, **fields: Any) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": url_of(self.image)}},
            {"type": "text", "text": self.question},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": "nano", "messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0, **fields}


def questions(number: int, first_scene: int = 0) -> list[Asked]:
    """The first questions about scenes of the test split; every two are about one image."""
    found: list[Asked] = []
    for index in count(first_scene):
        for family in FAMILIES:
            clip = make_clip(family, "test", index)
            found += [Asked(Image.fromarray(clip.frames[0]), each.text) for each in next_questions(clip)[:2]]
        if len(found) >= number:
            return found[:number]
    raise AssertionError


def answered(model: TheWorld, latents: LatentCache, asked: Sequence[Asked], steps: int) -> list[Asked]:
    """The questions with the tokens of our own greedy answers."""
    found: list[Asked] = []
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        images = [each.image for each in batch]
        inputs = model.prepare(images, [each.question for each in batch], num_world_steps=steps)
        for name in ("world_frames", "world_seeds", "num_world_steps"):
            del inputs[name]
        inputs["world_latents"] = latents.imagine(model, images, steps, 0, None, lambda done, total: None)
        length = inputs["input_ids"].shape[1]
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True}
        output = model.model.generate(**inputs, **options, output_logits=True)
        best = torch.stack([logits.float().topk(2).values for logits in output.logits], dim=1)  # (B, tokens, 2)
        ends = set(model.model.generation_config.eos_token_id)
        for each, row, logits in zip(batch, output.sequences[:, length:].tolist(), best, strict=True):
            end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
            lead = (logits[:end, 0] - logits[:end, 1]).tolist()
            found.append(Asked(each.image, each.question, tuple(row[:end]), tuple(lead)))
    return found


@contextlib.contextmanager
def vllm_server(folder: str | os.PathLike[str], *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a running `vllm serve`, and its process."""

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # what `vllm serve` runs; the command itself looks for a package called vllm, which vllm-cpu is not
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *arguments]
    command += ["--served-model-name", "nano", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--trust-request-mm-kwargs"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read()[-8000:])
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                time.sleep(0.5)
            yield url, process
        finally:
            process.terminate()
            process.wait(60)


async def answers_of(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> tuple[list[dict[str, Any]], float]:
    """The first choice of each answer, of `clients` requests at a time, and how many seconds it took."""
    waiting = iter(enumerate(bodies))
    answers: list[dict[str, Any]] = [{} for _ in bodies]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def work() -> None:
            for number, body in waiting:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                if answer.status_code != 200:
                    raise SystemExit(f"status {answer.status_code}: {answer.text[:500]}")
                answers[number] = answer.json()["choices"][0]

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return answers, time.perf_counter() - started


def compared(asked: Sequence[Asked], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many answers have the same tokens as ours, and where the others differ first."""
    different = []
    for question, answer in zip(asked, answers, strict=True):
        tokens = tuple(answer["token_ids"])
        if tokens != question.tokens:
            pairs = enumerate(zip(tokens, question.tokens, strict=False))
            place = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(tokens), len(question.tokens)))
            lead = question.lead[min(place, len(question.lead) - 1)]
            different.append({"question": question.question, "place": place, "lead": lead, "tie": lead <= TIE})
    return {"questions": len(asked), "equal": len(asked) - len(different), "different": different}


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time of a server and all its processes so far."""
    root = psutil.Process(process.pid)
    times = [each.cpu_times() for each in [root, *root.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def throughput(clients: int, requests: int, steps: int) -> dict[str, Any]:
    """Answers per second of both servers, which answer the same questions, and their processor time per answer."""
    rows: dict[str, Any] = {}
    for name in ("vllm", "theworld"):
        is_vllm = name == "vllm"
        with vllm_server(resolve("nano")) if is_vllm else server("--batch-size", str(clients)) as (url, process):
            scene = 1000  # none that `answers` asks about
            for number in (steps, 0):
                world = {"num_world_steps": number}
                fields = {"mm_processor_kwargs": world} if is_vllm else world
                asked = questions(2 * (clients + requests), scene)[::2]  # one per image
                scene += len(asked)
                bodies = [each.body(**fields) for each in asked]
                asyncio.run(answers_of(url, bodies[:clients], clients))  # to warm up
                for kind in ("new images", "known images"):
                    before = processor_seconds(process)
                    _, seconds = asyncio.run(answers_of(url, bodies[clients:], clients))
                    used = (processor_seconds(process) - before) / requests
                    row = {"per_second": round(requests / seconds, 2), "processor_seconds": round(used, 3)}
                    rows[f"{name}, N={number}, {kind}"] = row
                    print(json.dumps({f"{name}, N={number}, {kind}": row}), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128, help="of throughput, for each server and number of steps")
    parser.add_argument("--steps", type=int, default=4, help="world steps of each question")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    rows, failures = {}, []
    if "answers" in args.only:
        model, latents = TheWorld("nano", dtype="float32", device="cpu"), LatentCache(ServerSettings.cache_bytes)
        asked = answered(model, latents, questions(args.questions), args.steps)
        with model.model.lora_disabled():
            base = answered(model, latents, asked, args.steps)
        fields = {"mm_processor_kwargs": {"num_world_steps": args.steps}, "return_token_ids": True}
        bodies = [each.body(**fields) for each in asked]
        with vllm_server(resolve("nano")) as (url, _):
            for clients in (args.clients, 1):
                answers, _ = asyncio.run(answers_of(url, bodies, clients))
                row = compared(asked, answers)
                row["differ_without_lora"] = len(asked) - compared(base, answers)["equal"]
                rows[f"answers, {clients} at a time"] = row
                print(json.dumps({f"answers, {clients} at a time": row}), flush=True)
                if row["equal"] < 0.98 * len(asked) or not all(each["tie"] for each in row["different"]):
                    failures.append("answers differ from those of TheWorld.generate")
                if not row["differ_without_lora"]:
                    failures.append("the answers are those of a model without the LoRA")
    if "throughput" in args.only:
        rows["answers per second"] = throughput(args.clients, args.requests, args.steps)
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for failure in failures:
        print(f"vllm_serving: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
