"""Progress and messages on stderr; results go to stdout only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.table import Table

PLAIN_WIDTH = 140  # columns of a table in a file or a pipe
TABLE_WIDTH = 110  # columns that a table needs
LINE_EVERY = 10.0  # seconds between lines if there is no terminal for a progress bar

Step = Callable[[str, int, int], None]


def stderr() -> Console:
    """A console on the current stderr, which a test may have replaced."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """A console for tables: as wide as the terminal, but at least so wide that no name or figure is cut.

    A narrow terminal then wraps the lines.
    """
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH) if console.is_terminal else PLAIN_WIDTH
    return console


def say(text: str) -> None:
    """Prints one line on stderr."""
    stderr().print(text, markup=False)


def plain_table(*columns: str, show_header: bool = True) -> Table:
    """A table without lines."""
    from rich.table import Table

    return Table(*columns, box=None, padding=(0, 2, 0, 0), show_header=show_header)


def figures(name: str, *columns: str) -> Table:
    """A table of names and right-aligned numbers."""
    table = plain_table(name)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def say_error(text: str) -> None:
    stderr().print(f"[bold red]Error:[/] {escape(text)}")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows a spinner while something of unknown duration runs; nothing if there is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def counting() -> Iterator[Step]:
    """Yields step(what, done, total), which updates a progress bar, or prints lines if there is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield lines(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    shown: dict[str, tuple[TaskID, int]] = {}  # the bars, and where each began: a resumed run begins in the middle
    bars = Progress(*columns, console=console, transient=True)

    def step(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = (bars.add_task(what, total=total, completed=done, rate=""), done)
            bars.start()
        task, begin = shown[what]
        seconds = next(bar.elapsed for bar in bars.tasks if bar.id == task) or 0.0
        bars.update(task, completed=done, rate=f"{(done - begin) / seconds:.1f}/s" if seconds > 0 else "")
        if done >= total:  # only what is going on is shown
            bars.remove_task(shown.pop(what)[0])
            if not shown:
                bars.stop()  # the terminal is free for the bar of a download

    try:
        yield step
    finally:
        bars.stop()


def lines(console: Console) -> Step:
    """Progress without a terminal: one line every LINE_EVERY seconds."""
    started: dict[str, tuple[float, int]] = {}
    last = time.monotonic()

    def step(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start, begin = started.setdefault(what, (now, done))
        if done >= total:
            started.pop(what)
        if now - last < LINE_EVERY:
            return
        last = now
        rate = (done - begin) / (now - start) if now > start else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        console.print(f"{what}: {done}/{total}{left}", markup=False)

    return step
