"""Adapter folders: find, read and write them. Files only; the model that fills them is in `modeling`.

An adapter folder holds `config.json` (a TheWorldConfig: base models' ids and revisions, and which parts were trained)
and `model.safetensors` (those parts and nothing else). A base id that starts with `./` lies inside the folder, which
is how a full export stays in one piece.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

ADAPTER_FILE = "model.safetensors"
LEGACY_ADAPTER_FILE = "pytorch_model.bin"
CONFIG_FILE = "config.json"
WORLD_INDEX_FILE = "model_index.json"

SHIPPED_WEIGHTS = Path(__file__).parent / "nano" / "weights"
SHIPPED_DEFAULT = "fused"


def resolve(model: str | os.PathLike[str], inside: str | os.PathLike[str] | None = None) -> str:
    """A folder for the shipped models and for local paths; anything else is a Hub id and is returned as it is.

    Args:
        model: `nano` (the shipped model), `nano/NAME` (a part of it), a folder, or a Hub id.
        inside: folder that ids starting with `./` are relative to.

    Raises:
        ValueError: `nano/NAME` that is not shipped.
    """
    name = os.path.expanduser(model)
    if name == "nano" or name.startswith("nano/"):
        folder = SHIPPED_WEIGHTS / (name.removeprefix("nano").strip("/") or SHIPPED_DEFAULT)
        inside_it = os.path.normpath(folder).startswith(f"{SHIPPED_WEIGHTS}{os.sep}")
        if not inside_it or not any((folder / file).exists() for file in (CONFIG_FILE, WORLD_INDEX_FILE)):
            shipped = sorted(path.name for path in SHIPPED_WEIGHTS.glob("*") if path.is_dir())
            raise ValueError(f"{name!r} is not shipped with this package; it has: nano, " + ", ".join(shipped) + ".")
        return str(folder)
    if name.startswith("./") and inside is not None and (Path(inside) / name).is_dir():
        return str(Path(inside) / name)
    return name


def lasting(model: str) -> str:
    """A base's name as an adapter keeps it: of a folder its whole path, so that it is found from any other folder."""
    name = os.path.expanduser(model)
    shipped = name == "nano" or name.startswith("nano/")
    return os.path.abspath(name) if not shipped and Path(name).is_dir() else model


def check_name(model: str) -> None:
    """Raises a ValueError for what is neither a folder nor can be a Hub id, before the network is asked for it."""
    if not model or (not Path(model).is_dir() and (model.count("/") != 1 or model.startswith((".", "/", "~")))):
        hint = "did you mean 'nano'?" if difflib.get_close_matches(model, ["nano"], 1) else "check the name."
        raise ValueError(
            f"There is no folder {model or repr(model)}, and it is no Hugging Face repository id such as 'owner/name'; "
            f"{hint}"
        )


def from_elsewhere(name: str, inside: str | os.PathLike[str]) -> str:
    """A base's name as another folder may give it: in full, where it lies inside the folder `inside`."""
    return str(Path(resolve(name, inside)).resolve()) if name.startswith("./") and Path(inside, name).is_dir() else name


def find_file(model: str, filename: str, revision: str | None = None) -> Path:
    """Path of one file of a folder or Hub repository, downloaded when it must be.

    Raises:
        ValueError: no such model, no such file, no permission or no network; one sentence that says what to do.
    """
    check_name(model)
    if Path(model).is_dir():
        path = Path(model) / filename
        if not path.is_file():
            if filename == CONFIG_FILE and (Path(model) / WORLD_INDEX_FILE).is_file():
                raise ValueError(
                    f"{model} is a world model; name it beside a Gemma 3 (--world-model, or cosmos_model_name)."
                )
            if filename == WORLD_INDEX_FILE and (Path(model) / CONFIG_FILE).is_file():
                raise ValueError(f"{model} is no world model, since it has no {filename}; name a Cosmos-Predict2.")
            raise ValueError(f"{model} has no {filename}; is it a model folder?")
        return path
    with hub_errors(model, filename):
        return Path(hf_hub_download(model, filename, revision=revision))


