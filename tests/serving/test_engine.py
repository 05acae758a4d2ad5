"""When a batch begins: at once for a client that is alone, and with requests that are on their way otherwise."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from theworld.model.call_plan import CallPlan
from theworld.serving.engine import Arrival, Engine
from theworld.serving.jobs import Job
from theworld.serving.metrics import Metrics

LONG = 60.0  # seconds that no test waits


@dataclass(eq=False)
class Noted(Job):
    """A job that only notes its batch."""

    kind = "noted"
    images: list[Any] = field(default_factory=list)
    plan: CallPlan = field(default_factory=lambda: CallPlan("off", 0, ()))
    batches: queue.Queue[list[Job]] = field(default_factory=queue.Queue)
    may_run: threading.Event | None = None

    @classmethod
    def work(cls, model: Any, jobs: Sequence[Noted]) -> None:
        jobs[0].batches.put(list(jobs))
        if (event := jobs[0].may_run) is not None:
            assert event.wait(LONG)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(lambda: object(), Metrics(), batch_size=3, batch_wait=LONG)  # type: ignore[arg-type, return-value]
    made.start()
    yield made
    made.close()


def test_a_request_that_is_alone_does_not_wait(engine: Engine) -> None:
    job = Noted()
    engine.add(job)
    assert job.batches.get(timeout=LONG / 2) == [job]


def test_requests_on_their_way_are_waited_for(engine: Engine) -> None:
    arrivals, jobs = [Arrival(engine), Arrival(engine)], [Noted(), Noted()]
    for job, arrival in zip(jobs, arrivals, strict=True):
        engine.add(job)
        arrival.end()
    assert jobs[0].batches.get(timeout=LONG / 2) == jobs


def test_requests_that_never_become_jobs_are_not_waited_for(engine: Engine) -> None:
    arrival, refused, job = Arrival(engine), Arrival(engine), Noted()
    engine.add(job)
    arrival.end()
    refused.end()
    refused.end()
    assert job.batches.get(timeout=LONG / 2) == [job]
    assert engine._expected == 0


def test_batches_are_full_and_of_one_kind_and_the_oldest_job_is_first(engine: Engine) -> None:
    first = Noted(may_run=threading.Event())
    engine.add(first)
    first.batches.get(timeout=LONG / 2)
    other = Noted(seed=1, batches=first.batches)
    jobs = [Noted(batches=first.batches) for _ in range(4)]
    gone = Noted(batches=first.batches)
    for job in (jobs[0], other, *jobs[1:], gone):
        engine.add(job)
    engine.cancel(gone)
    assert first.may_run is not None
    first.may_run.set()
    batches = [first.batches.get(timeout=LONG / 2) for _ in range(3)]
    assert batches == [jobs[:3], [other], jobs[3:]]


def test_closing_finishes_what_waits() -> None:
    engine, job = Engine(lambda: object(), Metrics()), Noted()  # type: ignore[arg-type, return-value]
    engine.add(job)
    engine.start()
    engine.close()
    assert job.batches.get_nowait() == [job]
