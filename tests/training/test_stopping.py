"""Workers that prepare batches end with their run, and with nothing else, whichever way processes are started."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from theworld.training.stopping import obey_parent_only, sigterm_blocked

METHODS = ("fork", "forkserver")  # the default of Python before and since 3.14


def work(ready: Connection) -> None:
    obey_parent_only(0, then=None)
    ready.send(os.getpid())
    while True:
        signal.pause()


def run(ready: Connection, method: str) -> None:
    """A run that is killed as soon as its worker is ready; the worker holds a copy of `ready`."""
    multiprocessing.get_context(method).Process(target=work, args=(ready,)).start()
    signal.pause()


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_is_ended_by_its_run_alone(method: str) -> None:
    context = multiprocessing.get_context(method)
    reader, writer = context.Pipe(duplex=False)
    with sigterm_blocked():
        worker = context.Process(target=work, args=(writer,))
        worker.start()
    pid = reader.recv()
    other = context.Process(target=os.kill, args=(pid, signal.SIGTERM))
    other.start()
    other.join()
    worker.join(timeout=0.2)
    assert worker.exitcode is None
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_ends_when_its_run_is_killed(method: str) -> None:
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(writer, method))
    process.start()
    writer.close()
    reader.recv()
    process.kill()
    assert reader.poll(60)
    with pytest.raises(EOFError):  # no process holds the other end any more
        reader.recv()
