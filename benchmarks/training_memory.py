"""The source document's four memory rows, measured: peak memory and samples a second of `theworld train` on one GPU.

    python -m benchmarks.random_weights /tmp/full-size
    python -m benchmarks.training_memory --folder /tmp/full-size
    python -m benchmarks.training_memory --size tiny --output memory.json      # a rehearsal on a CPU

Each row is `configs/default.json` with one or two keys changed, run by the recipe itself for a few optimiser steps in a
process of its own; what does not fit says so. Samples are physics scenes, weights are random, N = 0. `--output` writes
the peaks as rows of docs/performance.md; on a CPU they are those that `benchmarks.live_memory` counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.live_memory import LiveMemory
from benchmarks.random_weights import SIZES, make_bases
from benchmarks.rows import Rows
from theworld.inspection.memory import GIB
from theworld.inspection.provenance import versions

REPOSITORY = Path(__file__).parent.parent
CONFIG = "configs/default.json"
CHECKPOINTED = "use_gradient_checkpointing=true"
VISION, LANGUAGE, VAE = (f"freeze_{part}=false" for part in ("gemma_vision", "gemma_language", "cosmos_vae"))
# row -> what it changes in the config
ROWS: dict[str, tuple[str, ...]] = {
    "projection only": (),
    "+ vision encoder": (VISION,),
    "+ vision encoder, checkpointing": (VISION, CHECKPOINTED),
    "full model, checkpointing": (VISION, LANGUAGE, VAE, CHECKPOINTED),
    "full model, checkpointing, one sample": (VISION, LANGUAGE, VAE, CHECKPOINTED, "batch_size=1"),
}


TINY = ("mixed_precision=fp32", "world_image_size=64", "num_samples=8", "max_steps=2")


class StepTimes(TrainerCallback):
    """Seconds of each optimiser step, until the GPU is done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(changes: list[str]) -> dict[str, Any]:
    """Trains in this process, and returns times and memory."""
    from theworld.training import recipe
    from theworld.training.config import TrainingConfig
    from theworld.training.trainer import TheWorldTrainer

    times = StepTimes()

    class Timed(TheWorldTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.add_callback(times)

    setattr(recipe, "TheWorldTrainer", Timed)  # noqa: B010 a class of its own for this process
    config = TrainingConfig.read(REPOSITORY / CONFIG, changes)
    found: dict[str, Any] = {"batch_size": config.batch_size}
    counted = None if torch.cuda.is_available() else LiveMemory()
    try:
        with counted or nullcontext():
            recipe.train(config)
    except torch.OutOfMemoryError as error:
        return {**found, "out_of_memory": str(error).partition(". ")[0]}
    steps = [later - earlier for earlier, later in zip(times.ends, times.ends[1:], strict=False)]
    found["seconds_a_step"] = round(statistics.median(steps), 3)
    found["samples_a_second"] = round(config.batch_size / statistics.median(steps), 2)
    if torch.cuda.is_available():
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    if counted is not None:
        found["peak_gib"] = round(counted.peak / GIB, 4)
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="holds gemma/ and cosmos/; default a temporary folder")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the weights, which are written if missing")
    parser.add_argument("--output", type=Path, help="JSON file that the peaks are added to as rows")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of each row")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="in every row")
    parser.add_argument("--rows", default="", help="some of them, by number from 0, with commas")
    parser.add_argument("--until", type=float, default=float("inf"), help="second by which the last row has to begin")
    parser.add_argument("--results", type=Path, help="JSON file of the report; default the committed one, or none")
    parser.add_argument("--commit", help="of this checkout, where it is a copy without git")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.one:
        print(json.dumps(measure(arguments.changes)))
        return
    if arguments.results is None and arguments.output is None:
        arguments.results = REPOSITORY / "benchmarks/results/training_memory.json"
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = arguments.folder or Path(temporary)
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Measures the chosen rows, and writes them as soon as they are known."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make_bases(arguments.folder, arguments.size, device)
    rows = None if arguments.output is None else Rows("benchmarks.training_memory", arguments.output, device, 1)
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": arguments.commit,
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": versions(),
        "config": CONFIG,
        "rows": {},
    }
    chosen = [int(number) for number in arguments.rows.split(",")] if arguments.rows else range(len(ROWS))
    for name in (list(ROWS)[number] for number in chosen):
        if time.time() > arguments.until:
            found["rows"][name] = {"left_out": "no time was left"}
            continue
        fixed = [
            f"model_name={arguments.folder}/gemma", f"cosmos_model_name={arguments.folder}/cosmos",
            f"output_dir={arguments.folder}/run", f"max_steps={arguments.steps}", "gradient_accumulation_steps=1",
            "do_eval=false", "save_steps=1000000", "num_samples=64", "warmup_steps=1",
            *(TINY if arguments.size == "tiny" else ()),
        ]  # fmt: skip
        if (arguments.folder / "run").exists():  # of the row before
            shutil.rmtree(arguments.folder / "run")
        command = [sys.executable, "-m", "benchmarks.training_memory", "--folder", str(arguments.folder), "--one"]
        for change in (*fixed, *ROWS[name], *arguments.changes):
            command += ["--set", change]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        lines = ended.stdout.strip().splitlines()
        row = json.loads(lines[-1]) if ended.returncode == 0 else {"failed": ended.stderr.strip()[-800:]}
        found["rows"][name] = {"changes": ROWS[name], **row}
        print(name, row, flush=True)
        if arguments.results is not None:
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            arguments.results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if rows is not None:
            rows.keep(as_row(name, row))


def as_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The peak of a row, as `benchmarks.rows` keeps it."""
    kept = {"what": f"training, {name}", "arm": "ours", "batch": row.get("batch_size"), "world_steps": 0, "unit": "GiB"}
    if "peak_gib" not in row:
        error = {"error": row["failed"]} if "failed" in row else {"out_of_memory": True}
        return {**kept, "value": None, **error}
    return {**kept, "value": row["peak_gib"], "peak_gib": row["peak_gib"], "floor": None}


if __name__ == "__main__":
    main()
