"""The `theworld` command: one file per subcommand, which imports libraries when it runs, so that --help is fast."""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from theworld.cli import ask, bench, cache, compare, demo, doctor, eval, gate, imagine, info, nano, push, serve, train
from theworld.cli.console import say_error
from theworld.cli.errors import one_sentence, user_facing_errors
from theworld.training.token import hide_token


class Commands(TyperGroup):
    """Turns errors into one sentence and exit code 1; `--debug` shows the traceback instead."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Also covers output outside a subcommand: --help, --version, and what Python buffers until the end."""
        if sys.stdout is None:  # closed by the caller: >&-
            sys.stdout = nowhere()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that has no × or → shows a question mark
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno is None or error.filename is not None:  # not of stdout: left to --debug
                raise
            # at exit Python would try to write the rest again, and print its own message
            sys.stdout = nowhere()
            ended = error.__context__
            reported = isinstance(ended, SystemExit) and ended.code != 0  # by the subcommand
            if not reported and error.errno != errno.EPIPE:  # EPIPE: nobody reads any more
                say_error(one_sentence(error))
            sys.exit(1)

    def invoke(self, ctx: Any) -> Any:
        with user_facing_errors(lambda: bool(ctx.meta.get("theworld.debug"))):
            return super().invoke(ctx)


def nowhere() -> TextIO:
    """A stdout that discards everything."""
    return open(os.devnull, "w", encoding="utf-8")


app = typer.Typer(
    name="theworld",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A vision-language model that imagines the next moments before it answers.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        from theworld import __version__

        typer.echo(f"theworld {__version__}")
        raise typer.Exit


@app.callback()
def before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Logging keeps Python's defaults (warnings on stderr), but each retry of a download would be a line of its own.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


app.command("ask")(ask.ask)
app.command("imagine")(imagine.imagine)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)
app.command("eval")(eval.evaluate)
app.command("compare")(compare.compare)
app.command("gate")(gate.gate)
app.add_typer(nano.app, name="nano")
app.command("train", cls=train.ConfigCommand)(train.train)
app.command("cache", cls=train.ConfigCommand)(cache.cache)
app.command("push")(push.push)
app.command("bench")(bench.bench)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point of the `theworld` script.

    After an answer, the process ends without taking the libraries apart, which takes Python a sixth of a short
    command's time. What they have registered for the end of the process is called as always.
    """
    hide_token()
    if is_short := bool(set(sys.argv[1:2]) & {"ask", "imagine", "info"}):
        # OpenMP reads it when torch is imported. Threads that wait in a loop for the next small operation took most of
        # the processor time of an answer, and held up the thread that has work where other programs run.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    succeeded: list[str] = []
    atexit.register(lambda: end_process() if succeeded else None)  # registered first, so that it is called last
    try:
        app()
    except SystemExit as ended:
        if not ended.code and is_short:
            succeeded.append(sys.argv[1])
        raise


def end_process() -> None:
    """Ends the process with exit code 0, and leaves its memory to the operating system."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by the caller
            stream.flush()
    os._exit(0)
