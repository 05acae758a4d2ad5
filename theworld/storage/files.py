"""Writing files so that an interrupted write leaves the previous content in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_folder(folder: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Calls `write(side_folder)` and moves its files into `folder` only when all are there: no half-written adapter.

    Files of `folder` that `write` does not produce stay where they are.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as side:
        write(Path(side))
        target.mkdir(exist_ok=True)
        for entry in sorted(Path(side).iterdir()):
            if entry.is_dir() and (target / entry.name).is_dir():
                shutil.rmtree(target / entry.name)
            os.replace(entry, target / entry.name)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes contiguous copies on the CPU as safetensors, readable by whom other new files are readable."""
    path.touch()  # safetensors itself would let the owner alone read a file that it makes
    mode = path.stat().st_mode
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)
