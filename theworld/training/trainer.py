"""TheWorldTrainer: Hugging Face's Trainer with our loss, our checkpoints, and the world model in the loop.

A checkpoint holds the adapter, the optimizer, the schedule, the random states, the position in the data, and the
config. Trainer's own way of loading weights, which ignores unknown keys, is never used.

Shapes: B samples, L tokens, M labels, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from theworld.datasets.collator import ChatCollator
from theworld.fast_path import uses_fast_path
from theworld.inference.latent_cache import Compute, compute_with, latents_of
from theworld.media.images import frames_of
from theworld.model import freezing
from theworld.model.devices import to_device
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.packing import shift
from theworld.model.placeholders import IGNORE_INDEX
from theworld.model.saving import check_finite
from theworld.storage.adapters import copy_tensors, read_tensors
from theworld.storage.files import write_json
from theworld.training import checkpointing, distributed, fast_path
from theworld.training.config import TrainingConfig
from theworld.training.hf_arguments import training_arguments
from theworld.training.loss import answer_loss, answer_sums, evaluation_metrics
from theworld.training.muon import MuonWithAdamW, inside_layers
from theworld.training.samplers import EpochOrder, IndexedSamples, IndexedStream, StreamBatch, StreamState
from theworld.training.uploads import Uploads
from theworld.training.workers import guard_workers

logger = logging.getLogger(__name__)

WITHOUT_WARMUP = ("constant", "greedy", "reduce_lr_on_plateau")


class EvaluationStopped(Exception):
    """Raised by a callback to end an evaluation when the run is to end."""


class TheWorldTrainer(Trainer):
    """Trains a TheWorld model.

    Args:
        model: with its trainable parts in float32.
        config: of the run. Trainer's arguments are derived from it, and it is saved in every checkpoint.
        data_collator: makes batches.
        train_dataset, eval_dataset: the samples.

    Raises:
        ValueError: if transformers does not accept a setting, or if the strategy shards parameters.
    """

    model: TheWorldForConditionalGeneration

    def __init__(
        self,
        model: TheWorldForConditionalGeneration,
        config: TrainingConfig,
        data_collator: ChatCollator,
        train_dataset: IndexedSamples | IndexedStream,
        eval_dataset: IndexedSamples | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            model=model,
            args=training_arguments(config),
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_loss_func=answer_loss,  # not called; with it Trainer counts the labels of a step
            compute_metrics=evaluation_metrics,
            **arguments,
        )
        self.remove_callback(PrinterCallback)  # prints metrics to stdout, which is for results
        model.config.__dict__.pop("use_cache", None)  # set by Trainer; it would be saved with the model
        self.config = config
        self.num_skipped = 0  # samples of a stream that were too long
        self.stream: StreamState | None = None  # how far a stream was read; None for other samples
        if isinstance(train_dataset, IndexedStream):
            self.args.ignore_data_skip = True  # its parts have positions of their own
        self.uploads: Uploads | None = None
        if config.push_to_hub and self.args.should_save:
            repository, private = str(config.hub_model_id), config.hub_private_repo
            self.uploads = Uploads(self.args.output_dir, repository, config.hub_strategy, private)
        self.trainable = freezing.trained_parts(model)
        self.encodes_in_forward = "vae_encoder" in self.trainable
        distributed.check_strategy(self.accelerator, config.optimizer, self.trainable, config.quantization)
        self.sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        reason = fast_path.why_not(
            self.args.device, self.sharded, config.mixed_precision, config.quantization is not None
        )
        pays = fast_path.pays(self.expected_steps(), self.args.world_size)
        if uses_fast_path(config.fast_path, reason, pays=pays):
            fast_path.enable(model, self.trainable)
        self.parameter_groups: list[list[Tensor]] = []  # of the optimizer, before DeepSpeed joined them

    def expected_steps(self) -> int:
        """Optimizer steps of the run, without those that were made before it was resumed."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        samples = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return int(self.args.num_train_epochs * len(self.train_dataset) / samples)

    # -------------------------------------------------------------------------------------------------------- batches

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return EpochOrder(
            self.train_dataset.groups(),
            self.args.train_batch_size * self.args.world_size,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def _get_dataloader(self, *arguments: Any, **keywords: Any) -> DataLoader:
        loader = super()._get_dataloader(*arguments, **keywords)
        guard_workers(loader.base_dataloader)  # accelerate's own loader wraps the one that starts workers
        return loader

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process; of a stream, those of its parts from `self.stream` on."""
        stream = self.train_dataset
        if not isinstance(stream, IndexedStream):
            return super().get_train_dataloader()
        args = self.args
        if self.stream is None:
            parts = self.config.stream_parts or args.world_size * max(args.dataloader_num_workers, 1)
            self.stream = StreamState(parts)
        workers = self.stream.workers(args.world_size, args.dataloader_num_workers)
        stream.state, stream.rank, stream.num_processes = self.stream, args.process_index, args.world_size
        several = args.dataloader_num_workers > 0
        loader = DataLoader(
            stream,
            batch_size=None,
            collate_fn=partial(collate_stream, self.data_collator),
            num_workers=workers if several else 0,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor if several else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if several else None,
            generator=torch.Generator(),  # the random states of training are those of the checkpoint from here on
        )
        guard_workers(loader)
        return prepare_data_loader(  # which only puts batches on the device, since they are this process' own
            loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the device, with world latents instead of the requests for them."""
        inputs = dict(inputs)
        requests = inputs.pop("world_requests", None)
        self.num_skipped += inputs.pop("num_skipped", 0)
        if self.stream is not None and "position" in inputs:
            part, self.stream.positions[part] = inputs.pop("position")
            self.stream.batches += self.args.world_size
        inputs = super()._prepare_inputs(inputs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = self.data_collator.normalize(inputs["pixel_values"])
        if requests and self.encodes_in_forward:
            pixels = torch.stack([request.pixels for request in requests])
            inputs["world_frames"] = frames_of(*to_device([pixels], self.args.device))
            inputs["num_world_steps"] = 0
        elif requests:
            # Outside forward and therefore outside autocast, so that latents equal those of inference and of a cache.
            inputs["world_latents"] = torch.stack(latents_of(requests, self.compute)).to(self.args.device)
        return inputs

    @cached_property
    def data_fingerprint(self) -> dict[str, Any]:
        return self.train_dataset.fingerprint()

    @cached_property
    def compute(self) -> Compute:
        assert self.model.world is not None
        return compute_with(self.model.world, self.model.config.world_config)

    # ------------------------------------------------------------------------------------------------------ optimizer

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        if self.config.optimizer != "muon":
            try:
                optimizer = super().create_optimizer(*arguments, **keywords)
            except ImportError as error:
                raise ValueError(f"optim {self.args.optim.value} is not available: {error}") from error
            if self.is_deepspeed_enabled:  # FSDP2 makes new parameters, and these would keep the whole model in memory
                self.parameter_groups = [list(group["params"]) for group in optimizer.param_groups]
            return optimizer
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        matrices = [p for name, p in trainable.items() if inside_layers(name, p)]
        if not matrices:
            raise ValueError("optimizer is muon, but no matrix inside a layer is trainable; set it to adamw.")
        decayed = set(self.get_decay_parameter_names(self.model))
        rest = {name: p for name, p in trainable.items() if not inside_layers(name, p)}
        groups = [
            {"params": [p for name, p in rest.items() if name in decayed], "weight_decay": self.args.weight_decay},
            {"params": [p for name, p in rest.items() if name not in decayed], "weight_decay": 0.0},
        ]
        self.optimizer = MuonWithAdamW(
            matrices,
            [group for group in groups if group["params"]],
            self.config.muon_learning_rate,
            self.args.weight_decay,
            lr=self.args.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            fused=self.args.device.type == "cuda",
        )
        return self.optimizer

    # ----------------------------------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of the answers' tokens, summed and divided by the number of labels of the whole step.

        Logits are computed only at labels, and not returned in training.
        """
        assert num_items_in_batch is not None
        inputs = dict(inputs)
        smoothing = self.args.label_smoothing_factor
        outputs: Any = None
        if return_outputs:
            targets = shift(inputs.pop("labels"))
            labelled = targets != IGNORE_INDEX
            outputs = model(**inputs, use_cache=False, logits_to_keep=labelled)
            loss = answer_loss(outputs.logits, targets[labelled], num_items_in_batch, smoothing)
        else:
            if model.training and (unused := self.unused_parts(inputs)):
                distributed.check_unused(self.accelerator, unused)
                inputs["unused_parts"] = unused
            loss = model(
                **inputs,
                use_cache=False,
                skip_logits=True,
                num_items_in_batch=num_items_in_batch,
                label_smoothing=smoothing,
            ).loss
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes; this is a sum
        return (loss, outputs) if return_outputs else loss

    def _wrap_model(self, *arguments: Any, **keywords: Any) -> nn.Module:
        wrapped: nn.Module = super()._wrap_model(*arguments, **keywords)
        if self.accelerator.ddp_handler is not None:  # gradients share the memory of what DDP sends
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        return wrapped

    def unused_parts(self, inputs: Mapping[str, Any]) -> list[str]:
        """Trainable parts that a batch has no input for, while that of another process may have."""
        used = {"vision": "pixel_values" in inputs, "projector": "world_latents" in inputs or "world_frames" in inputs}
        return [part for part in self.trainable if not used.get(part, True)]

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        if self.stream is not None:  # of whose batches Trainer counts only those since the last resume
            self.state.epoch = self.state.global_step / self.state.max_steps
        super().log(logs, *arguments, **keywords)
        if not math.isfinite(logs.get("loss", 0.0)):  # with fp16 a loss may overflow, and the step is left out
            check_finite({name: p for name, p in self.model.named_parameters() if p.requires_grad})

    # ----------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Trainer's evaluation, which does not change the random states of training."""
        with random_states_kept():
            try:
                return super().evaluate(*arguments, **keywords)
            except EvaluationStopped:
                return {}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Returns sums over each sample instead of a loss; `evaluation_metrics` makes exact means of them."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            _, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=1)
        sums = answer_sums(outputs.logits, inputs["labels"])
        return None, sums, sums[:, :1]

    # ------------------------------------------------------------------------------------------- saving and resuming

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{checkpointing.PREFIX}{self.state.global_step}"
        partial = checkpointing.partial_folder(folder)
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        try:
            self.save_model(str(partial), _internal_call=True)
            self.accelerator.wait_for_everyone()
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
            self._save_stream(partial)
            if self.args.should_save:
                self.state.save_to_json(str(partial / checkpointing.STATE_FILE))
                if isinstance(self.train_dataset, IndexedSamples):
                    write_json(partial / checkpointing.DATA_FILE, self.data_fingerprint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpointing.publish(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            if distributed.is_lost_process(error):
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise checkpointing.not_written(folder, error) from error
        if self.uploads is not None:
            self.uploads.add(folder)
        if self.args.should_save and self.args.save_total_limit is not None:
            needed = None if self.uploads is None else self.uploads.keeps
            checkpointing.remove_older(Path(self.args.output_dir), self.args.save_total_limit, needed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the adapter and the config; all processes call this, and the main one writes."""
        folder = Path(output_dir or self.args.output_dir)
        weights = distributed.complete(self.model.adapter_tensors(), self.args.should_save)
        if self.args.should_save:
            self.model.save_pretrained(folder, state_dict=weights)
            self.config.write(folder / checkpointing.CONFIG_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = distributed.optimizer_state(self.optimizer, self.parameter_groups, self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """Wraps the model, and makes the optimizer and the schedule.

        Of a sharded model, a checkpoint's weights are loaded before the sharding: each process reads all of them.
        """
        if not self.sharded:
            prepared: tuple[nn.Module, Any] = super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
            return prepared
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        distributed.keep_world_whole(self.model, self.args.device)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            distributed.restore_weights(self.model.adapter_tensors(), read_tensors(resume_from_checkpoint))
            distributed.load_optimizer_state(self.optimizer, self.parameter_groups, checkpoint / OPTIMIZER_NAME)
            self.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True))
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _save_stream(self, folder: Path) -> None:
        """Writes the positions of all parts of a stream, of which each process knows those of its own parts."""
        if self.stream is None:
            return
        latest = dict[int, Any]()
        for part, position in gather_object(list(self.stream.positions.items())):
            if part not in latest or position.total > latest[part].total:
                latest[part] = position
        if self.args.should_save:
            write_json(
                folder / checkpointing.STREAM_FILE,
                asdict(StreamState(self.stream.num_parts, self.stream.batches, latest)),
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads exactly the tensors of the adapter; Trainer's own way ignores missing and unexpected ones."""
        tensors = read_tensors(resume_from_checkpoint)
        copy_tensors(self.model.adapter_tensors(), tensors, resume_from_checkpoint)
        if isinstance(self.train_dataset, IndexedStream):
            self.stream = StreamState.from_dict(checkpointing.read_stream(Path(resume_from_checkpoint)))

    def _init_training_state(self, max_steps: int, *arguments: Any, **keywords: Any) -> Any:
        warmup = self.args.get_warmup_steps(max_steps)
        if warmup >= max(max_steps, 1) and self.args.lr_scheduler_type.value not in WITHOUT_WARMUP:
            logger.warning(
                "warmup_steps is %d and the run has %d steps, so the learning rate never reaches its peak; set "
                "warmup_steps to about %d", warmup, max_steps, max_steps // 10,
            )  # fmt: skip
        result = super()._init_training_state(max_steps, *arguments, **keywords)
        # save_steps, eval_steps … of this run, not of the interrupted one
        self.state.compute_steps(self.args, max_steps)
        return result


def collate_stream(collator: ChatCollator, batch: StreamBatch) -> dict[str, Any]:
    """A batch of a stream with `position`, its part and how far this was read."""
    return {**collator(batch.samples), "position": (batch.part, batch.position)}


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
