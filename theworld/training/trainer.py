"""TheWorldTrainer: Hugging Face's Trainer with our own loss, our own way to save and load, and the world model's turn.

Checkpoints are whole or not there: `checkpoint-N/` is written beside its place and renamed. It holds the adapter, the
optimiser, the schedule, the random numbers, where in the data the run is, and the config; Trainer's own way of loading
weights (which ignores keys that it does not know) is never used.

Shapes: B samples, L tokens, K positions whose next token is learned in some sample, V vocabulary.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from theworld.datasets.collator import ChatCollator
from theworld.inference.latent_cache import Compute, compute_with, latents_of
from theworld.inference.prompting import IGNORED
from theworld.model import freezing
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.storage.adapters import copy_tensors, read_tensors
from theworld.training.config import TrainingConfig
from theworld.training.muon import MuonWithAdamW, inside_layers
from theworld.training.samplers import EpochOrder, IndexedSamples, IndexedStream

logger = logging.getLogger(__name__)

CONFIG_FILE = "training_config.json"
STATE_FILE = "trainer_state.json"
PREFIX = "checkpoint-"
SIDE_SUFFIX = ".writing"  # of a checkpoint that is not whole yet, or not wholly removed


class EvaluationStopped(Exception):
    """Raised out of an evaluation by a callback that wants the run to end."""


class TheWorldTrainer(Trainer):
    """Trains a TheWorld model on placed samples.

    Args:
        model: with the parts that learn made trainable.
        args: Trainer's own.
        config: saved in every checkpoint.
        collator: makes batches.
        train, evaluation: placed samples.
    """

    model: TheWorldForConditionalGeneration

    def __init__(
        self,
        model: TheWorldForConditionalGeneration,
        args: TrainingArguments,
        config: TrainingConfig,
        collator: ChatCollator,
        train: IndexedSamples | IndexedStream,
        evaluation: IndexedSamples | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train,
            eval_dataset=evaluation,
            compute_loss_func=answer_loss,  # says that the loss is already a mean over all answer tokens of a step
            compute_metrics=evaluation_metrics,
            **arguments,
        )
        model.config.__dict__.pop("use_cache", None)  # which Trainer sets, and which would be saved with the model
        self.config = config
        self.left_out = 0  # samples of a stream that were too long
        learning = freezing.trained_parts(model)
        self.encodes_in_forward = "vae_encoder" in learning
        self.projector_learns = "projector" in learning
        self._compute: Compute | None = None

    # -------------------------------------------------------------------------------------------------------- batches

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return EpochOrder(
            self.train_dataset.groups(), self.args.train_batch_size * self.args.world_size, self.config.seed
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the device, with the world model's answers in place of what it is asked."""
        inputs = dict(inputs)
        requests = inputs.pop("world_requests", None)
        self.left_out += inputs.pop("left_out", 0)
        inputs = super()._prepare_inputs(inputs)
        if requests and self.encodes_in_forward:
            inputs["world_frames"] = torch.stack([request.frames for request in requests]).to(self.args.device)
            inputs["num_world_steps"] = 0
        elif requests:
            # outside forward, and so outside autocast: latents are what they are when answering, and in a cache
            inputs["world_latents"] = torch.stack(latents_of(requests, self.compute)).to(self.args.device)
        return inputs

    @property
    def compute(self) -> Compute:
        if self._compute is None:
            assert self.model.world is not None
            self._compute = compute_with(self.model.world, self.model.config.world_config)
        return self._compute

    # ------------------------------------------------------------------------------------------------------ optimizer

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        if self.config.optimizer != "muon":
            return super().create_optimizer(*arguments, **keywords)
        learning = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        matrices = [p for name, p in learning.items() if inside_layers(name, p)]
        if not matrices:
            raise ValueError("optimizer is muon, but no matrix inside a layer learns; set it to adamw.")
        decayed = set(self.get_decay_parameter_names(self.model))
        rest = {name: p for name, p in learning.items() if not inside_layers(name, p)}
        groups = [
            {"params": [p for name, p in rest.items() if name in decayed], "weight_decay": self.config.weight_decay},
            {"params": [p for name, p in rest.items() if name not in decayed], "weight_decay": 0.0},
        ]
        optimizer = MuonWithAdamW(
            matrices,
            [group for group in groups if group["params"]],
            self.config.muon_learning_rate,
            self.config.weight_decay,
            lr=self.config.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            fused=self.args.device.type == "cuda",
        )
        self.optimizer = optimizer
        return optimizer

    # ----------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of the answers' tokens, summed and divided by how many a whole step learns.

        Logits are computed where the next token is learned in some sample of the batch, and nowhere else.
        """
        inputs = dict(inputs)
        targets = inputs.pop("labels")[:, 1:]  # (B, L-1)
        positions = (targets != IGNORED).any(dim=0).nonzero()[:, 0]  # (K,)
        outputs = model(**inputs, use_cache=False, logits_to_keep=positions)
        targets = targets[:, positions]  # (B, K)
        assert num_items_in_batch is not None
        loss = answer_loss(outputs, targets, num_items_in_batch)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes, and this is a sum
        if model.training and self.projector_learns and "world_latents" not in inputs and "world_frames" not in inputs:
            # a batch without world: every process must have a gradient for every parameter, or DDP waits for ever
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self.model.projector.parameters())
        return (loss, {"logits": outputs.logits, "targets": targets}) if return_outputs else loss

    # ----------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Trainer's evaluation; it leaves the random numbers of training as they were."""
        with random_numbers_kept():
            try:
                return super().evaluate(*arguments, **keywords)
            except EvaluationStopped:
                return {}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """No loss of its own: sums over each sample, from which `evaluation_metrics` makes exact means."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            _, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=1)
        sums = answer_sums(outputs["logits"], outputs["targets"], inputs["labels"])
        return None, sums, sums[:, :1]

    # ------------------------------------------------------------------------------------------- saving and resuming

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        side = folder.with_name(f".{folder.name}{SIDE_SUFFIX}")
        if self.args.should_save and side.exists():
            shutil.rmtree(side)
        self.accelerator.wait_for_everyone()
        try:
            self.save_model(str(side), _internal_call=True)
            self.accelerator.wait_for_everyone()
            self._save_optimizer_and_scheduler(str(side))
            self._save_scaler(str(side))
            self._save_rng_state(str(side))
            if self.args.should_save:
                self.state.save_to_json(str(side / STATE_FILE))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                put_in_place(side, folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(side, ignore_errors=True)
            raise no_room(folder, error) from error
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save and self.config.save_total_limit is not None:
            remove_older(Path(self.args.output_dir), self.config.save_total_limit)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(folder)
        self.config.write(folder / CONFIG_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Every tensor that the model's adapter has, and no other; Trainer's own way would pass over both."""
        tensors = read_tensors(resume_from_checkpoint)
        copy_tensors(self.model.adapter_tensors(), tensors, resume_from_checkpoint)

    def _init_training_state(self, max_steps: int, *arguments: Any, **keywords: Any) -> Any:
        if self.config.warmup_steps >= max(max_steps, 1) and self.config.lr_scheduler != "constant":
            logger.warning(
                "warmup_steps is %d and the run has %d steps, so the rate never gets up; set warmup_steps to %d or so",
                self.config.warmup_steps, max_steps, max_steps // 10,
            )  # fmt: skip
        result = super()._init_training_state(max_steps, *arguments, **keywords)
        self.state.compute_steps(self.args, max_steps)  # this run's save_steps, eval_steps …, not the interrupted one's
        return result


