"""Errors as users see them: one sentence and exit code 1."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from theworld.cli.console import say_error

NO_MEMORY = "Not enough memory for this model; try fewer --steps, or a smaller model or --batch-size."


@contextmanager
def user_facing_errors(debug: Callable[[], bool]) -> Iterator[None]:
    """Turns errors that a user can fix into one sentence and exit code 1; with `debug`, they are raised unchanged."""
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
    """The text of an error; for a failed system call, its reason and the file."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{reason}; free some space, or choose another path."
        return f"{reason}; check its permissions." if error.errno in (errno.EACCES, errno.EPERM) else reason
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    torch = sys.modules.get("torch")
    return (torch is not None and isinstance(error, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
