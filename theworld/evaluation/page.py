"""A comparison as one HTML page that needs nothing beside it: plots as SVG inside, pictures as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure

from theworld.evaluation.scoring import UNREAD
from theworld.evaluation.statistics import NO_DIFFERENCE, p_of

INK, MUTED, ACCENT, OTHER = "#1c2430", "#68737f", "#0b6e99", "#9aa7b3"
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
    "svg.fonttype": "none",  # letters stay letters, which can be searched and copied
    "svg.hashsalt": "theworld",  # the same comparison, the same file
}
WIDTH = 7.2  # inches of a plot


def as_page(content: Mapping[str, Any]) -> str:
    """The page of a comparison, as `comparison.compared` makes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    alike = content.get("headline") == "mean_of_families"
    hidden = bool(content.get("hidden"))
    return environment.get_template("page.html").render(
        content=content,
        hidden=hidden,
        headline="mean of sub-tasks" if alike else "right",
        plots={} if hidden else plots(content, alike),
        rows=[] if hidden else rows(content, alike),
        pairs=[] if hidden else pairs(content),
        confusions=[] if hidden else confusions(content),
        cards=[] if hidden else [card(entry) for entry in content["disagreements"]],
    )


def plots(content: Mapping[str, Any], alike: bool) -> dict[str, str]:
    """Title -> SVG; those for which there is something to show."""
    found = {"Accuracy by arm": by_arm(content, alike)}
    families = list(content["commonest_answer"]["by_family"])
    if len(families) > 1:
        found["Accuracy by sub-task"] = by_group(content["arms"], "by_family", families)
    if all("by_horizon" in row for row in content["arms"].values()):
        horizons = sorted(next(iter(content["arms"].values()))["by_horizon"], key=int)
        if len(horizons) > 1:
            found["Accuracy by horizon (world steps until the outcome can be seen)"] = by_group(
                content["arms"], "by_horizon", horizons
            )
    if content["steps"]:
        found["Accuracy against world steps"] = by_steps(content["steps"])
    found["Cost of an answer"] = costs(content["arms"])
    return found


def as_svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]


def by_arm(content: Mapping[str, Any], alike: bool) -> str:
    """A dot an arm with its interval, the best answer that knows no picture as a line."""
    arms = content["arms"]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 0.32 * len(arms)))
        axes = figure.add_subplot()
        for place, (name, row) in enumerate(arms.items()):
            headline = row["mean_of_families"] if alike else row
            low, high = (100 * bound for bound in headline["interval_95"])
            value, colour = 100 * headline["accuracy"], ACCENT if name == content["reference"] else INK
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(value, place, "o", color=colour, markersize=6)
            axes.annotate(f"{value:.1f}", (high, place), (6, 0), textcoords="offset points", va="center", color=colour)
        commonest = content["commonest_answer"]["mean_of_families" if alike else "accuracy"]
        guess = 100 * (commonest["accuracy"] if alike else commonest)
        axes.axvline(guess, color=OTHER, linestyle=":", linewidth=1.2)
        axes.annotate("commonest answer", (guess, -0.75), (3, 0), textcoords="offset points", color=MUTED, fontsize=8)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.set_ylim(len(arms) - 0.5, -1)
        axes.set_xlabel("right, % (95 % interval)")
        axes.tick_params(axis="y", length=0)
        return as_svg(figure)


