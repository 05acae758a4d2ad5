"""theworld push: uploads a trained model to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from theworld.cli import options
from theworld.cli.console import say, waiting


def push(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A trained model, a run's folder, or a checkpoint.")],
    repository: Annotated[str, typer.Argument(metavar="ID", help="The repository, owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    last: Annotated[
        bool, typer.Option("--last-checkpoint", help="Also upload the last checkpoint, to resume from.")
    ] = False,
    every: Annotated[bool, typer.Option("--all-checkpoints", help="Also upload every checkpoint.")] = False,
    debug: options.Debug = False,
) -> None:
    """Upload a trained model to the Hub, with a model card made from its files.

    The repository is created if it does not exist. What is uploaded: the adapter, its configuration, the settings of
    the run, logs and samples. The token is that of HF_TOKEN or of `hf auth login`.

    Example: theworld push runs/mine username/theworld-mine --private
    """
    if last and every:
        raise ValueError("--last-checkpoint and --all-checkpoints were both given; use one of them.")
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {folder!r}; name a trained model.")
    from theworld.storage.hub import read_json
    from theworld.training.card import model_card
    from theworld.training.push import check_repository, check_token, local_bases, make_repository
    from theworld.training.uploads import NotPushed, push, run_files

    check_repository(repository)
    model_card(Path(folder), repository)  # refuses what is no model
    for problem in local_bases(read_json(folder)):
        say(f"Note: {problem}")
    strategy = "checkpoint" if last else "all_checkpoints" if every else "end"
    check_token("Uploading", "or upload it later")
    make_repository(repository, private, "or upload it later")
    files = run_files(Path(folder), repository, strategy)
    with waiting(f"Uploading {len(files)} files …"):
        try:
            push(files, repository, f"Upload {Path(folder).name}")
        except NotPushed as error:
            raise ValueError(f"{folder} could not be uploaded to {repository}: {error}.") from error
    say(f"Uploaded {len(files)} files.")
    from huggingface_hub import constants

    typer.echo(f"{constants.ENDPOINT}/{repository}")
