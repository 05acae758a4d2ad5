"""Measures training steps by transformers' own means and by the recipe: samples per second and memory.

    python -m benchmarks.training_speed --output train.json                  # shapes of 4B + 2B, on a GPU
    python -m benchmarks.training_speed --size tiny --output train.json      # a rehearsal on a CPU

Each row is a run of `benchmarks.training_throughput` in a process of its own: the recipe, with the loss and the layers
that an arm has. `step` repeats one batch, so that the loader does not count. `max_error` is the distance of the loss of
the first ten steps from stock's. Only the projector is trained; with steps to imagine, latents come from a cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_weights import SIZES
from benchmarks.rows import FLOPS, REPOSITORY, Rows
from benchmarks.training_throughput import TRAINERS, make

LABELS = 20  # tokens of an answer and around it
LANGUAGE, VISION = 3.2e9, 0.41e9  # weights of the layers of Gemma 3 4B and of its vision tower


@dataclass(frozen=True)
class Stage:
    """What is trained: the options of `training_throughput`, and which arms are measured."""

    batch: int
    steps: int = 0
    options: tuple[str, ...] = ("--repeat_batch",)
    caches: tuple[str, ...] = ()
    arms: tuple[str, ...] = tuple(TRAINERS)


STAGES = {
    "step, nothing cached": (Stage(8), Stage(4, arms=("stock",))),
    "step, vision and latents cached": (Stage(8, caches=("vision_cache", "latent_cache")),),
    "step, latents cached": (Stage(4, steps=4, caches=("latent_cache",)),),
    "with the loader": (Stage(8, options=(), arms=("ours",)),),
}


class Bench(Rows):
    """Runs of `training_throughput`, and their rows."""

    def __init__(self, folder: Path, chosen: argparse.Namespace) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__("benchmarks.training_speed", chosen.output, device, 1, chosen.only)
        self.folder, self.size, self.num_steps, self.workers = folder, chosen.size, chosen.steps, chosen.workers
        self.losses: dict[tuple[str, Stage], list[float]] = {}
        make(folder, chosen.size, device)

    def measure(self, what: str, stage: Stage, arms: Sequence[str]) -> None:
        for arm in stage.arms:
            if arm in arms:
                floor = None if self.size == "tiny" else self.floor(what, stage)
                run = lambda arm=arm: self.run(what, stage, arm)  # noqa: E731
                self.row(what, arm, stage.batch, stage.steps, "samples/s", floor, run)

    def run(self, what: str, stage: Stage, arm: str) -> tuple[float | None, dict[str, Any]]:
        fast_path = "on" if arm == "ours" and self.on_gpu else "off"
        command = [sys.executable, "-m", "benchmarks.training_throughput", "train", str(self.folder)]
        command += ["--size", self.size, "--arm", arm, "--fast_path", fast_path, *stage.options]
        command += ["--batch_size", str(stage.batch), "--num_world_steps", str(stage.steps)]
        workers = 1 if "--repeat_batch" in stage.options else self.workers  # each would repeat a batch of its own
        command += ["--num_workers", str(workers), "--steps", str(self.num_steps)]
        for cache in stage.caches:
            command += [f"--{cache}", str(self.folder / cache), "--num_samples", "64"]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if "OutOfMemoryError" in ended.stderr:
            return None, {"out_of_memory": True}
        if ended.returncode:
            raise RuntimeError(ended.stderr[-2500:])
        found = json.loads(ended.stdout.strip().splitlines()[-1])
        more: dict[str, Any] = {"warm_up_s": round(found["seconds_until_first_step"], 1)}
        if found["peak_bytes"] is not None:
            more["peak_gib"] = round(found["peak_bytes"] / 2**30, 2)
        more["first_loss"] = found["losses"][0] if found["losses"] else None
        if arm == "stock":
            self.losses[what, stage] = found["losses"]
        elif losses := self.losses.get((what, stage)):
            more["max_error"] = abs(found["losses"][0] - losses[0])
        return found["samples_per_second"], more

    def floor(self, what: str, stage: Stage) -> float:
        """Samples per second if only matrix products took time: all tokens forward, those after the image backward."""
        tokens = 280 + 784 * (1 + stage.steps) + LABELS
        vision = 0.0 if "vision_cache" in stage.caches else 2 * VISION * 4096
        backward = 2 * LANGUAGE * (tokens - 262)  # frozen weights have no gradients of their own
        return FLOPS / (2 * LANGUAGE * tokens + backward + vision)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; rows are added to it")
    parser.add_argument("--folder", type=Path, help="where weights and photos are kept; default a temporary folder")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of each run, of which 20 are not timed")
    parser.add_argument("--workers", type=int, default=6, help="processes that load data")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of the figures to measure; default all")
    parser.add_argument("--arms", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(chosen.folder or Path(temporary) / "base", chosen)
        for what, stages in STAGES.items():
            for stage in stages:
                bench.measure(what, stage, chosen.arms)


if __name__ == "__main__":
    main()
