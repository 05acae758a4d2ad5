"""Preflight check of repositories: required files, sizes and access, without downloading weights.

A repository is a folder, a shipped model or a Hub id. For a Hub id, the Hub is asked for the list of files with their
sizes and for the head of one file, which it refuses if the licence is not accepted; the local cache is searched for
files that are already there. Without a network, only the cache is used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from theworld.storage.hub import (
    ADAPTER_FILE,
    CONFIG_FILE,
    DISABLED,
    HUB_TIMEOUT,
    TransportError,
    hub_answers,
    is_shipped,
    may_be_on_hub,
    read_json,
    resolve,
)
from theworld.world_models.base import PROMPT_EMBEDS
from theworld.world_models.cosmos_components import file_patterns
from theworld.world_models.prompts import ENCODER_FILES

# Patterns without a slash match in the top folder. Files that are not required are used if they exist.
ADAPTER_FILES = (CONFIG_FILE, ADAPTER_FILE)
GEMMA_REQUIRED = ("config.json", "model*.safetensors", "tokenizer.*", "*processor_config.json")
CHAT_TEMPLATE_CONFIGS = ("tokenizer_config.json", "processor_config.json")  # each may hold the template
GEMMA_FILES = (
    *GEMMA_REQUIRED,
    "model.safetensors.index.json",
    "generation_config.json",
    "chat_template*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
)
CONFIG_FILES = (CONFIG_FILE, "model_index.json")


@dataclass
class Repository:
    """A repository or folder, and the files that a call reads from it.

    Args:
        role: what the call uses it for.
        name: as the user wrote it.
        path: its folder, or its Hub id.
        files: patterns of all files that are read.
        required: patterns that must each match a file.
    """

    role: str
    name: str
    path: str
    files: tuple[str, ...]
    required: tuple[str, ...]
    revision: str | None = None


@dataclass
class RepositoryCheck:
    """The result of `check_repository`; sizes in bytes.

    `where` is shipped, folder, cache or hub; `access` is ok, gated, unknown (no such repository, or a private one),
    unreachable or incomplete; `problem` is a sentence that says what to do, or None.
    """

    repository: Repository
    where: str
    access: str = "ok"
    problem: str | None = None
    names: dict[str, int] = field(default_factory=dict)  # file -> size
    here: int = 0

    @property
    def needed(self) -> int:
        return sum(self.names.values())

    @property
    def missing(self) -> int:
        return self.needed - self.here if self.access == "ok" else 0


def config_repository(name: str) -> Repository:
    """The files that tell what kind of model a repository holds."""
    return Repository("config", name, resolve(name), CONFIG_FILES, ())


def adapter_repository(model: str) -> Repository:
    return Repository("adapter", model, resolve(model), (*ADAPTER_FILES, PROMPT_EMBEDS), ADAPTER_FILES)


def gemma_repository(name: str, model: str | None = None, revision: str | None = None) -> Repository:
    return _base("vision-language model", name, model, revision, GEMMA_FILES, GEMMA_REQUIRED)


def world_repository(
    name: str, parts: Sequence[str], model: str | None = None, revision: str | None = None
) -> Repository:
    files = tuple(file_patterns(parts))
    required = tuple(pattern for pattern in files if pattern.startswith(("vae/", "transformer/", "scheduler/")))
    return _base("world model", name, model, revision, files, required)


def text_encoder_repository(world: Repository) -> Repository:
    """The text encoder, which embeds the default prompt once if the world model's folder has no embeddings."""
    prefix = world.files[0].removesuffix("model_index.json")  # of a base inside another repository
    files = tuple(prefix + pattern for pattern in ENCODER_FILES)
    return Repository("its text encoder", world.name, world.path, files, files, world.revision)


def _base(
    role: str, name: str, model: str | None, revision: str | None, files: tuple[str, ...], required: tuple[str, ...]
) -> Repository:
    """A base of the trained `model`; if its name starts with `./`, it is inside the model's folder or repository."""
    if model is None or not name.startswith("./"):
        return Repository(role, name, resolve(name), files, required, revision)
    path = resolve(model)
    if Path(path).is_dir():
        return Repository(role, name, resolve(name, path), files, required)
    folder = name.removeprefix("./")
    files, required = (tuple(f"{folder}/{pattern}" for pattern in patterns) for patterns in (files, required))
    return Repository(role, name, path, files, required)


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; `*` does not match across folders."""

    def fits(name: str) -> bool:
        return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)

    return list(filter(fits, names))


def check_repository(repository: Repository) -> RepositoryCheck:
    """Looks for the files of a repository, on disk or on the Hub, without reading or downloading weights."""
    if Path(repository.path).is_dir():
        shipped = is_shipped(repository.path)
        return _in_folder(repository, Path(repository.path), "shipped" if shipped else "folder")
    if not may_be_on_hub(repository.path):
        problem = f"There is no folder {repository.path}, and it is not a Hub id such as owner/name: check the name."
        return RepositoryCheck(repository, "folder", "unknown", problem)
    if constants.HF_HUB_OFFLINE:
        return _in_cache(repository, DISABLED)
    if not hub_answers(constants.ENDPOINT):
        return _in_cache(repository, f"The Hub does not answer; {no_network()}, or pass a local folder.")
    return _on_hub(repository)


def _in_folder(repository: Repository, folder: Path, where: str) -> RepositoryCheck:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    names = matching(files, repository.files)
    found = RepositoryCheck(repository, where, names={name: files[name].stat().st_size for name in names})
    found.here = found.needed
    lacking = [pattern for pattern in repository.required if not matching(files, [pattern])]
    lacking += [name for name in _indexed(folder, names) if name not in files]
    closed = [name for name in names if not os.access(files[name], os.R_OK)]
    if lacking:
        found.access = "incomplete"
        found.problem = f"{repository.name} has no {lacking[0]} in {folder}: download or save it again."
    elif closed:
        found.access = "incomplete"
        found.problem = f"{files[closed[0]]} may not be read by this account: check its permissions."
    return found


def _indexed(folder: Path, names: Iterable[str]) -> list[str]:
    """The shards that are named in a folder's index files."""
    shards: set[str] = set()
    for name in names:
        if name.endswith(".index.json"):
            try:
                weight_map = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"]
                shards.update(str(Path(name).parent / shard) for shard in weight_map.values())
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
                shards.add(f"{name} that can be read")
    return sorted(shards)


