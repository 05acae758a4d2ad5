"""What went wrong, as people are told: one sentence, exit code 1."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from theworld.cli.console import say_error

NO_MEMORY = "not enough memory for this model; try fewer --steps, or a smaller model or --batch-size."


@contextmanager
def errors_told(debug: Callable[[], bool]) -> Iterator[None]:
    """Inside, what a person can do something about becomes one sentence and exit code 1; with `debug`, a traceback."""
    try:
        yield
        return
    except (ValueError, OSError, MemoryError) as error:
        if debug() or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            raise
        say_error(one_sentence(error))
    except RuntimeError as error:
        if debug() or not is_out_of_memory(error):
            raise
        say_error(NO_MEMORY)
    raise typer.Exit(1)


def one_sentence(error: BaseException) -> str:
    """An error as people should read it: what a system call says, with the file it was about."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
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
