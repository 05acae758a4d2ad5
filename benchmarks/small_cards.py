"""Measures the memory of small-card settings at full size, on a GPU whose memory is limited to that of a small card.

    python -m benchmarks.small_cards --folder /tmp/full-size --output small_cards.json
    python -m benchmarks.small_cards --size tiny --folder /tmp/tiny --output small_cards.json   # a rehearsal on a CPU

The base models are written to the folder with random weights, in the published layout, unless they are there. What
`theworld info` predicts is printed next to each peak; a card of X GB has X·10^9 bytes, and what does not fit in them
has its traceback in `error`.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size_run import PHOTO, QUESTION
from benchmarks.random_weights import SIZES, make_cosmos, make_gemma
from benchmarks.rows import Rows
from benchmarks.training_memory import measure as train
from theworld import TheWorld
from theworld.inspection import small_cards
from theworld.inspection.memory import GIB, Prediction
from theworld.inspection.parameters import build_on_meta
from theworld.model import freezing
from theworld.model.lora_settings import lora_settings

NEW_TOKENS = 16
STEPS = {"full": 4, "tiny": 1}
SECTIONS = ("answers", "offload", "training", "plain", "8bit")


class Cards(Rows):
    """The folder of the models, and the rows.

    Attributes:
        counts, quantised: numbers of weights of each part, and those of them that are quantised.
    """

    def __init__(self, size: str, folder: Path, output: Path, device: str) -> None:
        super().__init__("benchmarks.small_cards", output, device, 1)
        self.size, self.folder, self.steps = size, folder, STEPS[size]
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.shape = {} if size == "full" else {"world_image_size": 32}
        self.counts: dict[str, int] = {}
        self.quantised: dict[str, int] = {}
        self.config: Any = None
        self.latents: torch.Tensor | None = None  # imagined without offloading

    def write(self) -> None:
        """Writes what is missing of the two base models."""
        started = time.perf_counter()
        for name, make in (("gemma", make_gemma), ("cosmos", make_cosmos)):
            if not (self.folder / name).exists():
                make(self.folder / name, SIZES[self.size], self.device)
                self.free()
        print(f"base models after {time.perf_counter() - started:.0f} s", flush=True)

    @contextmanager
    def card(self, gigabytes: int) -> Any:
        """Inside, torch may allocate as much as a card of this size leaves to it; yields fields of rows."""
        self.free()
        if self.on_gpu:
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(gigabytes * 10**9 / total)
        try:
            yield {"limit_gib": round(gigabytes * 10**9 / GIB, 2)}
        finally:
            self.free()
            if self.on_gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def describe(self, model: TheWorld) -> None:
        """Counts the weights, for the predictions."""
        self.config = model.config
        built = build_on_meta(model.config)
        self.counts = {row.part: row.total for row in freezing.count_parameters(built)}
        self.quantised = small_cards.quantised_counts(built)

    def peak(
        self, what: str, arm: str, steps: int, limit: dict[str, Any], predicted: Callable[[], Prediction], call: Any
    ) -> Any:
        """Runs a call, and writes a row with its peak and the predicted one; returns what the call returns."""
        returned = None

        def run() -> Any:
            nonlocal returned
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            try:
                returned = call()
            finally:
                self.wait()
                seconds = round(time.perf_counter() - started, 1)
                peaks = [0.0, 0.0]
                if self.on_gpu:
                    peaks = [torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB]
                guess = predicted().peak / GIB if self.counts else None
                shown = "unknown" if guess is None else f"{guess:.2f}"
                print(f"  allocated {peaks[0]:.2f}, reserved {peaks[1]:.2f}, predicted {shown} GiB, {seconds} s")
            more = {"reserved_gib": round(peaks[1], 2), "predicted_gib": guess and round(guess, 2), "seconds": seconds}
            return peaks[0], {**limit, **more}

        self.row(what, arm, 1, steps, "GiB", None, run)
        return returned

    def load(self, **settings: Any) -> TheWorld:
        """The model by its saved folder, or for the first time a new fusion of the bases, which is then saved."""
        saved = self.folder / "fusion"
        common: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "fast_path": "off", **settings}
        if saved.exists():
            return TheWorld.from_pretrained(saved, **common)
        model = TheWorld(
            self.folder / "gemma", 0, str(self.folder / "cosmos"), max_world_steps=4, **common, **self.shape
        )
        model.config.reads_world_tokens = True
        freezing.train_only(model.model, ["projector"])
        model.save_pretrained(saved)
        return model

    def answer(self, model: TheWorld, arm: str, steps: int, limit: dict[str, Any], **settings: Any) -> None:
        """A row of one answer."""
        predicted = partial(
            small_cards.answering, self.config, self.counts, self.quantised, num_world_steps=steps, **settings
        )
        call = partial(
            model.generate, PHOTO, QUESTION, NEW_TOKENS, num_world_steps=steps, mode="tokens", min_new_tokens=NEW_TOKENS
        )
        self.peak(f"answer, N={steps}", arm, steps, limit, partial(predicted, b=self.dtype.itemsize), call)

    def answers(self, card: int, arm: str, quantization: str | None, offload: bool) -> None:
        """Rows of loading and of answers with none and some imagined steps."""
        settings = {"quantization": quantization, "offload": offload}
        with self.card(card) as limit:
            load = partial(self.load, quantization=quantization, world_model_offload="cpu" if offload else "none")
            first = partial(
                small_cards.answering, self.config, self.counts, self.quantised, num_world_steps=0, **settings
            )
            model = self.peak("load", arm, 0, limit, first, load)
            if model is None:
                return
            if not self.counts:
                self.describe(model)
            for steps in (0, self.steps):
                self.answer(model, arm, steps, limit, **settings)
            self.compare(model, arm, quantization)

    def compare(self, model: TheWorld, arm: str, quantization: str | None) -> None:
        """A row of the difference of what is imagined with and without offloading."""

        def difference() -> Any:
            latents = model.imagine(PHOTO, self.steps).float().cpu()
            started = time.perf_counter()
            model.imagine(PHOTO, self.steps)
            self.wait()
            seconds = {"seconds": round(time.perf_counter() - started, 2)}
            if self.latents is None:
                self.latents = latents
            return float((latents - self.latents).abs().max()), seconds

        if quantization is not None:
            self.row(
                "imagined latents, largest difference from those without offload",
                arm,
                1,
                self.steps,
                "",
                None,
                difference,
            )

    def training(self, card: int, arm: str, trained: tuple[str, ...], *changes: str) -> None:
        """A row of some steps of the recipe with one sample each."""
        config, counts = self.config, self.counts
        if "lora" in trained:
            config, counts = small_cards.with_lora(config, counts)
        predicted = partial(
            small_cards.training, config, counts, self.quantised, trained, quantization="4bit", b=self.dtype.itemsize
        )
        output = self.folder / "run"
        shutil.rmtree(output, ignore_errors=True)
        fixed = [
            f"model_name={self.folder}/gemma", f"cosmos_model_name={self.folder}/cosmos", f"output_dir={output}",
            "quantization=4bit", "max_steps=3", "batch_size=1", "gradient_accumulation_steps=1", "do_eval=false",
            "num_samples=4", "warmup_steps=1", "num_workers=0", "log_to_tensorboard=false",
            f"mixed_precision={'bf16' if self.on_gpu else 'fp32'}", *(f"{k}={v}" for k, v in self.shape.items()),
        ]  # fmt: skip

        def run() -> Any:
            found = train([*fixed, *changes])
            if "out_of_memory" in found:
                raise RuntimeError(found["out_of_memory"])
            return found

        with self.card(card) as limit:
            self.peak(f"train the {trained[-1]}", arm, 0, limit, predicted, run)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--folder", type=Path, required=True, help="holds gemma/ and cosmos/, or gets them: 13 GB")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; rows are added to it")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    cards = Cards(chosen.size, chosen.folder.absolute(), chosen.output, chosen.device)
    cards.write()
    cards.answers(12, "4bit", "4bit", False)
    if "offload" in chosen.sections and cards.on_gpu:
        cards.answers(12, "4bit, offload", "4bit", True)
    if "training" in chosen.sections:
        cards.training(16, "4bit", ("projector",))
        cards.training(16, "4bit", ("projector", "lora"), f"lora={lora_settings(small_cards.RANK)['r']}")
    if "plain" in chosen.sections and cards.on_gpu:
        cards.answers(12, "plain, offload", None, True)
    if "8bit" in chosen.sections and cards.on_gpu:
        cards.answers(12, "8bit", "8bit", False)


if __name__ == "__main__":
    main()
