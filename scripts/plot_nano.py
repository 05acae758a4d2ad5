"""Draw the curves of docs/nano/ from the CSV files of nano's recipe.

python scripts/plot_nano.py
"""

from __future__ import annotations

import argparse
import csv
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FAMILIES = ("drop", "contact", "tower")
COLOURS = {"drop": "tab:blue", "contact": "tab:red", "tower": "tab:green"}
GATE = 97  # % of now-questions
# trained-oracle is left out: its curve is of imagined futures, which it does not learn from
KINDS = ("fused", "direct", "matched-control", "trained-dummy", "frozen-random-projection")
Rows = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/nano"), help="where the CSVs are and the PNGs go")
    folder: Path = parser.parse_args().folder
    for name, draw in FIGURES.items():
        figure = draw(folder)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
        print(folder / f"{name}.png")


def read(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: Rows, name: str, times: float = 1.0) -> list[float]:
    return [float(row[name]) * times for row in rows]


def axes(
    count: int = 1, titles: tuple[str, ...] = (), width: float = 5.0, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    figure, grid = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    places = list(grid[0])
    for place, title in zip(places, titles, strict=False):
        place.set_title(title, fontsize=10)
    for place in places:
        place.grid(alpha=0.3)
    return figure, places


def foresight(folder: Path) -> Figure:
    """Foresight of the shipped world model as it trained, and of fresh ones that saw few clips (4 denoise steps)."""
    shipped = [row for row in read(folder / "foresight.csv") if int(row["step"]) > 0]
    few = [row for row in read(folder / "foresight_clips.csv") if row["denoise_steps"] == "4"]
    numbers = sorted({int(row["clips"]) for row in few})
    titles = [f"Stage (b) on {number:,} clips" for number in numbers]
    figure, places = axes(len(numbers) + 1, (*titles, "… and on all: 75,000 clips by the first point"))
    runs = [*([row for row in few if int(row["clips"]) == number] for number in numbers), shipped]
    for place, rows in zip(places, runs, strict=True):
        for family in FAMILIES:
            own = [row for row in rows if row["family"] == family]
            place.plot(
                column(own, "step"), column(own, "foresight", 100), "o-", ms=3, label=family, color=COLOURS[family]
            )
            place.axhline(100 * float(own[0]["commonest"]), color=COLOURS[family], ls=":", lw=1)
        place.set_xlim(left=0)
        place.set_ylim(0, 103)
        place.set_xlabel("steps of the transformer")
    places[0].set_ylabel("outcome read from the imagined future, %")
    places[-1].legend(title="dotted: commonest outcome", fontsize=8, title_fontsize=8, loc="center right")
    return figure


def vae(folder: Path) -> Figure:
    loss, measured = read(folder / "vae_loss.csv"), read(folder / "vae_measure.csv")
    figure, (left, right) = axes(2, ("Stage (a): loss of the VAE", "Stage (a): PSNR of reconstructed clips"))
    left.plot(column(loss, "seconds"), column(loss, "loss"), lw=1)
    left.set_yscale("log")
    left.set_ylabel("loss; dashed: windows of 1, 5, 17 frames")
    for first, second in pairwise(loss):
        if first["frames"] != second["frames"]:
            left.axvline(float(second["seconds"]), color="grey", ls="--", lw=1)
    right.plot(column(measured, "seconds"), column(measured, "psnr"), "o-", ms=3, label="all pixels")
    right.plot(column(measured, "seconds"), column(measured, "psnr_moving"), "o-", ms=3, label="moving pixels")
    right.set_ylabel("dB")
    right.legend(fontsize=8)
    for place in (left, right):
        place.set_xlabel("seconds")
    return figure


def transformer(folder: Path) -> Figure:
    rows = read(folder / "transformer_loss.csv")
    figure, (left, right) = axes(2, ("Stage (b): loss of the transformer", "Stage (b): learning rate"))
    left.plot(column(rows, "step"), column(rows, "loss"), lw=1)
    left.set_yscale("log")
    left.set_ylabel("loss")
    right.plot(column(rows, "step"), column(rows, "lr"), lw=1)
    right.set_ylim(bottom=0)
    right.set_ylabel("learning rate; cut before 0")
    for place in (left, right):
        place.set_xlabel("steps")
    return figure


def language(folder: Path) -> Figure:
    rows = read(folder / "language.csv")
    figure, (left, right) = axes(2, ("Stage (c): loss", "Stage (c): now-questions of validation"))
    left.plot(column(rows, "step"), column(rows, "loss"), lw=1)
    left.set_yscale("log")
    left.set_ylabel("loss an answer token")
    asked = [row for row in rows if row["validation"] != "nan"]
    right.plot(column(asked, "step"), column(asked, "validation", 100), "o-", ms=3)
    right.axhline(GATE, color="black", ls="--", lw=1, label=f"gate, {GATE} %")
    right.set_ylim(0, 100)
    right.set_ylabel("right, %; half hide their image")
    right.legend(fontsize=8)
    for place in (left, right):
        place.set_xlabel("steps")
    return figure


def fusion(folder: Path) -> Figure:
    figure, (left, right) = axes(2, ("Stage (d): loss", "Stage (d): what-happens questions of validation"))
    for kind in KINDS:
        rows = read(folder / f"{kind}.csv")
        left.plot(column(rows, "step"), column(rows, "loss"), lw=1, label=kind)
        asked = [row for row in rows if row["validation"] != "nan"]
        right.plot(column(asked, "step"), column(asked, "validation", 100), "o-", ms=3, label=kind)
    left.set_yscale("log")
    left.set_ylabel("loss an answer token")
    right.set_ylim(30, 100)
    right.set_ylabel("right, %")
    right.legend(fontsize=8)
    for place in (left, right):
        place.set_xlabel("steps")
    return figure


FIGURES = {"foresight": foresight, "vae": vae, "transformer": transformer, "language": language, "fusion": fusion}

if __name__ == "__main__":
    main()
