"""The source document's four memory rows, measured: peak memory and samples a second of `theworld train` on one GPU.

    python -m benchmarks.random_weights /tmp/full-size
    python -m benchmarks.training_memory --folder /tmp/full-size

Each row is `configs/default.json` with one or two keys changed, run by the recipe itself for a few optimiser steps in a
process of its own; what does not fit says so. Samples are physics scenes, weights are random, N = 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

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

    times = StepTimes()

    class Timed(recipe.TheWorldTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.add_callback(times)

    recipe.TheWorldTrainer = Timed  # type: ignore[misc]
    config = TrainingConfig.read(REPOSITORY / CONFIG, changes)
    found: dict[str, Any] = {"batch_size": config.batch_size}
    try:
        recipe.train(config)
    except torch.OutOfMemoryError as error:
        return {**found, "out_of_memory": str(error).partition(". ")[0]}
    steps = [later - earlier for earlier, later in zip(times.ends, times.ends[1:], strict=False)]
    found["seconds_a_step"] = round(statistics.median(steps), 3)
    found["samples_a_second"] = round(config.batch_size / statistics.median(steps), 2)
    if torch.cuda.is_available():
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="holds gemma/ and cosmos/")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of each row")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="in every row")
    parser.add_argument("--rows", default="", help="some of them, by number from 0, with commas")
    parser.add_argument("--until", type=float, default=float("inf"), help="second by which the last row has to begin")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks/results/training_memory.json")
    parser.add_argument("--commit", help="of this checkout, where it is a copy without git")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.changes)))
        return
    report: dict[str, Any] = {
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
            report["rows"][name] = {"left_out": "no time was left"}
            continue
        fixed = [
            f"model_name={arguments.folder}/gemma", f"cosmos_model_name={arguments.folder}/cosmos",
            f"output_dir={arguments.folder}/run", f"max_steps={arguments.steps}", "gradient_accumulation_steps=1",
            "do_eval=false", "save_steps=1000000", "num_samples=64", "warmup_steps=1",
        ]  # fmt: skip
        if (arguments.folder / "run").exists():  # of the row before
            shutil.rmtree(arguments.folder / "run")
        command = [sys.executable, "-m", "benchmarks.training_memory", "--folder", str(arguments.folder), "--one"]
        for change in (*fixed, *ROWS[name], *arguments.changes):
            command += ["--set", change]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        lines = ended.stdout.strip().splitlines()
        row = json.loads(lines[-1]) if ended.returncode == 0 else {"failed": ended.stderr.strip()[-800:]}
        report["rows"][name] = {"changes": ROWS[name], **row}
        print(name, row, flush=True)
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
