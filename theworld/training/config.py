"""TrainingConfig: every setting of a run, from its defaults, a JSON file and the command line, in that order.

An unknown key is an error that names the nearest known one. The token is the one value that is never written, shown or
compared: `hf_token` is moved to the environment and kept nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from theworld.fast_path import FAST_PATHS
from theworld.model.call_plan import check_seed
from theworld.storage.files import no_file, read_json_file
from theworld.storage.hub import COSMOS_2B
from theworld.training.config_keys import (
    ALIASES,
    SECRET,
    TRACKERS,
    assignments,
    canonical,
    checked,
    trainer_field_names,
    trainer_fields,
)

logger = logging.getLogger(__name__)

CHOICES = {
    "mixed_precision": ("bf16", "fp16", "fp32", "no"),  # "no" is accelerate's word for fp32
    "hub_strategy": ("end", "every_save", "checkpoint", "all_checkpoints"),
    "projector_positions": ("zeros", "sinusoidal"),
    "optimizer": ("adamw", "muon"),
    "fast_path": FAST_PATHS,
}
# the smallest allowed values
MINIMUM = {
    "max_world_steps": 0,
    "max_past_steps": 0,
    "num_world_steps": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "num_workers": 0,
    "shuffle_buffer_size": 0,
    "shown_samples": 0,
    "max_grad_norm": 0,
    "num_epochs": 0,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 1,
    "max_steps": 1,
    "num_samples": 1,
    "eval_batch_size": 1,
    "num_eval_samples": 1,
    "save_total_limit": 1,
    "futures_per_image": 1,
    "resampler_tokens": 1,
    "stream_parts": 1,
    "latent_batch_size": 1,
}
JSON_LINES = ".jsonl"


@dataclass
class TrainingConfig:
    """All settings of a training run; `configs/*.json` hold some, the rest have these defaults.

    Other fields of `transformers.TrainingArguments` are accepted as keys as well (see `trainer_arguments`); those that
    this trainer cannot follow are errors that give the reason. That class's own names for the keys below, such
    as `per_device_train_batch_size` for `batch_size`, are accepted too.

    The model. Keys marked * apply to a new fusion; a trained model keeps its own values, and another one is an error.

    Args:
        model_name: a Gemma 3 (Hub id or folder) to fuse with a world model, or a trained TheWorld model to continue
            from (`nano`, a folder, a Hub id).
        cosmos_model_name: * world model.
        num_world_steps: future latent frames of a call; None means 0, or the number of the trained model.
        max_world_steps, max_past_steps: * rows of the temporal embedding after and before now; a model with 0 past
            steps reads no videos.
        freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae: False makes that part trainable in addition to
            the projector.
        enable_world: False trains a model that never sees world tokens (a control).
        constant_world: True replaces all latents by zeros, so that world tokens carry no information (a control).
        projector, projector_hidden_size, resampler_tokens, spatial_merge, world_image_size, world_images: * as in
            TheWorldConfig.
        reset_projector: re-initialises the projector of a trained model, from `seed`.
        projector_positions: initial position embeddings of a new or re-initialised projector, `zeros` or `sinusoidal`.
        lora: LoRA on the language model, as its rank or as peft's settings; a trained model without LoRA gets one.
        freeze_lora: True keeps the LoRA of a trained model fixed.
        freeze_projector: True keeps the projector fixed; that of a new fusion stays untrained (a control).
        quantization: `4bit` or `8bit` for the frozen base models; see docs/small_cards.md.

    The future.

    Args:
        num_inference_steps, guidance_scale, guidance_interval: of a rollout; None means the defaults of the world
            model.
        world_seed: random seed of the rollouts.
        world_prompt: text that describes the imagined future.
        futures_per_image: rollouts with different seeds per image, from which training samples one.
        true_futures: share of samples, in [0, 1], that use their true future instead of a rollout, if they have one.
        world_steps_mix: numbers of world steps that are sampled per batch, with their weights, as
            `{"0": 0.5, "4": 0.5}`; None means always `num_world_steps`. Evaluation always uses `num_world_steps`.
        world_dropout: share of batches, in [0, 1], without world tokens, so that the model can also answer without.
        image_dropout: share of batches, in [0, 1], whose images only the world model sees.
        vision_cache: folder of image features that runs share: those of each image are computed once, and batches hold
            them instead of pixels. It needs a frozen vision tower and a dataset of known length.
        latent_cache: folder of world latents that runs share; they are computed once, and training does not load the
            world model. None computes them in every step.
        latent_batch_size: images per batch of the world model while the cache is filled.

    Optimisation.

    Args:
        learning_rate, weight_decay, adam_beta2, max_grad_norm: of AdamW.
        lr_scheduler: a schedule of transformers, such as `linear`, `cosine` or `constant`.
        warmup_steps: steps of warm-up; below 1 it is a share of all steps.
        optimizer: `adamw` (or what `optim` names), or `muon` for the matrices inside the layers and AdamW for the rest.
        muon_learning_rate: peak learning rate of Muon.
        batch_size: samples per forward pass and device.
        gradient_accumulation_steps: forward passes per step; the loss is the mean over all their answer tokens.
        num_epochs, max_steps: length of the run; `max_steps` takes precedence.
        use_gradient_checkpointing: recomputes activations in the backward pass to save memory.
        fast_path: `on` compiles the layers on a GPU, which takes the first half minute and about doubles the speed;
            `auto` does so for runs of 100 steps or more on one GPU, and `off` never.
        mixed_precision: `bf16`, `fp16` or `fp32`. Trainable parameters are always kept in float32, frozen ones in
            bfloat16 under `bf16`. `fp16` needs a GPU.
        seed: of the order of samples and of all that is sampled per batch.

    Saving, evaluating and logging.

    Args:
        output_dir: folder of the trained model, `checkpoint-N/`, `logs/` and `samples/`.
        save_steps, save_total_limit: steps between checkpoints, and how many are kept; None keeps all.
        resume_from_checkpoint: a checkpoint folder, a run's folder (its last checkpoint), `last` (the last checkpoint
            of `output_dir`, if there is one), or a Hub id.
        do_eval, eval_steps, eval_batch_size, num_eval_samples: evaluation during training; None means `batch_size`,
            and all samples.
        shown_samples: evaluation samples whose answers and imagined futures are written at each evaluation.
        logging_steps, log_to_tensorboard, log_to_wandb, wandb_project, wandb_run_name: how often metrics are logged,
            and where to.

    Data.

    Args:
        dataset_name: a name in `theworld.training.dataset_loading.DATASETS`, a `.jsonl` file, a `.py` file with a
            `load_datasets(config)`, a folder, or a dataset on the Hub.
        dataset_options: further arguments of that dataset.
        train_dataset_path, eval_dataset_path: files of `jsonl`.
        train_split, eval_split: of a dataset with splits.
        image_key, text_key, label_key: columns of a Hub dataset; several image columns are separated by commas.
        question_template: the question, if the dataset has none; `{field}` is replaced by the value of that column.
        num_samples: limit on the number of training samples.
        streaming: reads the dataset while training; requires `max_steps`.
        shuffle_buffer_size: rows of a stream that are shuffled together; 0 keeps their order.
        stream_parts: parts in which a stream is read, one after the other by each worker; the order of samples depends
            on it. None means the number of workers of all processes.
        max_seq_length: limit on the text tokens of a sample, not counting image and world tokens; longer samples are
            left out. None accepts any length.
        num_workers: processes that prepare batches.

    The Hub.

    Args:
        push_to_hub, hub_model_id, hub_strategy, hub_private_repo: upload during training.
        hf_token: moved to the environment (HF_TOKEN), where Hugging Face's libraries look for it; never stored.

    Args:
        trainer_arguments: fields of `transformers.TrainingArguments` without a key above, such as `optim` or
            `deepspeed`. In JSON files and on the command line they are keys like all others.

    Raises:
        ValueError: if a value has a wrong type or is out of range, or if settings exclude each other.
    """

    model_name: str = "google/gemma-3-4b-it"
    cosmos_model_name: str = COSMOS_2B
    num_world_steps: int | None = None
    max_world_steps: int = 16
    max_past_steps: int = 0
    freeze_gemma_vision: bool = True
    freeze_gemma_language: bool = True
    freeze_cosmos_vae: bool = True
    enable_world: bool = True
    constant_world: bool = False
    projector: str = "linear"
    projector_hidden_size: int | None = None
    resampler_tokens: int = 64
    spatial_merge: int = 1
    world_image_size: int | None = None
    world_images: str = "first"
    reset_projector: bool = False
    projector_positions: str = "zeros"
    lora: int | dict[str, Any] | None = None
    freeze_lora: bool = False
    freeze_projector: bool = False
    quantization: str | None = None

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: list[float] | None = None
    world_seed: int = 0
    world_prompt: str | None = None
    futures_per_image: int = 1
    true_futures: float = 0.0
    world_steps_mix: dict[str, float] | None = None
    world_dropout: float = 0.0
    image_dropout: float = 0.0
    latent_cache: str | None = None
    vision_cache: str | None = None
    latent_batch_size: int = 16

    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    learning_rate: float = 1e-4
    lr_scheduler: str = "linear"
    warmup_steps: int | float = 100
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    batch_size: int = 4
    gradient_accumulation_steps: int = 4
    num_epochs: float = 3
    max_steps: int | None = None
    use_gradient_checkpointing: bool = False
    fast_path: str = "auto"
    mixed_precision: str = "bf16"
    seed: int = 0

    output_dir: str = "./checkpoints"
    save_steps: int | float = 500
    save_total_limit: int | None = 3
    resume_from_checkpoint: str | None = None
    do_eval: bool = False
    eval_steps: int | float = 500
    eval_batch_size: int | None = None
    num_eval_samples: int | None = None
    shown_samples: int = 4
    logging_steps: int | float = 10
    log_to_tensorboard: bool = True
    log_to_wandb: bool = False
    wandb_project: str = "theworld-training"
    wandb_run_name: str | None = None

    dataset_name: str = "physics"
    dataset_options: dict[str, Any] = field(default_factory=dict)
    train_dataset_path: str | None = None
    eval_dataset_path: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    image_key: str = "image"
    text_key: str = "text"
    label_key: str = "label"
    question_template: str | None = None
    num_samples: int | None = None
    streaming: bool = False
    shuffle_buffer_size: int = 1000
    stream_parts: int | None = None
    max_seq_length: int | None = 2048
    num_workers: int = 4

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_strategy: str = "every_save"
    hub_private_repo: bool = False
    hf_token: str | None = field(default=None, repr=False)

    trainer_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for known in dataclasses.fields(self):
            setattr(self, known.name, checked(known.name, getattr(self, known.name), hints[known.name]))
        for name in ("output_dir", "latent_cache", "vision_cache"):
            if (folder := getattr(self, name)) is not None:
                setattr(self, name, os.path.expanduser(folder))
        for name, value in self.trainer_arguments.items():
            if name in hints or name in ALIASES or name not in trainer_field_names():
                raise ValueError(
                    f"trainer_arguments has {name!r}, which is not a field that it can hold; use from_dict."
                )
            self.trainer_arguments[name] = checked(name, value, trainer_fields()[name])
        self._name_file()
        self._check()

    def _name_file(self) -> None:
        """Replaces a `.jsonl` file as `dataset_name` by `jsonl` and the path of the file."""
        if not self.dataset_name.endswith(JSON_LINES):
            return
        if self.train_dataset_path is not None:
            raise ValueError(
                f"dataset_name is {self.dataset_name!r} and train_dataset_path is {self.train_dataset_path!r}, two "
                "files to train on; remove one of them."
            )
        self.dataset_name, self.train_dataset_path = "jsonl", self.dataset_name

    def _check(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        for name, minimum in MINIMUM.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise ValueError(f"{name} is {value}; it must be at least {minimum}.")
        for name in ("true_futures", "world_dropout", "image_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1].")
        if self.world_dropout + self.image_dropout > 1:
            raise ValueError("world_dropout and image_dropout add up to more than 1; reduce one of them.")
        for name in ("learning_rate", "muon_learning_rate", "save_steps", "eval_steps", "logging_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        check_seed(self.seed)
        if not 0 < self.adam_beta2 < 1:
            raise ValueError(f"adam_beta2 is {self.adam_beta2}; it must be between 0 and 1.")
        for key in ("optim", "optim_args", "optim_target_modules"):
            if self.optimizer == "muon" and key in self.trainer_arguments:
                raise ValueError(
                    f"optimizer is 'muon', but {key} is {self.trainer_arguments[key]!r}; remove one of them."
                )
        if self.streaming and self.max_steps is None:
            raise ValueError("A streamed dataset has no length, so streaming needs max_steps; set it.")
        self._check_hub()
        self._check_mix()
        self._check_vision_cache()
        self._check_vae()

    def _check_hub(self) -> None:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs hub_model_id, the repository to push to (owner/name).")
        if self.push_to_hub and str(self.hub_model_id).startswith("your-username/"):  # in the examples of configs/
            raise ValueError(
                f"hub_model_id is the example {self.hub_model_id!r}; replace it by your own repository, or set "
                "push_to_hub to false."
            )

    def _check_mix(self) -> None:
        for steps, weight in (self.world_steps_mix or {}).items():
            if not steps.isdecimal() or isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
                raise ValueError(
                    f"world_steps_mix has {steps!r}: {weight!r}; give numbers of world steps and their weights, such "
                    'as {"0": 0.5, "4": 0.5}.'
                )
        if self.world_steps_mix is not None and not self.world_steps_mix:
            raise ValueError("world_steps_mix is empty; remove it, or give at least one number of world steps.")

    def _check_vision_cache(self) -> None:
        if self.vision_cache is not None and not self.freeze_gemma_vision:
            raise ValueError("A trainable vision tower changes the features in every step; remove vision_cache.")
        if self.vision_cache is not None and self.streaming:
            raise ValueError("vision_cache needs a dataset of known length; remove it, or set streaming to false.")

    def _check_vae(self) -> None:
        if self.freeze_cosmos_vae:
            return
        if self.constant_world:
            raise ValueError("With constant_world the VAE encoder gets no input to learn from; set freeze_cosmos_vae.")
        if self.latent_cache is not None:
            raise ValueError("A trainable VAE encoder changes the latents in every step; remove latent_cache.")
        steps = max([self.num_world_steps or 0, *(int(steps) for steps in self.world_steps_mix or {})])
        if steps > 0:
            raise ValueError(
                f"freeze_cosmos_vae is false with {steps} world steps, but a rollout passes no gradient to the VAE "
                "encoder; set num_world_steps to 0 to train it, or freeze it."
            )
        if self.num_world_steps is None:
            self.num_world_steps = 0  # a trained model's own number might need a rollout

    # -------------------------------------------------------------------------------------------------------- derived

    @property
    def steps_shares(self) -> dict[int, float]:
        """Numbers of world steps that batches sample from, with their shares; empty without a mix."""
        mix = self.world_steps_mix or {}
        total = sum(mix.values())
        return {int(steps): weight / total for steps, weight in mix.items()}

    @property
    def autocast(self) -> str:
        """`bf16`, `fp16` or `no`, as accelerate calls it."""
        return "no" if self.mixed_precision == "fp32" else self.mixed_precision

    @property
    def trackers(self) -> list[str]:
        """Where metrics are logged, as in `TrainingArguments.report_to`."""
        others = self.trainer_arguments.get("report_to", [])
        return others if "all" in others else [*(t for t, switch in TRACKERS.items() if getattr(self, switch)), *others]

    def check_files(self) -> None:
        """Raises a ValueError if a file of the dataset is missing; checked before the slow imports and the weights."""
        if self.dataset_name.endswith(".py"):
            check_file(self.dataset_name, "dataset_name", "a Python file with a load_datasets(config)")
        if self.dataset_name != "jsonl":
            return
        if self.train_dataset_path is None:
            raise ValueError("dataset_name jsonl needs train_dataset_path, a JSON Lines file; set it.")
        check_file(self.train_dataset_path, "train_dataset_path", "a JSON Lines file")
        if self.do_eval and self.eval_dataset_path is None:
            raise ValueError(
                "do_eval needs eval_dataset_path, a second JSON Lines file; set it, or set do_eval to false."
            )
        if self.do_eval:
            check_file(str(self.eval_dataset_path), "eval_dataset_path", "a JSON Lines file")

    # -------------------------------------------------------------------------------------------- reading and writing

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the config") -> TrainingConfig:
        """A config with some settings, under any of their names; the rest have their defaults.

        Raises:
            ValueError: if a key is unknown (the nearest known one is suggested), or if a value does not fit.
        """
        return cls._from_canonical(canonical(values, own_keys(), source))

    @classmethod
    def _from_canonical(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        known = own_keys()
        own = {key: value for key, value in settings.items() if key in known}
        return cls(**own, trainer_arguments={key: value for key, value in settings.items() if key not in known})

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None, changes: Sequence[str] = (), **values: Any) -> TrainingConfig:
        """Defaults, then a JSON file, then `key=value` changes, then `values` that are not None.

        Options and files of the dataset in the file are not used for another dataset.

        Args:
            path: None takes the defaults alone.
            changes: as `learning_rate=1e-3`; values are JSON, or text if they are not valid JSON.
        """
        content: dict[str, Any] = {} if path is None else canonical(read_json(path), own_keys(), str(path))
        in_file = cls._from_canonical(content)  # what is wrong in the file is reported first
        given = {**assignments(changes), **{key: value for key, value in values.items() if value is not None}}
        given = canonical(given, own_keys(), "the command line")
        dataset, former = given.get("dataset_name", in_file.dataset_name), in_file.dataset_name
        unused: list[str] = []
        if dataset != former:
            if not str(dataset).endswith(JSON_LINES) or former != "jsonl":
                unused = ["dataset_options"]
            if str(dataset).endswith(JSON_LINES):
                content.pop("train_dataset_path", None)
                unused += [] if former == "jsonl" or "eval_dataset_path" in given else ["do_eval"]
        unused = [key for key in unused if content.pop(key, None) and key not in given]
        config = cls._from_canonical({**content, **given})
        if unused:
            config.check_files()  # a missing file is reported without this note
            logger.info("%s of the config belong to %s and are not used for %s", " and ".join(unused), former, dataset)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Every setting but the token; of settings that another one replaces, only that one."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != SECRET}
        others = values.pop("trainer_arguments")
        if "optim" in others:
            del values["optimizer"]
        for switch in TRACKERS.values() if self.trackers == ["all"] else ():
            del values[switch]
        return {**values, **others, **({"report_to": self.trackers} if "report_to" in others else {})}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `read` takes."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def move_token(self) -> None:
        """Moves `hf_token` to the environment, where Hugging Face's libraries look for it."""
        if self.hf_token is not None:
            os.environ["HF_TOKEN"] = self.hf_token
            self.hf_token = None


def own_keys() -> list[str]:
    """The fields of TrainingConfig; every other key is a field of TrainingArguments."""
    return [known.name for known in dataclasses.fields(TrainingConfig) if known.name != "trainer_arguments"]


def check_file(path: str, key: str, content: str) -> None:
    """Raises a ValueError if there is no such file."""
    if not Path(path).is_file():
        raise ValueError(f"{no_file(path)}, which {key} names; give the path of {content}.")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: if there is no such file, or if it holds anything else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{no_file(path, 'config')}; give the path of a JSON file, such as configs/default.json.")
    return read_json_file(file, 'write it as {"key": value}')
