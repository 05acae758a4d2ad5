"""A cache of world latents that runs share: a folder of safetensors shards, addressed by content.

A `WorldRequest` holds given frames, the number of steps to imagine after them, and the seed of the noise. Its key is a
digest of these, so that equal requests of any dataset, run or epoch share one entry. Entries are stored under the
identity of their world model: other weights or another way to sample use another cache.

Shards are written atomically. A run that is killed loses its current shard, and the next run resumes from there.
Several runs may fill one cache at the same time.

Shapes: F given frames of S×S pixels, N imagined steps, latents (C, T, h, w) with T = 1 + (F-1)/4 + N, or T = 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from theworld.media.images import frames_of
from theworld.model.configuration import TheWorldConfig
from theworld.model.devices import to_device
from theworld.storage.files import UNFINISHED, atomic_file, write_tensors, write_text
from theworld.storage.hub import resolve
from theworld.world_models.base import WorldModel
from theworld.world_models.configuration import CosmosPredict2Config

FORMAT = 1  # version of keys and shards; another version starts another cache
SHARD_ENTRIES = 256
DECIDING = (  # fields of a world config that change its latents
    "vae",
    "transformer",
    "scheduler",
    "text_tokens",
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "sigma_conditioning",
    "fps",
)
OPEN_SHARDS = 64  # kept open by one reader
ABANDONED = 3600.0  # seconds after which an unfinished shard is considered abandoned
SAMPLED_BLOCKS, BLOCK = 64, 65_536  # number and bytes of the blocks of a weights file that its digest reads

# pixels (n, F, S, S, 3) uint8, world steps, seeds, world prompts -> latents (n, C, T, h, w)
Compute = Callable[[Tensor, int, Sequence[int], Sequence[str] | None], Tensor]


@dataclass(frozen=True)
class WorldRequest:
    """A request for the latents of one image or clip.

    Attributes:
        pixels: (F, S, S, 3) uint8, F = 1 + 4·k.
        num_world_steps: N, latent frames to imagine after them; 0 only encodes.
        seed: of the rollout's noise.
        prompt: text that describes the imagined future; empty is the world model's default.
        moment: index of the only latent frame that is needed; None means all. The encoder is causal, so a latent frame
            inside a clip does not depend on later frames.
    """

    pixels: Tensor
    num_world_steps: int
    seed: int
    prompt: str = ""
    moment: int | None = None

    @cached_property
    def key(self) -> str:
        """Identifies all latents of the request: equal frames, steps, seed and prompt give equal keys."""
        pixels = self.pixels.movedim(-1, 0)  # (3, F, S, S)
        digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16)
        imagined = (self.seed, self.prompt) if self.num_world_steps else ()  # nothing else depends on them
        digest.update(repr((tuple(pixels.shape), self.num_world_steps, imagined)).encode())
        return digest.hexdigest()

    def cut(self, latents: Tensor) -> Tensor:
        """The needed part of all latents (C, T, h, w): all of them, or one latent frame (C, 1, h, w)."""
        return latents if self.moment is None else latents[:, self.moment : self.moment + 1]


def latents_of(requests: Sequence[WorldRequest], compute: Compute) -> list[Tensor]:
    """The latents of each request, in order, computed by `compute`; equal requests are computed once."""
    made = latents_by_key(requests, compute)
    return [request.cut(made[request.key]) for request in requests]


@torch.no_grad()
def latents_by_key(requests: Sequence[WorldRequest], compute: Compute) -> dict[str, Tensor]:
    """All latents (C, T, h, w) of each request, by key."""
    made: dict[str, Tensor] = {}
    groups: dict[tuple[int, int, bool], dict[str, WorldRequest]] = {}
    for request in requests:  # one call has one shape, and prompts for all rows or for none
        group = (len(request.pixels), request.num_world_steps, bool(request.prompt))
        groups.setdefault(group, {}).setdefault(request.key, request)
    for (_, steps, prompted), own in groups.items():
        pixels = torch.stack([request.pixels for request in own.values()])
        prompts = [request.prompt for request in own.values()] if prompted else None
        made.update(zip(own, compute(pixels, steps, [request.seed for request in own.values()], prompts), strict=True))
    return made


class LatentCache:
    """The entries of one world model, in one folder.

    Args:
        folder: folder of all caches; it is created on the first write.
        identity: name of the world model, see `world_identity`.
        made_by: description of that world model, written next to the shards for people.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: str, made_by: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder) / identity
        self.made_by = made_by
        self._shards: dict[str, Path] = {}  # key -> the shard that holds it
        self._known: set[Path] = set()
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}  # a worker process opens shards itself

    def refresh(self) -> None:
        """Reads the keys of shards that other runs have written since."""
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in self._known:
                self._shards.update(dict.fromkeys(self._opened(shard).keys(), shard))
                self._known.add(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, key: str) -> Tensor:
        """Reads one entry, on the CPU."""
        if key not in self._shards:
            raise ValueError(
                f"{self.folder} has no latents for one of the samples; fill it with `theworld cache CONFIG` and the "
                "same settings."
            )
        shard = self._shards[key]
        try:
            return self._opened(shard).get_tensor(key)
        except SafetensorError as error:
            raise damaged(shard, error) from error

    def write(self, entries: Mapping[str, Tensor]) -> None:
        """Adds entries as one shard, atomically."""
        if not entries:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "world.json"
        if self.made_by is not None and not described.exists():
            write_text(described, json.dumps(self.made_by, indent=2, default=str) + "\n")
        name = hashlib.blake2b("".join(sorted(entries)).encode(), digest_size=16).hexdigest()
        shard = self.folder / f"{name}.safetensors"
        with atomic_file(shard) as unfinished:
            write_tensors(unfinished, entries)
        self._shards.update(dict.fromkeys(entries, shard))
        self._known.add(shard)

    def fill(
        self, requests: Iterable[WorldRequest], compute: Compute, batch_size: int, shard_entries: int = SHARD_ENTRIES
    ) -> int:
        """Computes missing entries in batches and writes them shard by shard; returns the number of new entries."""
        self._remove_abandoned()
        waiting: dict[tuple[int, int], dict[str, WorldRequest]] = {}
        made: dict[str, Tensor] = {}
        before = len(self)

        def compute_group(own: dict[str, WorldRequest]) -> None:
            made.update({key: x.cpu() for key, x in latents_by_key(list(own.values()), compute).items()})
            own.clear()

        for request in requests:
            if request.key in self or request.key in made:
                continue
            own = waiting.setdefault((len(request.pixels), request.num_world_steps), {})
            own[request.key] = request
            if len(own) == batch_size:
                compute_group(own)
            if len(made) >= shard_entries:
                self.write(made)
                made.clear()
        for own in waiting.values():
            compute_group(own)
        self.write(made)
        return len(self) - before

    def _opened(self, shard: Path) -> Any:
        if shard not in self._open:
            try:
                self._open[shard] = safe_open(shard, framework="pt")
            except (SafetensorError, OSError) as error:
                raise damaged(shard, error) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _remove_abandoned(self) -> None:
        """Removes unfinished shards of runs that were killed; those of running ones are younger."""
        for file in self.folder.glob(f".*{UNFINISHED}"):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink(missing_ok=True)


