"""Writers of results: tables for the terminal, Markdown, and one self-contained HTML page with plots.

All writers start from the same tables, which `tables` builds from the content of `Results`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from theworld.evaluation.plots import plots
from theworld.evaluation.results import MEAN_OF_FAMILIES, score_rows
from theworld.evaluation.scoring import UNREAD
from theworld.evaluation.statistics import NO_DIFFERENCE, p_of
from theworld.evaluation.verdict import evidence, explanations, opponent, percent, points, verdict

MAX_FAMILY_COLUMNS = 4  # families that fit into the tables of arms; more get a table of their own


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """One table of results."""

    title: str
    columns: Sequence[str]  # the first column names the row, the others are right-aligned
    rows: Sequence[Sequence[str]]
    details: frozenset[str] = frozenset()  # columns that the terminal leaves out
    note: str = ""  # explanation on the page


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Accuracies, paired differences, accuracies by sub-task, and costs."""
    if content.get("hidden"):
        lines = [[row["arm"], str(row["n"]), str(row["unparsed"])] for row in score_rows(content)]
        return [Table("Answers", ("arm", "questions", "unparsed"), lines)]
    families = list(content["commonest_answer"]["by_family"])
    few = families if 1 < len(families) <= MAX_FAMILY_COLUMNS else []
    found = [accuracy_table(content, few)]
    if content["paired"]:
        found.append(paired_table(content, few))
    if len(families) > MAX_FAMILY_COLUMNS:
        rows = score_rows(content)
        lines = [[name, *(percent(row["by_family"][name]) for row in rows)] for name in families]
        found.append(Table("By sub-task", ("sub-task", *(row["arm"] for row in rows)), lines))
    if any("calibration" in row for row in content["arms"].values()):
        found.append(calibration_table(content))
    if "gate" in content:
        found.append(gate_table(content["gate"]))
    return [*found, cost_table(content["arms"])]


def cost_table(arms: Mapping[str, Any]) -> Table:
    columns = ("arm", "ms", "ms of rollouts", "rollouts", "transformer passes", "prompt tokens", "generated tokens")
    lines = [
        [
            name,
            f"{1000 * (cost['seconds'] + cost['rollout_seconds']):.0f}",
            f"{1000 * cost['rollout_seconds']:.0f}",
            f"{cost['rollouts']:.3g}",
            number(cost.get("passes")),
            f"{cost['prompt_tokens']:.0f}",
            f"{cost['new_tokens']:.1f}",
        ]
        for name, cost in ((name, row["cost"]) for name, row in arms.items())
    ]
    note = (
        "Per question, as if the arm had run alone: rollouts that arms share count for each of them. The transformer "
        "is that of the world model."
    )
    return Table("Cost per answer", columns, lines, note=note)


def calibration_table(content: Mapping[str, Any]) -> Table:
    """One row per arm with likelihoods; differences are those of the reference minus the arm."""
    reference = content["reference"]
    columns = [
        "arm",
        "ECE",
        "95 %",
        "Brier",
        "95 %",
        "mean probability",
        "correct",
        f"ECE of {reference} − arm",
        "95 %",
    ]
    lines = []
    for name, score in content["arms"].items():
        if (found := score.get("calibration")) is None:
            continue
        pair = content["paired"].get(f"{reference}-minus-{name}", {}).get("calibration")
        lines.append(
            [
                name,
                f"{found['ece']:.3f}",
                decimals(found["ece_interval_95"]),
                f"{found['brier']:.3f}",
                decimals(found["brier_interval_95"]),
                percent(found["confidence"]),
                percent(found["accuracy"]),
                f"{pair['ece_difference']:+.3f}" if pair else "",
                decimals(pair["ece_interval_95"], "+.3f") if pair else "",
            ]
        )
    note = (
        "ECE: the mean distance between the probability of the most likely option and the share of correct answers, "
        "over ten bins. Brier: the squared error of all probabilities, 0 to 2. 0 is best for both."
    )
    return Table("Calibration", columns, lines, note=note)


def gate_table(gate: Mapping[str, Any]) -> Table:
    """What each gated arm keeps of the accuracy of `fused`, for which share of its rollouts."""
    columns = ("arm", "accuracy kept", "95 %", "rollouts of fused", "95 %")
    lines = [
        [
            name,
            percent(row["kept"]),
            interval(*row["kept_interval_95"]),
            percent(row["rollouts"]),
            interval(*row["rollouts_interval_95"]),
        ]
        for name, row in gate["arms"].items()
    ]
    return Table("Imagining only where it pays", columns, lines, note="Relative to fused, on the same questions.")


