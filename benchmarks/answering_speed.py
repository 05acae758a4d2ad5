"""Measures answering: time to the first token, decoding, and `generate`, by transformers and by the fast path.

    python -m benchmarks.answering_speed --output answering.json                   # Gemma 3 4B's shapes, on a GPU
    python -m benchmarks.answering_speed --size tiny --output answering.json       # a rehearsal on a CPU

The weights are random and drawn on the device. World tokens are given, so no world model runs. Every row is written as
soon as it is measured; one that fails has its traceback in `error`.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, Gemma3ForConditionalGeneration

from benchmarks.random_weights import SIZES, cosmos_config
from benchmarks.rows import BANDWIDTH, FLOPS, Rows
from theworld.model.configuration import TheWorldConfig
from theworld.model.fast_generation import FastGeneration
from theworld.model.modeling import TheWorldForConditionalGeneration

SECTIONS = ("ours", "variants", "stock", "second-process", "float32", "peer")
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "single products": {"fused": False},
    "not tuned": {"options": None},
}
CONTEXT = 1024  # tokens before the decoding steps of variants
TEXT_TOKENS = 21  # of a chat with a short question, without images


class Bench(Rows):
    """The model, its inputs, and the rows that were measured."""

    def __init__(self, size: str, output: Path, device: str, repeats: int, only: Sequence[str] = ()) -> None:
        super().__init__("benchmarks.answering_speed", output, device, repeats, only)
        self.model = random_model(size, self.device)
        self.layers = list(self.model.language_model.layers.parameters())
        self.world_size = 784 if size == "full" else 16  # placeholders of one latent frame

    def fast(self, **options: Any) -> FastGeneration:
        """The fast path with these variants; on a CPU as plain functions."""
        modes = {} if self.on_gpu else {"compiled": False, "captured": False, "options": None}
        return FastGeneration(self.model, **(options | modes))

    def inputs(self, steps: int, batch: int = 1, question: int = 0, features: bool = False) -> dict[str, Tensor]:
        """A prompt of one image, T = 1 + steps latent frames and a question, for each row."""
        config, device = self.model.config, self.device
        gemma, generator = self.model.vlm.config, torch.Generator("cpu").manual_seed(question)
        images, world = gemma.mm_tokens_per_image, self.world_size * (1 + steps) + 2
        ids = torch.randint(10, 500, (batch, TEXT_TOKENS + images + world), generator=generator)
        ids[:, 0] = 2
        ids[:, 5 : 5 + images] = gemma.image_token_id
        ids[:, 6 + images : 6 + images + world] = config.world_token_id
        side, width = gemma.vision_config.image_size, gemma.text_config.hidden_size
        draw = torch.Generator(device).manual_seed(1)
        weight = self.model.get_input_embeddings().weight
        given = {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids, device=device),
            "token_type_ids": (ids == gemma.image_token_id).long().to(device),
            "world_embeds": torch.randn(batch, world, width, device=device, generator=draw).to(weight.dtype),
        }
        pixels = torch.rand(batch, 3, side, side, device=device, generator=draw) * 2 - 1
        if features:
            with torch.no_grad():
                return given | {"image_features": self.model.image_features(pixels)}
        return given | {"pixel_values": pixels}

    def generate(self, inputs: dict[str, Tensor], new_tokens: int, **options: Any) -> Tensor:
        return self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **options)

    # -------------------------------------------------------------------------------------------------------- floors

    def decode_floor(self, batch: int, context: int) -> float:
        """Tokens/s if a step only read its weights and the keys and values once."""
        config = self.model.config.get_text_config()
        head = self.model.get_output_embeddings().weight
        weights = sum(p.nbytes for p in self.layers) + head.nbytes
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * head.element_size()
        return batch * BANDWIDTH / (weights + batch * context * per_token)

    def prefill_floor(self, batch: int, length: int) -> float:
        """Seconds of the layers' matrix products alone."""
        return 2 * batch * length * sum(p.numel() for p in self.layers) / FLOPS

    # ------------------------------------------------------------------------------------------------------ sections

    def measure(self, arm: str, path: str, repeats: int, batches: Sequence[int] = (1, 8), **options: Any) -> None:
        """First tokens, decoding and 32 tokens, by the fast path ("on") or by transformers' loop ("off")."""
        self.model.fast_path = path
        short, long = (16, 144) if path == "on" else (4, 24)

        def forget() -> None:
            if self.model.fast is not None:
                self.model.fast.forget()

        for steps in (0, 4):
            for features in (False, True):
                inputs = self.inputs(steps, features=features)
                length = inputs["input_ids"].shape[1]

                def first(inputs: dict[str, Tensor] = inputs) -> Any:
                    started = time.perf_counter()
                    self.generate(inputs, 1, **options)
                    self.wait()
                    warm_up = time.perf_counter() - started

                    def call() -> None:
                        forget()
                        self.generate(inputs, 1, **options)

                    call()  # which records
                    return 1000 * self.seconds(call, repeats), {"warm_up_s": round(warm_up, 2)}

                what = "first token, image features given" if features else "first token"
                floor = 1000 * self.prefill_floor(1, length)
                self.row(what, arm, 1, steps, "ms", floor, first)
        for batch in batches:
            inputs = self.inputs(0, batch)
            context = inputs["input_ids"].shape[1] + (short + long) // 2

            def decode(inputs: dict[str, Tensor] = inputs, batch: int = batch) -> Any:
                started = time.perf_counter()
                self.generate(inputs, short, **options)
                self.wait()
                warm_up = time.perf_counter() - started
                self.generate(inputs, short, **options)  # whose prompt has been read; it records this
                begin = self.seconds(lambda: self.generate(inputs, short, **options), repeats)
                whole = self.seconds(lambda: self.generate(inputs, long, **options), repeats)
                return batch * (long - short) / (whole - begin), {"warm_up_s": round(warm_up, 2)}

            self.row("decode", arm, batch, 0, "tokens/s", self.decode_floor(batch, context), decode)
        for steps in (0, 4):
            inputs = self.inputs(steps)

            def answer(inputs: dict[str, Tensor] = inputs) -> float:
                def call() -> None:
                    forget()
                    self.generate(inputs, 32, **options)

                call()
                call()
                return self.seconds(call, repeats)

            self.row("generate, 32 tokens", arm, 1, steps, "s", None, answer)
        if path == "on":
            self.row("first token, other question about the image", arm, 1, 4, "ms", None, self.other_question)

    def other_question(self) -> Any:
        """Time to the first token where the image and world tokens were read for an earlier question."""
        questions = [self.inputs(4, question=number) for number in range(self.repeats + 3)]
        for number in range(1, len(questions)):  # what comes before the question is the same
            end = questions[0]["input_ids"].shape[1] - 10
            questions[number]["input_ids"][:, :end] = questions[0]["input_ids"][:, :end]
        for question in questions[:3]:
            self.generate(question, 1)
        rest = iter(questions[3:])
        value = 1000 * self.seconds(lambda: self.generate(next(rest), 1))
        return value, {"reused": self.model.fast.reused if self.model.fast is not None else 0}

    def equality(self, arm: str, batch: int = 1, new_tokens: int = 32) -> None:
        """The share of tokens that equal those of transformers' loop, and how close the logits are where they part."""
        for steps in (0, 4):
            inputs = self.inputs(steps, batch)

            def compare(inputs: dict[str, Tensor] = inputs) -> Any:
                if self.model.fast is not None:
                    self.model.fast.forget()
                written = []
                for self.model.fast_path in ("off", "on"):
                    written.append(self.generate(inputs, new_tokens)[:, inputs["input_ids"].shape[1] :])
                theirs, ours = written
                parts = (theirs != ours).any(dim=0).nonzero()
                if not parts.numel():
                    return 1.0, {"max_error": 0.0}
                at = int(parts[0])
                kept = torch.cat([inputs["input_ids"], theirs[:, :at]], dim=1)
                longer = inputs | {
                    "input_ids": kept,
                    "attention_mask": torch.ones_like(kept),
                    "token_type_ids": torch.nn.functional.pad(inputs["token_type_ids"], (0, at)),
                }
                with torch.no_grad():
                    logits = self.model(**longer, logits_to_keep=1).logits[:, -1].float()
                pair = logits.gather(1, torch.stack([theirs[:, at], ours[:, at]], dim=1))
                margin = (pair[:, 0] - pair[:, 1]).abs().max()
                more = {"parts_at": at, "margin_there": float(margin), "logits_std": float(logits.std())}
                return at / new_tokens, more

            dtype = str(self.model.dtype).removeprefix("torch.")
            self.row(f"equal first tokens of {new_tokens}, {dtype}", arm, batch, steps, "share", 1.0, compare)


