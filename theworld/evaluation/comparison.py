"""Runs side by side: whose answers are compared with whose, and what comes of it.

A contender is one arm of one run, or the same arm of several runs that differ in their training seed. All runs have
been asked the same questions; the contenders' answers are then compared question by question, as `report.results` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theworld.evaluation import report
from theworld.evaluation.disagreements import disagreeing, read_index
from theworld.evaluation.items import Item
from theworld.evaluation.run_folder import PICTURES, RESULTS, Run, read_json, read_run
from theworld.evaluation.runner import Answer
from theworld.evaluation.scoring import likeliest, read_answer, right_answers, share
from theworld.evaluation.statistics import p_of
from theworld.inspection.provenance import versions


@dataclass(frozen=True)
class Contender:
    """One arm, of one run or of several training seeds.

    Attributes:
        name: what tables call it.
        arm: without its number of world steps.
        steps: world steps it imagined.
        model: whose weights were under test.
        seeds: answers in the order of the items, a list a training seed.
    """

    name: str
    arm: str
    steps: int
    model: str
    seeds: list[list[Answer]]


@dataclass(frozen=True)
class Comparison:
    """What was asked, who answered, and where it lies.

    Attributes:
        items: the questions, without pictures.
        contenders: by name, in order.
        runs: those that the answers came from.
        warnings: what a reader should know before the figures.
    """

    items: list[Item]
    contenders: dict[str, Contender]
    runs: list[Run]
    warnings: list[str]


def gather(specs: Sequence[str]) -> Comparison:
    """Contenders out of `RUN` or `NAME=RUN,RUN,…`, the latter training seeds of one model, pooled arm by arm.

    Raises:
        ValueError: no run, the same run twice, runs of other questions, or no arm that is through.
    """
    groups = [split_spec(spec) for spec in specs]
    folders = [os.path.realpath(place) for _, places in groups for place in places]
    twice = next((place for place in folders if folders.count(place) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} was given twice; a run stands once.")
    names = [name for name, _ in groups]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two groups of runs are called {double!r}; name them apart, as NAME=RUN.")
    contenders: dict[str, Contender] = {}
    runs: list[Run] = []
    warnings: list[str] = []
    for name, places in groups:
        own = [read_run(place) for place in places]
        for run in own:
            check_same_questions(runs[0] if runs else own[0], run)
            warnings += [
                f"{arm} of {run.folder} has {done} of {len(run.items)} answers and is left out; run it to the end."
                for arm, done in run.unfinished.items()
            ]
        runs += own
        contenders.update(contenders_of(name if len(groups) > 1 else "", own, warnings))
    if not contenders:
        raise ValueError("no arm of these runs has answered all questions; run them to the end.")
    return Comparison(runs[0].items, contenders, runs, warnings)


def split_spec(spec: str) -> tuple[str, list[str]]:
    """`NAME=RUN,RUN` or `RUN` as (name, folders); the name of a run is its folder's."""
    name, separator, places = spec.partition("=")
    if not separator:
        return Path(spec).name or spec, [spec]
    folders = [place for place in places.split(",") if place]
    if not name or not folders:
        raise ValueError(f"{spec!r}: write RUN, or NAME=RUN,RUN for training seeds of one model.")
    return name, folders


def check_same_questions(first: Run, other: Run) -> None:
    if first.fingerprint != other.fingerprint:
        different = [key for key in first.settings if first.settings[key] != other.settings.get(key)]
        known = [key for key in ("benchmark", "split", "data", "tasks", "limit", "seed") if key in different]
        raise ValueError(
            f"{other.folder} was asked other questions than {first.folder}"
            f"{f' ({chr(44).join(known)} differ)' if known else ''}; compare runs of the same questions."
        )


def contenders_of(group: str, runs: Sequence[Run], warnings: list[str]) -> dict[str, Contender]:
    """The arms that all runs of a group have, pooled."""
    found = {}
    settings = runs[0].settings
    for run in runs[1:]:
        if run.settings["steps"] != settings["steps"]:
            raise ValueError(
                f"{run.folder} imagines {run.settings['steps']} world steps and {runs[0].folder} {settings['steps']}; "
                "training seeds of one model differ in nothing else."
            )
    for arm in runs[0].answers:
        without = [run.folder for run in runs if arm not in run.answers]
        if without:
            warnings.append(f"{arm} is left out, since {without[0]} has no answers of it.")
            continue
        base, _, steps = arm.partition("@")
        last = settings["steps"][-1] if isinstance(settings["steps"], list) else settings["steps"]
        name = "/".join(part for part in (group, arm) if part)
        number = 0 if base == "fused-0" else int(steps or last)
        found[name] = Contender(name, base, number, settings["model"], [run.answers[arm] for run in runs])
    return found


def compared(comparison: Comparison, reference: str = "") -> dict[str, Any]:
    """The whole comparison as JSON can hold it.

    Raises:
        ValueError: a reference that is none of the contenders.
    """
    arms = {name: contender.seeds for name, contender in comparison.contenders.items()}
    if reference and reference not in arms:
        raise ValueError(f"there is no {reference!r} to compare with; choose among {', '.join(arms)}.")
    first = comparison.runs[0].settings
    alike = {run.settings["benchmark"] for run in comparison.runs} == {"blink"}
    return {
        "benchmark": first["benchmark"],
        "split": first.get("split"),
        "questions": len(comparison.items),
        "headline": "mean_of_families" if alike else "accuracy",
        **report.results(comparison.items, arms, reference),
        "steps": accuracy_by_steps(comparison),
        "disagreements": disagreements(comparison),
        "runs": [{"folder": run.folder.name, **run.settings, **provenance_of(run)} for run in comparison.runs],
        "versions": versions(),
        "notes": comparison.warnings,
    }


