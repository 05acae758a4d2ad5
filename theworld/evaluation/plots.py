"""Plots of a report as SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from theworld.evaluation.probability_plots import gate_plot, reliability
from theworld.evaluation.results import score_rows

INK, MUTED, ACCENT, OTHER = "#1c2430", "#68737f", "#0b6e99", "#9aa7b3"
VARIABLES = {INK: "ink", MUTED: "muted", ACCENT: "accent", OTHER: "other"}  # of page.html
ON_LIGHT = "#1c2431"  # text on the light cells of a heat map, which does not follow the page
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": OTHER,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text, which can be searched and copied
    "svg.hashsalt": "theworld",  # the same comparison gives the same file
}
WIDTH = 7.2  # inches of a plot


def plots(content: Mapping[str, Any]) -> dict[str, str]:
    """Title -> SVG of each plot for which there are data."""
    families = list(content["commonest_answer"]["by_family"])
    with rc_context(STYLE):
        found = {"Accuracy by arm": by_arm(content)}
        if len(families) > 1:
            found["Accuracy by sub-task"] = by_group(content["arms"], "by_family", families)
        if all("by_horizon" in row for row in content["arms"].values()):
            horizons = sorted(next(iter(content["arms"].values()))["by_horizon"], key=int)
            if len(horizons) > 1:
                title = "Accuracy by horizon (world steps until the outcome can be seen)"
                found[title] = by_group(content["arms"], "by_horizon", horizons)
        if isinstance(content["steps"], Mapping) and content["steps"]:  # of a single run it is a number
            found["Accuracy against world steps"] = by_steps(content["steps"])
        probable = {name: row["calibration"] for name, row in content["arms"].items() if "calibration" in row}
        if probable:
            found["Reliability: how often is an answer of a given probability correct?"] = as_svg(reliability(probable))
        if "gate" in content:
            (chosen,) = list(content["gate"]["arms"].values())[:1] or [None]
            found["Imagining only where it pays"] = as_svg(gate_plot(content["gate"]["curve"], chosen))
        return {**found, "Cost per answer": costs(content["arms"])}


def as_svg(figure: Figure) -> str:
    """The figure as an `svg` element, with the page's variables as colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", transparent=True)
    text = file.getvalue()
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text[text.index("<svg") :]


def by_arm(content: Mapping[str, Any]) -> str:
    """Dot plot: accuracy and interval per arm, and the most common answer as a vertical line."""
    *arms, baseline = score_rows(content)
    figure = Figure(figsize=(WIDTH, 0.7 + 0.32 * len(arms)))
    axes = figure.add_subplot()
    for y, row in enumerate(arms):
        low, high, value = 100 * row["low"], 100 * row["high"], 100 * row["accuracy"]
        colour = ACCENT if row["arm"] == content["reference"] else INK
        axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(value, y, "o", color=colour, markersize=6)
        axes.annotate(f"{value:.1f}", (high, y), (6, 0), textcoords="offset points", va="center", color=colour)
    guess = 100 * baseline["accuracy"]
    axes.axvline(guess, color=OTHER, linestyle=":", linewidth=1.2)
    axes.annotate("most common answer", (guess, -0.75), (3, 0), textcoords="offset points", color=MUTED, fontsize=8)
    axes.set_yticks(range(len(arms)), [row["arm"] for row in arms])
    axes.set_ylim(len(arms) - 0.5, -1)
    axes.set_xlabel("correct, % (95 % interval)")
    axes.tick_params(axis="y", length=0)
    return as_svg(figure)


def by_group(arms: Mapping[str, Any], key: str, groups: Sequence[str]) -> str:
    """Heat map: accuracy per arm and group."""
    names = list(arms)
    values = [[100 * arms[name][key][group]["accuracy"] for name in names] for group in groups]
    figure = Figure(figsize=(max(WIDTH, 1.6 + 0.62 * len(names)), 1.3 + 0.3 * len(groups)))
    axes = figure.add_subplot()
    axes.imshow(values, cmap="GnBu", vmin=0, vmax=110, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 80 else ON_LIGHT, fontsize=9
            )
    counts = [next(iter(arms.values()))[key][group]["n"] for group in groups]
    axes.set_yticks(range(len(groups)), [f"{group} ({n})" for group, n in zip(groups, counts, strict=True)])
    axes.set_xticks(range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.tick_params(axis="both", length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.tick_params(axis="x", colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return as_svg(figure)


def by_steps(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Accuracy with its interval at each number of world steps, one line per model and arm."""
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(lines.items()):
        x = [point["steps"] for point in points]
        y = [100 * point["accuracy"] for point in points]
        # at 0 and 100 % rounding may put a bound on the other side of the value
        low = [100 * max(0.0, point["accuracy"] - point["interval_95"][0]) for point in points]
        high = [100 * max(0.0, point["interval_95"][1] - point["accuracy"]) for point in points]
        axes.errorbar(x, y, [low, high], marker="o", capsize=3, label=name, color=f"C{number}")
    axes.set_xlabel("world steps")
    axes.set_ylabel("correct, %")
    axes.set_xticks(sorted({point["steps"] for points in lines.values() for point in points}))
    axes.margins(x=0.08)
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    return as_svg(figure)


def costs(arms: Mapping[str, Any]) -> str:
    """Seconds per answer, with those of the rollouts that the arm needs on its own in another colour."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(arms)))
    axes = figure.add_subplot()
    rows = [row["cost"] for row in arms.values()]
    seconds, rollouts = ([cost[name] for cost in rows] for name in ("seconds", "rollout_seconds"))
    axes.barh(range(len(rows)), seconds, color=INK, height=0.55, label="answer")
    label = "rollouts, computed once for all arms"
    axes.barh(range(len(rows)), rollouts, left=seconds, color=ACCENT, height=0.55, label=label)
    for y, cost in enumerate(rows):
        axes.annotate(
            f"{cost['prompt_tokens']:.0f} prompt tokens, {cost['new_tokens']:.1f} generated, "
            f"{cost['rollouts']:g} rollouts",
            (cost["seconds"] + cost["rollout_seconds"], y),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=8,
        )
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.margins(x=0.55)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds per answer")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=2)
    return as_svg(figure)
