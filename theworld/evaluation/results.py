"""Scores and paired comparisons of arms, within one run or across several runs of the same questions.

A contender is one arm of one run, or the same arm of several runs that differ in their training seed. Contenders are
compared question by question.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from theworld.datasets.blink import submission
from theworld.evaluation import scoring, statistics
from theworld.evaluation.calibration import Predictions, calibration, compare_calibration, predictions
from theworld.evaluation.disagreements import disagreeing, read_index
from theworld.evaluation.gating import gate_content
from theworld.evaluation.run_folder import IMAGE_FOLDERS, RESULTS, Run, read_json, read_run
from theworld.evaluation.runner import Answer
from theworld.evaluation.tasks import HIDDEN, Item
from theworld.evaluation.verdict import verdict
from theworld.inspection.provenance import versions
from theworld.messages import counted, enumerate_names
from theworld.storage.files import write_text

REFERENCE = "fused"
MEAN_OF_FAMILIES = "mean_of_families"
POINTS = (0.01, 0.02, 0.03, 0.05, 0.1)  # differences for which the required number of questions is given


@dataclass(frozen=True)
class Results:
    """What an evaluation or a comparison found; returned by `evaluate` and `compare`.

    Attributes:
        content: everything, as it is written to JSON: scores under `arms`, comparisons under `paired`, provenance.
        items: the questions.
        answers: arm -> the answers in the order of the items; of several training seeds the first one's.
    """

    content: dict[str, Any]
    items: Sequence[Item]
    answers: Mapping[str, Sequence[Answer]]

    @property
    def hidden(self) -> bool:
        """Whether the true answers are not published, so that nothing is scored."""
        return bool(self.content.get("hidden"))

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return str(self.content["reference"])

    @property
    def accuracies(self) -> dict[str, float]:
        """Arm -> accuracy in [0, 1]: the share of correct answers, or for BLINK the mean over its tasks."""
        return {row["arm"]: row["accuracy"] for row in self.rows()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Arm -> 95 % interval of its accuracy."""
        return {row["arm"]: (row["low"], row["high"]) for row in self.rows()}

    @property
    def verdict(self) -> str:
        """One sentence: what helped, by how much, and how sure that is."""
        return verdict(self.content)

    @property
    def paired(self) -> dict[str, dict[str, Any]]:
        """Arm -> its paired comparison with the reference: `difference` (reference minus arm), `interval_95`, `p_holm`,
        `finding` and more."""
        pairs = self.content.get("paired", {}).items()
        return {name.partition("-minus-")[2]: pair for name, pair in pairs}

    @property
    def warnings(self) -> list[str]:
        """Sentences to read before the figures."""
        return [*self.content.get("notes", ()), *self.content["warnings"]]

    def rows(self) -> list[dict[str, Any]]:
        """One row of numbers per arm, such as for `pandas.DataFrame`; see `score_rows`."""
        return score_rows(self.content)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """One record per question: the question, the true answer, and what each arm answered."""
        for row, item in enumerate(self.items):
            yield {
                "id": item.id,
                "family": item.family,
                "topic": item.topic,
                "form": item.form,
                "question": item.question,
                "answer": item.answer,
                "predictions": {name: rows[row].text for name, rows in self.answers.items()},
                "read": {name: scoring.read_answer(item, rows[row].text) for name, rows in self.answers.items()},
                "likeliest": {name: scoring.likeliest(item, rows[row].logprobs) for name, rows in self.answers.items()},
            }

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        from theworld.evaluation.render import to_markdown

        return to_markdown(self.content)

    def to_html(self) -> str:
        """Tables, plots and disagreements as one self-contained page."""
        from theworld.evaluation.render import to_html

        return to_html(self.content)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The content as JSON; with a path it is written there, and the predictions to `NAME.predictions.jsonl`."""
        text = json.dumps(self.content, ensure_ascii=False, indent=2) + "\n"
        if path is not None:
            lines = [json.dumps(record, ensure_ascii=False) for record in self.predictions()]
            write_text(Path(path).with_suffix(".predictions.jsonl"), "\n".join(lines) + "\n")
            write_text(path, text)
        return text

    def write_submissions(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes `submission.ARM.json` for each arm, as BLINK's evaluation server reads it."""
        paths = []
        for name, answers in self.answers.items():
            pairs = zip(self.items, answers, strict=True)
            letters = {item.id: scoring.read_answer(item, answer.text) for item, answer in pairs}
            paths.append(Path(folder) / f"submission.{name}.json")
            write_text(paths[-1], json.dumps(submission(letters), indent=1) + "\n")
        return paths


