"""Errors of worker processes are one sentence, as without workers."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.training.conftest import image, records
from theworld.datasets.streams import StreamedSamples
from theworld.inference.latent_cache import WorldRequest
from theworld.training import recipe
from theworld.training.config import TrainingConfig
from theworld.training.workers import NO_SHARED_MEMORY, errors_of_workers, guard_workers

Settings = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loaders whose worker failed wait for it when they are collected, for this number of seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.png"
    Image.fromarray(image(0)).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    return str(path)


@pytest.mark.parametrize("where", ["training", "future", "evaluation", "stream", "cache"])
def test_a_sample_that_cannot_be_read_is_named(settings: Settings, tmp_path: Path, broken: str, where: str) -> None:
    chats, bad = records(2), {"image": broken, "text": "What?", "label": "a"}
    if where == "future":
        bad = {**records(1)[0], "future_frames": [image(0), broken, *[image(0)] * 14]}
    wrong = [*chats, bad]
    train: Any = StreamedSamples(wrong) if where == "stream" else chats if where == "evaluation" else wrong
    changes: dict[str, Any] = {
        "future": {"num_world_steps": 1, "true_futures": 1.0},
        "evaluation": {"do_eval": True, "eval_steps": 1, "shown_samples": 0},
        "stream": {"stream_parts": 1},
        "cache": {"latent_cache": str(tmp_path / "latents")},
    }.get(where, {})
    config = settings(num_workers=1, batch_size=1, max_steps=3, **changes)
    with pytest.raises(ValueError, match="broken") as error:
        recipe.train(config, lambda _: (train, wrong))
    origin = {"stream": "streamed record", "evaluation": "evaluation sample"}.get(where, "training sample")
    said = rf"{origin} 2: (Image . of .: )?'{broken}' is damaged or cut short \([^()]*\): download or save .*\."
    assert re.fullmatch(said, str(error.value))


class Failing(Dataset):
    """Samples whose reading fails in a worker."""

    def __init__(self, fail: Callable[[], Any]) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.fail()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_the_system_ended(number: signal.Signals) -> None:
    loader = guard_workers(DataLoader(Failing(lambda: os.kill(os.getpid(), number)), num_workers=1))
    words = (
        r"The system ended a process that prepares batches \(DataLoader worker .*\), .* set num_workers to a smaller"
    )
    with pytest.raises(ValueError, match=words), errors_of_workers():
        list(loader)


def test_a_worker_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which otherwise drops its batch, so that training waits for it for ever."""
    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    request = {"world_requests": [WorldRequest(pixels, 0, 0)]}
    loader = guard_workers(DataLoader(Failing(lambda: request), batch_size=None, num_workers=1, collate_fn=dict))
    assert [batch["world_requests"][0].pixels.is_shared() for batch in loader] == [True, True]

    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(ValueError, match=re.escape(NO_SHARED_MEMORY)) as error, errors_of_workers():
        list(loader)
    assert str(error.value) == NO_SHARED_MEMORY


def test_workers_that_cannot_be_started_for_lack_of_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(loader: DataLoader) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DataLoader, "_get_iterator", full)
    with pytest.raises(ValueError, match=re.escape(NO_SHARED_MEMORY)):
        iter(guard_workers(DataLoader([1], num_workers=1)))
    with pytest.raises(OSError, match="No space left"):  # of a disk
        iter(guard_workers(DataLoader([1])))
