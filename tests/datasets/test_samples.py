"""Records become chats, or one sentence that names the record and the problem."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

import datasets
import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from tests.media.encoding import encode_video
from tests.training.conftest import image
from theworld import TheWorldDataset
from theworld.datasets.collator import load_sample_images
from theworld.datasets.hub import load_split, mapped, streamed
from theworld.datasets.jsonl import JsonlDataset
from theworld.datasets.multiple_choice import load_questions
from theworld.datasets.physics import FAMILIES, make_clip, next_questions, now_questions
from theworld.datasets.physics.practice import scan_questions
from theworld.datasets.physics.samples import PhysicsSamples
from theworld.datasets.samples import FieldMapping, HFDatasetWrapper, Sample, chat_of, class_names, conversation
from theworld.media.selection import FramesAfterNow
from theworld.media.video import Video
from theworld.training.config import TrainingConfig

PLAIN = {"text": "What is this?", "label": "A cat"}


def test_a_record_of_the_source_document(tmp_path: Path) -> None:
    dataset = TheWorldDataset([{"image": "path/to/image.jpg", **PLAIN}], folder=tmp_path)
    assert len(dataset) == 1
    sample = dataset[0]  # the image is opened when a batch needs it
    assert sample.images == (str(tmp_path / "path/to/image.jpg"),)
    assert sample.messages == conversation(1, [("What is this?", "A cat")]) == dataset.messages(0)


def test_a_chat_in_transformers_form() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "The second."},
    ]
    sample = TheWorldDataset([{"image": image(0), "messages": messages}])[0]
    assert sample.answers() == ["The first.", "The second."]
    assert sample.messages[1]["content"] == [{"type": "image"}, {"type": "text", "text": "Which?"}]
    assert sample.messages[3]["content"] == [{"type": "text", "text": "And now?"}]
    assert sample.messages[0] == {"role": "system", "content": "Be brief."}


def turn(role: str, text: str = "a") -> dict[str, Any]:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("a string", "record 0 has type str: pass a dict"),
        ({"text": "What?"}, "record 0 has no label"),
        ({"label": "A cat"}, "record 0 has no text"),
        ({"text": 3, "label": "A cat"}, "text is 3, of type int, and must be a text"),
        ({"text": "What?", "lable": "A cat"}, "has an unknown key 'lable'; did you mean 'label'?"),
        ({**PLAIN, "img": "0.png"}, "has an unknown key 'img'; "),
        ({**PLAIN, "world_prompt": 5}, "has a world_prompt of type int: pass a text"),
        ({**PLAIN, "world_latents": [[1.0]]}, "has a world_latents of type list: pass a tensor"),
        ({**PLAIN, "image": image(0), "images": [image(0)]}, "has image and images"),
        ({**PLAIN, "label": " "}, "has an empty answer"),
        ({**PLAIN, "label": "\ud83d"}, "has '\\ud83d', which is no valid Unicode (surrogates not allowed): fix it"),
        ({**PLAIN, "text": "\udc80"}, "which is no valid Unicode"),
        ({**PLAIN, "world_prompt": "\udc80"}, "which is no valid Unicode"),
        ({**PLAIN, "messages": []}, "has both messages and text or label"),
        ({"messages": []}, "has turns of no role"),
        ({"messages": "hello"}, "has messages that are not a list of turns"),
        ({"messages": [turn("user")]}, "has turns of user: user and assistant must alternate"),
        ({"messages": [turn("assistant"), turn("user")]}, "must alternate"),
        ({"messages": [turn("robot"), turn("assistant")]}, "has a turn with the role 'robot'"),
        ({"messages": [turn("user"), {"role": "assistant", "content": 3}]}, "neither text nor a list"),
        (
            {"messages": [turn("user"), {"role": "assistant", "content": [{"type": "image"}]}]},
            "has an image in a turn",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}, turn("assistant")]},
            "has 'image' in a part of its messages of type 'image', where it is not read: list images under images",
        ),
        ({"image": image(0), "messages": [turn("user"), turn("assistant")]}, "has 1 image, and its messages have 0"),
    ],
)
def test_an_invalid_chat_is_named(record: Any, words: str) -> None:
    with pytest.raises(ValueError, match="record 0") as error:
        TheWorldDataset([record])[0]
    assert words in str(error.value)


def test_empty_cells_of_a_part_are_left_out() -> None:
    """Tables give every part the keys of all parts."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    record = {"image": image(0), "messages": [{"role": "user", "content": parts}, turn("assistant")]}
    assert TheWorldDataset([record])[0].messages[0]["content"] == [{"type": "image"}, parts[1]]


