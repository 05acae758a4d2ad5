"""No answer is lost or repeated: interrupted runs, a full disk, two writers, mixed-up files."""

from __future__ import annotations

import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from tests.evaluation.planted import planted_benchmark, planted_run
from theworld.evaluation import compare, run_folder
from theworld.evaluation.media_digest import BLOCK, media_digest
from theworld.evaluation.run_folder import RunFolder, read_run
from theworld.evaluation.runner import Answer
from theworld.evaluation.tasks import Item
from theworld.media.video import SpacedFrames, Video

SETTINGS = {"benchmark": "mcq", "model": "planted", "steps": 1, "seed": 0}


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return planted_benchmark(tmp_path, 20)


def right(number: int, world: bool) -> str:
    return "(A)" if world or number % 2 else "(B)"


def test_a_saved_run_holds_its_answers(items: list[Item], tmp_path: Path) -> None:
    answers = planted_run(tmp_path / "run", items, right)
    found = read_run(tmp_path / "run")
    assert found.answers == answers
    assert found.unfinished == {}
    assert [replace(item, image=None, future=None) for item in items] == found.items
    assert found.settings == SETTINGS


def test_an_incomplete_last_line_is_dropped_and_asked_again(items: list[Item], tmp_path: Path) -> None:
    whole = planted_run(tmp_path / "run", items, right)
    place = tmp_path / "run" / "answers" / "fused.jsonl"
    lines = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(b"".join(lines[:12]) + lines[12][:30])
    assert read_run(tmp_path / "run").unfinished == {"fused": 12}
    asked: list[int] = []
    again = planted_run(tmp_path / "run", items, lambda number, world: asked.append(number) or right(number, world))  # type: ignore
    assert asked == list(range(12, 20))
    assert [answer.text for answer in again["fused"]] == [answer.text for answer in whole["fused"]]
    assert len(place.read_text().splitlines()) == 20


def run_until_killed(folder: Path) -> None:
    """Runs an evaluation in a process that kills itself at its thirteenth answer."""
    answers = itertools.count(1)

    def says(number: int, world: bool) -> str:
        if next(answers) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return "(A)"

    planted_run(folder / "run", planted_benchmark(folder, 20), says)


def test_a_killed_run_resumes_without_repeating_or_losing_an_answer(items: list[Item], tmp_path: Path) -> None:
    """A process is killed in the middle, three times; in the end every question is answered once."""
    codes = []
    while 0 not in codes and len(codes) < 6:
        codes.append(commands.exit_code(run_until_killed, tmp_path))
    assert codes[-1] == 0
    assert codes[:-1] == [-signal.SIGKILL] * (len(codes) - 1)
    assert len(codes) > 2
    found = read_run(tmp_path / "run")
    assert {name: len(answers) for name, answers in found.answers.items()} == {"fused": 20, "no-world": 20}
    for file in (tmp_path / "run" / "answers").iterdir():
        ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        assert sorted(ids) == sorted(item.id for item in items)