def accuracy_table(content: Mapping[str, Any], families: Sequence[str]) -> Table:
    """One row per arm, and the most common answer as a baseline."""
    rows = score_rows(content)
    seeds = ["training seeds"] if any(row["seed_accuracies"] for row in rows) else []
    headline = "mean of sub-tasks" if content.get("headline") == MEAN_OF_FAMILIES else "correct"
    has_labels = any(row["perplexity"] is not None for row in rows)
    likelihood = ["perplexity of the label"] if has_labels else ["likeliest option", "undecided", "ECE"]
    costs = ["rollouts", "passes", "ms"]
    columns = ["arm", headline, "95 %", *families, *costs, *likelihood, "unparsed", "questions", *seeds]
    lines = [
        [
            row["arm"],
            percent(row["accuracy"]),
            interval(row["low"], row["high"]),
            *(percent(row["by_family"][family]) for family in families),
            *map(number, (row["rollouts"], row["passes"], row["ms"])),
            *(cells_of_likelihood(row, has_labels)),
            str(row["unparsed"]),
            str(row["n"]),
            *(", ".join(f"{100 * share:.1f}" for share in row["seed_accuracies"]) for _ in seeds),
        ]
        for row in rows
    ]
    note = "Rollouts, transformer passes of the world model and milliseconds are per question."
    return Table("Accuracy", columns, lines, frozenset({"undecided", "training seeds"}), note)


def cells_of_likelihood(row: Mapping[str, Any], has_labels: bool) -> list[str]:
    if has_labels:
        return ["" if row["perplexity"] is None else f"{row['perplexity']:.3g}"]
    likeliest = "" if row["likeliest"] is None else percent(row["likeliest"])
    ece = "" if row["ece"] is None else f"{row['ece']:.3f}"
    return [likeliest, "" if row["undecided"] is None else str(row["undecided"]), ece]


def paired_table(content: Mapping[str, Any], families: Sequence[str]) -> Table:
    """One row per arm that the reference is compared with."""
    labels = ["log-likelihood", "95 % of it"] if any("label_logprob" in p for p in content["paired"].values()) else []
    columns = ["paired", "points", "95 %", *families, "only one correct", "p", "p (Holm)", "finding", *labels]
    lines = [
        [
            name.replace("-minus-", " − "),
            points(pair["difference"]),
            " … ".join(map(points, pair["interval_95"])),
            *(points(pair["by_family"][family]["difference"]) for family in families),
            f"{pair['only_first']} / {pair['only_second']}",
            f"{p_of(pair):.2g}",
            f"{pair['p_holm']:.2g}",
            pair["finding"],
            *(cells_of_labels(pair) if labels else []),
            f"{pair['questions_for_points']['3']:,}",
            ", ".join(
                f"{family} {100 * row['difference']:+.0f}"
                for family, row in pair["by_family"].items()
                if row["finding"] != NO_DIFFERENCE
            )
            or "none",
        ]
        for name, pair in content["paired"].items()
    ]
    details = ("only one correct", "questions to show 3 points", "sub-tasks that differ")
    note = (
        "Points are percentage points. p is exact McNemar (with several training seeds, a sign-flip test over "
        "questions), corrected by Holm over these comparisons. A difference within noise is reported as not shown."
    )
    return Table("Paired differences", [*columns, *details[1:]], lines, frozenset(details), note)


def cells_of_labels(pair: Mapping[str, Any]) -> list[str]:
    """The difference in the mean log-probability per token of the labels, and its interval."""
    gained = pair.get("label_logprob")
    if gained is None:
        return ["", ""]
    low, high = gained["interval_95"]
    return [f"{gained['difference']:+.3f}", f"{low:+.3f} … {high:+.3f}"]


def number(value: float | None) -> str:
    """Three digits, and whole numbers from 100 on; empty if it is unknown."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def decimals(interval: Sequence[float], form: str = ".3f") -> str:
    return " … ".join(format(bound, form) for bound in interval)


def interval(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def runs_of(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that results come from; those of `evaluate` are one run themselves."""
    return list(content.get("runs", [content]))


# ------------------------------------------------------------------------------------------------------------- writers


