"""What a run writes about itself: the commit of the code that ran, and whether the code was that commit's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from recipes.nano import recipe

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the package and the recipe in it, all committed."""
    folder = tmp_path / "checkout"
    for name in ("theworld/__init__.py", "recipes/nano/recipe.py", "theworld/nano/weights/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1")
    (folder / ".gitignore").write_text("/runs/\n.venv/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Everything")
    return folder


def test_a_clean_tree_is_its_commit(checkout: Path) -> None:
    assert recipe.commit_of_code(checkout) == git(checkout, "rev-parse", "HEAD").strip()


@pytest.mark.parametrize("name", ["recipes/nano/recipe.py", "theworld/new.py"])
def test_changed_or_added_code_is_told(checkout: Path, name: str) -> None:
    (checkout / name).write_text("2")
    assert recipe.commit_of_code(checkout).endswith(" (with uncommitted changes)")
    git(checkout, "add", ".")
    assert recipe.commit_of_code(checkout).endswith(" (with uncommitted changes)")
    git(checkout, "commit", "--quiet", "-m", "Changed")
    assert recipe.commit_of_code(checkout) == git(checkout, "rev-parse", "HEAD").strip()


def test_published_weights_and_notes_beside_the_code_are_no_changes(checkout: Path) -> None:
    (checkout / "theworld" / "nano" / "weights" / "config.json").write_text("2")
    (checkout / "notes.txt").write_text("mine")
    assert recipe.commit_of_code(checkout) == git(checkout, "rev-parse", "HEAD").strip()


def test_code_inside_another_checkout_does_not_report_its_commit(checkout: Path, tmp_path: Path) -> None:
    inside = checkout / ".venv" / "site-packages"
    shutil.copytree(checkout / "theworld", inside / "theworld")
    outside = shutil.copytree(checkout / "theworld", tmp_path / "elsewhere").parent
    for folder in (inside, outside):
        assert recipe.commit_of_code(folder) == "unknown: not run from a checkout"


def test_without_git_nothing_is_claimed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert recipe.commit_of_code(checkout) == "unknown: no git here to ask"


def test_each_stage_adds_its_own_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "commit_of_code", lambda: "abc (with uncommitted changes)")
    settings = recipe.laptop_settings()
    for stage in ("language", "fusion"):
        recipe.record(tmp_path, stage, settings, torch.device("cpu"), "python -m recipes.nano")
    content = json.loads((tmp_path / "provenance.json").read_text())
    assert [run["stage"] for run in content["runs"]] == ["language", "fusion"]
    assert {run["commit"] for run in content["runs"]} == {"abc (with uncommitted changes)"}
    assert content["runs"][1]["settings"]["fusion"]["training"] == settings.fusion.training