def damaged(shard: Path, error: Exception) -> ValueError:
    return ValueError(f"{shard} is damaged ({error}); delete that file and run `theworld cache` again.")


def world_identity(
    config: TheWorldConfig, dtype: torch.dtype, base_dir: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The identity of a config's world model, which is not loaded: a digest, and what it is made of.

    Args:
        base_dir: folder that base names starting with `./` are relative to.
    """
    place = Path(resolve(config.world_name_or_path, base_dir))
    weights = digest_of(place) if place.is_dir() else f"{config.world_name_or_path}@{config.world_revision}"
    deciding = {name: getattr(config.world_config, name) for name in DECIDING}
    if deciding["guidance_interval"] is None:  # caches from before it existed stay valid
        del deciding["guidance_interval"]
    made_by = {
        "format": FORMAT,
        "weights": weights,
        "world": deciding,
        "dtype": str(dtype),
    }
    text = json.dumps(made_by, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest(), {**made_by, "name": config.world_name_or_path}


def digest_of(folder: Path) -> str:
    """A digest of a folder's weights: the size of each file, and blocks of it, spread evenly.

    Fine-tuning changes nearly every weight, so a few megabytes of a file distinguish it from any other. Reading all
    of a large file would take as long as loading it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            for number in range(SAMPLED_BLOCKS):
                file.seek(max(0, size - BLOCK) * number // max(1, SAMPLED_BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def compute_with(world: WorldModel, config: CosmosPredict2Config) -> Compute:
    """A `Compute` that uses `world` on its device and samples as `config` specifies."""
    names = ("num_inference_steps", "guidance_scale", "guidance_interval")
    sampling: dict[str, Any] = {name: getattr(config, name) for name in names}
    world.expects_repeats = True

    def compute(pixels: Tensor, num_world_steps: int, seeds: Sequence[int], prompts: Sequence[str] | None) -> Tensor:
        if num_world_steps:
            world.load_parts("transformer")  # not before: a run on true futures may never imagine
        frames = frames_of(*to_device([pixels], next(world.parameters()).device))
        return world.imagine(frames, num_world_steps, seeds=seeds, prompts=prompts or (), **sampling)

    return compute