def test_samples_pass_unchanged() -> None:
    sample = Sample(conversation(0, [("a", "b")]))
    assert TheWorldDataset([sample])[0] is sample
    assert TheWorldDataset([sample]).messages(0) is sample.messages


# -------------------------------------------------------------------------------------------- Hugging Face datasets

CLASSES, TEXT = datasets.ClassLabel(names=["cat", "dog"]), datasets.Value("string")


def columns(label: Any, kind: Any = TEXT, text: Any = "What?") -> datasets.Dataset:
    """Two rows with this question and label."""
    features = datasets.Features({"text": TEXT, "label": kind})
    return datasets.Dataset.from_dict({"text": [text] * 2, "label": [label] * 2}, features=features)


@pytest.mark.parametrize(
    ("label", "kind", "learned"),
    [
        (1, CLASSES, "dog"),
        (0, CLASSES, "cat"),
        (7, datasets.Value("int64"), "7"),
        (1.5, datasets.Value("float32"), "1.5"),
    ],
)
def test_labels_of_a_dataset_are_texts(label: Any, kind: Any, learned: str) -> None:
    split = columns(label, kind)
    wrapped = HFDatasetWrapper(split, image_key="")
    assert wrapped[1].answers() == [learned] == [wrapped.messages(1)[-1]["content"]]
    asked = FieldMapping("", label_key="label", question_template="Is it {label}?", classes=class_names(split.features))
    assert asked.question(split[1]) == f"Is it {learned}?"
    stream = streamed(split.to_iterable_dataset(), FieldMapping(""))
    assert [sample.answers() for sample, _ in stream.epoch() if sample][1] == [learned]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (columns(None), "the column 'label' is empty: leave such rows out"),
        (columns(-1, CLASSES), "the column 'label' is empty"),
        (columns(float("nan"), datasets.Value("float32")), "the column 'label' is empty"),
        (columns(["a", "b"], datasets.List(TEXT)), "has ['a', 'b'], of type list: name a column of"),
        (columns(True, datasets.Value("bool")), "has True, of type bool: name a column of"),
        (columns("a", text=None), "the column 'text' is empty"),
        (columns(" "), "has an empty answer"),
    ],
)
def test_a_row_without_an_answer_is_named(split: datasets.Dataset, words: str) -> None:
    """Whether the dataset is checked before a run, or a stream comes to the row."""
    wrapped = HFDatasetWrapper(split, image_key="")
    for read in (wrapped.messages, wrapped.__getitem__):
        with pytest.raises(ValueError, match="row 1") as error:
            read(1)
        assert words in str(error.value)
    with pytest.raises(ValueError, match="streamed row 0") as error:
        list(streamed(split.to_iterable_dataset(), FieldMapping("")))
    assert words in str(error.value)


def test_the_folders_of_images_are_their_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(image(0)).save(tmp_path / "train" / name / "0.png")
    fields = FieldMapping(question_template="What is it?")
    for samples in (
        mapped(load_split(str(tmp_path), "train"), fields),
        streamed(load_split(str(tmp_path), "train", streaming=True), fields),
    ):
        assert [sample.answers() for sample in samples] == [["cat"], ["dog"]]


# ------------------------------------------------------------------------------------------------------- JSON Lines


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "data.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    return file


