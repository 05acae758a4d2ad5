"""Questions on which arms disagree, with their input images and imagined frames as small JPEGs in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from theworld.evaluation import scoring
from theworld.evaluation.arms import Imagination
from theworld.evaluation.runner import Answer
from theworld.evaluation.tasks import Item
from theworld.evaluation.verdict import opponent
from theworld.storage.files import read_json_file, write_json

MAX_QUESTIONS = 48  # for which images are saved
HEIGHT = 112  # px of an image
GAP = 4
INDEX = "index.json"


def disagreeing(items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], reference: str) -> list[int]:
    """Rows of questions on which arms differ, those that decide the result first.

    First the questions that exactly one of the reference and its opponent answered correctly, alternating between the
    two and between families. Then those on which other arms differ from the reference: the more of them are correct
    where it is wrong, or wrong where it is correct, the earlier.

    Args:
        arms: name -> one list of answers per training seed, of which the first is used.
        reference: the arm that the others are compared with.
    """
    read = {
        name: [scoring.read_answer(item, answer.text) for item, answer in zip(items, seeds[0], strict=True)]
        for name, seeds in arms.items()
    }
    correct = {
        name: [answer == item.answer for item, answer in zip(items, answers, strict=True)]
        for name, answers in read.items()
    }
    other = opponent(reference, list(arms))
    groups: dict[tuple[str, bool], list[int]] = {}
    rest = []
    for row, item in enumerate(items):
        if other is not None and correct[reference][row] != correct[other][row]:
            groups.setdefault((item.family, correct[reference][row]), []).append(row)
        elif len({answers[row] for answers in read.values()}) > 1:
            rest.append(row)
    rest.sort(key=lambda row: -sum(own[row] != correct[reference][row] for own in correct.values()))
    decisive = [row for turn in zip_longest(*groups.values()) for row in turn if row is not None]
    return [*decisive, *rest][:MAX_QUESTIONS]


def save_images(
    folder: Path,
    items: Sequence[Item],
    rows: Sequence[int],
    imagination: Imagination | None,
    num_world_steps: int,
    seed: int,
) -> str | None:
    """Writes the input images of these questions, a strip of imagined frames for each, and an index.

    Returns:
        the reason if no strips could be made, else None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strips, reason = imagined_strips([items[row] for row in rows], imagination, num_world_steps, seed)
    index = {}
    for number, row in enumerate(rows):
        seen = f"{number:03d}.jpg"
        hstack_images([np.asarray(image) for image in items[row].images()]).save(folder / seen, quality=85)
        entry = {"seen": seen}
        if strips:
            entry["imagined"] = f"{number:03d}.imagined.jpg"
            strips[number].save(folder / entry["imagined"], quality=85)
        index[items[row].id] = entry
    write_json(folder / INDEX, index)
    return reason


def imagined_strips(
    items: Sequence[Item], imagination: Imagination | None, num_world_steps: int, seed: int
) -> tuple[list[Image.Image], str | None]:
    """For each item a strip with the last frame of each imagined world step; or no strips and the reason."""
    if not items:
        return [], None
    if imagination is None or not imagination.model.config.enable_world or num_world_steps == 0:
        return [], "nothing was imagined"
    factor = imagination.model.config.world_config.temporal_factor
    strips = []
    try:
        for item in items:
            images = item.world_images(use_all=False, config=imagination.model.config)
            latents = imagination.latents([images], num_world_steps, seed, [item.world_prompt])
            frames = imagination.model.decode(latents)[0]  # with NVIDIA's weights, the guardrail checks them
            strips.append(hstack_images(list(frames[factor::factor])))
    except ValueError as error:
        return [], str(error)
    return strips, None


def hstack_images(images: Sequence[np.ndarray]) -> Image.Image:
    """Images (H, W, 3) uint8 side by side, all HEIGHT px high."""
    scaled = [
        image.resize(
            (max(1, round(image.width * HEIGHT / image.height)), HEIGHT),
            Image.Resampling.NEAREST if image.height < HEIGHT else Image.Resampling.LANCZOS,
        )
        for image in map(Image.fromarray, images)
    ]
    row = Image.new("RGB", (sum(image.width + GAP for image in scaled) - GAP, HEIGHT), "white")
    left = 0
    for image in scaled:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """The saved images: id -> {"seen", "imagined"}; empty if there are none."""
    path = folder / INDEX
    return read_json_file(path, "run the evaluation again") if path.is_file() else {}
