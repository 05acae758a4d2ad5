"""Writes the tables of the test split into the pages, from the JSON that `theworld eval physics` wrote.

python scripts/nano_tables.py docs/nano/physics_test.json docs/nano.md README.md
python scripts/nano_tables.py docs/nano/physics_more.json docs/nano.md --prefix more-
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from theworld.evaluation.arms import ARMS

FAMILIES = ("drop", "contact", "tower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("pages", type=Path, nargs="+", help="pages with <!-- arms: begin --> or <!-- paired: begin -->")
    parser.add_argument("--prefix", default="", help="of the marks: --prefix more- fills <!-- more-arms: begin -->")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    tables = {"arms": arms_table(results), "paired": paired_table(results)}
    for page in arguments.pages:
        text = page.read_text(encoding="utf-8")
        for name, table in tables.items():
            mark = arguments.prefix + name
            marked = re.compile(rf"(<!-- {mark}: begin -->\n).*?(<!-- {mark}: end -->)", re.DOTALL)
            text = marked.sub(lambda found, table=table: found[1] + table + found[2], text)
        page.write_text(text, encoding="utf-8")
        print(page)


def arms_table(results: dict[str, Any]) -> str:
    """Accuracy by arm with 95 % intervals, and by family."""
    lines = ["| arm | what it sees | all | 95 % | drop | contact | tower |", "|---|---|---|---|---|---|---|"]
    rows = [(f"`{name}`", ARMS[name].meaning, score) for name, score in results["arms"].items()]
    for name, meaning, score in (*rows, ("commonest answer", "", results["commonest_answer"])):
        low, high = (100 * bound for bound in score["interval_95"])
        families = " | ".join(percent(score["by_family"][family]["accuracy"]) for family in FAMILIES)
        lines.append(f"| {name} | {meaning} | {percent(score['accuracy'])} | {low:.1f}–{high:.1f} | {families} |")
    unparsed = sum(score["unparsed"] for score in results["arms"].values())
    versions = results["versions"]
    lines += [
        "",
        f"*{results['limit']} questions of the {results['split']} split, one a scene; {unparsed or 'no'} answers "
        f"unparsed; on {results['device']}, torch {versions['torch']}, transformers {versions['transformers']}:* "
        f"`{results['command']}`",
    ]
    return "\n".join(lines) + "\n"


def paired_table(results: dict[str, Any]) -> str:
    """Paired differences of the first arm to the others."""
    first = next(iter(results["arms"]))
    lines = [
        f"| `{first}` minus | points | 95 % | p (McNemar, exact) | drop | contact | tower |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results["paired"].items():
        low, high = (100 * bound for bound in row["interval_95"])
        families = " | ".join(f"{100 * row['by_family'][family]['difference']:+.1f}" for family in FAMILIES)
        lines.append(
            f"| `{name.partition('-minus-')[2]}` | {100 * row['difference']:+.1f} | {low:+.1f} … {high:+.1f} "
            f"| {row['p_mcnemar']:.2g} | {families} |"
        )
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
