"""Model names, folders and Hub repositories: what a name refers to, and how its files are found.

An adapter folder holds `config.json` (a TheWorldConfig: the base models' ids and revisions, and which parts were
trained), `model.safetensors` (those parts), and `prompt_embeds.safetensors` if the world model's own folder has no
default prompts. A base id that starts with `./` is a subfolder of the adapter folder, which keeps a full export in one
piece.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_backoff  # type: ignore[attr-defined]  # documented, and exported lazily

from theworld.messages import suggest
from theworld.storage.files import read_json_file

# the HTTP library's own base class of errors, whichever library this version of huggingface_hub uses
TransportError: type[BaseException] = HfHubHTTPError.__bases__[0]

ADAPTER_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
WORLD_INDEX_FILE = "model_index.json"

DISABLED = "Hub access is disabled (HF_HUB_OFFLINE=1); unset it or pass a local folder."
HUB_TIMEOUT = 10.0  # seconds for one answer of the Hub
CONNECT_TIMEOUT = 5.0  # seconds for a connection; a firewall may drop packets silently

SHIPPED_WEIGHTS = Path(__file__).parents[1] / "nano" / "weights"
SHIPPED_DEFAULT = "fused"
COSMOS_2B = "nvidia/Cosmos-Predict2-2B-Video2World"  # the world model of a new fusion


def resolve(model: str | os.PathLike[str], base_dir: str | os.PathLike[str] | None = None) -> str:
    """The folder of a shipped model (`nano`, or a part of it, `nano/NAME`) or of a local path; a Hub id is unchanged.

    Args:
        base_dir: folder that ids starting with `./` are relative to.
    """
    name = os.path.expanduser(model)
    if name == "nano" or name.startswith("nano/"):
        folder = SHIPPED_WEIGHTS / (name.removeprefix("nano").strip("/") or SHIPPED_DEFAULT)
        inside_it = os.path.normpath(folder).startswith(f"{SHIPPED_WEIGHTS}{os.sep}")
        if not inside_it or not any((folder / file).exists() for file in (CONFIG_FILE, WORLD_INDEX_FILE)):
            shipped = sorted(path.name for path in SHIPPED_WEIGHTS.glob("*") if path.is_dir())
            raise ValueError(f"{name!r} is not shipped with this package; it has: nano, " + ", ".join(shipped) + ".")
        return str(folder)
    if name.startswith("./") and base_dir is not None and (Path(base_dir) / name).is_dir():
        return str(Path(base_dir) / name)
    return name


def absolute_base_path(model: str) -> str:
    """Makes the path of a local base model absolute, so that an adapter loads from any working directory."""
    name = os.path.expanduser(model)
    shipped = name == "nano" or name.startswith("nano/")
    return os.path.abspath(name) if not shipped and Path(name).is_dir() else model


def may_be_on_hub(name: str) -> bool:
    """Whether a name has the form of a Hub id and is not a folder."""
    return not Path(name).is_dir() and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def is_disabled() -> bool:
    """Whether the user has disabled the Hub; a command that finds no network disables it for itself only."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@cache
def hub_answers(endpoint: str) -> bool:
    """Whether the Hub answers at all, even with an error; asked once per process, and again after a second."""
    timeouts = (CONNECT_TIMEOUT, HUB_TIMEOUT, HUB_TIMEOUT, HUB_TIMEOUT)  # to connect, read, write, get a connection
    try:
        http_backoff("HEAD", endpoint, max_retries=1, retry_on_status_codes=(), timeout=timeouts)
    except (TransportError, OSError):
        return False
    return True


def check_name(model: str) -> None:
    """Raises a ValueError for a name that is neither a folder nor a possible Hub id, before any request."""
    if not model or not (Path(model).is_dir() or may_be_on_hub(model)):
        raise ValueError(
            f"There is no folder {model or repr(model)}, and it is not a Hugging Face id such as 'owner/name'; "
            f"{suggest(model, ['nano'], 'check the name.')}"
        )


def rebase_path(name: str, base_dir: str | os.PathLike[str]) -> str:
    """A base model's name for use from another folder: names in the folder `base_dir` become absolute paths."""
    is_inside = name.startswith("./") and Path(base_dir, name).is_dir()
    return str(Path(base_dir, name).resolve()) if is_inside else name


def split_checkpoint_name(name: str | None) -> tuple[str, str]:
    """`checkpoint-1000/pytorch_model.bin` -> (subfolder with a slash or empty, file name)."""
    if not name:
        return "", ADAPTER_FILE
    folder, _, last = name.rpartition("/")
    if last.endswith((".bin", ".safetensors")):
        return (f"{folder}/" if folder else ""), last
    return f"{name.strip('/')}/", ADAPTER_FILE


