"""Plots of probabilities: reliability diagrams, and what a gate gives at each threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

ACCENT, OTHER, MUTED = "#0b6e99", "#9aa7b3", "#68737f"
PANELS = 4  # reliability diagrams side by side
WIDTH = 7.2  # inches


def reliability(arms: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One diagram per arm: accuracy against probability, by bin; the areas of the points show the numbers of answers.

    Args:
        arms: name -> the entry `calibration` of its scores.
    """
    rows = -(-len(arms) // PANELS)
    side = WIDTH / PANELS
    figure = Figure(figsize=(WIDTH, rows * (side + 0.35)), layout="constrained")
    grid = figure.subplots(rows, PANELS, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes, (name, found) in zip(grid.flat, arms.items(), strict=False):
        axes.plot([0, 1], [0, 1], color=OTHER, linestyle=":", linewidth=1.2)
        bins = found["bins"]
        x, y = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
        axes.plot(x, y, color=ACCENT, linewidth=1)
        areas = [8 + 150 * row["n"] / found["n"] for row in bins]
        axes.scatter(x, y, areas, color=ACCENT, alpha=0.65, linewidths=0, clip_on=False)
        axes.set_title(f"{name}\nECE {found['ece']:.3f}", fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=8)
    figure.supxlabel("probability of the most likely option", fontsize=9, color=MUTED)
    figure.supylabel("correct", fontsize=9, color=MUTED)
    return figure


def gate_plot(curve: Sequence[Mapping[str, float]], chosen: Mapping[str, Any] | None = None) -> Figure:
    """Accuracy against the share of questions that are imagined, one point per threshold.

    Args:
        curve: of `gate_curve`.
        chosen: of `gate_summary`, for the gate that was chosen.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    x, y = ([100 * point[key] for point in curve] for key in ("rollouts", "accuracy"))
    axes.plot(x, y, color=ACCENT, linewidth=1.5)
    axes.axhline(y[-1], color=OTHER, linestyle=":", linewidth=1.2)
    axes.annotate(
        "a future for each question", (0, y[-1]), (0, -10), textcoords="offset points", color=MUTED, fontsize=8
    )
    if chosen is not None:
        place = (100 * chosen["rollouts"], 100 * chosen["accuracy"])
        axes.plot(*place, "o", color=ACCENT, markersize=6)
        text = f"gate: {place[1]:.1f} % with {place[0]:.0f} % of the rollouts"
        axes.annotate(text, place, (6, -12), textcoords="offset points", color=ACCENT, fontsize=9)
    axes.set_xlabel("questions for which a future is imagined, %")
    axes.set_ylabel("correct, %")
    axes.set_xlim(-1, 101)
    return figure
