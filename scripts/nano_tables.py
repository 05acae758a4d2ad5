r"""Writes the tables of the test split into the pages, from the JSON that `theworld eval physics` wrote.

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

FAMILIES = ("drop", "contact", "tower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("pages", type=Path, nargs="+", help="pages with <!-- arms: begin --> or <!-- paired: begin -->")
    parser.add_argument("--prefix", default="", help="of the marks: --prefix more- fills <!-- more-arms: begin -->")
    parser.add_argument(
        "--arm", action="append", default=[], metavar="ARM=JSON", help="this arm's rows come from another run's file"
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
    """Accuracy by arm with 95 % intervals, and by family; arms of `others` as that run of their own measured them."""
    lines = ["| arm | what it sees | all | 95 % | drop | contact | tower |", "|---|---|---|---|---|---|---|"]
    scores = {name: others[name]["arms"][name] if name in others else score for name, score in results["arms"].items()}
    rows = [(f"`{name}`{mark(name, others)}", ARMS[name].meaning, score) for name, score in scores.items()]
    for name, meaning, score in (*rows, ("commonest answer", "", results["commonest_answer"])):
        low, high = (100 * bound for bound in score["interval_95"])
        families = " | ".join(percent(score["by_family"][family]["accuracy"]) for family in FAMILIES)
        lines.append(f"| {name} | {meaning} | {percent(score['accuracy'])} | {low:.1f}–{high:.1f} | {families} |")
    lines += [
        "",
        f"*{results['limit']} questions of the {results['split']} split, one a scene; "
        f"{unparsed(score for name, score in results['arms'].items() if name not in others)}; {origin(results)}",
    ]
    for name, other in others.items():
        first = next(iter(other["arms"]))
        right = percent(other["arms"][first]["accuracy"])
        lines += [
            "",
            f"*{mark(name, others).strip()} in a run of its own, where `{first}` had {right}; "
            f"{unparsed([other['arms'][name]])}; {origin(other)}",
        ]
    return "\n".join(lines) + "\n"


def paired_table(results: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """Paired differences of the first arm to the others."""
    first = next(iter(results["arms"]))
    lines = [
        f"| `{first}` minus | points | 95 % | p (McNemar, exact) | drop | contact | tower |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair, own in results["paired"].items():
        arm = pair.partition("-minus-")[2]
        row = others[arm]["paired"][pair] if arm in others else own
        low, high = (100 * bound for bound in row["interval_95"])
        families = " | ".join(f"{100 * row['by_family'][family]['difference']:+.1f}" for family in FAMILIES)
        lines.append(
            f"| `{arm}`{mark(arm, others)} | {100 * row['difference']:+.1f} | {low:+.1f} … {high:+.1f} "
            f"| {row['p_mcnemar']:.2g} | {families} |"
        )
    return "\n".join(lines) + "\n"


def mark(arm: str, others: dict[str, dict[str, Any]]) -> str:
    """The sign of a footnote behind an arm that another run measured."""
    return " " + "†" * (1 + list(others).index(arm)) if arm in others else ""


def unparsed(scores: Iterable[dict[str, Any]]) -> str:
    """How many answers of these arms could not be read, in words."""
    count = sum(score["unparsed"] for score in scores)
    return f"{count or 'no'} answer{'' if count == 1 else 's'} unparsed"


def origin(results: dict[str, Any]) -> str:
    """Where and how figures were measured, to the end of a note in italics."""
    versions = results["versions"]
    return (
        f"on {results['device']}, torch {versions['torch']}, transformers {versions['transformers']}:* "
        f"`{results['command']}`"
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
