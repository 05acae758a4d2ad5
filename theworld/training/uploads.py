"""Uploads to the Hub: in the background while a run trains, repeated while the Hub is slow or fails, and by hand.

A Hub that fails never stops a run and never costs a checkpoint: a commit is tried several times, and a checkpoint that
could not be uploaded is kept, regardless of `save_total_limit`, and named at the end.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Queue

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from theworld.storage.hub import ADAPTER_FILE, CONFIG_FILE, TransportError
from theworld.training.card import CARD_FILE, model_card
from theworld.training.checkpointing import CONFIG_FILE as TRAINING_CONFIG
from theworld.training.checkpointing import HUB_CHECKPOINT, checkpoints_in
from theworld.world_models.base import PROMPT_EMBEDS

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
LONGEST_WAIT = 60.0  # that the Hub may ask for
TRANSIENT = frozenset({408, 409, 412, 425, 429})  # besides 5xx: statuses that may succeed another time
# what makes a model; everything else of a folder belongs to a run
MODEL_FILES = (CONFIG_FILE, ADAPTER_FILE, PROMPT_EMBEDS, TRAINING_CONFIG)
LOG_FOLDERS = ("logs", "samples")
CHECKPOINT_PLACES = {"checkpoint": HUB_CHECKPOINT, "all_checkpoints": "{}"}  # hub_strategy -> folder in the repository


class NotPushed(ValueError):
    """The Hub did not take a commit; the message says why in one line."""


def model_files(folder: Path, repository: str) -> dict[str, Path | bytes]:
    """The files of a model and its card, by their names in a repository."""
    files: dict[str, Path | bytes] = {name: folder / name for name in MODEL_FILES if (folder / name).is_file()}
    files[CARD_FILE] = model_card(folder, repository).encode()
    return files


def files_in(folder: Path, prefix: str) -> dict[str, Path | bytes]:
    """All files of a folder, under `prefix` in a repository."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{prefix}/{path.relative_to(folder).as_posix()}": path for path in files}


def push(
    files: Mapping[str, Path | bytes], repository: str, message: str, waits: Sequence[float] | None = None
) -> None:
    """Uploads files as one commit.

    Args:
        files: name in the repository -> local file or content.
        repository: `owner/name`, which must exist.
        waits: seconds before each further attempt; None means `WAITS`.

    Raises:
        NotPushed: if the Hub refuses, or does not take the commit in any attempt.
    """
    pauses = iter(WAITS if waits is None else waits)
    while True:
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        try:
            HfApi().create_commit(repository, operations, commit_message=message)
        except (HfHubHTTPError, TransportError, OSError, ValueError, RuntimeError) as error:
            pause = next(pauses, None) if may_succeed_later(error) else None
            if pause is None:
                raise NotPushed(reason(error)) from error
            time.sleep(max(pause, asked_wait(error)))
        else:
            return


def may_succeed_later(error: BaseException) -> bool:
    """Whether another attempt may succeed: the Hub was busy or failed, or the connection broke."""
    if isinstance(error, HfHubHTTPError):
        status = status_of(error)
        return status is None or status >= 500 or status in TRANSIENT
    return isinstance(error, TransportError | OSError | RuntimeError) and not isinstance(error, FileNotFoundError)


