"""The questions on which arms disagree; what was seen and imagined there, as small pictures in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from theworld.evaluation import scoring
from theworld.evaluation.arms import Imagination
from theworld.evaluation.items import Item
from theworld.evaluation.runner import Answer
from theworld.media.images import load_image
from theworld.storage.files import write_text

MOST = 48  # questions that get pictures
HEIGHT = 112  # px of a picture
GAP = 4
INDEX = "index.json"


def disagreeing(items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], most: int = MOST) -> list[int]:
    """Rows of questions that arms read differently, the families in turn; first those that some arm got right.

    Args:
        arms: name -> answers, a list a training seed; the first seed speaks.
    """
    read = {
        name: [scoring.read_answer(item, answer.text) for item, answer in zip(items, seeds[0], strict=True)]
        for name, seeds in arms.items()
    }
    by_family: dict[str, list[int]] = {}
    rows = [row for row in range(len(items)) if len({own[row] for own in read.values()}) > 1]
    for row in sorted(rows, key=lambda row: not any(own[row] == items[row].answer for own in read.values())):
        by_family.setdefault(items[row].family, []).append(row)
    longest = max(map(len, by_family.values()), default=0)
    in_turn = [own[place] for place in range(longest) for own in by_family.values() if place < len(own)]
    return in_turn[:most]


def save_pictures(
    folder: Path,
    items: Sequence[Item],
    rows: Sequence[int],
    imagination: Imagination | None,
    num_world_steps: int,
    seed: int,
) -> str | None:
    """Writes the pictures of these questions and strips of what was imagined, and an index of them.

    Returns:
        why there are no strips, or None where there are, or nothing to make them for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strips, why = imagined_strips([items[row] for row in rows], imagination, num_world_steps, seed)
    index = {}
    for number, row in enumerate(rows):
        seen = f"{number:03d}.jpg"
        beside([np.asarray(load_image(picture)) for picture in items[row].pictures()]).save(folder / seen, quality=85)
        entry = {"seen": seen}
        if strips:
            entry["imagined"] = f"{number:03d}.imagined.jpg"
            strips[number].save(folder / entry["imagined"], quality=85)
        index[items[row].id] = entry
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    return why


def imagined_strips(
    items: Sequence[Item], imagination: Imagination | None, num_world_steps: int, seed: int
) -> tuple[list[Image.Image], str | None]:
    """A strip of the last frame of each imagined world step for each item, or none and the reason."""
    if not items:
        return [], None
    if imagination is None or not imagination.model.config.enable_world or num_world_steps == 0:
        return [], "nothing was imagined"
    factor = imagination.model.config.world_config.temporal_factor
    strips = []
    try:
        for item in items:
            latents = imagination.latents([item.looks_from(every=False)], num_world_steps, seed)
            frames = imagination.model.decode(latents)[0]  # with NVIDIA's weights, past its guardrail
            strips.append(beside(list(frames[factor::factor])))
    except ValueError as error:
        return [], str(error)
    return strips, None


def beside(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures (H, W, 3) uint8 in a row, all HEIGHT px high."""
    scaled = [Image.fromarray(picture) for picture in pictures]
    scaled = [
        own.resize(
            (max(1, round(own.width * HEIGHT / own.height)), HEIGHT),
            Image.Resampling.NEAREST if own.height < HEIGHT else Image.Resampling.LANCZOS,
        )
        for own in scaled
    ]
    row = Image.new("RGB", (sum(own.width + GAP for own in scaled) - GAP, HEIGHT), "white")
    left = 0
    for own in scaled:
        row.paste(own, (left, 0))
        left += own.width + GAP
    return row


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Which pictures there are: id -> {"seen", "imagined"}; empty where none were written."""
    place = folder / INDEX
    if not place.is_file():
        return {}
    content = json.loads(place.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content
