"""The `theworld` command: one file per verb; each imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from theworld.cli import ask, doctor, eval, imagine, info, nano
from theworld.cli.console import say_error


class Verbs(TyperGroup):
    """Turns what went wrong into one sentence and exit code 1; `--debug` shows the traceback instead."""

    shown: BaseException | None = None  # what --debug wants to see

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
            if error is self.shown:
                raise
            # when it ends, Python would try again to write the rest, and complain in its own way
            sys.stdout = nowhere()
            if error.errno != errno.EPIPE:  # whoever read has gone, and wants nothing more
                say_error(one_sentence(error))
            sys.exit(1)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, MemoryError) as error:
            if ctx.meta.get("theworld.debug"):
                self.shown = error
                raise
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            say_error(one_sentence(error))
        except RuntimeError as error:
            if ctx.meta.get("theworld.debug") or not is_out_of_memory(error):
                raise
            say_error("not enough memory for this model; try fewer --steps, or a smaller model or --batch-size.")
        raise typer.Exit(1)


def nowhere() -> TextIO:
    """A stdout that takes everything and keeps nothing."""
    return open(os.devnull, "w", encoding="utf-8")


def one_sentence(error: BaseException) -> str:
    """An error as people should read it: what a system call says, with the file it was about."""
    if isinstance(error, MemoryError):
        return "not enough memory for this model; try fewer --steps, or a smaller model or --batch-size."
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{said}; make room, or choose another place."
        return f"{said}; check its permissions." if error.errno in (errno.EACCES, errno.EPERM) else said
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    torch = sys.modules.get("torch")
    return (torch is not None and isinstance(error, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


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


def main() -> None:
    """Entry point of the `theworld` script."""
    app()
