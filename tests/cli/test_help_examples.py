"""The example of each command's help runs as it is printed, and nano answers the example question correctly."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from theworld.cli import app


def example(*command: str) -> list[str]:
    """The arguments of the example in a command's help, without `theworld`."""
    found = get_command(app)
    for name in command:
        found = found.commands[name]  # type: ignore[attr-defined]
    assert found.help is not None
    return shlex.split(found.help.partition("Example: theworld ")[2])


def run(*arguments: str, succeeds: bool = True) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code == 0) == succeeds, result.output
    return result


def test_the_examples_about_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong together: the scene is written, asked about and imagined, on the shipped weights."""
    monkeypatch.chdir(tmp_path)
    scene = json.loads(run(*example("nano", "scene"), "--json").stdout)
    ask = example("ask")
    truths = {question["question"]: question["answer"] for question in scene["questions"]}
    assert run(*ask).stdout.strip() == truths[ask[2]]
    run(*example("imagine"))
    assert (tmp_path / "future.gif").stat().st_size > 0


def test_the_examples_that_load_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "world transformer" in run(*example("info")).stdout
    content = json.loads(run(*example("doctor"), "--json", succeeds=False).stdout)  # there is no network
    assert content["num_world_steps"] == 4


def test_the_examples_about_an_evaluation(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theworld.storage.hub.SHIPPED_WEIGHTS", family)  # the tiny models are faster
    monkeypatch.chdir(tmp_path)
    command = example("eval")
    command[command.index("--limit") + 1] = "2"
    run(*command)
    run(*example("compare"))
    assert list((tmp_path / "report").iterdir())