def to_terminal(content: Mapping[str, Any], console: Any) -> None:
    """Prints accuracies and comparisons on a `rich.console.Console`."""
    from rich.table import Table as RichTable

    for number, table in enumerate(tables(content)):
        if table.title in ("Calibration", "Cost per answer"):  # the table of accuracies has their first figures
            continue
        shown = [i for i, column in enumerate(table.columns) if column not in table.details]
        rich = RichTable(box=None, padding=(0, 2, 0, 0))
        for i in shown:
            rich.add_column(table.columns[i], justify="right" if i else "left", no_wrap=True)
        for row in table.rows:
            rich.add_row(*(row[i] for i in shown))
        if number:
            console.print()
        # a narrow terminal wraps the lines; otherwise names and figures would be cut
        console.width = max(
            console.width, console.measure(rich, options=console.options.update(max_width=1000)).maximum
        )
        console.print(rich)


def to_markdown(content: Mapping[str, Any]) -> str:
    """All tables as Markdown, with their provenance."""
    lines = [f"# {heading(content)}", "", *(f"{text}\n" for text in (verdict(content), evidence(content)) if text)]
    lines += [f"> {note}" for note in (*content.get("notes", ()), *content["warnings"])]
    for table in tables(content):
        lines += ["", f"## {table.title}", "", *markdown_rows(table, code=table.columns[0] == "arm")]
    if content.get("hidden"):
        return "\n".join([*lines, ""])
    lines += ["", "## Provenance", ""]
    for run in runs_of(content):
        device = f", on {run['device']}" if "device" in run else ""
        name = f"{run['folder']}: " if "folder" in run else ""
        each = f" of {run['seconds_per_world_step']:g} s" if "seconds_per_world_step" in run else ""
        pace = f", {run['questions_per_second']:g} questions per second" if "questions_per_second" in run else ""
        lines.append(f"- {name}{run['model']}, {run['steps']} world steps{each}, seed {run['seed']}{device}{pace}")
        if "command" in run:
            lines.append(f"  `{run['command']}`")
    return "\n".join(lines) + "\n"


def markdown_rows(table: Table, code: bool = False) -> list[str]:
    """The lines of a Markdown table.

    Args:
        code: formats the names of rows as code, except for the baseline in brackets.
    """
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    for name, *cells in table.rows:
        lines.append("| " + " | ".join([f"`{name}`" if code and "(" not in name else name, *cells]) + " |")
    return lines


def heading(content: Mapping[str, Any]) -> str:
    split = f", {content['split']}" if content.get("split") else ""
    return f"{content['benchmark']}{split}: {content['questions']} questions"


def to_html(content: Mapping[str, Any]) -> str:
    """One page that needs no other file: plots as SVG, images as data."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hidden = bool(content.get("hidden"))
    found = {} if hidden else plots(content)
    return environment.get_template("page.html").render(
        content=content,
        heading=heading(content),
        verdict=verdict(content),
        evidence=evidence(content),
        arms=explanations(list(content["arms"])),
        runs=runs_of(content),
        notes=[*content.get("notes", ()), *content["warnings"]],
        tables=tables(content),
        plots=found,
        confusions=[] if hidden else confusions(content),
        disagreements={} if hidden else disagreements(content),
    )


# ---------------------------------------------------------------------------------------------------- parts of the page


def confusions(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One confusion matrix per arm, except for arms with more than 12 different answers."""
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


def disagreements(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Title -> cards of the questions that decide the verdict, and of the others on which arms disagree."""
    name = content["reference"]
    other = opponent(name, list(content["arms"]))
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in content.get("disagreements", ()):
        first = entry["answers"][name]["correct"]
        second = first if other is None else entry["answers"][other]["correct"]
        title = "Other disagreements" if first == second else f"Only {name if first else other} is correct"
        found.setdefault(title, []).append(card(entry))
    if other is None:
        return found
    pair = content["paired"][f"{name}-minus-{other}"]
    counts = {f"Only {name} is correct": pair["only_first"], f"Only {other} is correct": pair["only_second"]}
    titles = [*counts, "Other disagreements"]
    return {
        f"{title}: {counts[title]} of {pair['n']:,} questions" if title in counts else title: found[title]
        for title in titles
        if title in found
    }


def card(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A question on which arms disagree, with the arms of each answer, and its images as data."""
    paths = {kind: Path(path) for kind, path in entry.get("images", {}).items()}
    content = {kind: base64.b64encode(path.read_bytes()).decode() for kind, path in paths.items() if path.is_file()}
    groups: dict[tuple[str, str | None, bool], list[str]] = {}
    for name, given in entry["answers"].items():
        groups.setdefault((given["text"], given["read"], given["correct"]), []).append(name)
    return {
        **entry,
        "images": {kind: f"data:image/jpeg;base64,{text}" for kind, text in content.items()},
        "groups": sorted(groups.items(), key=lambda group: not group[0][2]),
    }