def status_of(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def asked_wait(error: BaseException) -> float:
    """The seconds of a Retry-After header, at most `LONGEST_WAIT`."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return min(float(headers.get("Retry-After", 0)), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0


def reason(error: BaseException) -> str:
    """An error of the Hub in one line."""
    status = status_of(error)
    if status == 401:
        return "401, the Hub does not know this token"
    if status == 403:
        return "403, this token may not write there"
    if status == 404:
        return "404, there is no such repository, or this token may not see it"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{status}, {text}" if status is not None else text


def checkpoint_files(folder: Path, repository: str, strategy: str) -> dict[str, Path | bytes]:
    """What a strategy uploads when a checkpoint is saved: the model, and perhaps the complete checkpoint."""
    files = model_files(folder, repository)
    if strategy in CHECKPOINT_PLACES:
        files |= files_in(folder, CHECKPOINT_PLACES[strategy].format(folder.name))
    return files


def run_files(folder: Path, repository: str, strategy: str = "end") -> dict[str, Path | bytes]:
    """The final model of a run with its logs and samples, and the checkpoints that a strategy uploads."""
    files = model_files(folder, repository)
    for name in LOG_FOLDERS:
        files |= files_in(folder / name, name)
    checkpoints = checkpoints_in(folder)
    for checkpoint in {"checkpoint": checkpoints[-1:], "all_checkpoints": checkpoints}.get(strategy, ()):
        files |= files_in(checkpoint, CHECKPOINT_PLACES[strategy].format(checkpoint.name))
    return files


def push_command(folder: str | os.PathLike[str], repository: str, strategy: str, private: bool) -> str:
    """The command that uploads later what a run could not upload."""
    options = {"checkpoint": ["--last-checkpoint"], "all_checkpoints": ["--all-checkpoints"]}.get(strategy, [])
    return shlex.join(["theworld", "push", os.fspath(folder), repository, *options, *["--private"] * private])


class Uploads:
    """The uploads of a run, one after the other, in a thread of their own.

    Args:
        output_dir: the run's folder.
        repository, strategy, private: `hub_model_id`, `hub_strategy` and `hub_private_repo` of the run.

    Attributes:
        missing: what could not be uploaded, and why.
    """

    def __init__(self, output_dir: str | os.PathLike[str], repository: str, strategy: str, private: bool) -> None:
        self.output_dir = Path(output_dir)
        self.repository, self.strategy, self.private = repository, strategy, private
        self.missing: dict[str, str] = {}
        self._waiting: set[str] = set()  # names of checkpoints whose upload has not ended
        self._jobs: Queue[tuple[str, Callable[[], Mapping[str, Path | bytes]]] | None] = Queue()
        self._thread: threading.Thread | None = None

    def add(self, checkpoint: Path) -> None:
        """Uploads a checkpoint in the background, if the strategy does so."""
        if self.strategy != "end":
            self._waiting.add(checkpoint.name)
            self._start(checkpoint.name, lambda: checkpoint_files(checkpoint, self.repository, self.strategy))

    def keeps(self, checkpoint: Path) -> bool:
        """Whether a checkpoint must stay, since it is not on the Hub yet."""
        return checkpoint.name in self._waiting or checkpoint.name in self.missing

    def finish(self) -> None:
        """Uploads the final model, and waits for all uploads.

        Raises:
            NotPushed: if something could not be uploaded: what, why, and the command that uploads it.
        """
        self._start("the final model", lambda: run_files(self.output_dir, self.repository))
        self.stop()
        if self.missing:
            names = ", ".join(self.missing)
            why = "; ".join(sorted(set(self.missing.values())))
            command = push_command(self.output_dir, self.repository, self.strategy, self.private)
            raise NotPushed(
                f"The run is complete and saved in {self.output_dir}, but {names} could not be uploaded to "
                f"{self.repository} ({why}). Upload it with: {command}"
            )

    def stop(self, seconds: float | None = None) -> None:
        """Waits for the uploads that have been added, at most that long; what remains is logged."""
        if self._thread is None:
            return
        self._jobs.put(None)
        self._thread.join(seconds)
        self._thread = None
        if self._waiting:
            command = push_command(self.output_dir, self.repository, self.strategy, self.private)
            logger.warning("%s are not uploaded yet; upload them with: %s", ", ".join(sorted(self._waiting)), command)

    def _start(self, name: str, files: Callable[[], Mapping[str, Path | bytes]]) -> None:
        self._jobs.put((name, files))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            name, files = job
            try:
                push(files(), self.repository, f"Upload {name}")
            except (NotPushed, OSError) as error:
                if not self.missing:
                    logger.warning(
                        "%s could not be uploaded to %s (%s); training continues, and all of it is kept in %s",
                        name, self.repository, error, self.output_dir,
                    )  # fmt: skip
                self.missing[name] = str(error)
            self._waiting.discard(name)