def score_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of each arm, and last of the most common answer, as flat rows of numbers in [0, 1].

    Returns:
        one dict per arm with arm, accuracy, low, high, n, unparsed, by_family (family -> accuracy), likeliest and
        undecided (None for the most common answer and for labels), perplexity (of labels, else None), ece and brier
        (None without likelihoods), rollouts, passes and ms per question (None for the most common answer) and
        seed_accuracies; without accuracies if answers are hidden.
    """
    if content.get("hidden"):
        return [{"arm": name, "n": row["n"], "unparsed": row["unparsed"]} for name, row in content["arms"].items()]
    rows = []
    for name, score in {**content["arms"], scoring.MOST_COMMON: content["commonest_answer"]}.items():
        headline = score[MEAN_OF_FAMILIES] if content.get("headline") == MEAN_OF_FAMILIES else score
        is_arm = name in content["arms"]
        likelihood = score.get("likelihood", {}) if is_arm else {}
        probable, cost = score.get("calibration") or {}, score["cost"] if is_arm else {}
        rows.append(
            {
                "arm": name,
                "accuracy": headline["accuracy"],
                "low": headline["interval_95"][0],
                "high": headline["interval_95"][1],
                "n": score["n"],
                "unparsed": score["unparsed"],
                "by_family": {family: row["accuracy"] for family, row in score["by_family"].items()},
                "likeliest": likelihood.get("accuracy"),
                "undecided": likelihood.get("undecided"),
                "perplexity": (score.get("label") or {}).get("perplexity"),
                "ece": probable.get("ece"),
                "brier": probable.get("brier"),
                "rollouts": cost.get("rollouts"),
                "passes": cost.get("passes"),
                "ms": 1000 * (cost["seconds"] + cost["rollout_seconds"]) if cost else None,
                "seed_accuracies": score.get("seed_accuracies", []),
            }
        )
    return rows


# -------------------------------------------------------------------------------------------------- scores of one run


def summarise(
    items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], reference: str = ""
) -> dict[str, Any]:
    """Scores of every arm, paired differences between the reference arm and the others, and warnings.

    Where the true answers are not published there are no scores and no comparisons.

    Args:
        items: the questions.
        arms: name -> one list of answers per training seed, in the order of the items.
        reference: the arm that others are compared with; empty means `fused`, or the first arm.

    Raises:
        ValueError: if some items have a published answer and some have none.
    """
    if any(item.answer == HIDDEN for item in items):
        if not all(item.answer == HIDDEN for item in items):
            raise ValueError("Some questions have an answer and some have none; evaluate them separately.")
        known = {
            name: {"n": len(items), "unparsed": scoring.count_unparsed(items, seeds), "cost": scoring.cost(seeds)}
            for name, seeds in arms.items()
        }
        return {"hidden": True, "arms": known, "warnings": []}
    reference = reference or reference_of(list(arms))
    pairs = {
        f"{reference}-minus-{name}": compare_arms(items, arms[reference], arms[name])
        for name in arms
        if name != reference
    }
    probable = {name: predictions(items, seeds) for name, seeds in arms.items()}
    for name in arms:
        if name != reference:
            pairs[f"{reference}-minus-{name}"] |= compared_probabilities(probable[reference], probable[name])
    baseline = [Answer(item.id, text) for item, text in zip(items, scoring.commonest_answers(items), strict=True)]
    return {
        "reference": reference,
        "arms": {
            name: {**scoring.score(items, seeds), **({"calibration": calibration(found)} if found else {})}
            for (name, seeds), found in zip(arms.items(), probable.values(), strict=True)
        },
        "paired": with_family_findings(statistics.with_findings(pairs)),
        "commonest_answer": scoring.score(items, [baseline]),
        "confusion": {name: scoring.confusion(items, seeds) for name, seeds in arms.items()},
        **({"gate": gate} if (gate := gate_content(items, arms)) else {}),
        "warnings": suspicions(items, arms),
    }


def compared_probabilities(first: Predictions | None, second: Predictions | None) -> dict[str, Any]:
    """The entry `calibration` of a comparison, where both arms have probabilities."""
    found = compare_calibration(first, second) if first and second else None
    return {"calibration": found} if found else {}


def reference_of(names: Sequence[str]) -> str:
    """The arm that others are compared with: `fused` with the most world steps, or the first arm."""
    fused = [name for name in names if name.partition("@")[0].rpartition("/")[2] == REFERENCE]
    return fused[-1] if fused else names[0]


def compare_arms(
    items: Sequence[Item], first: Sequence[Sequence[Answer]], second: Sequence[Sequence[Answer]]
) -> dict[str, Any]:
    """`statistics.compare_seeds` over all questions, by family and of the means over families, with required sizes."""
    sides = [[scoring.right_answers(items, answers) for answers in seeds] for seeds in (first, second)]
    families = scoring.groups_of(items, lambda item: item.family)
    by_family = {
        family: statistics.compare_seeds(*([[row[i] for i in members] for row in side] for side in sides))
        for family, members in families.items()
    }
    shares = [np.asarray(side, dtype=float).mean(axis=0) for side in sides]
    pair = statistics.compare_seeds(*sides)
    rates = [scoring.label_rates(seeds) for seeds in (first, second)]
    if all(rate is not None for rate in rates):
        gained = rates[0] - rates[1]
        interval = list(statistics.bootstrap_mean([gained]))
        pair["label_logprob"] = {"difference": float(gained.mean()), "interval_95": interval}
    disagreement = (pair["only_first"] + pair["only_second"]) / pair["n"]
    return {
        **pair,
        "by_family": by_family,
        MEAN_OF_FAMILIES: scoring.mean_of_families(items, shares[0] - shares[1], "difference"),
        "disagreement": disagreement,
        # arms that never disagree leave the rate unknown; arms that differ by d disagree on d of the questions or more
        "questions_for_points": {f"{100 * d:g}": statistics.questions_needed(d, max(disagreement, d)) for d in POINTS},
    }


def with_family_findings(pairs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons with findings within each family, corrected over all families of all comparisons."""
    rows = {(name, family): row for name, pair in pairs.items() for family, row in pair["by_family"].items()}
    found = statistics.with_findings(rows)
    return {
        name: {**pair, "by_family": {family: found[name, family] for family in pair["by_family"]}}
        for name, pair in pairs.items()
    }