def answer_loss(outputs: Any, targets: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Summed cross-entropy over `num_items_in_batch`.

    Args:
        outputs: with logits (B, K, V).
        targets: (B, K), the token that follows each position; -100 where none is learned.
    """
    logits = outputs.logits.flatten(0, 1)  # (B·K, V)
    learned = targets.flatten() != IGNORED
    return nn.functional.cross_entropy(logits[learned].float(), targets.flatten()[learned], reduction="sum") / (
        num_items_in_batch
    )


def answer_sums(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Sums over each sample: (B, 4) of loss, answer tokens, answers that greedy decoding gets exactly, answers.

    While every token so far is the greedy one, teacher forcing and greedy decoding see the same, so one forward tells.

    Args:
        logits: (B, K, V).
        targets: (B, K).
        labels: (B, L), from which one answer is told from the next.
    """
    assert targets.shape[1] == int((labels[:, 1:] != IGNORED).any(dim=0).sum()), "the K positions are those learned"
    B = targets.shape[0]
    learned = targets != IGNORED
    losses = torch.zeros(targets.shape, device=logits.device)
    losses[learned] = nn.functional.cross_entropy(logits[learned].float(), targets[learned], reduction="none")
    all_learned = labels[:, 1:] != IGNORED  # (B, L-1)
    begins = all_learned & ~nn.functional.pad(all_learned, (1, 0))[:, :-1]
    number = begins.cumsum(dim=1)[:, all_learned.any(dim=0)]  # (B, K): which answer of its sample a token belongs to
    wrong = learned & (logits.argmax(dim=-1) != targets)
    counts = begins.sum(dim=1)
    missed = torch.zeros((B, int(counts.max()) + 1), device=logits.device)
    missed.scatter_add_(1, number, wrong.float())
    right = counts - (missed[:, 1:] > 0).sum(dim=1)
    return torch.stack([losses.sum(dim=1), learned.sum(dim=1), right, counts], dim=1).float()


def evaluation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Loss an answer token, and the share of answers that are right, over the whole of the evaluation samples."""
    loss, tokens, right, answers = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    return {"loss": loss / tokens, "answers_right": right / answers, "answers": int(answers)}


# ------------------------------------------------------------------------------------------------------------- folders


def put_in_place(side: Path, folder: Path) -> None:
    """Gives a finished side folder its name, once all of it is on the disk."""
    for file in side.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if folder.exists():  # of a run that was resumed from before it
        remove(folder)
    side.rename(folder)


def remove(folder: Path) -> None:
    """Removes a checkpoint; half removed it is no checkpoint."""
    side = folder.with_name(f".{folder.name}.removed{SIDE_SUFFIX}")
    if side.exists():
        shutil.rmtree(side)
    folder.rename(side)
    shutil.rmtree(side)


def checkpoints_in(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, earliest first."""
    found = [
        path
        for path in Path(output_dir).glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdecimal() and (path / STATE_FILE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def find_last_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    return next(iter(reversed(checkpoints_in(output_dir))), None)


def remove_older(output_dir: Path, keep: int) -> None:
    for folder in checkpoints_in(output_dir)[:-keep]:
        remove(folder)


def remove_unfinished(output_dir: str | os.PathLike[str]) -> None:
    """What a killed run left half written or half removed."""
    for folder in Path(output_dir).glob(f".{PREFIX}*{SIDE_SUFFIX}"):
        shutil.rmtree(folder)


@contextmanager
def full_disk_told(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, a disk that becomes full is one sentence, whoever finds out.

    TensorBoard writes in a thread whose error comes back with the next figure: its traceback would tell it twice.
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
        raise no_room(Path(output_dir), error) from error
    finally:
        threading.excepthook = before


def no_room(place: Path, error: Exception) -> ValueError:
    """What could not be written and why, and what of the run is safe."""
    last = find_last_checkpoint(place.parent if place.name.startswith(PREFIX) else place)
    kept = f"{last} is whole" if last else "there is no earlier checkpoint"
    return ValueError(f"{place} could not be written ({write_failure(error)}); {kept}: make room, then resume.")


def write_failure(error: Exception) -> str:
    """What kept a checkpoint from being written; torch and safetensors report a full disk in words of their own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"probably for want of room: {' '.join(str(error).split()).rstrip('.')}"


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards it is as if none had been."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