@contextmanager
def hub_errors(model: str, filename: str) -> Iterator[None]:
    """Inside, what can go wrong with a download is a ValueError of one sentence."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{model} is no folder here, and {filename} is neither in the Hugging Face cache nor reachable on the "
            "network; check the name, or go online once."
        ) from error
    except GatedRepoError as error:
        raise ValueError(
            f"{model} is gated: accept its licence on its Hub page and set HF_TOKEN to a token that may read it."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"The Hub has no repository {model} that you may read; check the name, or log in with `hf auth login`."
        ) from error
    except EntryNotFoundError as error:
        raise ValueError(f"{model} on the Hub has no {filename}; check the repository and revision.") from error
    except (HfHubHTTPError, ValueError) as error:
        raise ValueError(f"{model} is neither a folder nor a readable Hub repository: {error}") from error


def find_optional_file(model: str, filename: str, revision: str | None = None) -> Path | None:
    """As `find_file`, with None for a file that is not there, or not in the cache while there is no network."""
    if Path(model).is_dir():
        path = Path(model) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(model, filename, revision=revision))
    except EntryNotFoundError:  # also LocalEntryNotFoundError
        return None


def commit_of(model: str, revision: str | None = None, filename: str = CONFIG_FILE) -> str | None:
    """The commit that `revision` of a Hub repository stands for today; of a folder, `revision` as it is.

    An adapter names its bases by commit, so that it stands on the same weights when their repository moves on.
    """
    if Path(model).is_dir():
        return revision
    path = find_file(model, filename, revision)
    return path.parents[len(Path(filename).parents) - 1].name  # the cache keeps a file at snapshots/COMMIT/FILE


def bases_folder(model: str, bases: Iterable[str], revision: str | None = None, subfolder: str = "") -> str | None:
    """The folder that base names starting with `./` are relative to, downloaded when a Hub repository holds them.

    Args:
        bases: the names that a config gives its base models.
        subfolder: where in `model` that config lies, with a slash behind it, or empty.

    Returns:
        None for a Hub repository that holds no base.
    """
    if Path(model).is_dir():
        return str(Path(model) / subfolder)
    inside = [name.removeprefix("./") for name in bases if name.startswith("./")]
    if not inside:
        return None
    with hub_errors(model, inside[0]):
        snapshot = snapshot_download(
            model,
            revision=revision,
            allow_patterns=[f"{subfolder}{name}/*" for name in inside],
            local_files_only=is_offline_mode(),
        )
    return str(Path(snapshot) / subfolder)


def split_checkpoint_name(name: str | None) -> tuple[str, str]:
    """`checkpoint-1000/pytorch_model.bin` -> (subfolder with a slash or empty, file name)."""
    if not name:
        return "", ADAPTER_FILE
    folder, _, last = name.rpartition("/")
    if last.endswith((".bin", ".safetensors")):
        return (f"{folder}/" if folder else ""), last
    return f"{name.strip('/')}/", ADAPTER_FILE


def read_json(model: str, filename: str = CONFIG_FILE, revision: str | None = None) -> dict[str, object]:
    """A JSON file of a model folder or repository, as a dict."""
    path = find_file(model, filename, revision)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download or save the model again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; download or save the model again.")
    return content


def read_tensors(model: str, filename: str = ADAPTER_FILE, revision: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `.bin` file read with `weights_only=True` (pickled code is refused)."""
    path = find_file(model, filename, revision)
    if not os.access(path, os.R_OK):  # safetensors would say that there is no such file
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
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{path} holds infinite or undefined numbers in {name}; it is damaged, or its training diverged: use "
                "an earlier checkpoint."
            )
    return tensors


def read_pickle(path: Path) -> dict[str, Any]:
    """A file of `torch.save`, read with `weights_only=True`: code inside it is refused, not run."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, or is no checkpoint; it was not loaded.") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); download or save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of named tensors.")
    return content


def check_keys(expected: Iterable[str], found: Iterable[str], where: str) -> None:
    """Raises a ValueError unless both name the same tensors, with the first few of each that are off."""
    expected, found = set(expected), set(found)
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ValueError(f"{where} does not fit this model: {' and '.join(parts)}. Was it made for another base?")


def check_tensors(parameters: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError unless `tensors` has every parameter's name, shape and kind of number, and no other name."""
    check_keys(parameters, tensors, where)
    for name, parameter in parameters.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() != parameter.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{where} does not fit this model: {name} is {kind} there and {parameter.dtype} here.")
        if parameter.shape != tensor.shape:
            raise ValueError(
                f"{where} does not fit this model: {name} is {tuple(tensor.shape)} there and "
                f"{tuple(parameter.shape)} here. Was it made for another base?"
            )


def copy_tensors(parameters: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Copies `tensors` into the parameters of the same names; nothing is copied unless all of them fit."""
    check_tensors(parameters, tensors, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


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
