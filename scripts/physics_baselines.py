"""Baselines of the physics scenes without a world model, and the cost of rendering.

Per family: the ceiling (share of answers that do not change when the start moves by half a pixel), a simple rule, the
most frequent answer, a small CNN that learns from labels on the first frame, the same CNN on the true last frame (is
the answer visible?), and clips per second. Writes JSON, and a table between two markers of a Markdown page.

    python scripts/physics_baselines.py --json docs/physics_baselines.json --markdown docs/physics.md
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from theworld.datasets.physics import FAMILIES, make_clip
from theworld.datasets.physics.scenes import make_scene, naive_guess, outcome_when_moved, outcomes

BEGIN, END = "<!-- baselines: begin -->", "<!-- baselines: end -->"


class SmallCNN(nn.Module):
    """64×64 image -> outcome: four stride-2 stages, coordinates as two more channels, 0.3 M parameters."""

    coordinates: torch.Tensor

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        widths = (5, width, 2 * width, 3 * width, 4 * width)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * widths[-1], 128), nn.ReLU(), nn.Linear(128, classes)
        )
        line = torch.linspace(-1, 1, 64)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (n, 3, 64, 64) -> (n, classes)
        return self.head(self.stages(torch.cat([images, self.coordinates.expand(len(images), -1, -1, -1)], 1)))


def flipped_labels(labels: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Labels of the mirrored images: left and right are exchanged."""
    mirror = {"left": "right", "right": "left"}
    table = torch.tensor([list(names).index(mirror.get(name, name)) for name in names])
    return table[labels]


