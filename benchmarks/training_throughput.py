"""Measures training with its input pipeline: samples per second on one GPU and on several, and per core of the loader.

    python -m benchmarks.training_throughput make FOLDER                  # base models of 4B + 2B and 256 photos
    python -m benchmarks.training_throughput loader FOLDER                # one core: our batches, the stock processor's
    torchrun --nproc_per_node=2 -m benchmarks.training_throughput train FOLDER --num_workers 6

The weights are random, in the layout of the published repositories. `train` runs the recipe on captions of photos, with
a trainable projector (`--train all`: all of Gemma as well) and no world steps; `--repeat_batch` leaves the loader out
by repeating the first batch of each worker. `--arm stock` takes the step as transformers documents it, with logits of
all tokens, and `--arm best-peer` the fastest one of torch's and transformers' own means. `--size tiny` runs everything
on a CPU in seconds. Several GPUs with a strategy of their own: `accelerate launch --config_file
configs/accelerate/fsdp2.yaml -m benchmarks.training_throughput train FOLDER --train all`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.full_size_run import PHOTO
from benchmarks.random_weights import SIZES, make_bases
from theworld.compilation import can_compile
from theworld.datasets.collator import ChatCollator, IndexedSample
from theworld.datasets.samples import TheWorldDataset
from theworld.inspection.provenance import versions
from theworld.media.images import load_image
from theworld.model.packing import shift
from theworld.model.placeholders import IGNORE_INDEX
from theworld.training import recipe
from theworld.training.config import TrainingConfig
from theworld.training.model_setup import describe
from theworld.training.trainer import TheWorldTrainer

PHOTOS, RECORDS = 256, 4096
SIDES = (400, 1200)  # of photos, in pixels
QUESTION = "Describe this image."
OPTIONS = (
    "batch_size", "gradient_accumulation_steps", "num_workers", "num_world_steps", "fast_path", "vision_cache",
    "latent_cache", "num_samples",
)  # fmt: skip
TRAINING = "Training"  # what the recipe calls its steps
WARM_UP = 20  # steps that are not timed: each shape of a batch is compiled, and then recorded
TRAINED = {"projector": {}, "all": {"freeze_gemma_vision": False, "freeze_gemma_language": False}}


class StockTrainer(TheWorldTrainer):
    """Trains with transformers' own loss, from the logits of all tokens."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *unused: Any, **keywords: Any) -> Any:
        return model(**inputs, use_cache=False, num_items_in_batch=keywords["num_items_in_batch"]).loss


class PeerTrainer(TheWorldTrainer):
    """Trains with compiled layers and logits at labels, and Liger's cross-entropy if it is installed."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.cross_entropy: Callable[..., Tensor] = nn.CrossEntropyLoss(reduction="sum")
        if importlib.util.find_spec("liger_kernel") is not None:
            self.cross_entropy = importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss(
                reduction="sum"
            )
        gemma = self.model.vlm.model
        for layer in (*gemma.language_model.layers, *gemma.vision_tower.encoder.layers) if can_compile() else ():
            layer.compile()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *unused: Any, **keywords: Any) -> Any:
        inputs = dict(inputs)
        targets = shift(inputs.pop("labels"))
        labelled = targets != IGNORE_INDEX
        logits = model(**inputs, use_cache=False, logits_to_keep=labelled).logits
        return self.cross_entropy(logits.float(), targets[labelled]) / keywords["num_items_in_batch"]


TRAINERS = {"stock": StockTrainer, "best-peer": PeerTrainer, "ours": TheWorldTrainer}


def make(folder: Path, size: str, device: str) -> None:
    """Writes both base models, photos of different sizes, and a JSON Lines file about them; keeps those that exist."""
    make_bases(folder, size, device)
    photos = PHOTOS if size == "full" else 8
    if not (folder / "photos").exists():
        write_photos(folder / "photos", photos)
    rng = np.random.default_rng(0)
    with (folder / "photos.jsonl").open("w") as file:
        for number in range(RECORDS):
            caption = " ".join(f"word{word}" for word in rng.integers(0, 1000, 16).tolist())
            record = {"image": f"photos/{number % photos}.jpg", "text": QUESTION, "label": caption}
            file.write(json.dumps(record) + "\n")


def write_photos(folder: Path, count: int) -> None:
    """Writes `0.jpg`, `1.jpg`, …: one photo in different sizes and at different angles."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photo = Image.open(PHOTO).convert("RGB")
    for number in range(count):
        width, height = rng.integers(*SIDES, 2).tolist()
        photo.resize((width, height)).rotate(float(rng.uniform(-9, 9))).save(folder / f"{number}.jpg", quality=90)