def test_lines_of_each_kind(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(image(number)).save(tmp_path / f"{number}.png")
    frames = np.stack([image(number) for number in range(12)])
    iio.imwrite(tmp_path / "clip.gif", frames, loop=0)
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]
    file = write(
        tmp_path,
        {"image": "0.png", **PLAIN},
        "",
        {"images": ["1.png", "2.png"], "messages": [{"role": "user", "content": parts}, turn("assistant")]},
        {"video": "clip.gif", "now": 2, "stride": 3, **PLAIN},
        {"image": "0.png", "future_frames": ["1.png", "2.png"], **PLAIN},
        {"image": "0.png", "world_prompt": "it falls", **PLAIN},
        {"video": "clip.gif", "now": 8, "past": 4, "stride": 2, **PLAIN},
        {"frames": ["0.png", "1.png"], **PLAIN},
    )
    dataset = JsonlDataset(file)
    assert [len(dataset[index].images) for index in range(7)] == [1, 2, 1, 1, 1, 1, 1]
    clip = dataset[2]
    read = iio.imread(tmp_path / "clip.gif")[..., :3]
    assert np.array_equal(clip.images[0], read[2])
    assert [np.array_equal(a, b) for a, b in zip(clip.future_frames.frames, read[[5, 8, 11]], strict=True)] == [
        True
    ] * 3
    assert dataset[3].future_frames == Video([str(tmp_path / "1.png"), str(tmp_path / "2.png")], FramesAfterNow())
    assert dataset[4].world_prompt == "it falls"
    (seen,) = dataset[5].images
    assert np.array_equal(np.stack([np.asarray(frame) for frame in seen.frames]), read[[0, 2, 4, 6, 8]])
    assert [np.array_equal(a, b) for a, b in zip(dataset[5].future_frames.frames, read[[10]], strict=True)] == [True]
    assert dataset[6].images == (Video([str(tmp_path / "0.png"), str(tmp_path / "1.png")]),)
    assert dataset[1].origin == f"{file} line 3"
    assert len(JsonlDataset(file, limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"image": "0.png", "text": "What?"}, "line 2 has no label"),
        ({"vido": "clip.gif", **PLAIN}, "line 2 has an unknown key 'vido'; did you mean 'video'?"),
        ({"weight": 1, **PLAIN}, "line 2 has an unknown key 'weight'; the known keys are image, "),
        ({"weight": 1, **PLAIN}, ", fps, world_latents, world_prompt, video, now, stride, past."),
        ('{"text": "a", "label": "b", "label": "c"}', "line 2 is not valid JSON (the key 'label' occurs twice): fix"),
        ('{"messages": [{"role": "user", "role": "user"}]}', "line 2 is not valid JSON (the key 'role' occurs twice)"),
        (
            '{"text": "\\ud83d", "label": "b"}',
            "line 2 holds half of a character (\\ud83d): write the whole",
        ),
        ('{"text": "a", "label": "b", "image": "\\uD83D.png"}', "line 2 holds half of a character"),
        ("[" * 100000, "line 2 is not valid JSON (maximum recursion depth"),
        (
            '{"text": "What \\ud83d is it?", "label": "b"}',
            "line 2 holds half of a character (\\ud83d): write the whole",
        ),
        ('{"text": "\udcff", "label": "b"}', "line 2 is not valid JSON ('utf-8' codec can't decode byte 0xff"),
        ({"image": None, **PLAIN}, "line 2: image is null: give it a value, or remove the key"),
        ({"world_prompt": None, **PLAIN}, "line 2: world_prompt is null"),
        ({"label": None, "text": "a"}, "line 2: label is null"),
        ({"image": "", **PLAIN}, "line 2: image is '', and must be a path: fix it, or remove the key"),
        ({"image": 5, **PLAIN}, "line 2: image is 5, and must be a path"),
        ({"images": [""], **PLAIN}, "line 2: images is [''], and must be a list of paths"),
        ({"images": [None], **PLAIN}, "line 2: images is [None], and must be a list of paths"),
        ({"frames": [], **PLAIN}, "line 2: frames is [], and must be a path"),
        ({"frames": {"a": 1}, **PLAIN}, "line 2: frames is {'a': 1}, and must be a path"),
        ({"world_prompt": 5, **PLAIN}, "line 2 has a world_prompt of type int: pass a text"),
        ({"world_latents": [[1.0]], **PLAIN}, "line 2 has a world_latents of type list: pass a tensor"),
        ({"image": "0.png", "now": 3, **PLAIN}, "line 2: now is a key of a video, and there is none: add video"),
        ({"video": "", **PLAIN}, "line 2: video is '', and must be a path"),
        ({"image": "none.png", **PLAIN}, "line 2: image names FOLDER/none.png, and there is no such file"),
        ({"image": "sub", **PLAIN}, "line 2: image names FOLDER/sub, and it is a folder: fix the path"),
        ({"images": ["pipe"], **PLAIN}, "line 2: images names FOLDER/pipe, and it is not a regular file: fix the path"),
        ({"text": "What?", "label": 3}, "line 2: label is 3, of type int, and must be a text: write it as one"),
        ({"text": "What?", "label": ["A"]}, "line 2: label is ['A'], of type list, and must be a text"),
        ({"text": "What?"}, "line 2 has no label: give text and label, or messages"),
        ({"images": ["0.png", "none.png"], **PLAIN}, "line 2: images names FOLDER/none.png, and"),
        ({"frames": ["0.png", "none.png"], **PLAIN}, "line 2: frames names FOLDER/none.png, and"),
        ({"frames": "none.mp4", **PLAIN}, "line 2: frames names FOLDER/none.mp4, and"),
        (
            {"image": "0.png", "future_frames": ["none.png"], **PLAIN},
            "line 2: future_frames names FOLDER/none.png, and",
        ),
        (
            {"image": "0.png", "future_frames": "0.png", **PLAIN},
            "line 2: future_frames is '0.png', and must be a list of paths",
        ),
        ({"image": "0.png", "future_frames": 4, **PLAIN}, "line 2: future_frames is 4, and must be a list of paths"),
        ({"video": "none.gif", **PLAIN}, "line 2: video names FOLDER/none.gif, and there is no such file: fix the"),
        ({"video": 3, **PLAIN}, "line 2: video is 3, and must be the path of a video"),
        ({"video": "0.png", "now": -1, **PLAIN}, "line 2: now is -1, and must be an integer of at least 0"),
        ({"video": "0.png", "stride": 0, **PLAIN}, "line 2: stride is 0, and must be an integer of at least 1"),
        ({"video": "0.png", "image": "0.png", **PLAIN}, "line 2 has a video and also image"),
        ({"video": "0.png", "future_frames": ["0.png"], **PLAIN}, "line 2 has a video and also future_frames"),
        (
            {"video": "0.png", "now": "1", **PLAIN},
            "line 2: now is '1', and must be an integer of at least 0, or a time",
        ),
        ({"video": "0.png", "stride": "0 s", **PLAIN}, "line 2: stride is '0 s', and must be an integer of at least 1"),
        ({"video": "0.png", "past": "1 s", "stride": 2, **PLAIN}, "line 2: past is '1 s' and stride is 2 frames: give"),
        ({"video": "0.png", "fps": 0, **PLAIN}, "line 2: fps is 0: give the frames per second of the video"),
        ({"image": "0.png", "fps": 30, **PLAIN}, "line 2 has fps, the rate of video, frames, future_frames, and none"),
        ({"video": "0.png", "now": 1, "past": 4, "stride": 1, **PLAIN}, "line 2: there are no 4 frames before frame 1"),
    ],
)
def test_a_bad_line_is_reported_when_the_file_is_opened(tmp_path: Path, line: Any, words: str) -> None:
    """Before an image is decoded: the one that exists is not an image."""
    (tmp_path / "0.png").write_bytes(b"not an image")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    words = words.replace("FOLDER", str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.jsonl") as error:
        JsonlDataset(write(tmp_path, PLAIN, line))
    assert words in str(error.value)


def test_a_file_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*none\.jsonl"):
        JsonlDataset(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="has no lines"):
        JsonlDataset(write(tmp_path, ""))
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder: pass the path of a JSON Lines file"):
        JsonlDataset(tmp_path)


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Editors on Windows write one at the beginning of a UTF-8 file."""
    file, config = tmp_path / "data.jsonl", tmp_path / "config.json"
    for content in (json.dumps(PLAIN) + "\n", "\n" + json.dumps(PLAIN)):
        file.write_bytes(codecs.BOM_UTF8 + content.encode())
        assert len(JsonlDataset(file)) == 1
    row = {"id": "a", "image": "0.png", "question": "Which?", "choices": ["left", "right"], "answer": "A"}
    (tmp_path / "0.png").touch()
    for name, content in (("rows.jsonl", json.dumps(row)), ("rows.json", json.dumps([row]))):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content.encode())
        assert [question.id for question in load_questions(str(tmp_path / name))] == ["a"]
    config.write_bytes(codecs.BOM_UTF8 + b'{"batch_size": 3}')
    assert TrainingConfig.read(config).batch_size == 3


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"video": "data.jsonl", **PLAIN}, "is not a video that can be read"),
        ({"video": "clip.gif", "now": 9, **PLAIN}, "has 2 frames, so there is no frame 9"),
        ({"video": "clip.gif", "now": 8, "past": 8, **PLAIN}, "has 2 frames, so there is no frame 8"),
        ({"video": "clip.gif", "now": 1, "past": 4, **PLAIN}, "has 1 of the 4 frames that are wanted before now"),
        ({"video": "clip.gif", "now": "1 s", **PLAIN}, "has no frame rate, which is needed to find the moment '1 s'"),
        ({"video": "clip.gif", "now": "1 s", "fps": 4, **PLAIN}, "ends after 0.25 s, so there is no frame at 1 s"),
    ],
)
def test_a_video_that_is_too_short_or_none(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    iio.imwrite(tmp_path / "clip.gif", np.stack([image(0), image(1)]), loop=0)
    dataset = JsonlDataset(write(tmp_path, record))
    with pytest.raises(ValueError, match=".") as error:  # noqa: RUF043
        dataset[0].images[0].load()
    assert words in str(error.value)


@pytest.mark.parametrize("key", ["video", "frames"])
def test_a_video_without_its_index_names_the_line(tmp_path: Path, key: str) -> None:
    """An MP4 whose end is missing, where its index is."""
    whole = encode_video([image(number) for number in range(8)])
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.rindex(b"moov")])
    dataset = JsonlDataset(write(tmp_path, {key: "cut.mp4", **PLAIN}))
    with pytest.raises(ValueError, match=r"data\.jsonl line 1: '.*cut\.mp4' is damaged or cut short"):
        load_sample_images(dataset[0])


# ---------------------------------------------------------------------------------------------------------- physics


def test_chats_about_scenes() -> None:
    dataset = PhysicsSamples("train", 2, first_scene=5, chats_per_scene=3, what_happens=2, now=1)
    assert len(dataset) == 2 * len(FAMILIES) * 3
    sample = dataset[4]  # the second scene is of the second family
    clip = make_clip(FAMILIES[1], "train", 5)
    assert np.array_equal(sample.images[0], clip.frames[0])
    assert np.array_equal(np.stack(sample.future_frames), clip.frames[1:])
    known = {(q.text, q.answer) for q in (*next_questions(clip), *now_questions(clip, 0))}
    pairs = [
        (user["content"][-1]["text"], assistant["content"])
        for user, assistant in zip(sample.messages[::2], sample.messages[1::2], strict=True)
    ]
    assert len(pairs) == len(set(pairs)) == 3
    assert set(pairs) <= known
    chats = [str(dataset.messages(index)) for index in (3, 4, 5)]
    assert len(set(chats)) == 3  # each chat asks other things
    assert str(PhysicsSamples("train", 2, 5, 3, 2, 1).messages(4)) == chats[1]
    with pytest.raises(ValueError, match="at least one question about one scene is needed"):
        PhysicsSamples("train", 1, what_happens=0)


def test_an_unknown_kind_of_practice() -> None:
    with pytest.raises(ValueError, match="to_read has a kind 'cell'; the kinds are now, cells, scans"):
        PhysicsSamples("train", 1, reading=1, to_read={"cell": 2})


def test_practice_in_reading_is_about_any_moment_of_a_clip() -> None:
    counts = {"now": 3, "cells": 2, "scans": 1}
    dataset = PhysicsSamples("train", 4, chats_per_scene=1, reading=3, to_read=counts)
    assert len(dataset) == 4 * len(FAMILIES) * 4
    frames = set()
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.num_world_steps == dataset.num_world_steps(index)
        if index % 4 == 0:
            assert (sample.num_world_steps, sample.hide_images, sample.past_frames) == (None, False, None)
            continue
        assert (sample.num_world_steps, sample.hide_images) == (0, True)
        clip = make_clip(*(int(part) if part.isdecimal() else part for part in sample.origin.split("/")))
        frame = 0 if sample.past_frames is None else len(sample.past_frames)
        frames.add(frame)
        assert np.array_equal(sample.images[0], clip.frames[frame])
        known = {q.text: q.answer for q in now_questions(clip, frame)}
        plain = {q.text: q.answer for q in scan_questions(clip, frame, 99, np.random.default_rng(0))}
        questions = [user["content"][-1]["text"] for user in sample.messages[::2]]
        cells = [question for question in questions if "What colour is at column" in question]
        assert len(questions) == min(3, len(known)) + len(cells) + 1
        assert 1 <= len(cells) <= 2
        for question, answer in zip(questions, sample.answers(), strict=True):
            if question not in cells:
                assert {**known, **plain}[question] == answer
    assert frames == {0, 4, 8, 12, 16}


@pytest.mark.parametrize(("key", "ours"), [("question", "text"), ("answer", "label"), ("conversations", "messages")])
def test_keys_of_other_formats_are_understood(key: str, ours: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{key}'; did you mean '{ours}'"):
        chat_of({key: "What?"}, "line 3")