def random_model(size: str, device: torch.device) -> TheWorldForConditionalGeneration:
    """A fusion with Gemma's random weights on the device, bfloat16 on a GPU, and no part of the world model."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        gemma = Gemma3ForConditionalGeneration._from_config(
            AutoConfig.for_model("gemma3", **SIZES[size].gemma), dtype=dtype
        )
        gemma.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=0.02)
        world = cosmos_config(SIZES["tiny"])  # of which nothing is used
        config = TheWorldConfig(vlm_config=gemma.config, world_config=world, world_image_size=64)
        model = TheWorldForConditionalGeneration(config, vlm=gemma, world_parts=("encoder",)).eval()
    model.projector.to(dtype)
    model.generation_config.eos_token_id = None  # every answer has all its tokens
    return model.requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; rows are added to it")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1]))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of the figures to measure; default all")
    parser.add_argument("--arm", default="ours", help="name of the rows of the section `ours`")
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    bench = Bench(chosen.size, chosen.output, chosen.device, chosen.repeats, chosen.only)
    print(f"model after {time.perf_counter() - started:.0f} s", flush=True)
    if "ours" in chosen.sections:
        bench.model.fast = bench.fast()
        bench.measure(chosen.arm, "on", chosen.repeats)
        bench.equality(chosen.arm)
        bench.equality(chosen.arm, batch=8)
    if "variants" in chosen.sections:
        for name, options in VARIANTS.items():
            release(bench)
            measure = partial(steps_per_second, bench, bench.fast(**options))
            bench.row("decoding steps", f"variant: {name}", 1, 0, "steps/s", bench.decode_floor(1, CONTEXT), measure)
    release(bench)
    if "stock" in chosen.sections:
        bench.measure("stock", "off", 2, batches=(1,))
    if "peer" in chosen.sections:
        bench.measure("best-peer", "off", 3, batches=(1,), cache_implementation="static")
    if "second-process" in chosen.sections:
        command = [sys.executable, "-m", "benchmarks.answering_speed", "--size", chosen.size, "--device", chosen.device]
        command += ["--output", str(chosen.output), "--sections", "ours", "--arm", "ours, compiled before"]
        command += ["--only", *chosen.only] if chosen.only else []
        subprocess.run([*command, "--repeats", "1"], check=False, timeout=150)
    if "float32" in chosen.sections:
        bench.model.float()
        bench.model.fast = bench.fast()
        bench.equality("ours")
    print(f"all after {time.perf_counter() - started:.0f} s", flush=True)


def steps_per_second(bench: Bench, fast: FastGeneration) -> Any:
    """Decoding steps of one row, without what `generate` does around them."""
    started = time.perf_counter()
    with torch.no_grad(), fast.running():
        session = fast.session(1, 2 * CONTEXT)
        session.step()
        bench.wait()
        warm_up = time.perf_counter() - started

        def steps() -> None:
            session.positions.fill_(CONTEXT)
            for _ in range(20):
                session.step()

        return 20 / bench.seconds(steps), {"warm_up_s": round(warm_up, 2)}


def release(bench: Bench) -> None:
    """Frees the buffers and graphs of the last variant."""
    bench.model.fast = None
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