def provenance_of(run: Run) -> dict[str, Any]:
    """The command, device and versions that a run's result says it came from; empty where it was not finished."""
    place = run.folder / RESULTS
    if not place.is_file():
        return {}
    content = read_json(place)
    return {name: content[name] for name in ("command", "device", "versions", "seconds") if name in content}


def accuracy_by_steps(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Arms that were run with several numbers of world steps: model and arm -> accuracy at each."""
    points: dict[str, dict[int, dict[str, Any]]] = {}
    for contender in comparison.contenders.values():
        rows = [right_answers(comparison.items, answers) for answers in contender.seeds]
        arm = "fused" if contender.arm == "fused-0" else contender.arm
        key = f"{contender.model}: {arm}"
        points.setdefault(key, {})[contender.steps] = {"steps": contender.steps, **share(rows)}
    return {key: [own[steps] for steps in sorted(own)] for key, own in points.items() if len(own) > 1}


def disagreements(comparison: Comparison) -> list[dict[str, Any]]:
    """Questions on which contenders disagree: what was asked, what each said, and where pictures of it lie."""
    arms = {name: contender.seeds for name, contender in comparison.contenders.items()}
    indices = [(run.folder / PICTURES, read_index(run.folder / PICTURES)) for run in comparison.runs]
    found = []
    for row in disagreeing(comparison.items, arms):
        item = comparison.items[row]
        entry: dict[str, Any] = {
            "id": item.id,
            "family": item.family,
            "question": item.question,
            "answer": item.answer,
            "said": {name: answer_of(item, seeds[0][row]) for name, seeds in arms.items()},
        }
        for folder, index in indices:
            if item.id in index:
                entry["pictures"] = {kind: str(folder / name) for kind, name in index[item.id].items()}
                break
        found.append(entry)
    return found


def answer_of(item: Item, answer: Answer) -> dict[str, Any]:
    read = read_answer(item, answer.text)
    return {
        "text": answer.text,
        "read": read,
        "right": read == item.answer,
        "likeliest": likeliest(item, answer.logprobs),
    }


def as_markdown(content: Mapping[str, Any]) -> str:
    """The comparison as tables for a page."""
    lines = [f"# {content['benchmark']}, {content['split'] or 'all'}: {content['questions']} questions", ""]
    lines += [f"> {note}" for note in (*content["notes"], *content["warnings"])]
    if content.get("hidden"):
        lines += ["", "| arm | questions | unparsed |", "|---|---|---|"]
        lines += [f"| `{name}` | {row['n']} | {row['unparsed']} |" for name, row in content["arms"].items()]
        return "\n".join([*lines, "", "The answers of this split are not published, so no accuracy is claimed.", ""])
    alike = content["headline"] == "mean_of_families"
    lines += ["", "## Accuracy", ""]
    lines += [f"| arm | {'mean of sub-tasks' if alike else 'right'} | 95 % | likeliest option | unparsed | questions |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in {**content["arms"], "commonest answer": content["commonest_answer"]}.items():
        headline = row["mean_of_families"] if alike else row
        low, high = headline["interval_95"]
        likeliest_one = percent(row["likelihood"]["accuracy"]) if name in content["arms"] else ""
        lines.append(
            f"| `{name}` | {percent(headline['accuracy'])} | {100 * low:.1f}–{100 * high:.1f} | {likeliest_one} "
            f"| {row['unparsed']} | {row['n']} |"
        )
    if content["paired"]:
        lines += ["", f"## `{content['reference']}` against the others, question by question", ""]
        lines += [
            "| minus | points | 95 % | p | p (Holm) | finding | questions to show 3 points |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, pair in content["paired"].items():
            low, high = (100 * bound for bound in pair["interval_95"])
            lines.append(
                f"| `{name.partition('-minus-')[2]}` | {100 * pair['difference']:+.1f} | {low:+.1f} … {high:+.1f} "
                f"| {p_of(pair):.2g} | {pair['p_holm']:.2g} | {pair['finding']} "
                f"| {pair['questions_for_points']['3']:,} |"
            )
    families = list(content["commonest_answer"]["by_family"])
    if len(families) > 1:
        lines += ["", "## By sub-task", "", "| | " + " | ".join(f"`{name}`" for name in content["arms"]) + " |"]
        lines += ["|---" * (1 + len(content["arms"])) + "|"]
        for family in families:
            own = [percent(row["by_family"][family]["accuracy"]) for row in content["arms"].values()]
            lines.append(f"| {family} | " + " | ".join(own) + " |")
    lines += ["", "## Cost of an answer", "", "| arm | seconds | of rollouts | rollouts | tokens read | written |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in content["arms"].items():
        cost = row["cost"]
        lines.append(
            f"| `{name}` | {cost['seconds']:.3f} | {cost['rollout_seconds']:.3f} | {cost['rollouts']:g} "
            f"| {cost['prompt_tokens']:.0f} | {cost['new_tokens']:.1f} |"
        )
    lines += ["", "## Where it comes from", ""]
    for run in content["runs"]:
        where = f", on {run['device']}" if "device" in run else ""
        lines.append(f"- {run['folder']}: {run['model']}, {run['steps']} world steps, seed {run['seed']}{where}")
        if "command" in run:
            lines.append(f"  `{run['command']}`")
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
