"""Trains nano from scratch in four stages; each writes a folder that the next one reads.

    world     (a) VAE and (b) transformer, from clips without labels   -> world/, foresight.csv
    language  (c) Gemma, from questions about the present              -> gemma/, reader/ (its projector)
    fusion    (d) from questions about what happens                    -> fused/ and its controls

`python -m recipes.nano` runs it. Stage (c) needs only the VAE, so it can run at the same time as (b). The shipped
weights under `theworld/nano/weights/` are the work folder of one run, in bfloat16, which `provenance.json` describes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipes.nano.buffers import FrameBuffer
from recipes.nano.clips import ClipFactory, ClipSettings, LabelledClips, load_labelled
from recipes.nano.foresight import Foresight, ForesightSettings, reconstruction_psnr
from recipes.nano.fusion import FUSED, KINDS, OF_READER, TRAINED, FusionSettings
from recipes.nano.fusion import TRAINING as FUSION_TRAINING
from recipes.nano.language import (
    TEXT,
    VISION,
    LanguageSettings,
    load_now,
    now_accuracy,
    topics_of,
    training_config,
    validation_samples,
    write_untrained_gemma,
)
from recipes.nano.language import TRAINING as LANGUAGE_TRAINING
from recipes.nano.progress import CsvLog
from recipes.nano.vae import VAESettings, train_vae
from recipes.nano.world import TransformerSettings, nano_world_config, new_world, save_world, train_transformer
from theworld.datasets.physics import FAMILIES, IMAGE_SIZE, NUM_FRAMES
from theworld.messages import suggest
from theworld.model import freezing
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.processing import TheWorldProcessor
from theworld.storage.hub import SHIPPED_WEIGHTS
from theworld.training.checkpointing import STATE_FILE, find_last_checkpoint
from theworld.training.recipe import train as train_recipe
from theworld.world_models.configuration import CosmosPredict2Config
from theworld.world_models.cosmos_predict2 import CosmosPredict2

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
STAGES = ("world", "language", "fusion")
MAX_SHARD = "15MB"
# of every fusion of nano's bases
FUSION_CONFIG: dict[str, Any] = {"world_image_size": IMAGE_SIZE, "num_world_steps": 4, "max_world_steps": 4}
GATE = 0.97  # accuracy on questions about the present, from the image only and from world tokens only


@dataclass(frozen=True)
class NanoSettings:
    """All settings of a run; `shipped_settings` and `laptop_settings` are the named ones.

    Args:
        capacity: clips that the accelerator's memory holds.
        projector: `linear` or `mlp`.
        denoise_steps: numbers of denoise steps that foresight is measured with at the end.
    """

    world: CosmosPredict2Config = field(default_factory=nano_world_config)
    clips: ClipSettings = field(default_factory=ClipSettings)
    capacity: int = 150_000
    vae: VAESettings = field(default_factory=VAESettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    foresight: ForesightSettings = field(default_factory=ForesightSettings)
    denoise_steps: tuple[int, ...] = (2, 4, 10, 20)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    projector: str = "mlp"
    text: dict[str, Any] = field(default_factory=lambda: dict(TEXT))
    vision: dict[str, Any] = field(default_factory=lambda: dict(VISION))


def laptop_settings() -> NanoSettings:
    """A smaller model in about an hour and a half on two CPU cores: all stages, below the shipped quality."""
    world = nano_world_config(4)
    world.vae["base_dim"] = 8
    world.transformer.update(num_attention_heads=2, num_layers=6, adaln_lora_dim=16, patch_size=[1, 2, 2])
    return NanoSettings(
        world=world,
        clips=ClipSettings(
            workers=1, per_family=8, wild_per_family=24, max_clips=24_000, labelled_per_family=304, head_start=4
        ),
        capacity=12_000,
        vae=VAESettings(
            seconds=900, phases=((0.45, 1, 32), (1.0, 5, 6)), learning_rate=2e-3, min_clips=300,
            log_seconds=20, checkpoint_seconds=120, measure_seconds=300,
        ),
        transformer=TransformerSettings(
            seconds=2100, batch=32, learning_rate=2e-3, ema=0.998, min_clips=300, encode_every=10, encode_clips=16,
            max_clips=24_000, log_seconds=20, checkpoint_seconds=120, measure_seconds=700,
        ),
        foresight=ForesightSettings(scenes=40, reader_steps=300, reader_batch=64),
        denoise_steps=(2, 4, 10),
        language=LanguageSettings(
            clips_per_family=500, workers=1, validation_clips=60,
            training={**LANGUAGE_TRAINING, "max_steps": 2000, "batch_size": 24, "eval_batch_size": 64},
        ),
        fusion=FusionSettings(
            training={
                **FUSION_TRAINING, "max_steps": 300, "batch_size": 24, "eval_steps": 100,
                "dataset_options": {**FUSION_TRAINING["dataset_options"], "eval_scenes_per_family": 40},
            },
            fused={**FUSED, "futures_per_image": 2, "latent_batch_size": 16},
        ),
        text={**TEXT, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 2,
              "num_key_value_heads": 2},
        vision={**VISION, "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3,
                "num_attention_heads": 3},
    )  # fmt: skip


def shipped_settings() -> NanoSettings:
    """The shipped model, on one large GPU and 16 CPU cores."""
    workers = {"num_workers": 14}
    return NanoSettings(
        language=LanguageSettings(workers=14, training={**LANGUAGE_TRAINING, **workers}),
        fusion=FusionSettings(training={**FUSION_TRAINING, **workers}),
    )


SCALES = {"shipped": shipped_settings, "laptop": laptop_settings}


def with_values(settings: NanoSettings, assignments: Sequence[str]) -> NanoSettings:
    """Settings with some changed, each as `language.steps=4000`; values are JSON or text.

    Raises:
        ValueError: if there is no such setting, or no `=`.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"{assignment!r} is not a setting; write KEY=VALUE, such as language.training.max_steps=4000."
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings = _replaced(settings, key, key.split("."), value)
    return settings


