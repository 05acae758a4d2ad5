"""The folder of one run: its settings and questions, every answer as soon as it is generated, and the results.

    run.json            settings, and the fingerprint of the questions
    questions.jsonl     one question per line, with a hash of its images (`media`) instead of these
    answers/ARM.jsonl   one answer per line, appended and forced to disk batch by batch
    images/             for questions on which arms disagree: small input images and strips of imagined frames
    results.json        scores and comparisons, written when all arms are complete

Running the same command again resumes an interrupted run: an incomplete last line is dropped, and existing answers are
kept. A folder holds one run; other settings or questions are an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from theworld.evaluation.arms import ARMS, OVER_FUTURES
from theworld.evaluation.media_digest import media_digest
from theworld.evaluation.runner import Answer
from theworld.evaluation.tasks import Item, check_items, fingerprint
from theworld.storage.files import read_json_file, write_text

RUN, QUESTIONS, ANSWERS, IMAGES, RESULTS = "run.json", "questions.jsonl", "answers", "images", "results.json"
IMAGE_FOLDERS = (IMAGES, "pictures")  # the second is the name in older runs
# fields of a question that are written; images and true frames stay at their source
MEDIA = "media"
# fields of an answer that earlier versions did not have
ADDED = {"label_logprob", "label_tokens", "passes", "confidence", "jump", "agreement", "spread"}
KEPT = ("id", "family", "topic", "form", "question", "answer", "legal", "choices", "horizon")


class RunFolder(AbstractContextManager["RunFolder"]):
    """A store of answers in a folder, for one process at a time.

    Args:
        folder: created if it does not exist.
        settings: everything that determines the answers (model, benchmark, steps, seed, …), as JSON values; a run
            resumes only with the same settings. The arms are not part of it, so that arms can be added later.
        items: the questions.

    Raises:
        ValueError: if the folder holds a run with other settings or questions, or other files, or if another process is
            writing to it.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any], items: Sequence[Item]) -> None:
        check_items(items)
        self.folder = Path(folder).expanduser()
        self.ids = {item.id for item in items}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"Another process is writing to {self.folder}; wait for it, or choose another folder."
            ) from error
        try:
            self._open(dict(settings), items)
        except (ValueError, OSError):
            self.close()
            raise

    def _open(self, settings: dict[str, Any], items: Sequence[Item]) -> None:
        written = {"settings": settings, "questions": len(items), "fingerprint": fingerprint(items)}
        path = self.folder / RUN
        if path.exists():
            _check_same(self.folder, read_json(path), json.loads(json.dumps(written)))
            self._check_media(items)
            return
        others = [entry.name for entry in self.folder.iterdir() if entry.name != ".lock"]
        if others:
            raise ValueError(f"{self.folder} is not empty and holds no run ({others[0]}); choose another folder.")
        kept = [{**{name: getattr(item, name) for name in KEPT}, MEDIA: media_digest(item)} for item in items]
        lines = [json.dumps(content, ensure_ascii=False, default=sorted) for content in kept]  # `legal` is a set
        write_text(self.folder / QUESTIONS, "\n".join(lines) + "\n")
        write_text(path, json.dumps(written, ensure_ascii=False, indent=2) + "\n")  # last: it makes the folder a run

    def _check_media(self, items: Sequence[Item]) -> None:
        """Raises a ValueError if an image or a video is another one than when the run began."""
        known = {line["id"]: line.get(MEDIA) for line in _lines(self.folder / QUESTIONS)}
        for item in items:
            if known[item.id] is not None and known[item.id] != media_digest(item):
                raise ValueError(
                    f"{self.folder} holds answers about other images: a file of {item.id!r} has changed since the run "
                    "began. Restore the file, or choose another folder."
                )

    def close(self) -> None:
        """Releases the folder for other processes."""
        self._lock.release()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def known(self, arm: str) -> dict[str, Answer]:
        """Answers of an arm on disk, by id; removes an incomplete last line."""
        path = self._path(arm)
        if not path.exists():
            return {}
        content = path.read_bytes()
        length = content.rfind(b"\n") + 1
        if length < len(content):
            os.truncate(path, length)
        return read_answers(path, self.ids)

    def add(self, arm: str, answers: Sequence[Answer]) -> None:
        """Appends answers and waits until they are on disk; if that fails, none of them remains in the file."""
        path = self._path(arm)
        path.parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        before = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            try:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise

    def _path(self, arm: str) -> Path:
        return self.folder / ANSWERS / f"{arm}.jsonl"


