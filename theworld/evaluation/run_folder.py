"""The folder of one run: what was asked, every answer as soon as it was given, and the result.

    run.json            settings, and the fingerprint of the questions
    questions.jsonl     a question a line, without its pictures
    answers/ARM.jsonl   an answer a line, appended and forced to disk batch by batch
    pictures/           a small picture of each question on which arms disagree, and a strip of what was imagined
    results.json        scores and comparisons, written when all arms are through

A run that was cut off is gone on with by the same command: a last line that was not written to its end is dropped, and
what is answered is not asked again. A folder holds one run; another setting, or other questions, are an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from theworld.evaluation.arms import ARMS
from theworld.evaluation.items import Item, check_items, fingerprint
from theworld.evaluation.runner import Answer
from theworld.storage.files import read_json_file, write_text

RUN, QUESTIONS, ANSWERS, PICTURES, RESULTS = "run.json", "questions.jsonl", "answers", "pictures", "results.json"
# what is kept of a question; its pictures and true frames stay where they were
KEPT = ("id", "family", "topic", "form", "question", "answer", "choices", "horizon", "legal")


class RunFolder:
    """A store of answers in a folder, for one process at a time.

    Args:
        folder: made if it is not there.
        settings: what decides the answers (model, benchmark, steps, seed, …), as JSON can hold it; a run goes on only
            with the same. Which arms are asked is no part of it, so that further arms can join.
        items: what is asked.

    Raises:
        ValueError: the folder holds a run with other settings or questions, or something that is no run; or another
            process is writing to it.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any], items: Sequence[Item]) -> None:
        check_items(items)
        self.folder = Path(folder)
        self.ids = {item.id for item in items}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another run is writing to {self.folder}; wait for it, or choose another folder."
            ) from error
        try:
            self._open(dict(settings), items)
        except (ValueError, OSError):
            self.close()
            raise

    def _open(self, settings: dict[str, Any], items: Sequence[Item]) -> None:
        written = {"settings": settings, "questions": len(items), "fingerprint": fingerprint(items)}
        place = self.folder / RUN
        if place.exists():
            _check_same(self.folder, read_json(place), json.loads(json.dumps(written)))
            return
        strange = [path.name for path in self.folder.iterdir() if path.name != ".lock"]
        if strange:
            raise ValueError(f"{self.folder} is not empty and holds no run ({strange[0]}); choose another folder.")
        lines = [json.dumps(kept(item), ensure_ascii=False) for item in items]
        write_text(self.folder / QUESTIONS, "\n".join(lines) + "\n")
        write_text(place, json.dumps(written, ensure_ascii=False, indent=2) + "\n")  # last: from now on it is a run

    def close(self) -> None:
        """Lets another process write."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def known(self, arm: str) -> dict[str, Answer]:
        """Answers of an arm that are on disk, by id; a last line that was not written to its end is cut off."""
        place = self._place(arm)
        if not place.exists():
            return {}
        content = place.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(place, len(whole))
        return read_answers(place, self.ids)

    def add(self, arm: str, answers: Sequence[Answer]) -> None:
        """Appends answers and waits until they are on disk; when that fails, nothing of them stays behind."""
        place = self._place(arm)
        place.parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        before = place.stat().st_size if place.exists() else 0
        with place.open("ab") as file:
            try:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(place, before)
                raise

    def _place(self, arm: str) -> Path:
        return self.folder / ANSWERS / f"{arm}.jsonl"


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        folder: where it lies.
        settings: what decided the answers.
        fingerprint: of the questions.
        items: the questions, without pictures.
        answers: arm -> answers in the order of the items, for the arms that are through.
        unfinished: arm -> how many answers it has, for the others.
    """

    folder: Path
    settings: dict[str, Any]
    fingerprint: str
    items: list[Item]
    answers: dict[str, list[Answer]]
    unfinished: dict[str, int]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """A run of `theworld eval -o`.

    Raises:
        ValueError: no run, or files of it that are damaged or belong to another run.
    """
    place = Path(folder)
    if not (place / RUN).is_file():
        raise ValueError(f"{folder} holds no run ({RUN} is missing); make one with `theworld eval … -o {folder}`.")
    content = read_json(place / RUN)
    items = [_item(line, place / QUESTIONS) for line in _lines(place / QUESTIONS)]
    if fingerprint(items) != content.get("fingerprint"):
        raise ValueError(f"{place / QUESTIONS} belongs to another run than {place / RUN}; take both from one run.")
    answers: dict[str, list[Answer]] = {}
    unfinished: dict[str, int] = {}
    for path in sorted((place / ANSWERS).glob("*.jsonl"), key=lambda path: arm_order(path.stem)):
        own = read_answers(path, {item.id for item in items}, cut=True)
        if len(own) == len(items):
            answers[path.stem] = [own[item.id] for item in items]
        else:
            unfinished[path.stem] = len(own)
    return Run(place, content["settings"], content["fingerprint"], items, answers, unfinished)