def by_group(arms: Mapping[str, Any], key: str, groups: Sequence[str]) -> str:
    """A field an arm and group, darker where more is right."""
    names = list(arms)
    values = [[100 * arms[name][key][group]["accuracy"] for name in names] for group in groups]
    with rc_context(STYLE):
        figure = Figure(figsize=(max(WIDTH, 1.6 + 0.62 * len(names)), 1.3 + 0.3 * len(groups)))
        axes = figure.add_subplot()
        axes.imshow(values, cmap="GnBu", vmin=0, vmax=110, aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                axes.text(
                    x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 80 else INK, fontsize=9
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
    """Accuracy with its interval at each number of world steps, a line a model and arm."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            x = [point["steps"] for point in points]
            y = [100 * point["accuracy"] for point in points]
            # at 0 and 100 % a bound may lie a rounding on the other side
            low = [100 * max(0.0, point["accuracy"] - point["interval_95"][0]) for point in points]
            high = [100 * max(0.0, point["interval_95"][1] - point["accuracy"]) for point in points]
            axes.errorbar(x, y, [low, high], marker="o", capsize=3, label=name, color=f"C{number}")
        axes.set_xlabel("world steps")
        axes.set_ylabel("right, %")
        axes.set_xticks(sorted({point["steps"] for points in lines.values() for point in points}))
        axes.margins(x=0.08)
        figure.legend(loc="outside upper left", frameon=False, fontsize=9)
        return as_svg(figure)


def costs(arms: Mapping[str, Any]) -> str:
    """Seconds an answer, those of the rollouts that an arm alone would need in another colour."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(arms)))
        axes = figure.add_subplot()
        for place, row in enumerate(arms.values()):
            cost = row["cost"]
            axes.barh(place, cost["seconds"], color=INK, height=0.55, label="answer" if place == 0 else None)
            axes.barh(
                place,
                cost["rollout_seconds"],
                left=cost["seconds"],
                color=ACCENT,
                height=0.55,
                label="rollouts, made once for all arms" if place == 0 else None,
            )
            axes.annotate(
                f"{cost['prompt_tokens']:.0f} tokens read, {cost['new_tokens']:.1f} written, "
                f"{cost['rollouts']:g} rollouts",
                (cost["seconds"] + cost["rollout_seconds"], place),
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
        axes.set_xlabel("seconds an answer")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=2)
        return as_svg(figure)


def rows(content: Mapping[str, Any], alike: bool) -> list[dict[str, Any]]:
    """The lines of the table of arms."""
    found = []
    for name, row in {**content["arms"], "commonest answer": content["commonest_answer"]}.items():
        headline = row["mean_of_families"] if alike else row
        low, high = headline["interval_95"]
        found.append(
            {
                "name": name,
                "accuracy": f"{100 * headline['accuracy']:.1f} %",
                "interval": f"{100 * low:.1f}–{100 * high:.1f}",
                "likeliest": f"{100 * row['likelihood']['accuracy']:.1f} %" if name in content["arms"] else "",
                "undecided": row["likelihood"]["undecided"] if name in content["arms"] else "",
                "unparsed": row["unparsed"],
                "n": row["n"],
                "seeds": ", ".join(f"{100 * share:.1f}" for share in row.get("seed_accuracies", ())),
            }
        )
    return found


def pairs(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table of comparisons."""
    found = []
    for name, pair in content["paired"].items():
        low, high = pair["interval_95"]
        families = [
            f"{family} {100 * row['difference']:+.0f}"
            for family, row in pair["by_family"].items()
            if row["finding"] != NO_DIFFERENCE
        ]
        found.append(
            {
                "name": name.partition("-minus-")[2],
                "points": f"{100 * pair['difference']:+.1f}",
                "interval": f"{100 * low:+.1f} … {100 * high:+.1f}",
                "only": f"{pair['only_first']} / {pair['only_second']}",
                "p": f"{p_of(pair):.2g}",
                "holm": f"{pair['p_holm']:.2g}",
                "finding": pair["finding"],
                "families": ", ".join(families) or "none",
                "needed": f"{pair['questions_for_points']['3']:,}",
            }
        )
    return found


def confusions(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each arm, how often each true answer was read as which; left out where there are too many answers to show."""
    found = []
    for name, counts in content["confusion"].items():
        read = sorted({answer for row in counts.values() for answer in row} - {UNREAD})
        columns = [*sorted({*counts, *read}), UNREAD]
        if len(columns) > 12:
            continue
        lines = []
        for truth, row in counts.items():
            total = sum(row.values())
            cells = [{"n": row.get(column, 0), "share": row.get(column, 0) / total} for column in columns]
            lines.append({"truth": truth, "cells": cells})
        found.append({"name": name, "columns": columns, "lines": lines})
    return found


def card(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A question on which arms disagree, its pictures as data."""
    pictures = {kind: as_data(Path(path)) for kind, path in entry.get("pictures", {}).items() if Path(path).is_file()}
    return {**entry, "pictures": pictures}


def as_data(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