def predict(model: nn.Module, images: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Class probabilities (n, classes), the mean over a image and its mirror."""
    model.eval()
    order = flipped_labels(torch.arange(len(names)), names)
    with torch.no_grad():
        parts = [model(p).softmax(-1) + model(p.flip(-1)).softmax(-1)[:, order] for p in images.split(500)]
    return torch.cat(parts) / 2


def fit(
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    names: Sequence[str],
    seed: int,
    steps: int,
) -> float:
    """Train with flips and shifts of a pixel; test accuracy where validation was best."""
    torch.manual_seed(seed)
    model = SmallCNN(len(names))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    best, kept, checks_without = -1.0, 0.0, 0
    every = max(25, steps // 20)
    for step in range(steps):
        model.train()
        chosen = torch.randint(len(train[0]), (64,))
        images, labels = train[0][chosen], train[1][chosen]
        if step % 2:
            images, labels = images.flip(-1), flipped_labels(labels, names)
        dx, dy = (int(v) for v in torch.randint(-1, 2, (2,)))  # one pixel: the answers do not change
        images = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")[..., 1 + dy : 65 + dy, 1 + dx : 65 + dx]
        loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % every == 0:
            accuracy = (predict(model, validation[0], names).argmax(-1) == validation[1]).float().mean().item()
            checks_without += 1
            if accuracy > best:
                best, checks_without = accuracy, 0
                kept = (predict(model, test[0], names).argmax(-1) == test[1]).float().mean().item()
            # a long plateau before the rise is usual here: early stopping waits for the second half, or for perfection
            if best >= 0.995 or (checks_without >= 8 and step >= steps // 2):
                break
    return kept


Images = tuple[torch.Tensor, torch.Tensor]


def load(family: str, split: str, count: int) -> tuple[Images, Images]:
    """First and last images (n, 3, 64, 64) in [-1, 1], each with the outcome labels (n,)."""
    clips = [make_clip(family, split, index) for index in range(count)]
    labels = torch.tensor([outcomes(family).index(clip.outcome) for clip in clips])
    first, last = (
        torch.from_numpy(np.stack([clip.frames[frame] for clip in clips])).permute(0, 3, 1, 2) / 127.5 - 1
        for frame in (0, -1)
    )
    return (first, labels), (last, labels)


def measure(family: str, args: argparse.Namespace) -> dict[str, object]:
    """All figures of one family."""
    names = outcomes(family)
    scenes = [make_scene(family, "test", index) for index in range(args.test)]
    shifts = np.random.default_rng(0).uniform(-0.5, 0.5, args.test)
    moved = [
        outcome_when_moved(family, parts, dx) == outcome
        for (parts, _, outcome), shift in zip(scenes, shifts, strict=True)
        for dx in (-0.5, 0.5, float(shift))
    ]
    result: dict[str, object] = {
        "ceiling": float(np.mean(moved)),
        "rule_of_thumb": float(np.mean([naive_guess(family, parts) == outcome for parts, _, outcome in scenes])),
        "commonest": max(Counter(outcome for _, _, outcome in scenes).values()) / len(scenes),
    }
    start = time.process_time()
    rate_of = 60
    for index in range(rate_of):
        make_clip(family, "train", 1_000_000 + index)
    result["clips_per_second"] = rate_of / (time.process_time() - start)
    most = max(args.labels)
    train, validation, test = (
        load(family, split, count) for split, count in (("train", most), ("validation", 300), ("test", args.test))
    )
    for labels in args.labels:
        few = (train[0][0][:labels], train[0][1][:labels])
        steps = args.steps if labels >= 300 else args.steps // 2
        runs = [fit(few, validation[0], test[0], names, seed, steps) for seed in range(args.seeds)]
        result[f"cnn_{labels}"] = float(np.mean(runs))
        result[f"cnn_{labels}_seeds"] = runs
    result[f"last_image_cnn_{most}"] = fit(train[1], validation[1], test[1], names, 0, args.steps)
    return result


def table(results: dict[str, dict[str, object]], labels: Sequence[int]) -> str:
    """The figures as a Markdown table."""
    columns = [
        "ceiling",
        "rule_of_thumb",
        "commonest",
        *(f"cnn_{n}" for n in labels),
        f"last_image_cnn_{max(labels)}",
    ]
    heads = [
        "ceiling",
        "simple rule",
        "most frequent",
        *(f"CNN, {n:,} labels" for n in labels),
        "CNN on the last frame",
    ]
    lines = ["| family | " + " | ".join(heads) + " | clips/s/core |", "|---|" + "---|" * (len(heads) + 1)]
    for family, row in results.items():
        cells = [f"{100 * float(str(row[column])):.1f} %" for column in columns]
        lines.append(f"| {family} | " + " | ".join(cells) + f" | {float(str(row['clips_per_second'])):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--labels", nargs="+", type=int, default=[100, 300, 1000, 3000])
    parser.add_argument("--test", type=int, default=500, help="test scenes a family")
    parser.add_argument("--seeds", type=int, default=2, help="CNNs per figure; the mean is shown")
    parser.add_argument(
        "--steps", type=int, default=1500, help="most optimiser steps of a CNN; half for fewer than 300 labels"
    )
    parser.add_argument("--quick", action="store_true", help="small and rough: a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="page with the two markers, whose table is replaced")
    args = parser.parse_args()
    if args.quick:
        args.labels, args.test, args.seeds, args.steps = [100, 300], 150, 1, 200
    torch.set_num_threads(1)
    results: dict[str, dict[str, object]] = {}
    for family in args.families:
        start = time.time()
        results[family] = measure(family, args)
        print(f"{family}: {json.dumps(results[family])} ({time.time() - start:.0f} s)", flush=True)
    print(table(results, args.labels))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    about = {
        "command": "python scripts/physics_baselines.py " + " ".join(sys.argv[1:]),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "device": f"1 thread, {platform.machine()}",
    }
    if args.json is not None:
        args.json.write_text(json.dumps({**about, "families": results}, indent=1) + "\n")
    if args.markdown is not None:
        before, rest = args.markdown.read_text().split(BEGIN)
        after = rest.split(END)[1]
        note = f"`{about['command']}`, commit {commit}, {about['date']}, {about['device']}."
        args.markdown.write_text(f"{before}{BEGIN}\n{table(results, args.labels)}\n\n{note}\n{END}{after}")


if __name__ == "__main__":
    main()