def suspicions(items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], enough: int = 20) -> list[str]:
    """Signs that an evaluation measured nothing: arms with identical answers, or many unparsed answers."""
    warnings = []
    texts = {name: [[answer.text for answer in row] for row in seeds] for name, seeds in arms.items()}
    for first, second in combinations(texts, 2):
        if len(items) >= enough and texts[first] == texts[second]:
            warnings.append(f"{first} and {second} gave the same answer to all {len(items)} questions.")
    for name, seeds in arms.items():
        unparsed, total = scoring.count_unparsed(items, seeds), len(items) * len(seeds)
        if unparsed > total // 20:
            warnings.append(f"{unparsed} of {total} answers of {name} could not be parsed.")
    return warnings


# ------------------------------------------------------------------------------------------- comparison of saved runs


@dataclass(frozen=True)
class Contender:
    """One arm of one run, or of several training seeds."""

    arm: str  # without its number of world steps
    steps: int
    model: str
    seeds: list[list[Answer]]  # one list of answers per training seed, in the order of the items


def compare(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    reference: str = "",
    output: str | os.PathLike[str] | None = None,
) -> Results:
    """Compares the arms of one or more saved runs of the same questions, question by question.

    Args:
        runs: folders that `evaluate(output=…)` wrote, or `NAME=RUN,RUN,…` for training seeds of one model, which are
            pooled arm by arm.
        reference: the arm that all others are compared with; empty means `fused`.
        output: a folder for comparison.json, comparison.md and comparison.html.

    Raises:
        ValueError: if there is no run, a run is given twice, runs have different questions, no arm is complete, or the
            reference is not one of the arms.
    """
    specs = [os.fspath(runs)] if isinstance(runs, str | os.PathLike) else [os.fspath(run) for run in runs]
    contenders, saved, notes = gather(specs)
    arms = {name: contender.seeds for name, contender in contenders.items()}
    if reference and reference not in arms:
        raise ValueError(f"There is no arm {reference!r} to compare with; choose one of {', '.join(arms)}.")
    items, first = saved[0].items, saved[0].settings
    equal_families = {run.settings["benchmark"] for run in saved} == {"blink"}
    content = {
        "benchmark": first["benchmark"],
        "split": first.get("split"),
        "questions": len(items),
        "headline": MEAN_OF_FAMILIES if equal_families else "accuracy",
        **summarise(items, arms, reference),
        "steps": accuracy_by_steps(items, contenders),
        "disagreements": disagreements(items, arms, saved, reference or reference_of(list(arms))),
        "runs": [{"folder": run.folder.name, **run.settings, **provenance_of(run)} for run in saved],
        "versions": versions(),
        "notes": notes,
    }
    results = Results(content, items, {name: seeds[0] for name, seeds in arms.items()})
    if output is not None:
        folder = Path(output)
        write_text(folder / "comparison.json", results.to_json())
        write_text(folder / "comparison.md", results.to_markdown())
        write_text(folder / "comparison.html", results.to_html())
    return results


