"""Stopping a run: what SIGTERM and Ctrl-C do at each moment of it.

This module imports no other library, so that a command can install the handler before its slow imports.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM  # the exit code that a shell gives to a process ended by SIGTERM
INTERRUPTED = 128 + signal.SIGINT
PARENT_CHECK_SECONDS = 1.0  # after which a worker notices that its run was killed
BEFORE, TRAINING, ENDING = "before the first step", "during training", "after the last step"


class Stop:
    """Within the context, SIGTERM and Ctrl-C end a run with one sentence that says what is saved.

    SIGTERM before the first step ends the process with exit code 143. Between the first and the last step it sets
    `requested`, on which the run saves a checkpoint after the current step and ends with exit code 0. From the last
    step on, it changes nothing: the run ends when the final model is saved. Further signals never interrupt the saving.
    Ctrl-C raises KeyboardInterrupt at any moment, as usual.

    Attributes:
        phase: BEFORE, TRAINING or ENDING; set by the run.
        requested: whether SIGTERM was received.
        outcome: returns a sentence on what is saved; set by the run.
    """

    def __init__(self) -> None:
        self.phase = BEFORE
        self.requested = False
        self.outcome: Callable[[], str] = lambda: "nothing was trained, and no checkpoint was written."
        self._previous: Any = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # the only one that may handle signals
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted and sys.stderr.isatty():
            sys.stderr.write("\n")  # a new line after ^C
        if interrupted or (self.requested and (self.phase == TRAINING or isinstance(error, SystemExit))):
            cause = "Ctrl-C" if interrupted else "SIGTERM"
            logger.warning("Stopped by %s %s: %s", cause, self.phase, self.outcome())

    def begin(self) -> None:
        """Begins the training, unless a library caught the exception that should have ended the run before."""
        if self.requested:
            raise SystemExit(TERMINATED)
        self.phase = TRAINING

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = " again" if self.requested else ""
        self.requested = True
        if self.phase == BEFORE:
            raise SystemExit(TERMINATED)
        if self.phase == TRAINING:
            logger.warning("SIGTERM received%s: the run ends when a checkpoint is saved after this step", again)
        else:
            logger.warning("SIGTERM received%s after the last step: the run ends when the model is saved", again)


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Inside, SIGTERM waits; processes that are started inside block it from their first moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(number: int, *, then: Callable[[int], None] | None) -> None:
    """Starts a worker that prepares batches: it ends with its parent, or by a SIGTERM of its parent alone.

    `timeout` and schedulers send the signal to all processes of a run, which needs its workers to complete the step.
    The parent is the process that created the worker; with the start method forkserver it is not that of `os.getppid`.

    Args:
        number: of the worker.
        then: DataLoader's own `worker_init_fn`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # a fork server does not pass on the run's mask
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        while parent.is_alive():
            received = signal.sigtimedwait([signal.SIGTERM], PARENT_CHECK_SECONDS)
            if received is not None and received.si_pid == parent.pid:
                break
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    if then is not None:
        then(number)
