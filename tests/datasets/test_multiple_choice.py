"""Multiple choice from user-provided files: every form of row is read, and errors name the row."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from theworld.datasets import blink
from theworld.datasets.columns import Fields, read_fields
from theworld.datasets.multiple_choice import FUTURE_FRAMES, SHOWN_FRAMES, YES_NO, load_questions
from theworld.datasets.published import KNOWN_SETS
from theworld.media.video import Video

ROW = {"id": "a", "image": "a.png", "question": "Which is closer?", "choices": ["the cup", "the box"], "answer": "B"}


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png(ord(name)))
    return tmp_path


def write(folder: Path, *rows: dict[str, Any], name: str = "test.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder / name


def test_a_row_becomes_a_question(folder: Path) -> None:
    (question,) = load_questions(str(write(folder, ROW)))
    assert question.images == (folder / "a.png",)
    assert question.prompt == (
        "Which is closer?\nSelect from the following choices.\n(A) the cup\n(B) the box\nAnswer with the letter."
    )
    assert (question.id, question.task, question.choices, question.answer) == ("a", "all", ("the cup", "the box"), "B")
    assert question.future is None


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"answer": "(B)"}, "B"),
        ({"answer": "b."}, "B"),
        ({"answer": "the box"}, "B"),
        ({"answer": 1}, "B"),
        ({"answer": None}, ""),
        ({"answer": "hidden"}, ""),
        ({"choices": {"A": "the cup", "B": "the box", "C": None}}, "B"),
        ({"choices": '["the cup", "the box"]'}, "B"),
        ({"choices": ["(A) the cup", "(B) the box"]}, "B"),
        ({"choices": ["", ""]}, "B"),
    ],
)
def test_answers_and_choices_in_any_form(folder: Path, change: dict[str, Any], answer: str) -> None:
    (question,) = load_questions(str(write(folder, {**ROW, **change})))
    assert question.answer == answer
    assert len(question.choices) == 2


def answers(folder: Path, rows: list[tuple[list[str], Any]], **fields: Any) -> str:
    """The letters that are read from rows of (choices, answer)."""
    made = [{**ROW, "id": n, "choices": choices, "answer": answer} for n, (choices, answer) in enumerate(rows)]
    return "".join(question.answer or "-" for question in load_questions(str(write(folder, *made)), Fields(**fields)))


THINGS = ["the cup", "the box"]
DIGITS, SHUFFLED, MAYBE = ["1", "2", "3", "4"], ["B", "A", "D", "C"], ["None", "One", "Two"]


@pytest.mark.parametrize(
    ("rows", "fields", "letters"),
    [
        ([(DIGITS, 0), (DIGITS, 1), (DIGITS, 2), (DIGITS, 3)], {}, "ABCD"),  # 0 shows that answers are counted
        ([(DIGITS, "1"), (DIGITS, "4")], {}, "AD"),  # 4 shows that they are texts
        ([(DIGITS, 2), (DIGITS, 1)], {"first_answer": 1}, "BA"),  # both readings agree
        ([(DIGITS, 2), (DIGITS, 1)], {"answers_are": "numbers"}, "CB"),
        ([(["2", "3", "5"], 2), (["the cup", "the box"], 1)], {}, "CB"),  # no text fits the second row
        ([(SHUFFLED, "B")], {"answers_are": "texts"}, "A"),
        ([(SHUFFLED, "B")], {"answers_are": "letters"}, "B"),
        ([(SHUFFLED, "B"), (["the cup", "the box"], "B")], {}, "BB"),  # the second row shows that they are letters
        ([(SHUFFLED, "(B)")], {}, "B"),
        ([(["yes", "no"], "no"), (["yes", "no"], True), (THINGS, "B"), (THINGS, "A")], {}, "BABA"),
        ([(["yes", "no"], "no"), (THINGS, "B")], {"answers_are": "letters"}, "BB"),
        ([(MAYBE, "None"), (MAYBE, "One")], {}, "AB"),
        ([(MAYBE, "none")], {}, "A"),
        ([(MAYBE, None), (MAYBE, "hidden"), (["the cup", "the box"], "none"), (["", "a"], "")], {}, "----"),
        ([(["the cup", "the box"], 1.0), (["the cup", "the box"], float("nan"))], {}, "B-"),  # an empty cell
        ([(["True", "False"], True), (["True", "False"], False)], {}, "AB"),
        ([(["Cat", "cat"], "cat")], {}, "B"),
    ],
)
def test_a_column_of_answers_is_read_in_one_way(
    folder: Path, rows: list[tuple[list[str], Any]], fields: dict[str, Any], letters: str
) -> None:
    assert answers(folder, rows, **fields) == letters


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (
            [(SHUFFLED, "A"), (SHUFFLED, "B")],
            {},
            r"Row 0: the answer 'A' \(answer\) could be the text of choice B and the letter of choice A; say in the "
            "fields what the answers are, as answers_are=texts or answers_are=letters",
        ),
        (
            [(THINGS, "B"), (THINGS, "the cup"), (THINGS, "A")],
            {},
            r"Row 1: the answer 'the cup' \(answer\) is the text of choice A, and most answers of the column are "
            "letters: write all of them as letters",
        ),
        (
            [(THINGS, "the box"), (THINGS, "the cup"), (THINGS, 1)],
            {},
            "Row 2: the answer '1' .* the number of choice B",
        ),
        (
            [(["left", "right", "left"], "left")],
            {},
            r"Row 0: the answer 'left' \(answer\) is the text of the choices A and C: give each choice another text",
        ),
        (
            [(THINGS, 1), (["a", "b", "c"], 3), (THINGS, 2)],
            {},
            r"Row 1: the answer 3 \(answer\) is none of its 3 choices, .* no answer is 0, so the numbers seem to count "
            "from 1: add first_answer=1 to the fields",
        ),
        ([(THINGS, 0), (THINGS, 2)], {}, r"Row 1: the answer '2' \(answer\) is none of its choices \(the cup"),
        ([(DIGITS, 2), (DIGITS, 1)], {}, "Row 0: .* the text of choice B and the number of choice C; .*=numbers"),
        ([(DIGITS, 0)], {"answers_are": "texts"}, r"Row 0: the answer '0' \(answer\) .* choices, as texts"),
    ],
)
def test_an_answer_that_could_be_either_names_row_and_field(
    folder: Path, rows: list[tuple[list[str], Any]], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        answers(folder, rows, **fields)


def test_only_letters_in_order_are_removed_from_choices(folder: Path) -> None:
    (question,) = load_questions(str(write(folder, {**ROW, "choices": ["J. Haydn", "B. Britten"]})))
    assert question.choices == ("J. Haydn", "B. Britten")


def test_choices_can_be_listed_in_the_question(folder: Path) -> None:
    row = {**ROW, "question": "Which?\nA. the cup\nB. the box"}
    del row["choices"]
    (question,) = load_questions(str(write(folder, row)))
    assert question.choices == ("the cup", "the box")
    assert question.prompt == "Which?\nA. the cup\nB. the box\nAnswer with the letter."


@pytest.mark.parametrize(("truth", "letter"), [("yes", "A"), ("No.", None), (True, "A"), (False, "B"), ("no", "B")])
def test_yes_or_no_is_asked_in_words(folder: Path, truth: Any, letter: str | None) -> None:
    row = {"id": "a", "image": "a.png", "question": "Will it fall?", "answer": truth}
    if letter is None:
        with pytest.raises(ValueError, match=r"the answer 'No\.' \(answer\) is none of its choices"):
            load_questions(str(write(folder, row)))
        return
    (question,) = load_questions(str(write(folder, row)))
    assert (question.choices, question.answer, question.lettered) == (YES_NO, letter, False)
    assert question.prompt == "Will it fall? Answer yes or no."


def test_several_images_a_video_and_a_known_future(folder: Path) -> None:
    frames = np.zeros((12, 16, 16, 3), np.uint8) + np.arange(12, dtype=np.uint8).reshape(-1, 1, 1, 1) * 20
    iio.imwrite(folder / "clip.mp4", frames, plugin="pyav", codec="libx264", fps=8)
    rows = [
        {**ROW, "id": "1", "image": ["a.png", "b.png"], "future_frames": ["b.png", "c.png"]},
        {**{k: v for k, v in ROW.items() if k != "image"}, "id": "2", "image_1": "a.png", "image_2": "b.png"},
        {**{k: v for k, v in ROW.items() if k != "image"}, "id": "3", "video": "clip.mp4", "future_frames": "clip.mp4"},
    ]
    several, numbered, moving = load_questions(str(write(folder, *rows)))
    assert several.images == (folder / "a.png", folder / "b.png")
    assert several.future == Video([folder / "b.png", folder / "c.png"], FUTURE_FRAMES)
    assert numbered.images == (folder / "a.png", folder / "b.png")
    assert isinstance(moving.images, Video)
    shown = [np.asarray(frame) for frame in moving.images.load().frames]
    assert [frame.shape for frame in shown] == [(16, 16, 3)] * 8
    assert shown[-1].mean() > shown[0].mean() + 100
    assert isinstance(moving.future, Video)
    assert len(moving.future.load().frames) == 12


def test_parquet_and_folders_by_split(folder: Path) -> None:
    rows = [{**ROW, "image": {"bytes": png(5), "path": None}, "idx": f"val_{number}"} for number in range(3)]
    for row in rows:
        del row["id"]
    (folder / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "val-00000-of-00001.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), folder / "data" / "test-00000-of-00001.parquet")
    found = load_questions(str(folder), split="val")
    assert [question.id for question in found] == ["val_0", "val_1", "val_2"]
    assert found[0].images == (png(5),)
    assert len(load_questions(str(folder), split="test")) == 1
    (folder / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 but cut short")
    with pytest.raises(ValueError, match="damaged or not a parquet file"):
        load_questions(str(folder), split="test")


def test_a_cached_hub_dataset_and_a_missing_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list([{**ROW, "image": {"bytes": png(7), "path": None}}]).cast_column(
        "image", datasets.Image()
    )
    calls: list[Any] = []

    def load(path: str, name: str | None, split: str, streaming: bool) -> Any:
        calls.append((path, name, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    (question,) = load_questions("owner/name", split="val", config="Counting")
    assert calls == [("owner/name", "Counting", "val")]
    assert question.images == (png(7),)  # as stored: theworld.media.images decodes it
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"The split 'val' of the dataset owner/name cannot be loaded"):
        load_questions("owner/name", split="val")


def test_videos_in_parquet_files_and_hub_datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    frames = np.arange(4, dtype=np.uint8).repeat(16 * 16 * 3).reshape(4, 16, 16, 3) * 40
    content = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=8)
    row = {key: value for key, value in ROW.items() if key != "image"} | {"video": {"bytes": content, "path": None}}
    row["now"] = 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "rows.parquet")
    table = datasets.Dataset.from_list([row]).cast_column("video", datasets.Video())
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    for source in (str(folder / "rows.parquet"), "owner/name"):
        (question,) = load_questions(source)
        assert question.images == Video(content, SHOWN_FRAMES, at=2)
        assert len(question.images.load().frames) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "Row a has no question: name its column"),
        ({"choices": None}, "Row a has no choices: name their column"),
        ({"choices": ["one"]}, "Row a has 1 choices"),
        ({"choices": "left, right"}, "must be a list of texts"),
        ({"answer": "C"}, r"Row a: the answer 'C' \(answer\) is none of its choices \(the cup, the box\)"),
        ({"answer": 2}, r"2 \(answer\) is none"),
        ({"image": None}, "Row a has no image"),
        ({"image": "nowhere.png"}, "Row a: there is no image or video 'nowhere.png'"),
    ],
)
def test_errors_name_the_row(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_questions(str(write(folder, {**ROW, **change})))


def test_errors_name_the_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="two rows with the id 'a'"):
        load_questions(str(write(folder, ROW, ROW)))
    with pytest.raises(ValueError, match="has no rows of split 'val'"):
        load_questions(str(write(folder, ROW)), Fields(only="part=val"), split="val")
    (folder / "bad.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(ValueError, match=r"bad.jsonl line 2 is not valid JSON"):
        load_questions(str(folder / "bad.jsonl"))
    (folder / "half.json").write_text(json.dumps([ROW, {**ROW, "question": "What \ud83d is it?"}]))
    with pytest.raises(ValueError, match=r"half.json row 1 holds half of a character \(.ud83d\)"):
        load_questions(str(folder / "half.json"))
    (folder / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no rows"):
        load_questions(str(folder / "list.json"))
    (folder / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"none of \.jsonl, \.json, \.parquet"):
        load_questions(str(folder / "notes.txt"))
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl is not a regular file: save the questions as a file"):
        load_questions(str(folder / "pipe.jsonl"))
    with pytest.raises(ValueError, match="no file or folder"):
        load_questions("no such file at all")
    with pytest.raises(ValueError, match="holds no questions"):
        load_questions(str(folder), split="train")
    (folder / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="not a video that can be read"):
        Video(folder / "clip.mp4").load()


def test_fields_are_read_from_the_command_line_or_a_file(tmp_path: Path) -> None:
    assert read_fields("question=q,choices=qa.Options,first_answer=1") == Fields(
        question="q", choices="qa.Options", first_answer=1
    )
    (tmp_path / "fields.json").write_text('{"video": "clip", "media": ["videos"]}')
    assert read_fields(str(tmp_path / "fields.json")) == Fields(video="clip", media=("videos",))
    for text, message in (
        ("question", "NAME=COLUMN"),
        ("questoin=q", "no field 'questoin'; did you mean 'question'"),
        ("nowhere.json", "no file nowhere.json"),
        ("first_answer=one", "first_answer is 'one', and must be the number"),
        ("answers_are=words", "answers_are is 'words'; it must be texts, letters or numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            read_fields(text)


# ------------------------------------------------------------------------------------- the published sets' columns


def known(
    name: str, folder: Path, *rows: dict[str, Any], file: str = "test.jsonl", split: str | None = None
) -> list[Any]:
    write(folder, *rows, name=file)
    return load_questions(str(folder / file), KNOWN_SETS[name].fields, split)


def test_sat(folder: Path) -> None:
    row = {
        "image_bytes": [{"bytes": png(1)}, {"bytes": png(2)}],
        "question": "How did the camera move?",
        "answers": ["left", "right"],
        "question_type": "ego_movement",
        "correct_answer": "right",
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "SAT_test.parquet")
    (question,) = load_questions(str(folder / "SAT_test.parquet"), KNOWN_SETS["sat"].fields)
    assert (question.images, question.answer, question.task) == ((png(1), png(2)), "B", "ego_movement")


def test_openworldqa_sees_frames_up_to_the_anchor_and_later_ones_are_the_future(folder: Path) -> None:
    (folder / "frames" / "00SL4").mkdir(parents=True)
    for number in range(12):
        (folder / "frames" / "00SL4" / f"frame_{number:03d}.png").write_bytes(png(number))
    row = {
        "question": "[ORDER] Which falls first?",
        "options": {"A": "cup", "B": "box", "C": "ball", "D": "none"},
        "answer": "B",
        "anchor_frame": "frame_008",
        "video_path": "frames/00SL4",
        "sample_id": "WLA_C1_fit_clearance_0001",
    }
    (question,) = known("openworldqa", folder, row)
    assert (question.id, question.task) == ("WLA_C1_fit_clearance_0001", "C1_fit_clearance")
    assert [frame.getpixel((0, 0))[0] for frame in question.images.load().frames] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [frame.getpixel((0, 0))[0] for frame in question.future.load().frames] == [9, 10, 11]
    (at_the_end,) = known("openworldqa", folder, {**row, "anchor_frame": "frame_011"})
    assert at_the_end.future is None


def test_pai_bench(folder: Path) -> None:
    (folder / "videos").mkdir()
    (folder / "videos" / "1.gif").write_bytes(
        iio.imwrite(
            "<bytes>", np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8), extension=".gif"
        )
    )
    row = {
        "question": "What will the robot do next? Please answer directly with only the letter of the correct option.",
        "index2ans": {"A": "grasp", "B": "wait", "C": None},
        "answer": "A",
        "video_path": "videos/1.gif",
        "category": "robot",
    }
    (question,) = known("pai-bench", folder, row)
    assert question.prompt.startswith("What will the robot do next?\nSelect")
    assert (question.choices, question.answer, question.task) == (("grasp", "wait"), "A", "robot")
    assert len(question.images.load().frames) == 2


def test_futurebench(folder: Path) -> None:
    (folder / "first_part_video").mkdir()
    (folder / "first_part_video" / "v.mp4").write_bytes(b"")
    row = {
        "id": 7,
        "question_type": "hop2",
        "video_path": "/data/video_dataset/v.mp4",
        "qa": {"Question": "What next?", "Options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "Answer": "d"},
    }
    (question,) = known("futurebench", folder, row)
    assert (question.id, question.task, question.answer) == ("7", "hop2", "D")
    assert question.images == Video(folder / "first_part_video" / "v.mp4", SHOWN_FRAMES)


def test_physbench(folder: Path) -> None:
    (folder / "image").mkdir()
    for name in ("x.png", "y.png"):
        (folder / "image" / name).write_bytes(png())
    row = {
        "idx": 3,
        "split": "val",
        "mode": "general",
        "task_type": "dynamics",
        "file_name": ["x.png", "y.png"],
        "question": "<image>\n<image>\nWhich frame is later?\nA. <image>\nB. <image>\n",
        "answer": "B",
    }
    (question,) = known("physbench", folder, row, {**row, "idx": 4, "split": "test"})
    assert question.prompt.startswith("Which frame is later?\nA.")
    assert (question.choices, question.answer, question.task) == (("", ""), "B", "dynamics")
    assert len(question.images) == 2


def test_physion(folder: Path) -> None:
    (folder / "v.mp4").write_bytes(b"")
    rows = [{"stimulus": f"s{n}", "video": "v.mp4", "label": bool(n), "scenario": "Roll"} for n in range(2)]
    missed, touched = known("physion", folder, *rows)
    assert (missed.answer, touched.answer, touched.task) == ("B", "A", "Roll")
    assert touched.prompt == "Will the red object touch the yellow area? Answer yes or no."


# ------------------------------------------------------------------------------------------------------------ BLINK


def blink_row(task: str, number: int, split: str = "val") -> dict[str, Any]:
    return {
        "idx": f"{split}_{task}_{number}",
        "sub_task": task,
        "question": "Which point is closer?",
        "prompt": "Which point is closer?\nSelect from the following choices.\n(A) A is closer\n(B) B is closer",
        "image_1": {"bytes": png(number), "path": None},
        "image_2": {"bytes": png(number + 1), "path": None} if task == "Jigsaw" else None,
        "image_3": None,
        "image_4": None,
        "choices": ["A is closer", "B is closer"],
        "answer": "(B)" if split == "val" else "hidden",
        "explanation": "",
    }


def test_blink_is_read_task_by_task_with_its_own_prompts(folder: Path) -> None:
    for task in blink.TASKS:
        (folder / task).mkdir()
        for split in blink.SPLITS:
            table = pyarrow.Table.from_pylist([blink_row(task, number, split) for number in (1, 2)])
            pyarrow.parquet.write_table(table, folder / task / f"{split}-00000-of-00001.parquet")
    found = blink.load_blink(str(folder))
    assert len(found) == 28
    assert {question.task for question in found} == set(blink.TASKS)
    first, second = blink.load_blink(str(folder), "val", ["Jigsaw"])
    assert first.prompt == blink_row("Jigsaw", 1)["prompt"]
    assert first.images == (png(1), png(2))
    assert (first.id, first.answer, second.id) == ("val_Jigsaw_1", "B", "val_Jigsaw_2")
    assert {question.answer for question in blink.load_blink(str(folder), "test")} == {""}
    assert len(blink.TASKS) == 14
    with pytest.raises(ValueError, match="no split 'train'"):
        blink.load_blink(str(folder), "train")
    with pytest.raises(ValueError, match="no task 'Relative_Dept'"):
        blink.load_blink(str(folder), "val", ["Relative_Dept"])


def test_a_submission_marks_answers_without_a_choice() -> None:
    assert blink.submission({"test_Jigsaw_1": "A", "test_Jigsaw_2": None}) == {
        "test_Jigsaw_1": "(A)",
        "test_Jigsaw_2": "(Z)",
    }


def test_an_empty_text_is_no_path(folder: Path) -> None:
    """Tables fill a column with empty texts; as a path it would be the folder of the file."""
    (question,) = load_questions(str(write(folder, {**ROW, "video": "", "future_frames": ""})))
    assert question.images == (folder / "a.png",)
    assert question.future is None
    with pytest.raises(ValueError, match=r"Row a: the path of an image or a video is empty"):
        load_questions(str(write(folder, {**ROW, "image": ""})))
