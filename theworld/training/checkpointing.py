"""The checkpoints of a run: how they are written and removed, and which one a run resumes from.

A checkpoint is complete or absent: `checkpoint-N/` is written under another name and renamed when all of it is on the
disk.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode

from theworld.storage.files import read_json_file
from theworld.storage.hub import check_name, download, hub_errors
from theworld.training.config import TrainingConfig

logger = logging.getLogger(__name__)

CONFIG_FILE = "training_config.json"
STATE_FILE = "trainer_state.json"
STREAM_FILE = "stream.json"  # how far a stream was read
DATA_FILE = "data.json"  # by what the training samples are recognised
PREFIX = "checkpoint-"
PARTIAL_SUFFIX = ".writing"  # of a checkpoint that is being written or removed
LAST = "last"
HUB_CHECKPOINT = "last-checkpoint"  # where hub_strategy "checkpoint" puts it

# Settings that may change when a run is resumed, because they do not affect the weights; FREE_PREFIXES names more.
FREE = {
    "output_dir", "resume_from_checkpoint", "do_eval", "num_eval_samples", "shown_samples", "num_workers",
    "latent_cache", "vision_cache", "push_to_hub", "use_gradient_checkpointing", "gradient_checkpointing_kwargs",
    "disable_tqdm", "report_to", "fast_path",
}  # fmt: skip
FREE_PREFIXES = ("dataloader_", "ddp_", "eval_", "hub_", "log_", "logging_", "save_", "trackio_", "wandb_")
# Settings that the checkpoint restores, so that a new value would have no effect: its optimizer and schedule bring
# their rates, betas and decay and fit these trainable parts only, and its weights replace a re-initialised projector.
RESTORED = (
    "optimizer", "learning_rate", "muon_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "optim", "optim_args", "optim_target_modules", "freeze_gemma_vision", "freeze_gemma_language", "freeze_cosmos_vae",
    "freeze_lora", "freeze_projector", "reset_projector", "projector_positions", "stream_parts", "shuffle_buffer_size",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- folders


def checkpoints_in(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, earliest first."""
    files = Path(output_dir).glob(f"{PREFIX}*/{STATE_FILE}")
    steps = {step: file.parent for file in files if (step := file.parent.name.removeprefix(PREFIX)).isdecimal()}
    return [steps[step] for step in sorted(steps, key=int)]


def read_stream(checkpoint: Path) -> dict[str, Any]:
    """How far the run of a checkpoint had read its stream."""
    path = checkpoint / STREAM_FILE
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no {STREAM_FILE}, so it was not saved while training on a stream, or by an earlier "
            "version; start a new run from its weights with model_name."
        )
    return read_json_file(path, "resume from another checkpoint")


def find_last_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    return next(iter(reversed(checkpoints_in(output_dir))), None)


def what_is_saved(output_dir: str | os.PathLike[str]) -> str:
    """What an interrupted run has saved, and how to go on."""
    last = find_last_checkpoint(output_dir)
    if last is None:
        return f"no checkpoint was written in {output_dir}."
    return f"the last checkpoint is {last}; resume the run with resume_from=last."


def partial_folder(checkpoint: Path) -> Path:
    """The folder that a checkpoint is written in before it gets its name."""
    return checkpoint.with_name(f".{checkpoint.name}{PARTIAL_SUFFIX}")


def publish(checkpoint: Path) -> None:
    """Renames the finished partial folder to `checkpoint`, once all of it is on the disk."""
    partial = partial_folder(checkpoint)
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if checkpoint.exists():  # the run was resumed from an earlier one
        remove(checkpoint)
    partial.rename(checkpoint)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint. It is renamed first, so that no incomplete one is ever found."""
    partial = checkpoint.with_name(f".{checkpoint.name}.removed{PARTIAL_SUFFIX}")
    if partial.exists():
        shutil.rmtree(partial)
    checkpoint.rename(partial)
    shutil.rmtree(partial)


def remove_older(output_dir: Path, keep: int, needed: Callable[[Path], bool] | None = None) -> None:
    """Removes all checkpoints but the last `keep`, and those that are `needed`."""
    for checkpoint in checkpoints_in(output_dir)[:-keep]:
        if needed is None or not needed(checkpoint):
            remove(checkpoint)


def remove_partial(output_dir: str | os.PathLike[str]) -> None:
    """Removes what a killed run had not finished writing or removing."""
    for folder in Path(output_dir).glob(f".{PREFIX}*{PARTIAL_SUFFIX}"):
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------------------------ full disk


@contextmanager
def disk_full_as_error(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Within the context, a full disk is a ValueError of one sentence, whichever library reports it.

    TensorBoard writes in a thread whose error is raised again with the next metric. The thread's own traceback would
    report it twice.
    """

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            before(arguments)

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise not_written(Path(output_dir), error) from error
    finally:
        threading.excepthook = before


def not_written(folder: Path, error: Exception) -> ValueError:
    """The error for a checkpoint or an output folder that could not be written."""
    last = find_last_checkpoint(folder.parent if folder.name.startswith(PREFIX) else folder)
    kept = f"{last} is complete" if last else "there is no earlier checkpoint"
    cause = getattr(error, "strerror", None)
    if not cause:  # torch and safetensors report a full disk in their own ways
        cause = f"the disk is probably full: {' '.join(str(error).split()).rstrip('.')}"
    return ValueError(f"{folder} could not be written ({cause}); {kept}. Free some space, then resume.")