def gather(specs: Sequence[str]) -> tuple[dict[str, Contender], list[Run], list[str]]:
    """Contenders by name, the runs that they come from, and notes about arms that are left out.

    Args:
        specs: `RUN` or `NAME=RUN,RUN,…`.
    """
    groups = [split_spec(spec) for spec in specs]
    paths = [os.path.realpath(path) for _, folders in groups for path in folders]
    duplicate = next((path for path in paths if paths.count(path) > 1), None)
    if duplicate is not None:
        raise ValueError(f"Duplicate run: {duplicate}.")
    names = [name for name, _ in groups]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"Two groups of runs are named {double!r}; give them different names, as NAME=RUN.")
    contenders: dict[str, Contender] = {}
    runs: list[Run] = []
    notes: list[str] = []
    for name, folders in groups:
        group = [read_run(folder) for folder in folders]
        for run in group:
            check_same_questions(runs[0] if runs else group[0], run)
            notes += note_on_media(runs[0] if runs else group[0], run)
            notes += [
                f"{arm} of {run.folder} has {done} of {len(run.items)} answers and is left out; finish the run."
                for arm, done in run.unfinished.items()
            ]
        runs += group
        contenders.update(contenders_of(name if len(groups) > 1 else "", group, notes))
    if not contenders:
        raise ValueError("No arm of these runs has answered all questions; finish the runs.")
    return contenders, runs, notes


def split_spec(spec: str) -> tuple[str, list[str]]:
    """`NAME=RUN,RUN` or `RUN` as (name, folders); the name of a single run is its folder's."""
    name, separator, paths = spec.partition("=")
    if not separator:
        return Path(spec).name or spec, [spec]
    folders = [path for path in paths.split(",") if path]
    if not name or not folders:
        raise ValueError(f"{spec!r}: write RUN, or NAME=RUN,RUN for training seeds of one model.")
    return name, folders


def check_same_questions(first: Run, other: Run) -> None:
    """Raises a ValueError if two runs have different questions."""
    if first.fingerprint != other.fingerprint:
        keys = ("benchmark", "split", "data", "tasks", "limit", "seed")
        different = [key for key in keys if first.settings.get(key) != other.settings.get(key)]
        differences = f" ({', '.join(different)} differ)" if different else ""
        raise ValueError(
            f"{other.folder} has other questions than {first.folder}{differences}; compare runs of the same questions."
        )


