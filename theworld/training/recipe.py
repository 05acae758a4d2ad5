"""The recipe: a config in, a trained model out. Read it from top to bottom.

Model and data are read before anything large is loaded, so that what is wrong is said at once. All that a run writes
lies in `output_dir`: the model, `checkpoint-N/`, `logs/` and `samples/`.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, TrainingArguments

from theworld.datasets.collator import BatchSampling, ChatCollator, short_future
from theworld.datasets.samples import Sample
from theworld.inference.latent_cache import LatentCache
from theworld.model import freezing
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.training.callbacks import LOGS, LogLines, ShownSamples, StopWhenAsked
from theworld.training.checkpointing import check_changes, check_output, find_checkpoint, make_output
from theworld.training.config import TrainingConfig
from theworld.training.dataset_loading import LoadDatasets, as_samples, load_datasets
from theworld.training.latent_precompute import fill_cache, open_cache, write_strips
from theworld.training.model_setup import Described, build_model, describe
from theworld.training.push import check_hub, make_repository
from theworld.training.samplers import IndexedSamples, IndexedStream, fitting
from theworld.training.trainer import TheWorldTrainer, full_disk_told, remove_unfinished

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """For callers who do not watch."""


def train(config: TrainingConfig, load: LoadDatasets = load_datasets, progress: Progress = no_progress) -> Path:
    """Trains as the config says.

    Args:
        load: gives training and evaluation samples.
        progress: called with (what is counted, done, of how many) before training itself.

    Returns:
        The folder of the trained model.

    Raises:
        ValueError: settings, data, a model or a checkpoint that do not fit, or no room to write; one sentence.
    """
    config.move_token()
    check_trackers(config)
    check_hub(config)
    output = make_output(config)
    resume = find_checkpoint(config)
    check_output(config, resume)
    if resume is not None:
        check_changes(config, resume)
    remove_unfinished(output)
    with StopWhenAsked() as stop:
        # 1. what the model is, and what is asked about it
        described = describe(config)
        collator = new_collator(config, described)
        training, evaluation = place_samples(config, load, collator)
        shown = shown_samples(config, evaluation)
        make_repository(config)

        # 2. the world's latents, once for all runs
        collator.cache = open_cache(config, described)
        if collator.cache is not None:
            sets = [each for each in (training, evaluation) if isinstance(each, IndexedSamples)]
            new = fill_cache(config, described, collator, sets, shown, progress)
            logger.info("%d entries in %s, %d of them new", len(collator.cache), collator.cache.folder, new)

        # 3. the model, and what of it learns
        model = build_model(config, described)
        report(config, model, training, evaluation)

        # 4. training
        trainer = TheWorldTrainer(
            model, training_arguments(config), config, collator, training, evaluation, callbacks=[stop]
        )
        if trainer.args.disable_tqdm:
            trainer.remove_callback(PrinterCallback)  # which prints to stdout, where results go
            trainer.add_callback(LogLines())
        if shown:
            strips = write_strips(shown, collator, model.world, output / "samples")
            trainer.add_callback(ShownSamples(trainer, shown, strips, output / "samples"))
        with full_disk_told(output):
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        if trainer.left_out:
            logger.warning(
                "%d samples of the stream had more than %d text tokens and were left out",
                trainer.left_out, config.max_seq_length,
            )  # fmt: skip
        if not stop.asked:
            trainer.save_model()
    return output


def fill(
    config: TrainingConfig, load: LoadDatasets = load_datasets, progress: Progress = no_progress
) -> tuple[LatentCache, int]:
    """Computes the world latents that `train` would ask for, and trains nothing.

    Returns:
        The cache, and how many of its entries are new.

    Raises:
        ValueError: as `train`, or a config without a cache.
    """
    config.move_token()
    described = describe(config)
    collator = new_collator(config, described)
    collator.cache = open_cache(config, described)
    if collator.cache is None:
        raise ValueError("this config has no latent_cache (or no world); set latent_cache to a folder.")
    training, evaluation = place_samples(config, load, collator)
    sets = [each for each in (training, evaluation) if isinstance(each, IndexedSamples)]
    return collator.cache, fill_cache(config, described, collator, sets, shown_samples(config, evaluation), progress)


def new_collator(config: TrainingConfig, described: Described) -> ChatCollator:
    """Makes this run's batches."""
    processor = TheWorldProcessor.from_config(described.config, described.inside)
    draws = BatchSampling(
        num_world_steps=described.config.num_world_steps,
        steps_shares=config.steps_shares,
        world_dropout=config.world_dropout,
        image_dropout=config.picture_dropout,
        true_futures=config.true_futures,
        constant_world=config.constant_world,
        first_seed=config.world_seed,
        futures=config.futures_per_image,
        seed=config.seed,
    )
    return ChatCollator(processor, draws, world_prompt=config.world_prompt)


def place_samples(
    config: TrainingConfig, load: LoadDatasets, collator: ChatCollator
) -> tuple[IndexedSamples | IndexedStream, IndexedSamples | None]:
    """Training and evaluation samples in their places, without those that are too long."""
    loaded, held_out = load(config)
    training: IndexedSamples | IndexedStream
    dataset = as_samples(loaded, "training sample")
    if isinstance(dataset, IterableDataset):
        if config.max_steps is None or config.latent_cache is not None:
            raise ValueError("a streamed dataset has no length: set max_steps, and leave latent_cache out.")
        training = IndexedStream(dataset, collator, config.max_seq_length)
    else:
        kept = fitting(dataset, collator, config.max_seq_length, "training", config.num_samples)
        training = IndexedSamples(dataset, kept)
        check_futures(training, collator)
    if not config.do_eval:
        return training, None
    if held_out is None:
        raise ValueError(f"do_eval is true, but {config.dataset_name} gives no evaluation samples; set it to false.")
    dataset = as_samples(held_out, "evaluation sample")
    if isinstance(dataset, IterableDataset):
        raise ValueError("evaluation samples must have a length; give a list or a dataset that is not streamed.")
    kept = fitting(dataset, collator, config.max_seq_length, "evaluation", config.num_eval_samples)
    return training, IndexedSamples(dataset, kept, still=True)


