"""The recipe: from a config to a trained model. Read it from top to bottom.

Settings, configurations and data are checked before weights are loaded, so that errors come early. A run writes to
`output_dir` only: the model, `checkpoint-N/`, `logs/` and `samples/`.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import torch

from theworld.datasets.collator import BatchSampling, ChatCollator, short_future
from theworld.datasets.samples import Sample
from theworld.datasets.streams import StreamedSamples
from theworld.inference.latent_cache import LatentCache
from theworld.inspection.machine import free_ram, gpus
from theworld.inspection.memory import TEXT_TOKENS
from theworld.inspection.parameters import count_parts
from theworld.inspection.readiness import gib
from theworld.inspection.run_memory import training_run
from theworld.messages import TaskProgress
from theworld.model import freezing
from theworld.model.devices import cpu_has_bfloat16
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.training.callbacks import Report, ShownSamples, StopAfterStep
from theworld.training.checkpointing import (
    check_changes,
    check_data,
    check_output,
    disk_full_as_error,
    find_checkpoint,
    find_last_checkpoint,
    is_finished,
    make_output,
    remove_partial,
    what_is_saved,
)
from theworld.training.config import TrainingConfig
from theworld.training.dataset_loading import LoadDatasets, as_samples, load_datasets
from theworld.training.distributed import lost_process_as_error, rank_and_size, strategy_of
from theworld.training.hf_arguments import training_arguments
from theworld.training.latent_precompute import fill_cache, open_cache, write_strips
from theworld.training.model_setup import (
    Described,
    build_model,
    describe,
    frozen_dtype,
    trainable_parts,
    world_parts,
)
from theworld.training.push import check_hub, local_bases, make_repository
from theworld.training.samplers import IndexedSamples, IndexedStream, filter_by_length
from theworld.training.stopping import ENDING, Stop
from theworld.training.trainer import TheWorldTrainer
from theworld.training.vision_precompute import fill_vision_cache, open_vision_cache
from theworld.training.workers import errors_of_workers

logger = logging.getLogger(__name__)

SECONDS_TO_UPLOAD = 10.0  # after SIGTERM, which a scheduler follows by SIGKILL


def no_progress(what: str, done: int, total: int) -> None:
    """Reports no progress."""


@errors_of_workers()
def train(
    config: TrainingConfig,
    load: LoadDatasets = load_datasets,
    progress: TaskProgress = no_progress,
    stop: Stop | None = None,
) -> Path:
    """Trains a model as described by a config.

    Args:
        load: loads training and evaluation samples.
        progress: called with (description, done, total).
        stop: handles SIGTERM already; None installs a handler for this call.

    Returns:
        The folder of the trained model; for a run that SIGTERM stopped, its last checkpoint, which is a model as well.

    Raises:
        ValueError: if settings, data, a model or a checkpoint do not fit, or if the disk is full.
    """
    if stop is None:
        with Stop() as stop:
            return train(config, load, progress, stop)
    stop.outcome = partial(what_is_saved, config.output_dir)
    config.move_token()
    training_arguments(config)  # refused now rather than after the weights are loaded
    check_machine(config)
    check_hub(config)
    output = make_output(config)
    resume = find_checkpoint(config)
    check_output(config, resume)
    if resume is not None:
        check_changes(config, resume)
    remove_partial(output)

    # 1. the model's configuration, and the data
    described = describe(config)
    collator = new_collator(config, described)
    training, evaluation = index_samples(config, load, collator)
    if resume is not None and isinstance(training, IndexedSamples):
        check_data(training.fingerprint(), resume)
    shown = shown_samples(config, evaluation)
    if config.push_to_hub:
        for problem in local_bases(vars(described.config)):
            logger.warning("%s", problem)
        make_repository(str(config.hub_model_id), config.hub_private_repo)

    report_memory(config, described)

    # 2. world latents, computed once for all runs
    collator.cache = open_cache(config, described)
    if collator.cache is not None:
        new = fill_cache(config, described, collator, (training, evaluation), shown, progress)
        logger.info("%d entries in %s, %d of them new", len(collator.cache), collator.cache.folder, new)

    # 3. the model and its trainable parts
    model = build_model(config, described)
    report(config, model, training, evaluation)
    collator.vision_cache = open_vision_cache(config, described, collator)
    if collator.vision_cache is not None:
        new = fill_vision_cache(config, collator, (training, evaluation), model, progress)
        logger.info("%d entries in %s, %d of them new", len(collator.vision_cache), collator.vision_cache.folder, new)

    # 4. training
    quiet = config.trainer_arguments.get("disable_tqdm", False)
    callbacks = [StopAfterStep(stop), Report(no_progress if quiet else progress)]
    trainer = TheWorldTrainer(model, config, collator, training, evaluation, callbacks=callbacks)
    if shown:
        strips = write_strips(shown, collator, model.world, output / "samples")
        trainer.add_callback(ShownSamples(trainer, shown, strips, output / "samples"))
    if resume is not None and is_finished(config, resume):
        logger.warning("%s has all %d steps of this run; increase max_steps to train further", resume, config.max_steps)
        trainer._load_from_checkpoint(str(resume))
        trainer.save_model()
        return output
    with disk_full_as_error(output), lost_process_as_error(config.output_dir):
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if trainer.num_skipped:
        logger.warning(
            "%d samples of the stream had more than %d text tokens and were skipped",
            trainer.num_skipped,
            config.max_seq_length,
        )
    if stop.phase == ENDING:
        trainer.save_model()
        if trainer.uploads is not None:
            trainer.uploads.finish()
        return output
    if trainer.uploads is not None:
        trainer.uploads.stop(SECONDS_TO_UPLOAD)
    last = find_last_checkpoint(output)
    assert last is not None  # a run that is stopped before its first step ends with an error
    return last


@errors_of_workers()
def fill(
    config: TrainingConfig, load: LoadDatasets = load_datasets, progress: TaskProgress = no_progress
) -> tuple[LatentCache, int]:
    """Computes the world latents that `train` would need, without training; several processes share the work.

    Returns:
        The cache, and the number of its new entries, of all processes.

    Raises:
        ValueError: as in `train`, or if the config has no cache.
    """
    config.move_token()
    training_arguments(config)  # connects the processes
    described = describe(config)
    collator = new_collator(config, described)
    collator.cache = open_cache(config, described)
    if collator.cache is None:
        raise ValueError("This config has no latent_cache (or no world model); set latent_cache to a folder.")
    sets = index_samples(config, load, collator)
    return collator.cache, fill_cache(config, described, collator, sets, shown_samples(config, sets[1]), progress)


def new_collator(config: TrainingConfig, described: Described) -> ChatCollator:
    """The collator of this run."""
    processor = TheWorldProcessor.from_config(described.config, described.base_dir)
    draws = BatchSampling(
        num_world_steps=described.config.num_world_steps,
        steps_shares=config.steps_shares,
        world_dropout=config.world_dropout,
        image_dropout=config.image_dropout,
        true_futures=config.true_futures,
        constant_world=config.constant_world,
        first_seed=config.world_seed,
        futures=config.futures_per_image,
        seed=config.seed,
    )
    return ChatCollator(processor, draws, world_prompt=config.world_prompt)


def index_samples(
    config: TrainingConfig, load: LoadDatasets, collator: ChatCollator
) -> tuple[IndexedSamples | IndexedStream, IndexedSamples | None]:
    """Training and evaluation samples with their indices, without those that are too long."""
    loaded, held_out = load(config)
    training: IndexedSamples | IndexedStream
    dataset = as_samples(loaded, "training sample")
    if isinstance(dataset, StreamedSamples):
        if config.max_steps is None or config.latent_cache is not None:
            raise ValueError("A streamed dataset has no length: set max_steps, and remove latent_cache.")
        training = IndexedStream(dataset, collator, config.max_seq_length, config.batch_size)
    else:
        kept = filter_by_length(dataset, collator, config.max_seq_length, "training", config.num_samples)
        training = IndexedSamples(dataset, kept)
        check_futures(training, collator)
    if not config.do_eval:
        return training, None
    if held_out is None:
        raise ValueError(f"do_eval is true, but {config.dataset_name} has no evaluation samples; set it to false.")
    dataset = as_samples(held_out, "evaluation sample")
    if isinstance(dataset, StreamedSamples):
        raise ValueError("Evaluation samples must have a length; give a list or a dataset that is not streamed.")
    kept = filter_by_length(dataset, collator, config.max_seq_length, "evaluation", config.num_eval_samples)
    return training, IndexedSamples(dataset, kept, deterministic=True)


def check_futures(training: IndexedSamples, collator: ChatCollator) -> None:
    """Reports samples without a true future.

    Raises:
        ValueError: if a sample whose true future may be used is known to have too few future frames.
    """
    draws, model = collator.sampling, collator.processor.config
    if not draws.true_futures or draws.constant_world or not model.enable_world:
        return
    without = 0  # samples that have no true future, and therefore a rollout
    for index in training.kept:
        known, own = training.dataset.num_future_frames(index), training.dataset.num_world_steps(index)
        steps = max(draws.steps()) if own is None else own
        if known == 0:
            without += steps > 0
        elif known is not None and known < model.num_pixel_frames(steps) - 1:
            raise ValueError(
                short_future(training.dataset[index].origin, known, steps, model.num_pixel_frames(steps) - 1)
            )
    if without:
        logger.warning(
            "true_futures is %g, but %s of %s training samples have no future_frames and no video, so the world model "
            "imagines their futures",
            draws.true_futures,
            f"{without:,}",
            f"{len(training):,}",
        )


def shown_samples(config: TrainingConfig, evaluation: IndexedSamples | None) -> list[Sample]:
    """The evaluation samples whose answers are written at each evaluation."""
    if evaluation is None:
        return []
    return [evaluation.sample(index) for index in range(min(config.shown_samples, len(evaluation)))]


def check_machine(config: TrainingConfig) -> None:
    """Advises on the precision and on several GPUs.

    Raises:
        ValueError: if a tracker is not installed, or if this machine does not support the precision.
    """
    if "wandb" in config.trackers:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "log_to_wandb needs Weights & Biases, which is not installed: install it with `uv pip install --python "
                f"{shlex.quote(sys.executable)} wandb`, or with pip, or set log_to_wandb to false."
            ) from error
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "This run uses one of %d GPUs; start it with torchrun, one process per GPU, to use all of them",
            torch.cuda.device_count(),
        )
    if config.autocast == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision fp16 needs a GPU, and there is none; use bf16 or fp32.")
    if config.autocast == "bf16" and not config.freeze_cosmos_vae and not torch.cuda.is_available():
        raise ValueError(
            "On a CPU the gradients of the VAE encoder in bfloat16 are not finite; set mixed_precision to fp32 to "
            "train it."
        )
    if config.autocast == "bf16" and not torch.accelerator.is_available() and not cpu_has_bfloat16():
        logger.warning(
            "mixed_precision is bf16, but this CPU has no bfloat16 instructions: fp32 is faster, if memory allows"
        )


def report_memory(config: TrainingConfig, described: Described) -> None:
    """Logs the memory that a step is predicted to take, and warns if it is more than this machine has."""
    parts = trainable_parts(config, described.config)
    predicted = training_run(
        described.config,
        count_parts(described.config, config.quantization, frozen_dtype(config).itemsize),
        parts,
        num_world_steps=max([described.config.num_world_steps, *config.steps_shares]),
        batch=config.batch_size,
        strategy=strategy_of(training_arguments(config)),
        num_gpus=rank_and_size()[1],
        b=frozen_dtype(config).itemsize,
        checkpointing=config.use_gradient_checkpointing,
        world_parts=world_parts(config, described.config),
    ).peak
    found = gpus()
    available = found[0]["total_bytes"] if found else free_ram()
    what = "GPU memory per process" if found else "RAM per process"
    logger.info("a step is predicted to take %s GiB of %s, for %d text tokens", gib(predicted), what, TEXT_TOKENS)
    if available is not None and predicted > available:
        logger.warning(
            "this machine has %s GiB of it: if memory runs out, use a smaller batch_size with "
            "gradient_accumulation_steps, use_gradient_checkpointing, fewer world steps, a larger spatial_merge, or "
            "FSDP2 on several GPUs (`theworld info` predicts their memory)", gib(available),
        )  # fmt: skip


def report(
    config: TrainingConfig,
    model: TheWorldForConditionalGeneration,
    training: IndexedSamples | IndexedStream,
    evaluation: IndexedSamples | None,
) -> None:
    """Logs the trainable parts, the largest length of a sample, and the amount of data."""
    counts = freezing.count_parameters(model)
    for row in counts:
        if row.trainable:
            logger.info("trainable: %s, %s parameters", row.part, f"{row.trainable:,}")
    trainable, total = sum(row.trainable for row in counts), sum(row.total for row in counts)
    logger.info(
        "%s of %s parameters in memory are trainable, %.4f %%",
        f"{trainable:,}", f"{total:,}", 100 * trainable / total,
    )  # fmt: skip
    image = model.config.vlm_config.mm_tokens_per_image + 2
    steps = max([model.config.num_world_steps, *config.steps_shares])
    world = model.config.world_token_count(steps, model.config.max_past_steps) if model.config.enable_world else 0
    limit = config.max_seq_length
    logger.info(
        "a sample with one image has up to %s tokens: %s of text, %s of the image, %s of the world model at %d steps",
        "any number of" if limit is None else f"{limit + image + world:,}",
        "any number" if limit is None else f"{limit:,}", image, f"{world:,}", steps,
    )  # fmt: skip
    sizes = "a stream of" if isinstance(training, IndexedStream) else f"{len(training):,}"
    held_out = "none" if evaluation is None else f"{len(evaluation):,}"
    logger.info("%s training samples, %s for evaluation", sizes, held_out)
