"""What the sections of `benchmarks/full_size.py` share: constants, one run, and measurements of time and memory."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from theworld.inspection import memory

if TYPE_CHECKING:
    from theworld import TheWorld

REPOSITORY = Path(__file__).parent.parent
PHOTO = Path(__file__).parent / "grace_hopper.jpg"
QUESTION = "What will happen next in this picture?"
ANSWER = "The woman will smile at the camera and then turn her head."
STEPS = {"full": 4, "tiny": 1}  # world steps of every call that imagines
NEW_TOKENS = 32
REPEATS = 3

# parameters of the published repositories, by the components of `theworld info`
PUBLISHED = {
    "projection": 43_520,
    "vision tower": 416_866_032,
    "vision projector": 2_950_272,
    "text embeddings": 671_252_480,
    "language model": 3_209_010_688,
    "VAE encoder": 53_595_872,
    "world transformer": 1_956_413_440,
}
PUBLISHED_SUMS = {"Gemma 3 4B": 4_300_079_472, "VAE": 126_892_531}
GEMMA_COMPONENTS = ("vision tower", "vision projector", "text embeddings", "language model")
VAE_COMPONENTS = ("VAE encoder", "VAE decoder", "VAE latent convolutions")

# Latents are held to diffusers' by ||ours - theirs|| / ||theirs||. In bfloat16 two ways to batch guidance round
# otherwise; what is allowed there is what the pipeline's own latents move by between bfloat16 and float32.
FLOAT32_TOLERANCE = 1e-4
WITHIN = 0.15  # of measured memory

# call -> (whether it imagines, mode, images per batch)
CALLS: dict[str, tuple[bool, str, int]] = {
    "now, tokens": (False, "tokens", 1),
    "now, tokens, 4 pictures": (False, "tokens", 4),
    "future, tokens": (True, "tokens", 1),
    "future, tokens, 4 pictures": (True, "tokens", 4),
    "future, frames": (True, "frames", 1),
}


@dataclass(frozen=True)
class Setting:
    """Trainable parts, batch size and options of a training step."""

    learns: tuple[str, ...]
    batch: int
    checkpointing: bool = False
    imagines: bool = False


# an asterisk marks the four rows of the source document
TRAINING = {
    "projector, B=1": Setting(("projector",), 1),
    "projector, B=4 *": Setting(("projector",), 4),
    "projector, B=4, checkpointing": Setting(("projector",), 4, checkpointing=True),
    "+ VAE encoder, B=4": Setting(("projector", "vae_encoder"), 4),
    "+ vision, B=4 *": Setting(("projector", "vision"), 4),
    "+ vision, B=4, checkpointing *": Setting(("projector", "vision"), 4, checkpointing=True),
    "all, B=1, checkpointing *": Setting(("projector", "vision", "language", "vae_encoder"), 1, checkpointing=True),
    "projector, B=1, future": Setting(("projector",), 1, imagines=True),  # last, because it loads the world transformer
}


@dataclass
class Run:
    """Settings of a run; `until` is the time, as `time.time()`, at which everything must have ended."""

    size: str
    folder: Path
    device: torch.device
    until: float
    photo: Path = PHOTO
    repeats: int = REPEATS

    @property
    def gemma(self) -> Path:
        return self.folder / "gemma"

    @property
    def cosmos(self) -> Path:
        return self.folder / "cosmos"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def steps(self) -> int:
        return STEPS[self.size]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def piece(self, section: str) -> Path:
        return self.folder / f"{section}.json"

    def keep(self, section: str, content: Mapping[str, Any]) -> None:
        """Writes the findings of a section so far."""
        self.piece(section).write_text(json.dumps(content, indent=2), encoding="utf-8")

    def fits(self, seconds: float) -> bool:
        """Whether this many seconds are left; what does not fit is left out and reported."""
        return time.time() + (seconds if self.size == "full" else 0) < self.until


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


# -------------------------------------------------------------------------------------------------------- measurements


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> list[float]:
    """Wall time of each of `repeats` calls, GPU work included."""
    found = []
    for _ in range(repeats):
        finish(device)
        started = time.perf_counter()
        call()
        finish(device)
        found.append(time.perf_counter() - started)
    return found


def milliseconds(call: Callable[[], Any], run: Run) -> dict[str, Any]:
    """Median and all times of `run.repeats` calls, after a warm-up call."""
    call()
    found = [1000 * seconds for seconds in seconds_of(call, run.device, run.repeats)]
    return {"median_ms": round(statistics.median(found), 2), "all_ms": [round(value, 2) for value in found]}


@contextmanager
def peak_of(device: torch.device, module: torch.nn.Module) -> Iterator[dict[str, int]]:
    """Fills in, at the end, the peak of what torch allocated meanwhile, and on a GPU of what it reserved.

    On a CPU it is counted (`benchmarks/live_memory.py`).
    """
    found: dict[str, int] = {}
    gc.collect()
    if device.type != "cuda":
        from benchmarks.live_memory import LiveMemory

        with LiveMemory([*module.parameters(), *module.buffers()]) as live:
            yield found
        found["allocated"] = live.peak
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    finish(device)
    found["allocated"] = torch.cuda.max_memory_allocated(device)
    found["reserved"] = torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    found["card_in_use"] = total - free  # of every process, with what torch keeps for later


def against(prediction: memory.Prediction, measured: int) -> dict[str, Any]:
    """A prediction compared with a measurement, in bytes."""
    ratio = prediction.peak / measured
    return {
        "predicted": prediction.peak,
        "holds": dict(prediction.persistent),
        "moments": dict(prediction.transient),
        "largest_moment": prediction.largest_transient,
        "predicted_over_measured": round(ratio, 4),
        "within_15_percent": abs(ratio - 1) <= WITHIN,
    }


# ------------------------------------------------------------------------------------------------------------ sections


def fused(run: Run) -> TheWorld:
    """The source document's own call, on the folders."""
    from theworld import TheWorld

    return TheWorld(run.gemma, num_world_steps=run.steps, cosmos_model_name=str(run.cosmos), device=run.device)


def text_tokens(model: TheWorld, images: Any, questions: Any, steps: int) -> int:
    """Tokens of a prompt that belong to neither an image nor the world."""
    length = int(model.prepare(images, questions, num_world_steps=steps)["input_ids"].shape[1])
    return length - memory.sequence_length(model.config, steps, text_tokens=0)
