"""Where a run goes on from: a checkpoint here, the last one of a run, or one on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import is_offline_mode, snapshot_download

from theworld.storage.hub import check_name, hub_errors
from theworld.training.config import TrainingConfig, read_json
from theworld.training.trainer import CONFIG_FILE, STATE_FILE, find_last_checkpoint

logger = logging.getLogger(__name__)

LAST = "last"
HUB_CHECKPOINT = "last-checkpoint"  # where hub_strategy "checkpoint" puts it
# settings that may change between two halves of a run without changing what is learned
FREE = {
    "output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "do_eval", "eval_steps",
    "eval_batch_size", "num_eval_samples", "shown_samples", "logging_steps", "log_to_tensorboard", "log_to_wandb",
    "wandb_project", "wandb_run_name", "num_workers", "latent_cache", "push_to_hub", "hub_model_id", "hub_strategy",
    "hub_private_repo", "use_gradient_checkpointing",
}  # fmt: skip
# what goes on as the checkpoint has it: its optimizer and schedule bring their rates, betas and decay, and fit no other
# parts than those that learned; its weights take the place of a projector that is drawn anew
RESTORED = (
    "optimizer", "learning_rate", "muon_learning_rate", "weight_decay", "adam_beta2", "freeze_gemma_vision",
    "freeze_gemma_language", "freeze_cosmos_vae", "freeze_lora", "freeze_projector", "reset_projector",
    "projector_places",
)  # fmt: skip


def make_output(config: TrainingConfig) -> Path:
    """The output folder of a run.

    Raises:
        ValueError: a file lies there, or on the way.
    """
    output = Path(config.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        places = (output, *output.parents)
        file = next((place for place in places if place.exists() and not place.is_dir()), output)
        raise ValueError(f"output_dir is {output}, but {file} is a file; give a folder, or a new name.") from error
    return output


def find_checkpoint(config: TrainingConfig) -> Path | None:
    """The checkpoint folder that `resume_from_checkpoint` means; None where a run starts anew.

    Raises:
        ValueError: a place without one.
    """
    wanted = config.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted == LAST:
        found = find_last_checkpoint(config.output_dir)
        logger.info("no checkpoint in %s yet" if found is None else "going on from %s", found or config.output_dir)
        return found
    folder = Path(wanted)
    if not folder.is_dir():
        folder = download(wanted)
    for place in (folder, folder / HUB_CHECKPOINT, find_last_checkpoint(folder)):
        if place is not None and (place / STATE_FILE).is_file():
            return place
    raise ValueError(
        f"{wanted} holds no state of training to go on from; to start anew from the model in it, set model_name to it."
    )


def download(name: str) -> Path:
    """A repository of the Hub, in the cache."""
    check_name(name)
    with hub_errors(name, STATE_FILE):
        return Path(snapshot_download(name, local_files_only=is_offline_mode()))


def check_output(config: TrainingConfig, checkpoint: Path | None) -> None:
    """Keeps two runs out of one folder, where each would remove the other's checkpoints.

    Args:
        checkpoint: where this run goes on from; None where it starts anew.

    Raises:
        ValueError: the output folder holds checkpoints, and the run goes on from none of them.
    """
    output = Path(config.output_dir)
    last = find_last_checkpoint(output)
    if last is None or (checkpoint is not None and checkpoint.resolve().parent == output.resolve()):
        return
    raise ValueError(
        f"output_dir {output} holds checkpoints of another run (the last is {last.name}); go on with that run by "
        "--resume_from last, choose another output_dir, or remove them."
    )


def check_changes(config: TrainingConfig, checkpoint: Path) -> None:
    """Says which settings are not those that the checkpoint was made with, where that changes what is learned.

    Raises:
        ValueError: one of them would not come into effect, since the checkpoint's own takes its place.
    """
    file = checkpoint / CONFIG_FILE
    if not file.is_file():
        return
    before, now = read_json(file), config.to_dict()
    unused = () if config.optimizer == "muon" else ("muon_learning_rate",)
    kept = [key for key in RESTORED if key in before and before[key] != now[key] and key not in unused]
    if kept:
        words = ", ".join(f"{key} was {before[key]!r} and is now {now[key]!r}" for key in kept)
        raise ValueError(
            f"{words}, but a run goes on with what {checkpoint} keeps of it; set it back, or start a new stage: "
            f"model_name={checkpoint} and another output_dir, without --resume_from."
        )
    changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
    if changed:
        words = ", ".join(f"{key} ({before.get(key)!r}, now {now[key]!r})" for key in changed)
        logger.warning("this run goes on with other settings than %s was made with: %s", checkpoint, words)