# ------------------------------------------------------------------------------------------------------------- resuming


def make_output(config: TrainingConfig) -> Path:
    """Makes the output folder of a run.

    Raises:
        ValueError: if its path, or a part of it, is a file.
    """
    output = Path(config.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((path for path in (output, *output.parents) if path.exists() and not path.is_dir()), output)
        raise ValueError(f"output_dir is {output}, but {file} is a file; choose another folder.") from error
    return output


def find_checkpoint(config: TrainingConfig) -> Path | None:
    """The checkpoint folder that `resume_from_checkpoint` names; None for a new run.

    Raises:
        ValueError: if there is no checkpoint.
    """
    name = config.resume_from_checkpoint
    if name is None:
        return None
    if name == LAST:
        found = find_last_checkpoint(config.output_dir)
        logger.info("no checkpoint in %s yet" if found is None else "resuming from %s", found or config.output_dir)
        return found
    folder = Path(name)
    if not folder.is_dir():
        check_name(name)
        folder = download(name, [checkpoint_pattern(name)], STATE_FILE)
    for path in (folder, folder / HUB_CHECKPOINT, find_last_checkpoint(folder)):
        if path is not None and (path / STATE_FILE).is_file():
            return path
    raise ValueError(f"{name} has no training state to resume from; to start from its weights, set model_name to it.")


def checkpoint_pattern(repository: str) -> str:
    """The files of the checkpoint that a run resumes from in a Hub repository, which may hold many; offline, all."""
    if is_offline_mode():
        return "*"
    with hub_errors(repository, STATE_FILE):
        files = HfApi().list_repo_files(repository)
    folders = {folder for folder, _, name in (file.rpartition("/") for file in files) if name == STATE_FILE}
    numbered = [folder for folder in folders if folder.removeprefix(PREFIX).isdecimal()]
    for folder in ("", HUB_CHECKPOINT, max(numbered, key=lambda name: int(name.removeprefix(PREFIX)), default="")):
        if folder in folders:
            return f"{folder}/*".lstrip("/")
    return CONFIG_FILE  # there is none, which is an error of the caller


def check_output(config: TrainingConfig, checkpoint: Path | None) -> None:
    """Keeps two runs out of one folder, where each would remove the other's checkpoints.

    Args:
        checkpoint: where this run resumes from; None for a new run.

    Raises:
        ValueError: if the output folder holds checkpoints, and the run does not resume from the last of them.
    """
    output = Path(config.output_dir)
    last = find_last_checkpoint(output)
    if last is None or (checkpoint is not None and checkpoint.resolve() == last.resolve()):
        return
    if checkpoint is not None and checkpoint.resolve().parent == output.resolve():
        raise ValueError(
            f"{checkpoint} is not the last checkpoint of its run, which is {last.name}; to continue from it, "
            "choose another output_dir, or remove the later checkpoints."
        )
    raise ValueError(
        f"output_dir {output} holds checkpoints of another run (the last is {last.name}); resume that run with "
        "resume_from=last, choose another output_dir, or remove them."
    )


def is_finished(config: TrainingConfig, checkpoint: Path) -> bool:
    """Whether a checkpoint has all steps of `max_steps`. Trainer would take one more step, each time it is resumed."""
    state = read_json_file(checkpoint / STATE_FILE, "resume from an earlier checkpoint")
    return config.max_steps is not None and state["global_step"] >= config.max_steps


def check_changes(config: TrainingConfig, checkpoint: Path) -> None:
    """Warns about settings that differ from those of the checkpoint and change what is learned.

    Raises:
        ValueError: if the new value of a setting would have no effect, since the checkpoint restores the old one.
    """
    file = checkpoint / CONFIG_FILE
    if not file.is_file():
        return
    before, now = TrainingConfig.read(file).to_dict(), config.to_dict()
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    unused = () if config.optimizer == "muon" else ("muon_learning_rate",)
    restored = [key for key in changed if key in RESTORED and key not in unused]
    if restored:
        words = ", ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in restored)
        raise ValueError(
            f"{words}, but {checkpoint} restores the old value; set it back, or start a new stage with "
            f"model_name={checkpoint} and another output_dir, without resume_from."
        )
    differing = [key for key in changed if key not in FREE and not key.startswith(FREE_PREFIXES)]
    if differing:
        words = ", ".join(f"{key} ({before.get(key)!r}, now {now.get(key)!r})" for key in differing)
        logger.warning("this run resumes with other settings than those of %s: %s", checkpoint, words)


def check_data(fingerprint: Mapping[str, Any], checkpoint: Path) -> None:
    """Warns if the training samples are not those of the checkpoint: their order depends on their number.

    Args:
        fingerprint: of the samples now; see `IndexedSamples.fingerprint`.
    """
    file = checkpoint / DATA_FILE
    if not file.is_file():  # of an earlier version
        return
    before = read_json_file(file, "resume from another checkpoint")
    if before != fingerprint:
        then, now = before["num_samples"], fingerprint["num_samples"]
        what = f"{then:,} then, {now:,} now" if then != now else f"{now:,} as then, with other texts"
        logger.warning(
            "the training samples are not those of %s (%s), so samples may be repeated or left out in this epoch; "
            "to train on other data, start a new run with model_name=%s", checkpoint, what, checkpoint,
        )  # fmt: skip
