"""The content of a file, given where a path is expected, does not become an error message of megabytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_bases, tiny_model
from theworld.datasets.jsonl import JsonlDataset
from theworld.evaluation.tasks import Request, load_benchmark
from theworld.media.images import load_image, load_images, to_frames
from theworld.media.video import load_video
from theworld.model.processing import TheWorldProcessor
from theworld.storage.files import no_file


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> TheWorldProcessor:
    return tiny_model(tiny_bases(tmp_path_factory.mktemp("bases")))[1]


CONTENT = "A" * 2_000_000
DATA = f"data:image/png;base64,{CONTENT}"


def in_chat(processor: TheWorldProcessor, part: dict[str, Any]) -> None:
    chat = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "What is it?"}]}]
    processor.apply_chat_template(chat, tokenize=True, return_dict=True)


@pytest.mark.parametrize("part", [{"base64": CONTENT}, {"image": CONTENT}, {"url": DATA}, {"path": CONTENT}], ids=str)
def test_base64_in_a_chat_is_named_in_one_sentence(processor: TheWorldProcessor, part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"decode it,? and pass the bytes") as error:
        in_chat(processor, part)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "read", [load_image, load_video, lambda text: load_images([text, text]), lambda text: to_frames(text, 8)]
)
@pytest.mark.parametrize("text", [CONTENT, DATA], ids=["base64", "data address"])
def test_base64_instead_of_a_path_is_named_in_one_sentence(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"decode it,? and pass the bytes") as error:
        read(text)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("key", ["image", "images", "video", "future_frames"])
def test_base64_in_json_lines_is_named_with_its_line(tmp_path: Path, key: str) -> None:
    value = [CONTENT] if key in ("images", "future_frames") else CONTENT
    record = {"text": "What is it?", "label": "a cup", key: value}
    (tmp_path / "chats.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=rf"chats.jsonl line 1: {key} .*fix") as error:
        JsonlDataset(tmp_path / "chats.jsonl")[0]
    assert len(str(error.value)) < 1000


def test_base64_in_questions_is_named_with_its_row(tmp_path: Path) -> None:
    row = {"id": "a", "image": CONTENT, "question": "What is it?", "choices": ["a cup", "a box"], "answer": "A"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="Row a") as error:
        load_benchmark("mcq", Request(data=str(tmp_path / "rows.jsonl")))[0].images()
    assert len(str(error.value)) < 1000


def test_a_file_with_a_long_name_is_named_in_one_sentence() -> None:
    assert len(no_file(CONTENT)) < 500