def settings(folder: Path, **changes: Any) -> TrainingConfig:
    launched = os.getppid() if "WORLD_SIZE" in os.environ else os.getpid()  # the same for all processes of a run
    values = {
        "model_name": str(folder / "gemma"),
        "cosmos_model_name": str(folder / "cosmos"),
        "num_world_steps": 0,
        "train_dataset_path": str(folder / "photos.jsonl"),
        "dataset_name": "jsonl",
        "mixed_precision": "bf16" if torch.cuda.is_available() else "fp32",
        "logging_steps": 10,
        "log_to_tensorboard": False,
        "save_steps": 1_000_000,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
        "learning_rate": 1e-4,
        "output_dir": str(folder / f"run-{launched}"),
    }
    return TrainingConfig.from_dict({**values, **changes})


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of one call, after one call that is not measured."""
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def loader(folder: Path, batch_size: int, **size: Any) -> dict[str, float]:
    """Samples per second of one core: the collator's batches, and the stock processor's on the same photos."""
    torch.set_num_threads(1)
    config = settings(folder, **size)
    collator = recipe.new_collator(config, describe(config))
    lines = (folder / "photos.jsonl").read_text().splitlines()[: 8 * batch_size]
    dataset = TheWorldDataset([json.loads(line) for line in lines], folder)
    batches = [
        [IndexedSample(index, dataset[index]) for index in range(start, start + batch_size)]
        for start in range(0, len(dataset), batch_size)
    ]
    processor = collator.processor

    def stock() -> None:
        """What Gemma3Processor alone does for Gemma alone, and as much work on the text."""
        for batch in batches:
            images = [[load_image(entry.sample.images[0])] for entry in batch]
            texts = [collator.chat(entry.sample.messages) for entry in batch]
            keywords = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
            super(type(processor), processor).__call__(images=images, text=texts, **keywords)

    count = len(dataset)
    return {
        "ours, with world frames": count / seconds(lambda: [collator(batch) for batch in batches], 2),
        "stock processor, without them": count / seconds(stock, 2),
    }


def train(
    folder: Path, steps: int, repeat_batch: bool, save: bool, arm: str = "ours", **changes: Any
) -> dict[str, Any]:
    """Runs the recipe and times its steps after WARM_UP; the host waits for the GPU before and after them alone.

    Args:
        arm: one of TRAINERS.
        save: writes weights and optimizer states at the end, tens of gigabytes if all of Gemma is trained.
    """
    setattr(recipe, "TheWorldTrainer", TRAINERS[arm])  # noqa: B010 a class of its own for this process
    if not save:
        TheWorldTrainer.save_model = lambda *arguments, **keywords: None  # type: ignore[method-assign]
        TheWorldTrainer._save_optimizer_and_scheduler = lambda *arguments: None  # type: ignore[method-assign]
    if repeat_batch:
        collate, made = ChatCollator.__call__, dict[str, Any]()

        def repeated(self: ChatCollator, indexed: Any) -> Any:
            if not made:
                made.update(collate(self, indexed))
            return dict(made)

        ChatCollator.__call__ = repeated  # type: ignore[method-assign]
    ends: list[float] = []
    kept: list[int] = []
    started = time.perf_counter()

    def step(what: str, done: int, total: int) -> None:
        if what != TRAINING:
            return
        if torch.cuda.is_available():
            if len(ends) + 1 in (1, WARM_UP, steps):
                torch.cuda.synchronize()
            kept.append(torch.cuda.memory_allocated())
        ends.append(time.perf_counter())

    losses: list[float] = []
    log = TheWorldTrainer.log

    def logged(self: TheWorldTrainer, logs: dict[str, float], *unused: Any, **keywords: Any) -> None:
        losses.extend(logs[name] for name in ("loss",) if name in logs)
        log(self, logs, *unused, **keywords)

    TheWorldTrainer.log = logged  # type: ignore[method-assign]
    config = settings(folder, max_steps=steps, **changes)
    recipe.train(config, progress=step)
    timed = len(ends) - WARM_UP
    per_step = (ends[-1] - ends[WARM_UP - 1]) / timed if timed > 0 else None
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    samples = config.batch_size * config.gradient_accumulation_steps * processes
    return {
        "processes": processes,
        "repeat_batch": repeat_batch,
        "strategy": strategy(),
        **{key: getattr(config, key) for key in (*OPTIONS, "use_gradient_checkpointing")},
        "samples_per_second": samples / per_step if per_step else None,
        "seconds_per_step": per_step,
        "bytes_between_steps": kept[-1] if kept else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "seconds_until_first_step": ends[0] - started if ends else None,
        "losses": losses,
    }


def strategy() -> str:
    """The strategy that `accelerate launch` set up in this process."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp2"
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    return "ddp" if file is None else Path(file).stem


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "loader", "train"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--num_workers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--train", choices=TRAINED, default="projector")
    parser.add_argument("--num_world_steps", type=int, default=0)
    parser.add_argument("--fast_path", choices=("auto", "on", "off"), default="off")
    parser.add_argument("--vision_cache", help="a folder of image features")
    parser.add_argument("--latent_cache", help="a folder of world latents")
    parser.add_argument("--num_samples", type=int, help="the first ones of the data")
    parser.add_argument("--arm", choices=TRAINERS, default="ours")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--save", action="store_true", help="write weights and optimizer states at the end")
    parser.add_argument("--resume_from", metavar="CHECKPOINT")
    parser.add_argument("--repeat_batch", action="store_true")
    parser.add_argument("--output", type=Path, help="a JSON Lines file that the result is appended to")
    given = parser.parse_args(arguments)
    size = {"world_image_size": 64} if given.size == "tiny" else {}
    found: dict[str, Any]
    if given.what == "make":
        make(given.folder, given.size, "cuda" if torch.cuda.is_available() else "cpu")
        return
    if given.what == "loader":
        found = loader(given.folder, given.batch_size, **size)
    else:
        changes = {name: getattr(given, name) for name in OPTIONS} | TRAINED[given.train]
        changes["resume_from_checkpoint"] = given.resume_from
        changes["use_gradient_checkpointing"] = given.checkpointing
        found = {"trained": given.train, "arm": given.arm} | train(
            given.folder, given.steps, given.repeat_batch, given.save, given.arm, **changes, **size
        )
        if int(os.environ.get("RANK", "0")):
            return
    line = json.dumps({"what": given.what, "size": given.size, **found, "versions": versions()})
    sys.stdout.write(line + "\n")
    if given.output is not None:
        with given.output.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
