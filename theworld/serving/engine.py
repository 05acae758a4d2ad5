"""The engine: one thread that owns the model, takes jobs from a queue, and does those that fit together at once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from theworld.inference.pipeline import TheWorld
from theworld.serving.errors import as_request_error
from theworld.serving.jobs import Abandoned, Job
from theworld.serving.metrics import Metrics

logger = logging.getLogger(__name__)
SMOOTHING = 0.1  # weight of the last batch in the mean time per job


class Arrival:
    """A request that may become a job; `end` says that it has, or never will."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        engine.expect(1)

    def end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.expect(-1)


ARRIVAL: ContextVar[Arrival] = ContextVar("arrival")  # of the request that a coroutine works for


class Engine:
    """Loads a model and does jobs in batches.

    A batch begins as soon as the model is free. It waits for more jobs, `batch_wait` seconds at most, only while
    requests are on their way (`Arrival`), so that a client that is alone never waits.

    Args:
        load: loads the model, in the engine's thread.
        metrics: where batches are counted.
        batch_size: jobs of a batch, at most.
        ended: called in the engine's thread if loading fails.

    Attributes:
        model: None until it is loaded.
        failure: why it could not be loaded, or None.
        seconds_per_job: mean time, for `Retry-After`.
    """

    def __init__(
        self,
        load: Callable[[], TheWorld],
        metrics: Metrics,
        *,
        batch_size: int = 16,
        batch_wait: float = 0.01,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.model: TheWorld | None = None
        self.failure: BaseException | None = None
        self.seconds_per_job = 1.0
        self._load, self._metrics, self._ended = load, metrics, ended
        self._batch_size, self._batch_wait = batch_size, batch_wait
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._expected = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the jobs that are waiting."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def add(self, job: Job) -> None:
        with self._changed:
            self._waiting.append(job)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def expect(self, change: int) -> None:
        """Changes the number of requests that have arrived and are not jobs yet."""
        with self._changed:
            self._expected += change
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Ends a job: one that waits is removed, one that runs stops after its current token or denoising step."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.waiting.set(len(self._waiting))

    def _run(self) -> None:
        try:
            self.model = self._load()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it again
            self.failure = error
            self._ended()
            return
        while batch := self._next_batch():
            started = time.perf_counter()
            self._metrics.batch_size.observe(len(batch))
            self._metrics.running.set(len(batch))
            self._work(self.model, batch)
            self._metrics.running.set(0)
            seconds = (time.perf_counter() - started) / len(batch)
            self.seconds_per_job += SMOOTHING * (seconds - self.seconds_per_job)

    def _next_batch(self) -> list[Job]:
        """The job that has waited longest and others that fit; none if the engine is closed."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
            batch: list[Job] = []
            end = time.monotonic() + self._batch_wait
            while True:
                first = batch[0] if batch else self._waiting[0]
                same = [job for job in self._waiting if job.key == first.key][: self._batch_size - len(batch)]
                for job in same:
                    self._waiting.remove(job)
                batch += same
                left = end - time.monotonic()
                if len(batch) == self._batch_size or not self._expected or left <= 0:
                    break
                self._changed.wait(left)
            self._metrics.waiting.set(len(self._waiting))
        return batch

    def _work(self, model: TheWorld, batch: list[Job]) -> None:
        batch = [job for job in batch if not job.cancelled]
        if not batch:
            return
        try:
            batch[0].work(model, batch)
        except Abandoned:
            return
        except Exception as error:  # noqa: BLE001 - clients and the log say it
            if len(batch) > 1 and not any(job.started for job in batch):
                logger.info("A batch failed (%s); its requests are repeated one by one.", error)
                for job in batch:
                    self._work(model, [job])
                return
            failure = as_request_error(error)
            for job in batch:
                job.deliver(failure)
