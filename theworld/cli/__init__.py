"""The `theworld` command: one file per verb; each imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from theworld.cli import ask, cache, compare, doctor, eval, imagine, info, nano, train
from theworld.cli.console import say_error
from theworld.cli.errors import errors_told, one_sentence
from theworld.cli.token import hide_token


class Verbs(TyperGroup):
    """Turns what went wrong into one sentence and exit code 1; `--debug` shows the traceback instead."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Also around what is written outside a verb: --help, --version, and what Python holds back until the end."""
        if sys.stdout is None:  # closed by whoever started us: >&-
            sys.stdout = nowhere()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without our × or → shows a question mark
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno is None or error.filename is not None:  # not of stdout: --debug wants it as it is
                raise
            # when it ends, Python would try again to write the rest, and complain in its own way
            sys.stdout = nowhere()
            if error.errno != errno.EPIPE:  # whoever read has gone, and wants nothing more
                say_error(one_sentence(error))
            sys.exit(1)

    def invoke(self, ctx: Any) -> Any:
        with errors_told(lambda: bool(ctx.meta.get("theworld.debug"))):
            return super().invoke(ctx)


def nowhere() -> TextIO:
    """A stdout that takes everything and keeps nothing."""
    return open(os.devnull, "w", encoding="utf-8")


app = typer.Typer(
    name="theworld",
    cls=Verbs,
    no_args_is_help=True,
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
app.command("eval")(eval.evaluate)
app.command("compare")(compare.compare)
app.add_typer(nano.app, name="nano")
app.command("train", cls=train.ConfigCommand)(train.train)
app.command("cache", cls=train.ConfigCommand)(cache.cache)


def main() -> None:
    """Entry point of the `theworld` script."""
    hide_token()
    app()
