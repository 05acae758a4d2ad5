"""theworld train: a config, and what the command line changes in it, to a trained model."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from theworld.cli import options
from theworld.cli.console import counting, say

if TYPE_CHECKING:
    from theworld.training.config import TrainingConfig
    from theworld.training.dataset_loading import LoadDatasets

ResumeFrom = Annotated[
    str | None,
    typer.Option(
        "--resume_from",
        metavar="PLACE",
        help="Go on from a checkpoint folder, a run's folder (its last one), `last` (of the output folder, if there is "
        "one), or a Hub id.",
    ),
]
OutputDir = Annotated[
    str | None, typer.Option("--output_dir", metavar="DIR", help="Model, checkpoints and logs go here.")
]
HfToken = Annotated[
    str | None,
    typer.Option(
        "--hf_token",
        metavar="TOKEN",
        help="Moved to the environment, out of the process list; better set HF_TOKEN there yourself.",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="physics, jsonl, datacomp, a .jsonl file, a .py file with a load_datasets(config), a folder, or a Hub id.",
    ),
]
NumSamples = Annotated[int | None, typer.Option("--num_samples", metavar="K", help="At most so many training samples.")]
Streaming = Annotated[
    bool | None, typer.Option("--streaming/--no-streaming", help="Read the dataset as it comes; needs max_steps.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change any key of the config, as learning_rate=1e-3; may be repeated."
    ),
]


class KeysBehindSet(TyperCommand):
    """A verb that takes a config: a key of it given as an option of its own is told how to write it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {option for each in self.get_params(ctx) for option in (*each.opts, *each.secondary_opts)}
        for place, argument in enumerate(args):
            option, equals, value = argument.partition("=")
            key = option.removeprefix("--").replace("-", "_")
            if argument == "--":  # no options behind it
                break
            if not option.startswith("--") or {option, f"--{key}"} & known or key not in keys():
                continue
            if not equals:
                value = args[place + 1] if place + 1 < len(args) and not args[place + 1].startswith("--") else "VALUE"
            ctx.fail(f"No such option: {option}; write --set {shlex.quote(f'{key}={value}')}.")
        return super().parse_args(ctx, args)


def keys() -> set[str]:
    """The keys of a config; asked only where somebody may mean one."""
    from theworld.training.config import TrainingConfig

    return {each.name for each in dataclasses.fields(TrainingConfig)}


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A JSON file, such as configs/default.json.")],
    resume_from: ResumeFrom = None,
    output_dir: OutputDir = None,
    hf_token: HfToken = None,
    dataset: DatasetName = None,
    num_samples: NumSamples = None,
    streaming: Streaming = None,
    changes: Changes = None,
    debug: options.Debug = False,
) -> None:
    """Train a model: defaults, then CONFIG, then these options.

    SIGTERM saves and ends with exit code 0, Ctrl-C ends at once; a run that was stopped or killed goes on with
    --resume_from last, as if it had not been. Keys and their meanings: docs/training_infrastructure_design.md.

    Example: theworld train configs/nano_projector.json --set output_dir=runs/projector
    """
    run(read_config(config, resume_from, output_dir, hf_token, dataset, num_samples, streaming, changes))


def read_config(
    path: str,
    resume_from: str | None,
    output_dir: str | None,
    hf_token: str | None,
    dataset: str | None,
    num_samples: int | None,
    streaming: bool | None,
    changes: list[str] | None,
) -> TrainingConfig:
    """The config of a command line."""
    from theworld.training.config import TrainingConfig

    return TrainingConfig.read(
        path,
        changes or [],
        resume_from_checkpoint=resume_from,
        output_dir=output_dir,
        hf_token=hf_token,
        num_samples=num_samples,
        streaming=streaming,
        dataset_name=dataset,
    )


def run(config: TrainingConfig, load: LoadDatasets | None = None) -> None:
    """Trains, and says where the model is.

    Args:
        load: gives the samples; None means what the config names.
    """
    from theworld.training.dataset_loading import load_datasets
    from theworld.training.recipe import train as train_model

    log_to_stderr()
    try:
        with counting() as step:
            folder = train_model(config, load or load_datasets, progress=step)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            say("")  # below the bar, and what Ctrl-C shows
        say(what_is_saved(config))
        raise
    typer.echo(folder)


def what_is_saved(config: TrainingConfig) -> str:
    """What a run that was broken off has left."""
    from theworld.training.trainer import find_last_checkpoint

    last = find_last_checkpoint(config.output_dir)
    if last is None:
        return f"Stopped; nothing was saved in {config.output_dir} yet."
    return f"Stopped; {last} is whole, and the same command with --resume_from last goes on from it."


def log_to_stderr() -> None:
    """Our own lines, and only those: libraries say no more than their warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("theworld").setLevel(logging.INFO)