def _in_cache(repository: Repository, remedy: str) -> RepositoryCheck:
    """What the local cache contains, if the Hub cannot be asked."""
    try:
        folder = snapshot_download(
            repository.path, revision=repository.revision, allow_patterns=list(repository.files), local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError):
        found = RepositoryCheck(repository, "hub", "unreachable")
    else:
        found = _in_folder(repository, Path(folder), "cache")
    if found.problem or found.access != "ok":
        found.access = "unreachable"
        found.problem = f"{repository.name} is not complete in the cache. {remedy}"
    return found


def _on_hub(repository: Repository) -> RepositoryCheck:
    api = HfApi()
    page = f"{constants.ENDPOINT}/{repository.path}"
    found = RepositoryCheck(repository, "hub")
    try:
        info = api.model_info(repository.path, revision=repository.revision, files_metadata=True, timeout=HUB_TIMEOUT)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        names = matching(sizes, repository.files)
        found.names = {name: sizes[name] for name in names}
        cached = {name: try_to_load_from_cache(repository.path, name, revision=info.sha) for name in names}
        found.here = sum(sizes[name] for name, path in cached.items() if isinstance(path, str))
        lacking = [pattern for pattern in repository.required if not matching(sizes, [pattern])]
        if lacking:
            found.access = "incomplete"
            found.problem = f"{repository.name} on the Hub has no {lacking[0]}: check the name."
            return found
        if names:  # the list is public even if the files are not
            api.get_hf_file_metadata(
                url=hf_hub_url(repository.path, names[0], revision=repository.revision), timeout=HUB_TIMEOUT
            )
    except GatedRepoError:  # before its base class, RepositoryNotFoundError
        found.access = "gated"
        found.problem = (
            f"{repository.name} is gated and its licence is not accepted by the account of this token: accept it at "
            f"{page} (a fine-grained token also needs permission to read gated repositories)."
            if get_token()
            else f"{repository.name} is gated and there is no token: accept its licence at {page}, then run "
            "`hf auth login`."
        )
    except RepositoryNotFoundError:
        found.access = "unknown"
        found.problem = (
            f"The Hub has no repository {repository.name} that this token may read: check the name."
            if get_token()
            else f"The Hub has no public repository {repository.name}: check the name, or run `hf auth login`."
        )
    except RevisionNotFoundError:
        found.access = "unknown"
        found.problem = f"{repository.name} has no revision {repository.revision!r}: check the model's config.json."
    except EntryNotFoundError as error:
        found.access = "incomplete"
        found.problem = f"{repository.name} lists a file that it does not have ({error}): ask its owner."
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            found.access = "gated"
            found.problem = (
                f"The Hub refuses this token {repository.name} ({status}): see {page}, then run `hf auth login` again."
            )
        else:
            why = f"The Hub answers {status} at {constants.ENDPOINT}; try again later, or pass a local folder."
            found = _in_cache(repository, why)
    except (TransportError, OSError):
        found = _in_cache(repository, f"The Hub does not answer; {no_network()}, or pass a local folder.")
    return found


def has_chat_template(gemma: RepositoryCheck) -> bool:
    """Whether a readable Gemma has a chat template: a file of its own, or a key in one of its small configs."""
    if any(size for name, size in gemma.names.items() if Path(name).name.startswith("chat_template")):
        return True
    path, revision = gemma.repository.path, gemma.repository.revision
    configs = [name for name in gemma.names if Path(name).name in CHAT_TEMPLATE_CONFIGS]
    return any(read_json(path, name, revision).get("chat_template") for name in configs)


def no_network() -> str:
    return f"check the network and {constants.ENDPOINT}"


def token_problem() -> str | None:
    """The problem with the token, if there is a token and the Hub can be asked."""
    if constants.HF_HUB_OFFLINE or not get_token() or not hub_answers(constants.ENDPOINT):
        return None
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return "The Hub does not know this token (HF_TOKEN or `hf auth login`): log in again, or unset it."
    except (TransportError, OSError):
        return None  # reported for each repository
    return None


def cache_folder() -> Path:
    return Path(constants.HF_HUB_CACHE)


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
