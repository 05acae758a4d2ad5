"""Strict reading of a folder in diffusers' layout: one subfolder with config and weights per component.

diffusers' own loaders log missing and unexpected tensors and continue; here they are errors, and only the requested
tensors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from theworld.storage.adapters import check_names
from theworld.storage.files import read_json_file
from theworld.storage.hub import check_name, download

READERS = 4  # threads that read weights, as many as transformers uses
WEIGHTS = "diffusion_pytorch_model.safetensors"


def find_folder(
    repo_or_folder: str | Path, revision: str | None, patterns: Sequence[str], local_files_only: bool = False
) -> Path:
    """The local folder; for a Hugging Face repository, files that match `patterns` are downloaded."""
    folder = Path(repo_or_folder).expanduser()
    if folder.is_dir():
        return folder
    name = str(repo_or_folder)
    check_name(name)
    return download(name, patterns, "the world model", revision, local_files_only=local_files_only)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a world folder."""
    if not path.is_file():
        if any((place / "config.json").is_file() for place in (path.parent, path.parent.parent)):
            raise ValueError(
                f"{path} is missing, so this is not a world model; use a Cosmos-Predict2 folder or Hub id."
            )
        raise ValueError(f"{path} is missing; the folder is not a complete world model.")
    return read_json_file(path, "download or save it again")


def read_component_config(folder: Path) -> dict[str, Any]:
    """The constructor's keyword arguments from a component's config, without diffusers' own `_` entries."""
    name = "scheduler_config.json" if folder.name == "scheduler" else "config.json"
    return {key: value for key, value in read_json(folder / name).items() if not key.startswith("_")}


def read_weights(
    folder: Path,
    expected: Mapping[str, Tensor],
    prefixes: Sequence[str] = ("",),
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    convert: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Reads the tensors whose names start with one of `prefixes` from a component's safetensors.

    Args:
        folder: the component's folder, with one weights file or an index and its shards.
        expected: the complete state dict of the component, for instance on the meta device. Stored names and shapes
            must be exactly these, including those of tensors that are not read.
        dtype: dtype to cast floating-point tensors to; None keeps the stored one.
        device: where the tensors are put; None is the CPU.
        convert: makes of a name and its tensor what is kept, while the next ones are read.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}  # the open file of each tensor
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is damaged or cut short ({error}); download or save it again.") from error
            files |= dict.fromkeys(file.keys(), file)
        check_names(expected, files, f"{folder} does not match its config")
        for key, file in files.items():
            if (shape := tuple(file.get_slice(key).get_shape())) != tuple(expected[key].shape):
                raise ValueError(
                    f"{folder}: tensor {key} has shape {shape}, but its config requires {tuple(expected[key].shape)}."
                )

        def read(key: str) -> Tensor:
            tensor = files[key].get_tensor(key).to(device)  # converted there, since a GPU does it faster
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            return tensor if convert is None else convert(key, tensor)

        wanted = [key for key in files if key.startswith(tuple(prefixes))]
        with ThreadPoolExecutor(READERS) as readers:
            return dict(zip(wanted, readers.map(read, wanted), strict=True))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    names = [WEIGHTS]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} has no weight_map; download or save it again.")
        names = sorted({str(name) for name in weight_map.values()})
        # the index is untrusted: it may only name files in its own folder
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}, which is outside its own folder.")
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; the folder is not a complete world model.")
    return [folder / name for name in names]
