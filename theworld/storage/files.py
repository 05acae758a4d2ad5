"""Files: atomic writes, which leave the previous content in place if they are interrupted, and JSON reading."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theworld.messages import shortened

if TYPE_CHECKING:  # torch takes seconds to import, and most files hold no tensors
    from torch import Tensor

UNFINISHED = ".writing"  # suffix of a file that is being written


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path to write; it replaces `path` if the block ends without an error, and is removed if not.

    The folder of `path` is created if necessary. The temporary file is in the same folder, and its name contains the
    process id, so that several processes may write the same file.
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str], stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder; its entries move into `folder` if the block ends without an error.

    Entries of `folder` that the block does not write stay there, except the files named in `stale`.
    """
    target = Path(folder).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as unfinished:
        yield Path(unfinished)
        target.mkdir(exist_ok=True)
        for name in stale:
            (target / name).unlink(missing_ok=True)
        for entry in sorted(Path(unfinished).iterdir()):
            if (target / entry.name).is_dir():
                shutil.rmtree(target / entry.name)
            os.replace(entry, target / entry.name)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, indented by two spaces."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes contiguous copies on the CPU as safetensors, with the permissions that other new files have."""
    from safetensors.torch import save_file

    path.touch()  # safetensors creates files that only their owner can read
    mode = path.stat().st_mode
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)


def no_file(path: str | os.PathLike[str], kind: str = "file") -> str:
    """The beginning of an error about a path that is not that of a file: `There is no file x`, or `x is a folder`."""
    problem, name = other_than_file(path), shortened(os.fspath(path))
    return f"There is no {kind} {name}" if problem is None else f"{name} is {problem}"


def other_than_file(path: str | os.PathLike[str]) -> str | None:
    """What a path names that is not a file; None if it does not exist."""
    if os.path.isdir(path):  # unlike Path.is_dir, it accepts a text that is too long for a name
        return "a folder"
    return "not a regular file" if os.path.exists(path) else None


def read_json_file(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Reads the JSON object in a file; `remedy` ends the ValueError about a damaged one: "download it again"."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object but a {type(content).__name__}; {remedy}.")
    return content
