"""The images of one or several prompts are grouped by prompt, and each is decoded once per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.cli import app
from theworld.datasets.collator import BatchSampling, ChatCollator, IndexedSample
from theworld.datasets.samples import TheWorldDataset
from theworld.media.inputs import LoadedImages, group_images
from theworld.media.video import Video

QUESTION = "Which bin will the ball land in?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TheWorld:
    bases = tiny_bases(tmp_path_factory.mktemp("bases"))
    options: dict[str, Any] = {"num_world_steps": 1, "max_world_steps": 2, "world_image_size": TINY_SIZE}
    built = TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], device="cpu", **options)
    with torch.no_grad():
        built.model.projector.temporal.normal_(std=0.05)  # as if it were trained
    return built


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The size of each image that is decoded; every decoding turns the image upright."""
    sizes: list[tuple[int, int]] = []
    upright = ImageOps.exif_transpose
    monkeypatch.setattr(
        ImageOps, "exif_transpose", lambda image, **kw: sizes.append(image.size) or upright(image, **kw)
    )
    return sizes  # type: ignore[return-value]


@pytest.mark.parametrize(
    "call",
    [
        lambda model, path: model.generate(path, QUESTION, max_new_tokens=2, mode="tokens"),
        lambda model, path: model.generate(path, QUESTION, max_new_tokens=2, mode="frames"),
        lambda model, path: model.generate(path, QUESTION, max_new_tokens=2, enable_world=False),
        lambda model, path: model.imagine(path),
        lambda model, path: model.prepare(path, QUESTION),
        lambda model, path: "".join(model.stream(path, QUESTION, max_new_tokens=2, mode="tokens")),
    ],
    ids=["tokens", "frames", "world disabled", "imagine", "prepare", "stream"],
)
def test_an_image_is_decoded_once_per_call(
    model: TheWorld, path: Path, decoded: list[tuple[int, int]], call: Callable[[TheWorld, Path], Any]
) -> None:
    call(model, path)
    assert decoded == [(32, 24)]


@pytest.mark.parametrize(
    "options",
    [("--mode", "tokens", "--steps", "1"), ("--mode", "frames", "--steps", "1"), ("--no-world",)],
    ids=" ".join,
)
def test_ask_decodes_an_image_once(
    model: TheWorld,
    path: Path,
    tmp_path: Path,
    decoded: list[tuple[int, int]],
    options: tuple[str, ...],
) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    words = ["ask", str(path), QUESTION, *options, "--max-new-tokens", "2", "--model", str(folder), "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert decoded == [(32, 24)]


def test_a_training_batch_decodes_an_image_once(model: TheWorld, path: Path, decoded: list[tuple[int, int]]) -> None:
    (sample,) = TheWorldDataset([{"image": str(path), "text": QUESTION, "label": "left"}])
    ChatCollator(model.processor, BatchSampling(num_world_steps=1))([IndexedSample(0, sample)])
    assert decoded == [(32, 24)]


def test_images_are_grouped_by_prompt(path: Path) -> None:
    image = Image.open(path)
    video = Video([image, image])
    grouped = group_images([[path, video], None], ["a", "b"])
    assert [len(entry) for entry in grouped] == [2, 0]
    assert [len(entry) for entry in group_images([path, path], ["a", "b"])] == [1, 1]
    assert [len(entry) for entry in group_images([path, path], "a")] == [2]
    assert [len(entry) for entry in group_images([[path], [path, path]], None)] == [1, 2]
    assert group_images(None, ["a", "b"]) == [[], []]
    second = grouped[0][1]
    assert isinstance(second, Video)
    assert second.frames[0] is second.frames[0], "a video is decoded once, too"
    assert group_images(grouped, ["a", "b"]) is grouped
    with pytest.raises(ValueError, match=r"Got 2 image entries for 1 question:"):
        group_images(LoadedImages([[], []]), "a")