def arm_order(name: str) -> tuple[int, int]:
    """Arms as ARMS lists them, and by their number of world steps; `fused@4` comes behind `fused@0`."""
    arm, _, steps = name.partition("@")
    return (list(ARMS).index(arm) if arm in ARMS else len(ARMS), int(steps or 0))


def kept(item: Item) -> dict[str, Any]:
    """What a run keeps of a question, as JSON can hold it."""
    content = {name: value for name, value in vars(item).items() if name in KEPT}
    return {**content, "choices": list(item.choices), "legal": sorted(item.legal)}


def _item(content: dict[str, Any], where: Path) -> Item:
    try:
        legal, choices = frozenset(content.pop("legal")), tuple(content.pop("choices"))
        return Item(**content, image=None, legal=legal, choices=choices)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} is damaged or of another version ({error}); run the evaluation again.") from error


def read_answers(place: Path, ids: set[str], cut: bool = False) -> dict[str, Answer]:
    """Answers of one file by id.

    Args:
        cut: leave out a last line that was not written to its end, without changing the file.

    Raises:
        ValueError: a line that cannot be read, an id given twice, or one that the run does not ask.
    """
    known = {own.name for own in fields(Answer)}
    found: dict[str, Answer] = {}
    for number, content in enumerate(_lines(place, cut), start=1):
        if content.keys() != known:
            raise ValueError(f"line {number} of {place} is no answer; the file was changed by something else.")
        logprobs = content["logprobs"]
        own = Answer(**{**content, "logprobs": None if logprobs is None else tuple(logprobs)})
        if own.id in found:
            raise ValueError(f"{place} answers {own.id!r} twice; two runs were mixed up in it.")
        if own.id not in ids:
            raise ValueError(f"{place} answers {own.id!r}, which this run does not ask; it belongs to another run.")
        found[own.id] = own
    return found


def _lines(place: Path, cut: bool = False) -> list[dict[str, Any]]:
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{place} is missing; run the evaluation again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is damaged; run the evaluation again in another folder.") from error
    lines = text.split("\n")
    whole = lines[:-1] if cut or not lines[-1] else lines
    found = []
    for number, line in enumerate(whole, start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} of {place} is damaged; take that line out, and it is asked again."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(f"line {number} of {place} is damaged; take that line out, and it is asked again.")
        found.append(content)
    return found


def read_json(place: Path) -> dict[str, Any]:
    """Reads the JSON object in a file of a run folder."""
    return read_json_file(place, "run the evaluation again in another folder")


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = old.get("settings", {}), new["settings"]
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} holds a run with {name} {before.get(name)!r}, and this one has {now.get(name)!r}; choose "
                "another folder, or the same settings to go on with it."
            )
    if old.get("fingerprint") != new["fingerprint"]:
        raise ValueError(
            f"{folder} holds a run of {old.get('questions')} other questions than these {new['questions']}; choose "
            "another folder."
        )
