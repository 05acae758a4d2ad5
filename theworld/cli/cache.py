"""theworld cache: the world latents of a config's samples, computed before training."""

from __future__ import annotations

from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.console import counting
from theworld.cli.train import Changes, DatasetName, HfToken, NumSamples, log_to_stderr, read_config


def cache(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A JSON file that names a latent_cache.")],
    hf_token: HfToken = None,
    dataset: DatasetName = None,
    num_samples: NumSamples = None,
    changes: Changes = None,
    debug: options.Debug = False,
) -> None:
    """Compute the world latents that training with CONFIG will ask for, and keep them in its `latent_cache`.

    Entries are found by what they show, so runs and datasets share them; what is there is not computed again, and a
    command that was killed goes on where it was. Training does the same before it starts; this lets another machine do
    it, or several at a time.

    Example: theworld cache configs/nano_projector.json
    """
    from theworld.training import recipe

    settings = read_config(config, None, None, hf_token, dataset, num_samples, None, changes)
    log_to_stderr()
    with counting() as step:
        filled, new = recipe.fill(settings, progress=step)
    typer.echo(f"{filled.folder}: {len(filled)} entries, {new} of them new")
