"""Claims about files: an interrupted write leaves the old content and nothing else; a damaged JSON file is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from theworld.storage import files
from theworld.storage.files import atomic_folder, write_text
from theworld.training.config import TrainingConfig


def test_a_file_is_replaced_or_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "a.json"
    files.write_text(target, "1")
    assert target.read_text() == "1"

    def interrupt() -> None:
        with files.atomic_file(target) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(target, "2")
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]
    assert target.read_text() == "1"


def test_a_folder_is_replaced_or_left_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with files.atomic_folder(target) as unfinished:
        (unfinished / "part").mkdir()
        (unfinished / "part" / "old").touch()
        (unfinished / "config.json").write_text("1")
    (target / "kept").touch()
    (target / "stale").touch()

    def fail() -> None:
        with files.atomic_folder(target, stale=("stale",)) as unfinished:
            (unfinished / "config.json").write_text("2")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (target / "config.json").read_text() == "1"
    assert (target / "stale").exists()
    with files.atomic_folder(target, stale=("stale",)) as unfinished:
        (unfinished / "part").mkdir()
        (unfinished / "part" / "new").touch()
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*")) == ["config.json", "kept", "part", "part/new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tensors_are_readable_by_those_who_may_read_other_files(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2, 3).T})
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(3, 2))


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not valid JSON"), (b"\xff", "is not valid JSON"), (b"[1]", "but a list")]
)
def test_damaged_json_names_the_file_and_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{message}.*; write it again\.$"):
        files.read_json_file(tmp_path / "a.json", "write it again")
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert files.read_json_file(tmp_path / "a.json", "") == {"a": 1}


def test_writing_files_needs_no_torch() -> None:
    code = "import sys, theworld.storage.files; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text("~/a/b.txt", "text")
    with atomic_folder("~/folder") as folder:
        (folder / "c.txt").touch()
    assert (tmp_path / "a" / "b.txt").read_text() == "text"
    assert (tmp_path / "folder" / "c.txt").exists()
    assert TrainingConfig(output_dir="~/run", latent_cache="~/cache").output_dir == str(tmp_path / "run")
