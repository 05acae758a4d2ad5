"""theworld cache: computes the world latents of a config's samples before training."""

from __future__ import annotations

from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.console import counting
from theworld.cli.train import Changes, DatasetName, HfToken, NumSamples, read_config
from theworld.messages import counted


def cache(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A JSON file with a latent_cache.")],
    hf_token: HfToken = None,
    dataset: DatasetName = None,
    num_samples: NumSamples = None,
    changes: Changes = None,
    debug: options.Debug = False,
) -> None:
    """Compute the world latents that training with CONFIG needs, and write them to its `latent_cache`.

    Entries are identified by their content, so that runs and datasets share them and an interrupted command resumes.
    Training does the same before its first step; this command does it on another machine, or on several at a time.

    Example: theworld cache configs/nano_projector.json
    """
    from theworld.training.command_line import import_recipe
    from theworld.training.stopping import Stop

    with Stop() as stop:
        stop.outcome = lambda: "the entries that were computed are kept, and the same command computes the others."
        settings = read_config(config, changes, hf_token=hf_token, dataset_name=dataset, num_samples=num_samples)
        recipe = import_recipe()
        with counting() as step:
            filled, new = recipe.fill(settings, progress=step)
        typer.echo(f"{filled.folder}: {counted(len(filled), 'entry', 'entries')}, {new} of them new")
