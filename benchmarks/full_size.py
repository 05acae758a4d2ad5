"""Measures the complete product at full size: Gemma 3 4B and Cosmos-Predict2 2B, from image to answer, on one GPU.

    python -m benchmarks.full_size --folder /tmp/full-size

The weights are random, in the exact layout of the published repositories (`benchmarks/random_weights.py`): answers are
noise, while sizes, times, memory and the parity of two programs are real. Sections:

    make      both repositories, and an adapter as training saves one
    answers   one process: times of each stage, peak memory of each call against what `theworld info` predicts
    parity    disabled world model against stock Gemma 3, bit for bit; latents against diffusers' pipeline
    training  steps of AdamW under each freeze setting: peak memory against the prediction, seconds
    describe  `theworld info` and `theworld doctor`; the table of parameters against the published counts
    commands  the commands of the documentation, each in a new process

Each section is a separate process that saves its findings continuously, so an interrupted run keeps the rest.
`--size tiny` runs everything with models of a few thousand parameters on a CPU, where memory is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from benchmarks.full_size_parity import parity
from benchmarks.full_size_run import PHOTO, QUESTION, REPEATS, REPOSITORY, Run, say
from benchmarks.full_size_sections import answers, commands, describe, make, training
from theworld.inspection.provenance import versions

# section -> (function, seconds that must be left to start it at full size)
SECTIONS: dict[str, tuple[Callable[[Run], dict[str, Any]], float]] = {
    "make": (make, 0),
    "answers": (answers, 70),
    "parity": (parity, 70),
    "training": (training, 60),
    "describe": (describe, 30),
    "commands": (commands, 45),
}


# ----------------------------------------------------------------------------------------------------------- the runner


def main(arguments: list[str] | None = None) -> int:
    """Runs each section in a separate process, and merges their findings after each."""
    options = parser().parse_args(arguments)
    folder = options.folder.absolute()
    device = torch.device(options.device)
    sections = options.sections.split(",") if options.sections else list(SECTIONS)
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise SystemExit(f"--sections has {unknown[0]!r}; choose among {', '.join(SECTIONS)}.")
    until = options.until or time.time() + options.budget_seconds
    run = Run(options.size, folder, device, until, options.photo, options.repeats)
    if options.here:
        for library in (transformers_logging, diffusers_logging):
            library.disable_progress_bar()
        for name in sections:
            started = time.perf_counter()
            content = SECTIONS[name][0](run)
            run.keep(name, {**content, "section_seconds": round(time.perf_counter() - started, 1)})
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**provenance(run, options), "sections": {}, "skipped": {}, "failed": {}}
    for name in sections:
        left = until - time.time()
        if run.size == "full" and left < SECTIONS[name][1]:
            report["skipped"][name] = f"{left:.0f} s were left and it takes {SECTIONS[name][1]:.0f} or more"
            say(f"{name} is left out: {report['skipped'][name]}")
        else:
            say(f"== {name} ({left:.0f} s left)")
            failure = run_section(name, run, options, left)
            if failure:
                report["failed"][name] = failure
                say(f"{name} failed: {failure}")
        if run.piece(name).is_file():
            report["sections"][name] = json.loads(run.piece(name).read_text(encoding="utf-8"))
        write(report, folder, options.results)
    say("results:", options.results)
    return 1 if report["failed"] or report["skipped"] else 0


def run_section(name: str, run: Run, options: argparse.Namespace, left: float) -> str | None:
    """Runs one section in a new process; returns a sentence if it failed."""
    run.piece(name).unlink(missing_ok=True)
    command = [sys.executable, "-u", "-m", "benchmarks.full_size", "--here", "--sections", name]
    command += ["--size", run.size, "--folder", str(run.folder), "--device", str(run.device)]
    command += ["--until", str(run.until), "--photo", str(run.photo.absolute()), "--repeats", str(run.repeats)]
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, timeout=max(left, 1), check=False)
    except subprocess.TimeoutExpired:
        return "stopped at the end of the budget"
    return f"exit code {ended.returncode}; see its last lines" if ended.returncode else None


def provenance(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Date, machine, versions, and the commit of the checkout or of --commit."""
    commit = options.commit
    if commit is None:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    cuda = run.device.type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "command": shlex.join(["python", "-m", "benchmarks.full_size", *sys.argv[1:]]),
        "size": run.size,
        "weights": "random, in the published layout",
        "card": torch.cuda.get_device_name(run.device) if cuda else f"none ({os.cpu_count()} CPU cores)",
        "card_bytes": torch.cuda.get_device_properties(run.device).total_memory if cuda else None,
        "versions": versions(),
        "photo": run.photo.name,
        "question": QUESTION,
    }


def write(report: Mapping[str, Any], folder: Path, results: Path) -> None:
    """Writes the report as JSON and as Markdown."""
    from benchmarks.full_size_report import markdown

    results.parent.mkdir(parents=True, exist_ok=True)
    for path, text in (
        (results, json.dumps(report, indent=2, ensure_ascii=False) + "\n"),
        (results.with_suffix(".md"), markdown(report)),
    ):
        for place, name in (
            (folder, "FOLDER"),
            (REPOSITORY, "."),
            (results.absolute().parent, "RESULTS"),
            (Path.home(), "~"),
        ):  # of no use elsewhere
            text = text.replace(str(place), name)
        path.write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, required=True, help="for models and intermediate files; must be empty")
    made.add_argument("--size", choices=("full", "tiny"), default="full")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--sections", default="", help="comma-separated list; default: all")
    made.add_argument(
        "--budget-seconds", type=float, default=540, help="sections that do not fit are left out and reported"
    )
    made.add_argument("--repeats", type=int, default=REPEATS, help="of every timed call, after a warm-up call")
    made.add_argument("--photo", type=Path, default=PHOTO)
    made.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "full_size.json")
    made.add_argument("--commit", help="commit, for a copy without git")
    made.add_argument("--here", action="store_true", help="run the sections in this process and write no report")
    made.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
