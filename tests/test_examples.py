"""The examples run as they stand, on a tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

from tests.evaluation.tiny_family import tiny_family

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("models"))


def test_inference_shows_three_scenarios(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["inference.py", "--model", str(family / "fused"), "--device", "cpu"])
    runpy.run_path(str(EXAMPLES / "inference.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert [printed.count(word) for word in ("question:", "answer:", "truth:")] == [4, 4, 4]
    pictures = sorted((tmp_path / "outputs").iterdir())
    assert [path.name for path in pictures] == ["1-now.gif", "2-four-steps.gif", "3-four-steps.gif", "3-two-steps.gif"]
    assert [len(iio.imread(path)) for path in pictures] == [1, 17, 17, 9]


def test_inference_does_not_use_an_untrained_projector(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inference.py", "--model", str(family / "untrained"), "--device", "cpu"])
    with pytest.raises(SystemExit, match="no trained projector"):
        runpy.run_path(str(EXAMPLES / "inference.py"), run_name="__main__")
