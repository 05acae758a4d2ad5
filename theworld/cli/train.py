"""theworld train: trains a model from a config and the changes to it on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from theworld.cli import options
from theworld.cli.console import counting

if TYPE_CHECKING:
    from theworld.training.config import TrainingConfig

ResumeFrom = Annotated[
    str | None,
    typer.Option(
        "--resume_from",
        metavar="NAME",
        help="Resume from a checkpoint folder, a run's folder (its last checkpoint), `last` (the last checkpoint of "
        "the output folder, if there is one), or a Hub id.",
    ),
]
OutputDir = Annotated[
    str | None, typer.Option("--output_dir", metavar="DIR", help="Folder of the model, checkpoints and logs.")
]
HfToken = Annotated[
    str | None,
    typer.Option("--hf_token", metavar="TOKEN", help="Hugging Face token. Prefer the HF_TOKEN environment variable."),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="physics, jsonl, datacomp, lerobot, a .jsonl file, a .py file with a load_datasets(config), a folder, or "
        "a Hub id.",
    ),
]
NumSamples = Annotated[
    int | None, typer.Option("--num_samples", metavar="K", help="Limit on the number of training samples.")
]
Streaming = Annotated[
    bool | None, typer.Option("--streaming/--no-streaming", help="Stream the dataset (requires max_steps).")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the config, as learning_rate=1e-3 (repeatable); --learning_rate 1e-3 does the same.",
    ),
]


class ConfigCommand(TyperCommand):
    """A command whose config keys are options as well: `--learning_rate 1e-3` means `--set learning_rate=1e-3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {
            option for parameter in self.get_params(ctx) for option in (*parameter.opts, *parameter.secondary_opts)
        }
        from theworld.training.command_line import keys_as_set

        return super().parse_args(ctx, keys_as_set(args, known))


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

    Every key of a config is an option, and so is every field of transformers.TrainingArguments: --learning_rate 1e-3,
    --optim adafactor. SIGTERM saves a checkpoint after the current step and ends the run with exit code 0, or 143
    before the first step; Ctrl-C ends it at once. --resume_from last resumes it with the same result. Keys:
    docs/training_infrastructure_design.md.

    Example: theworld train configs/nano_projector.json --output_dir runs/projector --learning_rate 5e-3
    """
    from theworld.training.command_line import import_recipe
    from theworld.training.stopping import Stop

    with Stop() as stop:
        settings = read_config(
            config,
            changes,
            resume_from_checkpoint=resume_from,
            output_dir=output_dir,
            hf_token=hf_token,
            dataset_name=dataset,
            num_samples=num_samples,
            streaming=streaming,
        )
        recipe = import_recipe()
        with counting() as step:
            folder = recipe.train(settings, progress=step, stop=stop)
        typer.echo(folder)


def read_config(path: str, changes: list[str] | None, **given: Any) -> TrainingConfig:
    """The config of a command line."""
    from theworld.training.command_line import log_to_stderr
    from theworld.training.config import TrainingConfig

    log_to_stderr()
    config = TrainingConfig.read(path, changes or [], **given)
    config.check_files()
    return config
