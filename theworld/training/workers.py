"""Worker processes that prepare batches: their shared memory, their errors and their end."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from theworld.inference.latent_cache import WorldRequest
from theworld.training.stopping import obey_parent_only, sigterm_blocked

NO_SHARED_MEMORY = (
    "The processes that prepare batches need more shared memory than /dev/shm has: set num_workers to 0, or start the "
    "container with a larger one (`docker run` has the option shm-size: 8g is enough)."
)
ENDED = "is killed by signal", "exited unexpectedly"  # in torch's words
OF_WORKER = re.compile(
    r"Caught (?P<kind>\w+) in DataLoader worker process .*^[\w.]*(?P=kind): (?P<text>.*)", re.M | re.S
)


def guard_workers(loader: DataLoader) -> DataLoader:
    """Makes workers end with this process, leave SIGTERM to it, and report a lack of shared memory."""
    loader.worker_init_fn = partial(obey_parent_only, then=loader.worker_init_fn)
    loader.collate_fn = partial(in_shared_memory, loader.collate_fn)
    start_workers = loader._get_iterator

    def with_sigterm_blocked() -> Any:
        try:
            with sigterm_blocked():
                return start_workers()
        except OSError as error:
            if loader.num_workers and error.errno == errno.ENOSPC:  # for the locks of its queues
                raise ValueError(NO_SHARED_MEMORY) from error
            raise

    loader._get_iterator = with_sigterm_blocked  # type: ignore[method-assign]
    return loader


def in_shared_memory(collate: Callable[[Any], Any], samples: Any) -> Any:
    """A batch, which a worker moves to shared memory itself.

    The thread that would do it later drops a batch for which there is no memory, and training would wait for it.
    """
    batch = collate(samples)
    if get_worker_info() is not None:
        try:
            share(batch)
        except RuntimeError as error:
            raise ValueError(NO_SHARED_MEMORY) from error
    return batch


def share(value: Any) -> None:
    """Moves all tensors of a batch to shared memory."""
    if isinstance(value, Tensor):
        value.share_memory_()
    elif isinstance(value, WorldRequest):
        value.pixels.share_memory_()
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            share(each)


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Within the context, an error of a worker reads as in this process, without the worker's traceback.

    Raises:
        ValueError: with the text of the worker's error, or if the system ended a worker.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if found := OF_WORKER.match(str(error)):
            raise ValueError(" ".join(found["text"].split())) from error
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in ENDED):
            raise
        cause = str(error).partition(". ")[0]
        raise ValueError(
            f"The system ended a process that prepares batches ({cause}), probably since memory is full, or the shared "
            "memory in /dev/shm: set num_workers to a smaller number or to 0, or give a container more of both."
        ) from error
