"""Clips and latents on the accelerator: training draws batches from its memory, and a thread keeps filling it.

A clip is 209 KB as uint8 and 10 KB as bf16 latents, so that memory holds more of either than a run draws, and no loader
stands between data and training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.nano.clips import waiting_shards
from theworld.storage.files import atomic_file

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05


class FrameBuffer:
    """A ring of uint8 clips (capacity, F, H, W, 3), filled from a shard folder by a thread; shards are deleted as read.

    `sample` draws from what the ring holds. `take` hands clips out once each, in order, and frees their places.

    Args:
        shape: (F, H, W) of a clip.
        device: where the ring lives.
    """

    def __init__(self, folder: Path, capacity: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self.capacity = capacity
        self.clip_shape = shape
        self.filled = 0  # clips ever written
        self.taken = 0  # clips ever handed out by `take`
        self._folder = folder
        self._device = device
        self._ring = torch.empty((capacity, *shape, 3), dtype=torch.uint8, device=device)
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._fill, name="frame-buffer", daemon=True)

    def __enter__(self) -> FrameBuffer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def available(self) -> int:
        """Number of clips from which `sample` selects."""
        self.check()
        return min(self.filled, self.capacity)

    def waiting(self) -> int:
        """Number of clips that `take` has not returned yet."""
        self.check()
        return self.filled - self.taken

    def sample(self, n: int) -> Tensor:
        """n random clips, uint8 (n, F, H, W, 3). Only while nothing is taken, because clips could be overwritten."""
        return self._ring[torch.randint(self.available(), (n,), device=self._device)]

    def take(self, n: int) -> Tensor:
        """The next n clips at most, uint8 (≤ n, F, H, W, 3), as a copy."""
        n = min(n, self.waiting())
        places = (self.taken + torch.arange(n, device=self._device)) % self.capacity
        clips = self._ring[places]
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the copy is done before the thread may write there
        self.taken += n
        return clips

    def check(self) -> None:
        """Raises a RuntimeError if the filling thread has failed."""
        if self._failure is not None:
            raise RuntimeError("reading clip shards failed") from self._failure

    def _fill(self) -> None:
        try:
            stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            with torch.cuda.stream(stream):
                while not self._stop.is_set():
                    shards = waiting_shards(self._folder)
                    for shard in shards:
                        if not self._write(shard, stream):
                            break
                    if not shards:
                        self._stop.wait(POLL_SECONDS)
        except (OSError, RuntimeError, ValueError) as error:  # reported to the training loop, which cannot see a thread
            self._failure = error

    def _write(self, shard: Path, stream: torch.cuda.Stream | None) -> bool:
        """Copies one shard into the ring; False when there is no room for it yet."""
        clips = torch.from_numpy(np.load(shard))
        n = clips.shape[0]
        while self.filled - self.taken + n > self.capacity:
            if self._stop.wait(POLL_SECONDS):
                return False
        start = self.filled % self.capacity
        head = min(n, self.capacity - start)
        self._ring[start : start + head].copy_(clips[:head])
        if head < n:
            self._ring[: n - head].copy_(clips[head:])
        if stream is not None:
            stream.synchronize()
        self.filled += n
        shard.unlink()
        return not self._stop.is_set()


class LatentBank:
    """Normalised latents (capacity, C, T, h, w) in bf16 that only grow, spilled to `folder` so that a rerun finds them.

    Args:
        shape: (C, T, h, w) of a clip's latents.
        spill: clips per file.
    """

    def __init__(
        self, folder: Path, capacity: int, shape: tuple[int, ...], device: torch.device, spill: int = 8192
    ) -> None:
        self.capacity = capacity
        self.count = 0
        self._folder = folder
        self._spill = spill
        self._spilled = 0
        self._bank = torch.empty((capacity, *shape), dtype=torch.bfloat16, device=device)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.safetensors")):
            latents = load_file(file)["latents"][: capacity - self.count]
            self._bank[self.count : self.count + len(latents)] = latents.to(device)
            self.count += len(latents)
        self._spilled = self.count

    def add(self, latents: Tensor) -> None:
        """Appends (n, C, T, h, w); what does not fit is dropped."""
        latents = latents[: self.capacity - self.count]
        self._bank[self.count : self.count + len(latents)] = latents.to(torch.bfloat16)
        self.count += len(latents)
        if self.count - self._spilled >= self._spill:
            self.flush()

    def flush(self) -> None:
        """Spills what has not been spilled."""
        if self.count == self._spilled:
            return
        file = self._folder / f"{self._spilled:08d}.safetensors"
        with atomic_file(file) as unfinished:
            save_file({"latents": self._bank[self._spilled : self.count].cpu()}, unfinished)
        self._spilled = self.count

    def full(self) -> bool:
        return self.count >= self.capacity

    def sample(self, n: int) -> Tensor:
        """n random latents, float32 (n, C, T, h, w)."""
        return self._bank[torch.randint(self.count, (n,), device=self._bank.device)].float()


def wait_for_clips(clips: Callable[[], int], wanted: int, capacity: int, check: Callable[[], None]) -> None:
    """Waits until there are `wanted` clips, or `capacity` clips."""
    started = time.monotonic()
    while clips() < min(wanted, capacity):
        check()
        time.sleep(POLL_SECONDS)
    if (waited := time.monotonic() - started) > 1:
        logger.info("Waited %.0f s for clips", waited)
