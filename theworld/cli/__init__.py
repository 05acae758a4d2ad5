"""The `theworld` command: one file per verb; each imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from theworld.cli import ask, cache, doctor, eval, imagine, info, nano, train
from theworld.cli.errors import errors_told
from theworld.cli.token import hide_token


class Verbs(TyperGroup):
    """Turns what went wrong into one sentence and exit code 1; `--debug` shows the traceback instead."""

    def invoke(self, ctx: Any) -> Any:
        with errors_told(lambda: bool(ctx.meta.get("theworld.debug"))):
            return super().invoke(ctx)


app = typer.Typer(
    name="theworld",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A vision-language model that sees a few moments ahead.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        from theworld import __version__

        typer.echo(f"theworld {__version__}")
        raise typer.Exit


@app.callback()
def before_any_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # logging stays as Python has it, warnings on stderr: only the first set-up counts, and `nano train` has one;
    # but every retry of a download would be a line before our own sentence
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


app.command("ask")(ask.ask)
app.command("imagine")(imagine.imagine)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)
app.add_typer(eval.app, name="eval")
app.add_typer(nano.app, name="nano")
app.command("train")(train.train)
app.command("cache")(cache.cache)


def main() -> None:
    """Entry point of the `theworld` script."""
    hide_token()
    app()