def find_file(model: str, filename: str, revision: str | None = None, *, local_files_only: bool = False) -> Path:
    """Path of a file of a folder or Hub repository; the latter is downloaded unless it is in the cache."""
    check_name(model)
    if Path(model).is_dir():
        path = Path(model) / filename
        if not path.is_file():
            if filename == CONFIG_FILE and (Path(model) / WORLD_INDEX_FILE).is_file():
                raise ValueError(
                    f"{model} is a world model; pass it as the world model (cosmos_model_name) of a Gemma 3."
                )
            if filename == WORLD_INDEX_FILE and (Path(model) / CONFIG_FILE).is_file():
                raise ValueError(f"{model} has no {filename}, so it is not a world model; use a Cosmos-Predict2.")
            raise ValueError(f"{model} has no {filename}; is it a model folder?")
        return path
    with hub_errors(model, filename):
        return Path(hf_hub_download(model, filename, revision=revision, local_files_only=local_files_only))


@contextmanager
def hub_errors(model: str, what: str) -> Iterator[None]:
    """Turns errors of downloading `what` (a file, or "its weights") of a Hub id into a ValueError of one sentence."""
    try:
        yield
    except (HfHubHTTPError, TransportError, HFValidationError, OSError) as error:
        raise ValueError(explain_hub_error(error, model, what)) from error


def explain_hub_error(error: BaseException, model: str, what: str) -> str:
    """One sentence about an error of huggingface_hub: what went wrong, and what to do."""
    if isinstance(error, LocalEntryNotFoundError):
        neither = "neither in the Hugging Face cache nor reachable on the Hub; check the name and the network."
        where = f"not in the Hugging Face cache. {DISABLED}" if is_disabled() else neither
        return f"{model} is not a local folder, and {what} is {where}"
    if isinstance(error, GatedRepoError):  # before its base class, RepositoryNotFoundError
        return (
            f"{model} is gated; accept its licence at {constants.ENDPOINT}/{model}, then run `hf auth login` or set "
            "HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub has no repository {model} that this token can read; check the name, or run `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return f"{model} on the Hub does not have this revision; check the branch, tag or commit."
    if isinstance(error, EntryNotFoundError):
        return f"{model} on the Hub has no {what}; check the repository and revision."
    if isinstance(error, HFValidationError):
        return f"There is no folder {model}, and it is not a Hugging Face repository id: {error}"
    if isinstance(error, HfHubHTTPError):
        return (
            f"The Hub refused {what} of {model} ({error}); check the token with `hf auth whoami`, or try again later."
        )
    reason = f"{type(error).__name__}: {error}".rstrip(". ")
    return f"{what} of {model} could not be downloaded ({reason}); check the network and the disk."


def find_optional_file(model: str, filename: str, revision: str | None = None) -> Path | None:
    """Like `find_file`, but None if the file does not exist, or is not in the cache and there is no network."""
    if Path(model).is_dir():
        path = Path(model) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(model, filename, revision=revision))
    except EntryNotFoundError:  # also LocalEntryNotFoundError
        return None


def commit_of(model: str, revision: str | None = None, filename: str = CONFIG_FILE) -> str | None:
    """The current commit of a revision of a Hub repository; for a folder, `revision` unchanged.

    An adapter names its base models by commit, so that it uses the same weights when their repositories change.
    """
    if Path(model).is_dir():
        return revision
    path = find_file(model, filename, revision)
    return path.parents[len(Path(filename).parents) - 1].name  # the cache keeps a file at snapshots/COMMIT/FILE


def find_base_dir(model: str, bases: Iterable[str], revision: str | None = None, subfolder: str = "") -> str | None:
    """The folder that base names starting with `./` are relative to; None for a Hub repository without such `bases`.

    Args:
        subfolder: the folder of the config in `model`, ending with a slash, or empty.
    """
    if Path(model).is_dir():
        return str(Path(model) / subfolder)
    contained = [name.removeprefix("./") for name in bases if name.startswith("./")]
    if not contained:
        return None
    return str(download(model, [f"{subfolder}{name}/*" for name in contained], contained[0], revision) / subfolder)


def download(
    model: str,
    patterns: Sequence[str],
    what: str,
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    repo_type: str | None = None,
) -> Path:
    """The local folder of a Hub repository, in which the files that match `patterns` are."""
    # without local_files_only, hub 1.x would ask the network for the files of a commit that is in the cache
    offline = local_files_only or is_offline_mode()
    with hub_errors(model if repo_type is None else f"{repo_type}s/{model}", what):
        return Path(
            snapshot_download(
                model,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=offline,
            )
        )


def read_json(
    model: str, filename: str = CONFIG_FILE, revision: str | None = None, *, local_files_only: bool = False
) -> dict[str, Any]:
    """Reads a JSON file of a model folder or repository."""
    path = find_file(model, filename, revision, local_files_only=local_files_only)
    return read_json_file(path, "download or save the model again")


def is_shipped(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of the models that this package ships."""
    # realpath, because Path.resolve raises where symbolic links form a loop
    return Path(os.path.realpath(folder)).is_relative_to(SHIPPED_WEIGHTS.resolve())
