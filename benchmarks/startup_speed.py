"""Measures how long `theworld ask` takes as a new process: wall and CPU seconds, checkouts in turn.

    python -m benchmarks.startup_speed --before ../older-checkout --output startup.json
    python -m benchmarks.startup_speed --before ../older-checkout --output startup.json --size full --folder /tmp/full

`--size tiny` asks nano on the CPU. `--size full` writes random weights of the published shapes once, and asks Gemma 3
4B with Cosmos-Predict2 2B on the GPU. The arm `after` is this checkout; both run in the Python of this process. The
first run of each arm, which may compile sources and fill the file cache, is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
QUESTION = "Will the stack on the yellow stand fall on the red or green side, or stay standing?"


def command_of(size: str, folder: Path) -> list[str]:
    """The measured command, without its interpreter; writes the weights of `--size full` if they are missing."""
    if size == "tiny":
        image = folder / "tower.png"
        scene = ["nano", "scene", "tower", "--index", "15", "-o", str(image)]
        subprocess.run([sys.executable, "-m", "theworld.cli", *scene], check=True, cwd=CHECKOUT, capture_output=True)
        return ["ask", str(image), QUESTION, "--steps", "4"]
    if not (folder / "cosmos" / "model_index.json").is_file():
        weights = [sys.executable, "-m", "benchmarks.random_weights", str(folder)]
        subprocess.run(weights, check=True, cwd=CHECKOUT)
    photo = str(CHECKOUT / "benchmarks" / "grace_hopper.jpg")
    models = ["--model", str(folder / "gemma"), "--world-model", str(folder / "cosmos")]
    return ["ask", photo, "What will happen next?", *models, "--steps", "4", "--mode", "frames"]


def run(checkout: Path, command: list[str]) -> dict[str, Any]:
    """Seconds of one process, its own report of them, and its answer."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "theworld.cli", *command, "--json"],
        env=environment, cwd=checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise RuntimeError(f"{checkout}: {result.stderr[-2000:]}")
    said = json.loads(result.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, **said["seconds"], "answer_text": said["answer"], "device": said["device"]}


def commit_of(checkout: Path) -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--before", type=Path, help="an older checkout to compare with")
    parser.add_argument("--runs", type=int, default=3, help="of each arm, after the first")
    parser.add_argument("--folder", type=Path, help="where images and weights are written; default a temporary one")
    parser.add_argument("--output", type=Path, default=Path("startup_speed.json"), help="JSON file of rows to extend")
    options = parser.parse_args(arguments)
    arms = {**({"before": options.before.absolute()} if options.before else {}), "after": CHECKOUT}
    rows = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else []

    def keep(row: dict[str, Any]) -> None:
        print(json.dumps(row))
        rows.append(row)
        options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as temporary:
        command = command_of(options.size, (options.folder or Path(temporary)).absolute())
        seconds: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
        for number in range(options.runs + 1):
            for name, checkout in arms.items():
                try:
                    seconds[name].append(run(checkout, command))
                    print(name, number, seconds[name][-1], flush=True)
                except (RuntimeError, OSError, ValueError):
                    keep({"what": "ask as a process", "arm": name, "error": traceback.format_exc()})
    import torch

    answers = {one["answer_text"] for measured in seconds.values() for one in measured}
    for name, measured in seconds.items():
        for which, chosen in (("first run", measured[:1]), ("median", measured[1:])):
            for what in ("wall", "cpu", "load", "answer") if chosen else ():
                keep(
                    {
                        "what": f"ask as a process, {which}, {what}",
                        "arm": name,
                        "batch": 1,
                        "world_steps": 4,
                        "value": round(statistics.median(one[what] for one in chosen), 2),
                        "unit": "s",
                        "floor": None,
                        "peak_gib": None,
                        "max_error": 0.0 if len(answers) == 1 else None,  # the answers of all runs are equal, or not
                        "warm_up_s": None,
                        "command": " ".join(["theworld", *command]),
                        "commit": commit_of(arms[name]),
                        "device": chosen[0]["device"],
                        "torch": torch.__version__,
                        "date": datetime.now(UTC).date().isoformat(),
                    }
                )


if __name__ == "__main__":
    main()
