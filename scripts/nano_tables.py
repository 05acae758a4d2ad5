r"""Writes the tables of the test split into Markdown pages, from the JSON of `theworld eval physics`.

python scripts/nano_tables.py docs/nano/physics_test.json docs/nano.md \
    --arm frozen-random-projection=docs/nano/frozen_test.json
python scripts/nano_tables.py docs/nano/physics_more.json docs/nano.md --prefix more-
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from theworld.evaluation.arms import ARMS
from theworld.evaluation.render import Table, interval, markdown_rows
from theworld.evaluation.results import score_rows
from theworld.evaluation.verdict import percent, points

FAMILIES = ("drop", "contact", "tower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("pages", type=Path, nargs="+", help="pages with <!-- arms: begin --> or <!-- paired: begin -->")
    parser.add_argument("--prefix", default="", help="of the markers: --prefix more- fills <!-- more-arms: begin -->")
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="ARM=JSON",
        help="takes this arm's rows from the file of another run",
    )
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    others = {}
    for given in arguments.arm:
        arm, _, file = given.partition("=")
        others[arm] = json.loads(Path(file).read_text(encoding="utf-8"))
    tables = {"arms": arms_table(results, others), "paired": paired_table(results, others)}
    for page in arguments.pages:
        text = page.read_text(encoding="utf-8")
        for name, table in tables.items():
            mark = arguments.prefix + name
            marked = re.compile(rf"(<!-- {mark}: begin -->\n).*?(<!-- {mark}: end -->)", re.DOTALL)
            text = marked.sub(lambda found, table=table: found[1] + table + found[2], text)
        page.write_text(text, encoding="utf-8")
        print(page)


def arms_table(results: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """Accuracy by arm with 95 % intervals, and by family; arms of `others` come from the runs that measured them."""
    columns = ("arm", "input", "all", "95 %", *FAMILIES)
    rows = []
    for row in score_rows({**results, "arms": {name: arm_score(name, results, others) for name in results["arms"]}}):
        is_arm = row["arm"] in ARMS
        rows.append(
            [
                f"`{row['arm']}`{mark(row['arm'], others)}" if is_arm else row["arm"].strip("()"),
                ARMS[row["arm"]].meaning if is_arm else "",
                percent(row["accuracy"]),
                interval(row["low"], row["high"]),
                *(percent(row["by_family"][family]) for family in FAMILIES),
            ]
        )
    lines = markdown_rows(Table("Arms", columns, rows))
    lines += [
        "",
        f"*{results['limit']} questions of the {results['split']} split, one per scene; "
        f"{unparsed(score for name, score in results['arms'].items() if name not in others)}; {origin(results)}",
    ]
    for name, other in others.items():
        first = next(iter(other["arms"]))
        right = percent(other["arms"][first]["accuracy"])
        lines += [
            "",
            f"*{mark(name, others).strip()} in a separate run, where `{first}` had {right}; "
            f"{unparsed([other['arms'][name]])}; {origin(other)}",
        ]
    return "\n".join(lines) + "\n"


def paired_table(results: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """Paired differences of the first arm to the others."""
    first = next(iter(results["arms"]))
    rows = []
    for pair in results["paired"]:
        arm = pair.partition("-minus-")[2]
        row = others.get(arm, results)["paired"][pair]
        rows.append(
            [
                f"`{arm}`{mark(arm, others)}",
                points(row["difference"]),
                " … ".join(map(points, row["interval_95"])),
                f"{row['p_mcnemar']:.2g}",
                *(points(row["by_family"][family]["difference"]) for family in FAMILIES),
            ]
        )
    columns = (f"`{first}` minus", "points", "95 %", "p (McNemar, exact)", *FAMILIES)
    return "\n".join(markdown_rows(Table("Paired", columns, rows))) + "\n"


def arm_score(name: str, results: dict[str, Any], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The score of an arm, from the run that measured it."""
    score = others.get(name, results)["arms"][name]
    assert isinstance(score, dict)
    return score


def mark(arm: str, others: dict[str, dict[str, Any]]) -> str:
    """The footnote sign after an arm that another run measured."""
    return " " + "†" * (1 + list(others).index(arm)) if arm in others else ""


def unparsed(scores: Iterable[dict[str, Any]]) -> str:
    """How many answers of these arms could not be parsed, in words."""
    count = sum(score["unparsed"] for score in scores)
    return f"{count or 'no'} answer{'' if count == 1 else 's'} unparsed"


def origin(results: dict[str, Any]) -> str:
    """Device, versions and command of a run, as the end of a note in italics."""
    versions = results["versions"]
    return (
        f"on {results['device']}, torch {versions['torch']}, transformers {versions['transformers']}:* "
        f"`{results['command']}`"
    )


if __name__ == "__main__":
    main()
