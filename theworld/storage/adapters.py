"""Strict reading of adapter and checkpoint tensors: names, shapes and dtypes must be exactly the expected ones."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from theworld.messages import enumerate_names
from theworld.storage.hub import ADAPTER_FILE, find_file

PICKLED_MODEL = "pytorch_model.bin"


def read_tensors(model: str, filename: str = ADAPTER_FILE, revision: str | None = None) -> dict[str, Tensor]:
    """Reads a safetensors file, or a `.bin` file with `weights_only=True`, which refuses pickled code.

    Where `pytorch_model.bin` is asked for, as older Trainers wrote it, and is missing, `model.safetensors` is read.
    """
    try:
        path = find_file(model, filename, revision)
    except (ValueError, FileNotFoundError):
        folder, _, name = filename.rpartition("/")
        if name != PICKLED_MODEL:
            raise
        path = find_file(model, f"{folder}/{ADAPTER_FILE}".lstrip("/"), revision)
    if not os.access(path, os.R_OK):  # safetensors would report a missing file
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); download or save it again.") from error
    else:
        tensors = read_pickle(path)
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError(f"{path} is not a file of named tensors.")
    if damaged := not_finite(tensors):
        raise ValueError(
            f"{path} has non-finite values in {damaged}; it is damaged, or its training diverged. Use an earlier "
            "checkpoint."
        )
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is infinite or no number."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.detach().isfinite().all())), None)


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a file of `torch.save` with `weights_only=True`, which refuses code in it."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} contains more than tensors, or is not a checkpoint; it was not loaded.") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); download or save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of named tensors.")
    return content


def check_names(expected: Iterable[str], found: Iterable[str], mismatch: str, hint: str = "") -> None:
    """Raises a ValueError, from `mismatch` to `hint`, that names the first missing and unexpected tensors, if any."""
    expected, found = set(expected), set(found)
    differences = (("missing", expected - found), ("unexpected", found - expected))
    parts = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {what} ({enumerate_names(names)})"
        for what, names in differences
        if names
    ]
    if parts:
        raise ValueError(f"{mismatch}: {', '.join(parts)}.{hint}")


def check_tensors(parameters: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError unless `tensors` has exactly the names, shapes and kinds of numbers of the parameters."""
    check_names(parameters, tensors, f"{where} does not match this model", " Was it saved with another base model?")
    for name, parameter in parameters.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() != parameter.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{where} does not match this model: {name} is {kind} there and {parameter.dtype} here.")
        if parameter.shape != tensor.shape:
            raise ValueError(
                f"{where} does not match this model: {name} is {tuple(tensor.shape)} there and "
                f"{tuple(parameter.shape)} here. Was it saved with another base model?"
            )


def copy_tensors(parameters: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Copies `tensors` into the parameters of the same names; copies nothing unless all of them match."""
    check_tensors(parameters, tensors, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