def _replaced(settings: Any, key: str, path: Sequence[str], value: Any) -> Any:
    """A copy of a dataclass or dict with the value at `path` changed to one of the same type."""
    name, *rest = path
    known = [field.name for field in fields(settings)] if is_dataclass(settings) else list(settings)
    if name not in known:
        raise ValueError(f"Unknown setting {key!r}; {suggest(name, known)}")
    old = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    new = value
    if rest:
        if not (is_dataclass(old) or isinstance(old, dict)):
            raise ValueError(f"Unknown setting {key!r}; {name!r} has no parts.")
        new = _replaced(old, key, rest, value)
    elif isinstance(old, tuple) and isinstance(value, list):
        new = tuple(value)
    elif isinstance(old, float) and type(value) is int:
        new = float(value)
    elif type(value) is not type(old):
        raise ValueError(f"{key} is {value!r}; give {type(old).__name__}, like {old!r}.")
    return {**settings, name: new} if isinstance(settings, dict) else replace(settings, **{name: new})


def run_world(work: Path, settings: NanoSettings, device: torch.device) -> Path:
    """Stages (a) and (b): writes `world/`, the curve of foresight and a sheet of imagined futures.

    `untrained/` holds the finished VAE with a fresh transformer as soon as there is one, for stage (c).
    """
    shape = (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE)
    shards = work / "shards"
    with (
        ClipFactory(shards, settings.clips, FAMILIES) as factory,
        FrameBuffer(shards, settings.capacity, shape, device) as frames,
    ):

        def labelled_clips() -> LabelledClips:
            while (clips := load_labelled(shards, settings.clips, FAMILIES)) is None:
                factory.check()
                time.sleep(1)
            return clips

        def psnr(vae: AutoencoderKLWan, wait: bool) -> dict[str, float] | None:
            clips = labelled_clips() if wait else load_labelled(shards, settings.clips, FAMILIES)
            if clips is None:
                return None
            some = torch.from_numpy(clips.frames[:: max(1, len(clips.frames) // 512)])
            return reconstruction_psnr(vae, some.to(device))

        vae = train_vae(settings.vae, settings.world, frames, work, device, check=factory.check, measure=psnr)
        fresh = new_world(settings.world, vae)
        assert fresh.transformer is not None
        save_world(work / "untrained", settings.world, vae, fresh, fresh.transformer.state_dict())
        foresight = Foresight(labelled_clips(), vae, settings.foresight, device)
        curve = work / "foresight.csv"

        def measure(folder: Path, step: int, clips: int) -> None:
            foresight.record(curve, folder, step, clips, (4,))

        world = train_transformer(
            settings.transformer, settings.world, vae, frames, work, device, check=factory.check, measure=measure
        )
    foresight.record(curve, world, -1, -1, settings.denoise_steps)
    foresight.contact_sheet(work / "sheet.png", world, max(settings.denoise_steps))
    return world


def run_language(
    work: Path, settings: NanoSettings, device: torch.device, world: Path | None = None
) -> dict[str, float]:
    """Stage (c): writes `gemma/` and `reader/`, and returns the gate's accuracies.

    Args:
        world: world folder whose VAE encoder gives the latents; `work/world` unless (b) is still writing that.
    """
    language = settings.language
    world = world or work / "world"
    write_untrained_gemma(work / "fresh", language, settings.text, settings.vision)
    encoder = CosmosPredict2.from_pretrained(world, parts=("encoder",), dtype=torch.float32).to(device)
    config = training_config(
        language.training,
        device,
        model_name=str(work / "fresh"),
        cosmos_model_name=str(world),
        projector=settings.projector,
        output_dir=str(work / TRAINED / "language"),
        # a separate seed: a new model on nano's bases, or a re-initialised projector, must not start from the values
        # that this language model learns to read
        reset_projector=True,
        seed=100 + language.seed,
        do_eval=True,
        **FUSION_CONFIG,
    )
    remove_trained(work, "language")
    trained = train_recipe(config, lambda _: load_now(language, encoder, settings.world.temporal_factor))
    write_curve(trained, work / "language.csv")
    model = TheWorldForConditionalGeneration.from_pretrained(trained, dtype=torch.float32, world_parts=()).to(device)
    processor = TheWorldProcessor.from_config(model.config)
    gate = now_accuracy(model, processor, validation_samples(language, encoder))
    file = work / "language_topics.csv"
    file.unlink(missing_ok=True)  # of an earlier run
    topics = CsvLog(file, ("mode", "family", "topic", "right"))
    for row in topics_of(gate):
        topics.add(row)
    model.to("cpu", torch.bfloat16)
    model.vlm.save_pretrained(work / "gemma")
    processor.write_base(work / "gemma")
    model.config.trained_parts = ["projector"]
    model.loaded_weights = freezing.PartChecksums(model)  # the trained language model is a base model from here on
    model.config.vlm_name_or_path, model.config.world_name_or_path = str(work / "gemma"), str(work / "world")
    freezing.train_only(model, ("projector",))
    model.save_pretrained(work / "reader")
    write_json(work / "language.json", {"settings": asdict(language), "gate": GATE, "accuracy": gate})
    for mode in ("image", "world"):
        level = logging.INFO if gate[mode] >= GATE else logging.WARNING
        logger.log(
            level,
            "Questions about the present from the %s only: %.1f %% (required: %.0f %%)",
            mode,
            100 * gate[mode],
            100 * GATE,
        )
    return gate


def run_fusion(work: Path, settings: NanoSettings, device: torch.device) -> dict[str, float]:
    """Stage (d): writes one folder per kind, and returns the validation accuracy of each."""
    results = {}
    for kind in settings.fusion.kinds:
        values = settings.fusion.values(kind, work)
        if kind not in OF_READER:  # the others start from a trained model, which has these settings
            values = {**FUSION_CONFIG, "projector": settings.projector, **values}
        config = training_config(values, device)
        remove_trained(work, kind)
        trained = train_recipe(config)
        results[kind] = write_curve(trained, work / f"{kind}.csv")
        model = TheWorldForConditionalGeneration.from_pretrained(trained, dtype=torch.bfloat16, world_parts=())
        model.config.vlm_name_or_path, model.config.world_name_or_path = "nano/gemma", "nano/cosmos"
        model.config.vlm_config._name_or_path = "nano/gemma"  # instead of the folder of this run
        model.save_pretrained(work / kind)
        write_json(work / f"{kind}.json", {"settings": asdict(settings.fusion), "validation": results[kind]})
        logger.info("%s: %.1f %% of validation answers correct", kind, 100 * results[kind])
    return results


def remove_trained(work: Path, name: str) -> None:
    """Removes the training run of an earlier call of a stage, because stages always start from scratch."""
    if (work / TRAINED / name).exists():
        shutil.rmtree(work / TRAINED / name)


def write_curve(trained: Path, file: Path) -> float:
    """Writes the losses and accuracies of a run as CSV, from the log of its last checkpoint.

    Returns:
        The last share of evaluation answers that were right.
    """
    checkpoint = find_last_checkpoint(trained)
    if checkpoint is None:
        raise ValueError(f"{trained} has no checkpoint with the log of the run.")
    log = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["log_history"]
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        rows.setdefault(entry["step"], {}).update(entry)
    file.unlink(missing_ok=True)  # of an earlier run
    curve = CsvLog(file, ("step", "loss", "validation"))
    right = float("nan")
    for step, row in sorted(rows.items()):
        if "loss" in row or "eval_exact_match" in row:
            right = row.get("eval_exact_match", right)
            curve.add((step, row.get("loss", float("nan")), row.get("eval_exact_match", float("nan"))))
    return right


def train(work: Path, settings: NanoSettings, stages: Sequence[str], device: torch.device, command: str = "") -> None:
    """Runs stages in order; each reads the results of earlier ones in `work` and extends `provenance.json`."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"Unknown stage {unknown[0]!r}; choose one of {', '.join(STAGES)}.")
    work.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    if "world" in stages:
        run_world(work, settings, device)
        record(work, "world", settings, device, command)
    if "language" in stages:
        world = work / ("world" if (work / "world").is_dir() else "untrained")
        if not world.is_dir():
            raise ValueError(f"{work} has no world model yet; run the stage `world` first.")
        run_language(work, settings, device, world)
        record(work, "language", settings, device, command)
    if "fusion" in stages:
        if not (work / "gemma").is_dir():
            raise ValueError(f"{work} has no language model yet; run the stage `language` first.")
        run_fusion(work, settings, device)
        record(work, "fusion", settings, device, command)


def record(work: Path, stage: str, settings: NanoSettings, device: torch.device, command: str) -> None:
    """Adds to `work/provenance.json` how a stage was run: command, commit, machine, versions, settings."""
    own = {"world": ("clips", "vae", "transformer"), "language": ("language",), "fusion": ("fusion",)}[stage]
    entry = {
        "stage": stage,
        "command": command,
        "commit": commit_of_code(),
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "diffusers", "pymunk")},
        "settings": {name: asdict(getattr(settings, name)) for name in own},
    }
    file = work / "provenance.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": []}
    if stage == "world":
        content["unlabelled_clips"] = settings.clips.max_clips
    if stage == "language":
        content["clips_asked_about_now_per_family"] = settings.language.clips_per_family
    if stage == "fusion":
        content["labelled_scenes_per_family"] = settings.fusion.training["dataset_options"]["scenes_per_family"]
    content["runs"].append(entry)
    write_json(file, content)


def commit_of_code(repository: Path = REPOSITORY) -> str:
    """The commit of the checkout that this code runs from, and whether the code differs from it.

    Weights count as results, not as code: publishing a stage changes them before the next one runs.
    """

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=repository, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if shutil.which("git") is None:
        return "unknown: no git here to ask"
    # The folder may be inside the checkout of another project, whose commit does not describe this code.
    commit = git("rev-parse", "HEAD")
    if commit is None or git("ls-files", "--error-unmatch", "theworld/__init__.py") is None:
        return "unknown: not run from a checkout"
    changes = git("status", "--porcelain", "--", "theworld", "recipes", ":(exclude)theworld/nano/weights")
    return f"{commit} (with uncommitted changes)" if changes else commit


def publish(work: Path, weights: Path = SHIPPED_WEIGHTS) -> None:
    """Replaces the shipped models and their provenance by those of a work folder.

    Raises:
        ValueError: if a model is missing in `work`; the shipped ones are then unchanged.
    """
    parts = {"cosmos": "world", "gemma": "gemma", "reader": "reader", **{kind: kind for kind in KINDS}}
    missing = [made for made in (*parts.values(), "provenance.json") if not (work / made).exists()]
    if missing:
        raise ValueError(f"{work} has no {', no '.join(missing)} to publish; run the stages that make them first.")
    for name, made in parts.items():
        if (weights / name).exists():
            shutil.rmtree(weights / name)
        shutil.copytree(work / made, weights / name)
    name_bases(weights / "reader")
    shutil.copy(work / "provenance.json", weights / "provenance.json")


def name_bases(folder: Path) -> None:
    """Replaces the base folders of the training run by the names of the shipped bases."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vlm_name_or_path"], config["world_name_or_path"] = "nano/gemma", "nano/cosmos"
    config["vlm_config"]["_name_or_path"] = "nano/gemma"
    write_json(folder / "config.json", config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
