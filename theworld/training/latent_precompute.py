"""World latents before training: what a run will ask of the world model is computed once and kept in a cache.

A run with a full cache never loads the world model. The futures that are shown at evaluations are kept as well, as
frames, since showing them would need its decoder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from theworld.datasets.collator import ChatCollator, IndexedSample
from theworld.datasets.samples import Sample
from theworld.inference.latent_cache import LatentCache, WorldRequest, compute_with, latents_of, world_identity
from theworld.media.export import save_rollout
from theworld.messages import TaskProgress
from theworld.storage.hub import resolve
from theworld.training.config import TrainingConfig
from theworld.training.distributed import gathered, rank_and_size
from theworld.training.model_setup import Described, frozen_dtype, world_parts_for_latents
from theworld.training.samplers import IndexedSamples, IndexedStream
from theworld.training.workers import guard_workers
from theworld.world_models import world_model_class
from theworld.world_models.base import WorldModel

logger = logging.getLogger(__name__)

SAMPLES_AT_ONCE = 16  # per batch of this scan
FRAMES = "frames-"  # before the key of a request whose future is kept as frames


def open_cache(config: TrainingConfig, described: Described) -> LatentCache | None:
    """The cache that a config names, for its world model; None without one, or where nothing is asked."""
    if config.latent_cache is None or config.constant_world or not described.config.enable_world:
        return None
    return LatentCache(config.latent_cache, *world_identity(described.config, frozen_dtype(config), described.base_dir))


def load_world(config: TrainingConfig, described: Described, parts: Sequence[str]) -> WorldModel:
    """The world model alone, on a GPU if there is one."""
    model = described.config
    world = world_model_class(model.world_config.model_type).from_pretrained(
        resolve(model.world_name_or_path, described.base_dir),
        parts=parts,
        revision=model.world_revision,
        dtype=frozen_dtype(config),
    )
    if described.trained:
        world.read_kept_prompts(resolve(config.model_name))
    world.fast_path = config.fast_path
    return world.to("cuda" if torch.cuda.is_available() else "cpu")


def uncached(collator: ChatCollator, placed: Sequence[IndexedSample]) -> list[WorldRequest]:
    """Those requests of the samples that are not cached."""
    assert collator.cache is not None
    requests = (r for each in placed for r in collator.all_requests(each.sample, each.deterministic))
    asked = {request.key: request for request in requests}
    return [request for key, request in asked.items() if key not in collator.cache]


def missing_requests(
    sets: Sequence[IndexedSamples | IndexedStream | None],
    collator: ChatCollator,
    num_workers: int,
    progress: TaskProgress,
) -> Iterator[WorldRequest]:
    """Yields the uncached requests of training and evaluation; several processes share them, each once."""
    scenes = [(placed, placed.scenes()) for placed in sets if isinstance(placed, IndexedSamples)]
    total = sum(len(places) for _, places in scenes)
    rank, size = rank_and_size()
    done = 0
    taken: set[str] = set()
    for placed, places in scenes:
        loader = DataLoader(
            placed,
            batch_size=SAMPLES_AT_ONCE,
            sampler=places[rank::size],
            collate_fn=partial(uncached, collator),
            num_workers=num_workers,
        )
        batches = iter(guard_workers(loader))
        for _ in range(0, len(places), SAMPLES_AT_ONCE * size):  # as often in every process
            requests = {request.key: request for request in next(batches, [])}
            for other, keys in enumerate(gathered(list(requests))):
                if other == rank:
                    yield from (requests[key] for key in keys if key not in taken)
                taken.update(keys)
            done = min(done + SAMPLES_AT_ONCE * size, total)
            progress("World latents", done, total)


def fill_cache(
    config: TrainingConfig,
    described: Described,
    collator: ChatCollator,
    sets: Sequence[IndexedSamples | IndexedStream | None],
    shown: Sequence[Sample],
    progress: TaskProgress,
) -> int:
    """Computes what the collator's cache lacks for a run; the world model is loaded only if something is lacking.

    Several processes share the work, and write into one folder. The frames that are shown are decoded by the first.

    Returns:
        How many entries are new, of all processes.
    """
    cache = collator.cache
    assert cache is not None
    parts = world_parts_for_latents(config, described.config)
    requests = missing_requests(sets, collator, config.num_workers, progress)
    count = 0
    world: WorldModel | None = None
    if (first := next(requests, None)) is not None:
        world = load_world(config, described, parts)
        compute = compute_with(world, described.config.world_config)
        count = cache.fill(chain([first], requests), compute, config.latent_batch_size)
    count = sum(gathered(count))  # after which all latents are written
    cache.refresh()
    frames = [request for request in shown_requests(collator, shown) if FRAMES + request.key not in cache]
    made = 0
    if frames and rank_and_size()[0] == 0:
        world = world or load_world(config, described, parts)
        if can_show(world):
            world.load_parts("decoder")
            latents = [cache.read(request.key) for request in frames]
            cache.write({FRAMES + r.key: decode(world, x) for r, x in zip(frames, latents, strict=True)})
            made = len(frames)
    made = gathered(made)[0]
    cache.refresh()
    return count + made


def shown_requests(collator: ChatCollator, samples: Sequence[Sample]) -> list[WorldRequest]:
    """What each shown sample's future is made from; samples without an image give none."""
    return [request for sample in samples for request in collator.all_requests(sample, deterministic=True)[:1]]


def can_show(world: WorldModel) -> bool:
    """Whether imagined frames may be shown to people here: NVIDIA's weights ask for NVIDIA's guardrail."""
    try:
        world.require_guardrail()
    except ValueError as error:
        logger.warning("imagined futures are not shown: %s", error)
        return False
    return True


@torch.no_grad()
def decode(world: WorldModel, latents: Tensor) -> Tensor:
    """Latents (C, T, h, w) as frames that people may see, uint8 (F, H, W, 3)."""
    frames = world.decode_for_display(latents[None].to(next(world.parameters()).device))
    return torch.from_numpy(np.ascontiguousarray(frames[0]))


def write_strips(
    samples: Sequence[Sample], collator: ChatCollator, world: WorldModel | None, folder: Path
) -> list[Path | None]:
    """A strip of each sample's imagined future as `imagined-K.png`; None where there is none to show.

    Args:
        world: decodes where there is no cache.
    """
    cache, world_config = collator.cache, collator.processor.config.world_config
    if world is not None and (cache is not None or not can_show(world)):
        world = None
    if world is not None:
        world.load_parts("decoder")
    strips: list[Path | None] = [None] * len(samples)
    for number, sample in enumerate(samples):
        for request in shown_requests(collator, [sample]):
            if cache is not None and FRAMES + request.key in cache:
                frames = cache.read(FRAMES + request.key)
            elif world is not None:
                frames = decode(world, latents_of([request], compute_with(world, world_config))[0])
            else:
                continue
            shown = frames[:: world_config.temporal_factor]  # the present, then the last frame of each world step
            strips[number] = save_rollout(shown.numpy(), folder / f"imagined-{number}.png")
    return strips
