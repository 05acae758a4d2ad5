"""The examples run unchanged on a tiny model."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest
from rich.console import Console

from tests import commands
from tests.evaluation.tiny_family import tiny_family
from theworld import TheWorld
from theworld.datasets.physics import make_clip, next_questions

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("models"))


def test_inference_shows_answers_without_and_with_a_future(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(
        sys, "argv", ["inference.py", *f"--model {family / 'fused'} --device cpu --dtype float32".split()]
    )
    script = runpy.run_path(str(EXAMPLES / "inference.py"), run_name="__main__")
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.count("│") == 7]
    assert [row.split("│")[1].strip() for row in rows] == [f"{family} {index}" for family, index in script["SCENES"]]
    for row, (name, index) in zip(rows, script["SCENES"], strict=True):
        question = next_questions(make_clip(name, "test", index))[0]
        assert question.text in row
        assert row.split("│")[-2].strip() == question.answer
    assert "Runtime override" in printed
    images = sorted((tmp_path / "outputs").iterdir())
    assert [path.name for path in images] == sorted(f"{name}-{index}.gif" for name, index in script["SCENES"])
    assert [len(iio.imread(path)) for path in images] == [17] * len(images)


def test_inference_shows_the_test_split_as_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(EXAMPLES / "inference.py"))
    script["show_test_split"](Console(width=120))
    printed = capsys.readouterr().out
    arms = json.loads(script["RESULTS"].read_text())["arms"]
    for arm in script["ARMS"]:
        assert re.search(rf"{arm} .* {100 * arms[arm]['accuracy']:.1f} %", printed)


@pytest.mark.slow
def test_some_scenes_of_the_demonstration_need_the_future() -> None:
    script = runpy.run_path(str(EXAMPLES / "inference.py"))
    model = TheWorld.from_pretrained("nano", device="cpu")
    correct = {}
    for steps in (0, 4):
        correct[steps] = 0
        for name, index in script["SCENES"]:
            clip = make_clip(name, "test", index)
            question = next_questions(clip)[0]
            answer = model.generate(clip.frames[0], question.text, max_new_tokens=16, num_world_steps=steps)
            correct[steps] += answer == question.answer
    assert correct == {0: 2, 4: 5}


def test_inference_does_not_use_an_untrained_projector(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inference.py", "--model", str(family / "untrained"), "--device", "cpu"])
    with pytest.raises(SystemExit, match="projector of this model is untrained"):
        runpy.run_path(str(EXAMPLES / "inference.py"), run_name="__main__")


@pytest.mark.parametrize("target", ["run MODEL=missing", "train-hf CONFIG=missing.json"])
def test_a_failing_make_target_is_an_error(target: str) -> None:
    command = ["make", "--silent", *target.split(), f"PYTHON={commands.programs() / 'python'}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=EXAMPLES.parent)
    assert result.returncode != 0
    assert "missing" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