def note_on_media(first: Run, other: Run) -> list[str]:
    """What to say about the questions of two runs that have other images."""
    rows = zip(first.items, first.media, other.media, strict=True)
    different = [item.id for item, one, two in rows if one is not None and two is not None and one != two]
    if not different:
        return []
    return [
        f"{counted(len(different), 'question')} of {other.folder} ({enumerate_names(different)}) had other image files "
        f"than in {first.folder}."
    ]


def contenders_of(group: str, runs: Sequence[Run], notes: list[str]) -> dict[str, Contender]:
    """The arms that all runs of a group have, pooled."""
    found = {}
    settings = runs[0].settings
    for run in runs[1:]:
        if run.settings["steps"] != settings["steps"]:
            raise ValueError(
                f"{run.folder} imagines {run.settings['steps']} world steps and {runs[0].folder} {settings['steps']}; "
                "training seeds of one model must have the same settings."
            )
    for arm in runs[0].answers:
        without = [run.folder for run in runs if arm not in run.answers]
        if without:
            notes.append(f"{arm} is left out because {without[0]} has no answers of it.")
            continue
        base, _, steps = arm.partition("@")
        last = settings["steps"][-1] if isinstance(settings["steps"], list) else settings["steps"]
        name = "/".join(part for part in (group, arm) if part)
        number = 0 if base == "fused-0" else int(steps or last)
        found[name] = Contender(base, number, settings["model"], [run.answers[arm] for run in runs])
    return found


def provenance_of(run: Run) -> dict[str, Any]:
    """The command, device, versions and times in a run's results; empty for an unfinished run."""
    path = run.folder / RESULTS
    if not path.is_file():
        return {}
    content = read_json(path)
    names = (
        "command", "device", "dtype", "versions", "seconds", "questions_per_second", "seconds_per_world_step"
    )  # fmt: skip
    return {name: content[name] for name in names if name in content}


def accuracy_by_steps(items: Sequence[Item], contenders: Mapping[str, Contender]) -> dict[str, list[dict[str, Any]]]:
    """For arms that were run with several numbers of world steps: model and arm -> accuracy at each number."""
    points: dict[str, dict[int, dict[str, Any]]] = {}
    for contender in contenders.values():
        rows = [scoring.right_answers(items, answers) for answers in contender.seeds]
        arm = "fused" if contender.arm == "fused-0" else contender.arm
        key = f"{contender.model}: {arm}"
        points.setdefault(key, {})[contender.steps] = {"steps": contender.steps, **scoring.share(rows)}
    return {key: [curve[steps] for steps in sorted(curve)] for key, curve in points.items() if len(curve) > 1}


def disagreements(
    items: Sequence[Item], arms: Mapping[str, Sequence[Sequence[Answer]]], runs: Sequence[Run], reference: str
) -> list[dict[str, Any]]:
    """Questions on which arms disagree, each arm's answer, and the paths of the images; see `disagreeing`."""
    folders = [run.folder / name for run in runs for name in IMAGE_FOLDERS]
    images = {
        number: {"images": {kind: str(folder / name) for kind, name in names.items()}}
        for folder in reversed(folders)  # the first folder that has them counts
        for number, names in read_index(folder).items()
    }
    return [
        {
            "id": item.id,
            "family": item.family,
            "question": item.question,
            "answer": item.answer,
            "answers": {name: answer_of(item, seeds[0][row]) for name, seeds in arms.items()},
            **images.get(item.id, {}),
        }
        for row, item in ((row, items[row]) for row in disagreeing(items, arms, reference))
    ]


def answer_of(item: Item, answer: Answer) -> dict[str, Any]:
    read = scoring.read_answer(item, answer.text)
    return {
        "text": answer.text,
        "read": read,
        "correct": read == item.answer,
        "likeliest": scoring.likeliest(item, answer.logprobs),
    }