def test_a_full_disk_leaves_complete_lines_only(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = os.fsync
    count = [0]

    def full(file: int) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        synced(file)

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        planted_run(tmp_path / "run", items, right)
    monkeypatch.undo()
    kept = {file.stem: len(file.read_text().splitlines()) for file in (tmp_path / "run" / "answers").iterdir()}
    assert kept == {"fused": 8, "no-world": 8}  # nothing of the third batch was written
    assert len(planted_run(tmp_path / "run", items, right)["fused"]) == 20


def test_a_folder_holds_one_run(items: list[Item], tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", SETTINGS, items) as store:
        store.add("fused", [Answer("q0", "(A)")])
        with pytest.raises(ValueError, match="Another process is writing"):
            RunFolder(tmp_path / "run", SETTINGS, items)
    with pytest.raises(ValueError, match="holds a run with steps 1, and this one has 4; choose another folder"):
        RunFolder(tmp_path / "run", {**SETTINGS, "steps": 4}, items)
    with pytest.raises(ValueError, match="20 other questions than these 19"):
        RunFolder(tmp_path / "run", SETTINGS, items[1:])
    with RunFolder(tmp_path / "run", SETTINGS, items) as store:  # none of these changed it or kept it locked
        assert set(store.known("fused")) == {"q0"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"is not empty and holds no run \(thesis.tex\)"):
        RunFolder(tmp_path / "other", SETTINGS, items)
    with pytest.raises(ValueError, match="Two questions have the id 'q0'"):
        RunFolder(tmp_path / "new", SETTINGS, [items[0], items[0]])


def test_files_of_another_run_are_detected(items: list[Item], tmp_path: Path) -> None:
    planted_run(tmp_path / "run", items, right)
    answers = tmp_path / "run" / "answers" / "fused.jsonl"
    text = answers.read_text()
    line = json.loads(text.splitlines()[0])
    for change, message in (
        ({**line, "id": "elsewhere"}, "answers 'elsewhere', which is not a question of this run"),
        (line, "answers 'q0' twice"),
        ({"id": "q0"}, "Line 21 of .* is not an answer"),
        ([], "Line 21 of .* is damaged"),
    ):
        answers.write_text(text + json.dumps(change) + "\n")
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path / "run")
    answers.write_text(text.replace('"text"', '"txet', 1))
    with pytest.raises(ValueError, match=r"Line 1 of .* is damaged; delete the line"):
        read_run(tmp_path / "run")
    answers.write_text(text)
    questions = tmp_path / "run" / "questions.jsonl"
    questions.write_text(questions.read_text().replace("the cup", "the pot"))
    with pytest.raises(ValueError, match="belong to different runs"):
        read_run(tmp_path / "run")
    questions.unlink()
    with pytest.raises(ValueError, match=r"questions.jsonl is missing"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not valid JSON"):
        read_run(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path / "nowhere")


def test_a_run_of_an_earlier_version_has_no_default_dtype(items: list[Item], tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", SETTINGS, items).close()
    RunFolder(tmp_path / "run", {**SETTINGS, "dtype": "float32"}, items).close()
    RunFolder(tmp_path / "new", {**SETTINGS, "dtype": "float32"}, items).close()
    with pytest.raises(ValueError, match="holds a run with dtype 'float32', and this one has 'bfloat16'"):
        RunFolder(tmp_path / "new", {**SETTINGS, "dtype": "bfloat16"}, items)


def test_a_file_that_changed_between_two_halves_of_a_run_is_noticed(items: list[Item], tmp_path: Path) -> None:
    planted_run(tmp_path / "run", items, right)
    image = tmp_path / "3.png"
    before = image.read_bytes()
    image.write_bytes((tmp_path / "4.png").read_bytes())
    with pytest.raises(ValueError, match="a file of 'q3' has changed since the run began"):
        planted_run(tmp_path / "run", items, right)
    planted_run(tmp_path / "other", items, right)
    notes = compare([tmp_path / "run", tmp_path / "other"]).content["notes"]
    assert notes == [f"1 question of {tmp_path / 'other'} (q3) had other image files than in {tmp_path / 'run'}."]
    image.write_bytes(before)
    planted_run(tmp_path / "run", items, right)
    place = tmp_path / "run" / "questions.jsonl"  # of an earlier version, which has no hashes
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    place.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "media"}) + "\n" for line in lines))
    image.unlink()
    planted_run(tmp_path / "run", items, right)


def test_every_form_of_an_image_has_a_hash(items: list[Item], tmp_path: Path) -> None:
    """Files by their bytes (of a large one its beginning and its end), folders by their frames, pixels as such."""
    content = (tmp_path / "0.png").read_bytes()
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(3 * BLOCK))
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(content)
    forms = [
        *(tmp_path / "0.png", content, {"bytes": None, "path": str(tmp_path / "1.png")}, [content, content]),
        *(Video(large), Video(large, SpacedFrames(8)), Video(tmp_path / "frames"), Video([tmp_path / "2.png"])),
        np.zeros((4, 4, 3), np.uint8),
    ]

    def hashes() -> list[str]:
        made = [replace(items[0], image=form) for form in forms]
        return [media_digest(item) for item in [*made, replace(items[0], future=(tmp_path / "3.png",))]]

    before = hashes()
    assert len(set(before)) == len(before)
    large.write_bytes(bytes(3 * BLOCK - 1) + b"\x01")
    (tmp_path / "frames" / "1.png").write_bytes(content)
    (tmp_path / "3.png").write_bytes(content)
    changed = [place for place, (old, new) in enumerate(zip(before, hashes(), strict=True)) if old != new]
    assert changed == [4, 5, 6, 9]
    large.unlink()
    with pytest.raises(ValueError, match=r"^q0: .*No such file.*large.mp4"):
        media_digest(replace(items[0], image=Video(large)))
