"""Plots wrong answers: the input image, the imagined frame, what happened, and the answers.

python scripts/wrong_answers.py results.predictions.jsonl --arm fused -o docs/nano/wrong.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from theworld import TheWorld
from theworld.datasets.physics import make_clip
from theworld.inference.futures import normalise

COLUMNS = 3  # wrong answers per row, of three images each
TITLES = ("now", "imagined", "what happened")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, help="predictions file of `theworld eval physics --json`")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--arm", default="fused")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="the seed of the evaluation")
    parser.add_argument("--most", type=int, default=24, help="maximum number, alternating between families")
    parser.add_argument("--output", "-o", type=Path, default=Path("docs/nano/wrong.png"))
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.predictions.read_text(encoding="utf-8").splitlines()]
    wrong = [line for line in lines if normalise(line["predictions"][arguments.arm]) != normalise(line["answer"])]
    by_family: dict[str, list[dict[str, Any]]] = {}
    for line in wrong:
        by_family.setdefault(line["family"], []).append(line)
    for family, members in by_family.items():
        print(f"{family}: {len(members)} wrong of {sum(line['family'] == family for line in lines)}")
    most = max(map(len, by_family.values()))
    alternating = [members[i] for i in range(most) for members in by_family.values() if i < len(members)]
    shown = alternating[: arguments.most]
    clips = [make_clip(*(int(p) if p.isdigit() else p for p in line["id"].split("/")[:3])) for line in shown]
    model = TheWorld(arguments.model, num_world_steps=arguments.steps)
    latents = model.imagine([clip.frames[0] for clip in clips], arguments.steps, seed=arguments.seed)
    imagined = model.decode(latents)
    rows = -(-len(shown) // COLUMNS)
    figure, grid = plt.subplots(rows, 3 * COLUMNS, figsize=(4.6 * COLUMNS, 2.5 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (line, clip, frames) in enumerate(zip(shown, clips, imagined, strict=True)):
        row, column = divmod(number, COLUMNS)
        images = (clip.frames[0], frames[-1], clip.frames[-1])
        for offset, (image, title) in enumerate(zip(images, TITLES, strict=True)):
            axes = grid[row, 3 * column + offset]
            axes.imshow(image)
            axes.set_title(title, fontsize=7)
        outcome = f"answered {line['predictions'][arguments.arm]!r}, correct is {line['answer']!r}"
        grid[row, 3 * column].text(
            0, 70, textwrap.fill(line["question"], 62) + "\n" + outcome, fontsize=7, va="top", clip_on=False
        )
    figure.subplots_adjust(hspace=0.75, wspace=0.05, left=0.02, right=0.98, top=0.97, bottom=0.05)
    figure.savefig(arguments.output, dpi=110)
    print(arguments.output)


if __name__ == "__main__":
    main()
