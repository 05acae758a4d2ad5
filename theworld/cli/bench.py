"""theworld bench: runs a benchmark of the checkout that the package is installed from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import theworld
from theworld.cli import options
from theworld.messages import counted

CHECKOUT = Path(theworld.__file__).parents[1]
BENCHES = {
    "encode": ("benchmarks.rollout_speed", "--only", "encode"),
    "rollout": ("benchmarks.rollout_speed", "--only", "pass", "rollout"),
    "answer": ("benchmarks.answering_speed",),
    "prefill": ("benchmarks.answering_speed", "--only", "first token"),
    "decode": ("benchmarks.answering_speed", "--only", "decod"),
    "ask": ("benchmarks.startup_speed",),
    "eval": ("benchmarks.evaluation_speed",),
    "train": ("benchmarks.training_speed",),
    "memory": ("benchmarks.training_memory",),
}


def bench(
    name: Annotated[
        Literal["train", "encode", "rollout", "prefill", "decode", "answer", "ask", "eval", "memory"],
        typer.Argument(
            metavar="NAME",
            help="train (steps), encode (single frames), rollout (and one pass of the transformer), prefill (time to "
            "the first token), decode (tokens per second), answer (both, and generate), ask (the command as a "
            "process), eval (questions per second) or memory (of training).",
        ),
    ],
    size: Annotated[
        Literal["full", "tiny"],
        typer.Option("--size", help="full: shapes of Gemma 3 4B and Cosmos-Predict2-2B; tiny: a check in seconds."),
    ] = "full",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="JSON file of the rows. Default for full: benchmarks/results/DEVICE/NAME.json of the checkout, where "
            "prefill and decode are parts of answer.",
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Measure the speed of this library, of the libraries below it, and of their fastest settings.

    Weights are random, so nothing is downloaded. A row has the figure, the hardware's limit, the memory, the error and
    the time of the warm-up. `python -m benchmarks.performance_report` writes docs/performance.md from the rows.

    Example: theworld bench encode --size tiny --output encode.json
    """
    if not (CHECKOUT / "benchmarks").is_dir():
        raise ValueError("theworld bench needs a checkout of the repository, with an editable installation of it.")
    if size == "tiny" and output is None:
        raise ValueError("A run with --size tiny is only a check; name the file of its rows with --output FILE.")
    file = default_output(name) if output is None else Path(output).expanduser().absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    module, *arguments = BENCHES[name]
    command = [sys.executable, "-m", module, *arguments, "--size", size, "--output", str(file)]
    code = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
    if code:
        raise ValueError(f"The benchmark ended with exit code {code}; its output is above.")
    rows = json.loads(file.read_text(encoding="utf-8"))
    failed = [row for row in rows if "error" in row]
    if failed:
        raise ValueError(
            f"{file} has {counted(len(failed), 'row')} with an error instead of a figure; read them there."
        )
    typer.echo(f"{file}: {counted(len(rows), 'row')}")


def default_output(name: str) -> Path:
    """The file of a benchmark's rows on this machine."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    file = {"prefill": "answer", "decode": "answer"}.get(name, name)
    return CHECKOUT / "benchmarks" / "results" / device.lower().replace(" ", "-") / f"{file}.json"