def check_futures(training: IndexedSamples, collator: ChatCollator) -> None:
    """Raises a ValueError for a sample whose true future is to be read and too short, where its length is known."""
    draws, model = collator.sampling, collator.processor.config
    if not draws.true_futures or draws.constant_world or not model.enable_world:
        return
    for index in training.kept:
        known, own = training.dataset.num_future_frames(index), training.dataset.num_world_steps(index)
        steps = max(draws.steps()) if own is None else own
        if known is not None and known < model.num_pixel_frames(steps) - 1:
            raise ValueError(
                short_future(training.dataset[index].origin, known, steps, model.num_pixel_frames(steps) - 1)
            )


def shown_samples(config: TrainingConfig, evaluation: IndexedSamples | None) -> list[Sample]:
    """The evaluation samples whose answers are written down."""
    return (
        [] if evaluation is None else [evaluation.sample(i) for i in range(min(config.shown_samples, len(evaluation)))]
    )


def training_arguments(config: TrainingConfig) -> TrainingArguments:
    """What Trainer is told; the token is not among it, since libraries find it in the environment."""
    trackers = {"tensorboard": config.log_to_tensorboard, "wandb": config.log_to_wandb}
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(config.output_dir) / LOGS)  # Trainer takes it from there alone
    os.environ["WANDB_PROJECT"] = config.wandb_project
    return TrainingArguments(
        output_dir=config.output_dir,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size or config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.num_epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        use_cpu=not torch.accelerator.is_available(),  # Trainer takes bf16 on a CPU only when told that it is one
        bf16=config.autocast == "bf16",
        fp16=config.autocast == "fp16",
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=None,  # TheWorldTrainer removes old checkpoints itself
        eval_strategy="steps" if config.do_eval else "no",
        eval_steps=config.eval_steps,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is no number is shown as what it is
        report_to=[name for name, wanted in trackers.items() if wanted] or "none",
        run_name=config.wandb_run_name,
        # one process reads a stream: several would each need to know which part is theirs
        dataloader_num_workers=min(config.num_workers, 1) if config.streaming else config.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,  # the collator makes the columns
        accelerator_config={"dispatch_batches": False},
        ddp_find_unused_parameters=not config.freeze_cosmos_vae,  # its time convolutions see no single frame
        push_to_hub=config.push_to_hub,
        hub_model_id=config.hub_model_id,
        hub_strategy=config.hub_strategy,
        hub_private_repo=config.hub_private_repo,
    )


def check_trackers(config: TrainingConfig) -> None:
    """Says which precision would be faster here.

    Raises:
        ValueError: a tracker that is not installed, or a precision that this machine does not have.
    """
    if config.log_to_wandb:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "log_to_wandb needs Weights & Biases, which is not installed: install it with `uv pip install --python "
                f"{shlex.quote(sys.executable)} wandb`, or pip where there is one, or set log_to_wandb to false."
            ) from error
    if config.autocast == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision fp16 needs a GPU, and there is none; use bf16 or fp32.")
    if config.autocast == "bf16" and not config.freeze_cosmos_vae and not torch.cuda.is_available():
        raise ValueError(
            "on a CPU the VAE encoder's gradients in bfloat16 are not finite; set mixed_precision to fp32 to train it."
        )
    if config.autocast == "bf16" and not torch.accelerator.is_available():
        # measured with nano (docs/LOG.md), on cores that have bfloat16; a large model may not fit in float32
        logger.warning("mixed_precision is bf16 and there is no GPU: a CPU is often faster with fp32, if memory allows")


def report(
    config: TrainingConfig,
    model: TheWorldForConditionalGeneration,
    training: IndexedSamples | IndexedStream,
    evaluation: IndexedSamples | None,
) -> None:
    """Says what learns, how long a sample can be, and how much data there is."""
    counts = freezing.count_parameters(model)
    for row in counts:
        if row.trainable:
            logger.info("learns: %s, %s parameters", row.part, f"{row.trainable:,}")
    trainable, total = sum(row.trainable for row in counts), sum(row.total for row in counts)
    logger.info(
        "in all %s of %s parameters in memory, %.4f %%", f"{trainable:,}", f"{total:,}", 100 * trainable / total
    )
    picture = model.config.vlm_config.mm_tokens_per_image + 2
    steps = max([model.config.num_world_steps, *config.steps_shares])
    world = model.config.world_token_count(steps, model.config.max_past_steps) if model.config.enable_world else 0
    limit = config.max_seq_length
    logger.info(
        "a sample with one picture has up to %s tokens: %s of text, %s of the picture, %s of the world at %d steps",
        "any number of" if limit is None else f"{limit + picture + world:,}",
        "any number" if limit is None else f"{limit:,}", picture, f"{world:,}", steps,
    )  # fmt: skip
    sizes = "a stream of" if isinstance(training, IndexedStream) else f"{len(training):,}"
    held_out = "none" if evaluation is None else f"{len(evaluation):,}"
    logger.info("%s training samples, %s for evaluation", sizes, held_out)
