"""Gemma's image features before training: each image's are computed once and kept in a cache.

A frozen vision tower gives the same features in every epoch. With all of them in the cache, batches hold features
instead of pixels, so that neither the images are resized nor the tower runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from theworld.datasets.collator import ChatCollator, IndexedSample
from theworld.inference.latent_cache import SHARD_ENTRIES, LatentCache, digest_of
from theworld.messages import TaskProgress
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.storage.hub import resolve
from theworld.training.config import TrainingConfig
from theworld.training.distributed import gathered, rank_and_size
from theworld.training.model_setup import Described, frozen_dtype
from theworld.training.samplers import IndexedSamples, IndexedStream
from theworld.training.workers import guard_workers

logger = logging.getLogger(__name__)

FORMAT = 1  # version of keys and entries; another version starts another cache


def open_vision_cache(config: TrainingConfig, described: Described, collator: ChatCollator) -> LatentCache | None:
    """The cache that a config names, for its vision tower, image processor and precision; None without one."""
    if config.vision_cache is None:
        return None
    model = described.config
    place = Path(resolve(model.vlm_name_or_path, described.base_dir))
    own = collator.processor.image_processor
    made_by = {
        "format": FORMAT,
        "weights": digest_of(place) if place.is_dir() else f"{model.vlm_name_or_path}@{model.vlm_revision}",
        "dtype": str(frozen_dtype(config)),
        "precision": config.autocast,
        "images": {name: getattr(own, name) for name in ("size", "resample", "image_mean", "image_std", "do_resize")},
    }
    text = json.dumps(made_by, sort_keys=True, default=str)
    return LatentCache(
        config.vision_cache, f"vision-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}", made_by
    )


def uncached(collator: ChatCollator, placed: Sequence[IndexedSample]) -> dict[str, Tensor]:
    """Pixels (3, H, W) uint8 of the images that are not cached, by key."""
    assert collator.vision_cache is not None
    images = {key: image for each in placed for key, image in collator.images_by_key(each.sample).items()}
    missing = {key: image for key, image in images.items() if key not in collator.vision_cache}
    return dict(zip(missing, collator.pixels_of(list(missing.values())), strict=True)) if missing else {}


@torch.no_grad()
def fill_vision_cache(
    config: TrainingConfig,
    collator: ChatCollator,
    sets: Sequence[IndexedSamples | IndexedStream | None],
    model: TheWorldForConditionalGeneration,
    progress: TaskProgress,
) -> int:
    """Computes the features that the collator's cache lacks; several processes share the work.

    Returns:
        How many entries are new, of all processes.
    """
    cache = collator.vision_cache
    assert cache is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower = model.vlm.model.to(device)
    rank, size = rank_and_size()
    made: dict[str, Tensor] = {}
    count = done = 0
    scenes = [(placed, placed.scenes()) for placed in sets if isinstance(placed, IndexedSamples)]
    total = sum(len(places[rank::size]) for _, places in scenes)
    autocast: Any = nullcontext()
    if config.autocast != "no":
        autocast = torch.autocast(device.type, getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[config.autocast]))
    for placed, places in scenes:
        loader = DataLoader(
            placed,
            batch_size=config.batch_size,
            sampler=places[rank::size],
            collate_fn=partial(uncached, collator),
            num_workers=config.num_workers,
        )
        for batch in guard_workers(loader):
            new = {key: pixels for key, pixels in batch.items() if key not in cache and key not in made}
            if new:
                pixels = collator.normalize(torch.stack([*new.values()]).to(device))
                with autocast:
                    features = tower.get_image_features(pixels.to(tower.dtype), return_dict=True).pooler_output
                made.update(zip(new, features.to(tower.dtype).cpu(), strict=True))
            if len(made) >= SHARD_ENTRIES:
                cache.write(made)
                count += len(made)
                made.clear()
            done = min(done + config.batch_size, total)
            progress("Image features", done, total)
    cache.write(made)
    count = sum(gathered(count + len(made)))  # after which all features are written
    cache.refresh()
    return count