@dataclass(frozen=True)
class Run:
    """A saved run."""

    folder: Path
    settings: dict[str, Any]  # everything that determined the answers
    fingerprint: str  # of the questions
    items: list[Item]  # without images
    media: list[str | None]  # hashes of their images; None in runs of earlier versions
    answers: dict[str, list[Answer]]  # of complete arms, in the order of the items
    unfinished: dict[str, int]  # incomplete arm -> number of its answers


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Reads a run of `evaluate(output=…)` or `theworld eval -o`.

    Raises:
        ValueError: if there is no run, or its files are damaged or belong to another run.
    """
    path = Path(folder)
    if not (path / RUN).is_file():
        raise ValueError(f"{folder} holds no run ({RUN} is missing); create one with `theworld eval … -o {folder}`.")
    content = read_json(path / RUN)
    lines = _lines(path / QUESTIONS)
    media = [line.pop(MEDIA, None) for line in lines]
    items = [_item(line, path / QUESTIONS) for line in lines]
    if fingerprint(items) != content.get("fingerprint"):
        raise ValueError(f"{path / QUESTIONS} and {path / RUN} belong to different runs; take both from one run.")
    answers: dict[str, list[Answer]] = {}
    unfinished: dict[str, int] = {}
    for file in sorted((path / ANSWERS).glob("*.jsonl"), key=lambda file: arm_order(file.stem)):
        known = read_answers(file, {item.id for item in items}, drop_incomplete=True)
        if len(known) == len(items):
            answers[file.stem] = [known[item.id] for item in items]
        else:
            unfinished[file.stem] = len(known)
    return Run(path, content["settings"], content["fingerprint"], items, media, answers, unfinished)


def arm_order(name: str) -> tuple[int, int, int]:
    """Sort key: arms in the order of ARMS, then by number of futures and of world steps: `fused@4` after `fused@0`."""
    arm, _, steps = name.partition("@")
    kind, _, count = arm.rpartition("-")
    number = int(count) if kind in OVER_FUTURES and count.isdigit() else 0
    place = next(
        (i for i, each in enumerate(ARMS) if arm == each or (number and each.startswith(f"{kind}-"))), len(ARMS)
    )
    return place, number, int(steps or 0)


def _item(content: dict[str, Any], source: Path) -> Item:
    try:
        legal, choices = frozenset(content.pop("legal")), tuple(content.pop("choices"))
        return Item(**content, image=None, legal=legal, choices=choices)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} is damaged or of another version ({error}); run the evaluation again.") from error


def read_answers(path: Path, ids: set[str], drop_incomplete: bool = False) -> dict[str, Answer]:
    """Answers of one file by id.

    Args:
        drop_incomplete: ignores an incomplete last line without changing the file.

    Raises:
        ValueError: if a line cannot be read, or an id is given twice or is not one of `ids`.
    """
    names = {field.name for field in fields(Answer)}
    found: dict[str, Answer] = {}
    for number, content in enumerate(_lines(path, drop_incomplete), start=1):
        if not names - ADDED <= content.keys() <= names:
            raise ValueError(f"Line {number} of {path} is not an answer; the file was changed by another program.")
        logprobs = content["logprobs"]
        answer = Answer(**{**content, "logprobs": None if logprobs is None else tuple(logprobs)})
        if answer.id in found:
            raise ValueError(f"{path} answers {answer.id!r} twice; two runs were mixed in it.")
        if answer.id not in ids:
            raise ValueError(f"{path} answers {answer.id!r}, which is not a question of this run.")
        found[answer.id] = answer
    return found


def _lines(path: Path, drop_incomplete: bool = False) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; run the evaluation again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged; run the evaluation again in another folder.") from error
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines[:-1] if drop_incomplete or not lines[-1] else lines, start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            raise ValueError(f"Line {number} of {path} is damaged; delete the line, and the question is asked again.")
        found.append(content)
    return found


def read_json(path: Path) -> dict[str, Any]:
    return read_json_file(path, "run the evaluation again in another folder")


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = old.get("settings", {}), new["settings"]
    for name in {**before, **now}:
        if name == "dtype" and name not in before:
            continue  # earlier versions did not save the default
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} holds a run with {name} {before.get(name)!r}, and this one has {now.get(name)!r}; choose "
                "another folder, or the same settings to resume it."
            )
    if old.get("fingerprint") != new["fingerprint"]:
        raise ValueError(
            f"{folder} holds a run with {old.get('questions')} other questions than these {new['questions']}; choose "
            "another folder."
        )
