"""Draw docs/imagined.png: three test scenes, and what nano imagines from their first frames.

    python scripts/imagined_image.py

Scene 0 of `drop`, 1 of `contact` and 2 of `tower` with seed 0 and four world steps; they were not selected.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from theworld import TheWorld
from theworld.datasets.physics import FAMILIES, make_clip

SCENES = tuple((family, index) for index, family in enumerate(FAMILIES))
EVERY = 2  # every second frame is drawn
SCALE = 2
GAP = 4
LINE = 20  # height of a label
TEXT = 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano (default), a model folder, or a Hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--steps", type=int, default=4, help="world steps (default: 4)")
    parser.add_argument("--output", type=Path, default=Path("docs/imagined.png"))
    arguments = parser.parse_args()

    model = TheWorld.from_pretrained(arguments.model)
    rows: list[tuple[str, np.ndarray]] = []
    for family, index in SCENES:
        clip = make_clip(family, arguments.split, index)
        imagined = model.decode(model.imagine(clip.frames[0], arguments.steps, seed=0))[0]  # (F, H, W, 3)
        rows.append((f"{family}, {arguments.split} scene {index}: what happens", clip.frames[: len(imagined)]))
        rows.append(("imagined from the first frame", imagined))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(arguments.output, optimize=True)
    print(arguments.output)


def sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """One image of labelled rows: every other frame of each uint8 (F, H, W, 3), enlarged without smoothing."""
    frames = [row[::EVERY].repeat(SCALE, axis=1).repeat(SCALE, axis=2) for _, row in rows]
    count, height, width, _ = frames[0].shape
    canvas = Image.new("RGB", (count * (width + GAP) - GAP, len(rows) * (height + LINE + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT)
    for number, ((label, _), row) in enumerate(zip(rows, frames, strict=True)):
        top = number * (height + LINE + GAP)
        draw.text((0, top + 2), label, fill="black", font=font)
        for column, frame in enumerate(row):
            canvas.paste(Image.fromarray(frame), (column * (width + GAP), top + LINE))
    return canvas


if __name__ == "__main__":
    main()
