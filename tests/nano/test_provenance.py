"""What a run writes about itself: the commit of the code that ran, and whether the code was that commit's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from theworld.nano import recipe

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    return subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A checkout with a package in it, all committed."""
    folder = tmp_path / "checkout" / "theworld"
    (folder / "nano" / "weights").mkdir(parents=True)
    for name in ("__init__.py", "nano/recipe.py", "nano/weights/config.json"):
        (folder / name).write_text("1")
    (folder.parent / ".gitignore").write_text("/runs/\n.venv/\n")
    git(folder.parent, "init", "--quiet")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "--quiet", "-m", "All of it")
    return folder


def test_a_clean_tree_is_its_commit(package: Path) -> None:
    assert recipe.commit_of_code(package) == git(package, "rev-parse", "HEAD").strip()


@pytest.mark.parametrize("name", ["nano/recipe.py", "nano/new.py"])
def test_changed_or_added_code_is_told(package: Path, name: str) -> None:
    (package / name).write_text("2")
    assert recipe.commit_of_code(package).endswith(" (with uncommitted changes)")
    git(package, "add", ".")
    assert recipe.commit_of_code(package).endswith(" (with uncommitted changes)")
    git(package, "commit", "--quiet", "-m", "Changed")
    assert recipe.commit_of_code(package) == git(package, "rev-parse", "HEAD").strip()


def test_published_weights_and_notes_beside_the_code_are_no_changes(package: Path) -> None:
    (package / "nano" / "weights" / "config.json").write_text("2")
    (package.parent / "notes.txt").write_text("mine")
    assert recipe.commit_of_code(package) == git(package, "rev-parse", "HEAD").strip()


def test_a_package_inside_another_checkout_is_not_that_checkout(package: Path, tmp_path: Path) -> None:
    inside = shutil.copytree(package, package.parent / ".venv" / "theworld")
    outside = shutil.copytree(package, tmp_path / "elsewhere")
    for folder in (inside, outside):
        assert recipe.commit_of_code(folder) == "unknown: not run from a checkout"


def test_without_git_nothing_is_claimed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert recipe.commit_of_code(package) == "unknown: no git here to ask"


def test_each_stage_adds_its_own_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "commit_of_code", lambda: "abc (with uncommitted changes)")
    settings = recipe.laptop_settings()
    for stage in ("language", "fusion"):
        recipe.record(tmp_path, stage, settings, torch.device("cpu"), "theworld nano train")
    content = json.loads((tmp_path / "provenance.json").read_text())
    assert [run["stage"] for run in content["runs"]] == ["language", "fusion"]
    assert {run["commit"] for run in content["runs"]} == {"abc (with uncommitted changes)"}
    assert content["runs"][1]["settings"]["fusion"]["training"] == settings.fusion.training
