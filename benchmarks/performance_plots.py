"""Plots of docs/performance.md: what a sample costs against the batch size, the world steps and the prompt's length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

Row = Mapping[str, Any]
Lines = dict[str, dict[str, list[tuple[float, float]]]]  # figure -> kind of arm -> (x, milliseconds per sample)

STYLES = {"stock": ":", "best peer": "--", "ours": "-"}
TOKENS = (279, 784)  # of a prompt without world tokens, and of a latent frame; see benchmarks/answering_speed.py
UNITS = ("ms", "s", "tokens/s", "samples/s", "questions/s")
PROMPTS = ("first token", "first token, image features given")
# what the x axis is -> the number of a row, and which rows it is drawn for
AXES: dict[str, tuple[Callable[[Row], float], Callable[[Row], bool]]] = {
    "batch size": (lambda row: row["batch"], lambda row: True),
    "world steps": (lambda row: row["world_steps"], lambda row: row["what"] not in PROMPTS),
    "tokens of the prompt": (lambda row: prompt_tokens(row["world_steps"]), lambda row: row["what"] in PROMPTS),
}


def prompt_tokens(world_steps: int) -> int:
    return TOKENS[0] + TOKENS[1] * (1 + world_steps)


def cost(row: Row) -> float:
    """Milliseconds per sample, token, question or image."""
    unit = str(row["unit"])
    if unit.endswith("/s"):
        return 1000 / row["value"]
    return row["value"] * {"ms": 1, "s": 1000}[unit] / row["batch"]


def lines_against(axis: str, rows: Sequence[Row], arms: Mapping[str, Sequence[str]]) -> Lines:
    """The lines of a plot: figures that were measured at several places of an axis and are otherwise the same.

    Args:
        arms: the names of the arms of each kind; of several, the fastest is drawn.
    """
    place, is_drawn = AXES[axis]
    found: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        kind = next((kind for kind, names in arms.items() if row["arm"] in names), None)
        if kind is None or not row.get("value") or not is_drawn(row) or row["unit"] not in UNITS:
            continue
        fixed = f", N={row['world_steps']}" if axis == "batch size" else f", B={row['batch']}"
        points = found.setdefault(f"{row['what']}{fixed}", {}).setdefault(kind, {})
        points[place(row)] = min(cost(row), points.get(place(row), float("inf")))
    lines = {
        what: {kind: sorted(points.items()) for kind, points in kinds.items() if len(points) > 1}
        for what, kinds in found.items()
    }
    return {what: kinds for what, kinds in lines.items() if kinds}


def digest(plots: Mapping[str, Lines]) -> str:
    """A hash of everything that is drawn, which the file contains."""
    return hashlib.blake2b(json.dumps(plots, sort_keys=True).encode(), digest_size=8).hexdigest()


def plots_of(rows: Sequence[Row], arms: Mapping[str, Sequence[str]]) -> dict[str, Lines]:
    """The plots that these rows are enough for, by their x axis."""
    plots = {axis: lines_against(axis, rows, arms) for axis in AXES}
    return {axis: lines for axis, lines in plots.items() if lines}


def svg(plots: Mapping[str, Lines]) -> str:
    """All plots side by side."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "theworld", "font.size": 9}):
        entries = max(map(len, plots.values()))
        figure = Figure(figsize=(4.2 * len(plots), 3.6 + 0.17 * entries), layout="constrained")
        for number, (axis, lines) in enumerate(plots.items(), start=1):
            axes = figure.add_subplot(1, len(plots), number)
            draw(axes, axis, lines)
            axes.set_ylabel("milliseconds per sample" if number == 1 else "")
        styles = [Line2D([], [], linestyle=style, color="0.3", label=kind) for kind, style in STYLES.items()]
        figure.legend(handles=styles, loc="outside upper left", ncols=len(styles), frameon=False)
        content = StringIO()
        description = f"drawn from {digest(plots)}"
        figure.savefig(content, format="svg", metadata={"Date": None, "Description": description})
    return content.getvalue()


def draw(axes: Axes, axis: str, lines: Lines) -> None:
    """One plot: a colour per figure, and a style per kind of arm."""
    ticks = set[int]()
    costs: list[float] = []
    for color, (what, kinds) in enumerate(lines.items()):
        for kind, points in kinds.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, STYLES[kind], marker="o", markersize=3.5, color=f"C{color}")
            ticks |= set(x)
            costs += y
        axes.plot([], [], "s", color=f"C{color}", label=what)
    if max(costs) > 20 * min(costs):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.1 * max(costs))
    if axis != "world steps":
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [f"{tick:,.0f}" for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)


def write_plots(folder: Path, name: str, rows: Sequence[Row], arms: Mapping[str, Sequence[str]]) -> None:
    """Writes `speed-NAME.svg`, if the rows are enough for a plot."""
    if plots := plots_of(rows, arms):
        folder.mkdir(exist_ok=True)
        (folder / f"speed-{name}.svg").write_text(svg(plots), encoding="utf-8")
