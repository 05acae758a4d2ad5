"""TrainingConfig: every setting of a run, from its defaults, a JSON file and the command line, in that order.

An unknown key is an error that names the nearest known one. The token is the one value that is never written, shown or
compared: `hf_token` goes into the environment and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from theworld.storage.files import read_json_file
from theworld.world_models.configuration import COSMOS_2B

PRECISIONS = ("bf16", "fp16", "fp32", "no")  # "no" is accelerate's word for fp32
HUB_STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
PLACES = ("zeros", "waves")
OPTIMIZERS = ("adamw", "muon")
PLACEHOLDER_OWNER = "your-username/"  # of the examples in configs/
SECRET = "hf_token"
JSON_LINES = ".jsonl"


@dataclass
class TrainingConfig:
    """All settings of a training run; `configs/*.json` hold some, the rest have these defaults.

    The model. What is marked * belongs to a fresh fusion; a trained model keeps its own, and another value is an error.

    Args:
        model_name: a Gemma 3 (Hub id or folder) to fuse afresh, or a trained TheWorld model to go on from (`nano`, a
            folder, a Hub id).
        cosmos_model_name: * world model.
        num_world_steps: future latent frames a call imagines; None means 0, or a trained model's own.
        max_world_steps, max_past_steps: * rows of the temporal embedding after and before now; 0 past steps read no
            videos.
        freeze_gemma_vision, freeze_gemma_language, freeze_cosmos_vae: False lets that part learn beside the projector.
        enable_world: False trains a model that never sees world tokens (a control).
        constant_world: True gives zeros in the place of all latents, so that world tokens carry nothing (a control).
        projector, projector_hidden_size, resampler_tokens, spatial_merge, world_image_size, world_images: * as in
            TheWorldConfig.
        reset_projector: draws the projector of a trained model anew, from `seed`.
        projector_places: how a fresh or reset projector tells where a cell is: `zeros`, which learns it, or `waves`.
        lora: LoRA on the language model, its rank or peft's settings; on a trained model without one it is added.
        freeze_lora: True keeps the LoRA of a trained model as it is.
        freeze_projector: True keeps the projector as it is; in a fresh fusion it stays untrained (a control).

    The future.

    Args:
        num_inference_steps, guidance_scale: of a rollout; None means the world model's own.
        world_seed: another number imagines other futures.
        world_prompt: what the imagined future shows.
        futures_per_image: imagined futures of each picture, with different seeds, of which training draws one.
        true_futures: share of samples that read their true future in place of an imagined one, where they have it.
        world_steps_mix: numbers of world steps that batches draw from and how often, `{"0": 0.5, "4": 0.5}`; None
            means `num_world_steps` always. Evaluation always takes `num_world_steps`.
        world_dropout: share of batches with the world off, so that the model can also answer without.
        picture_dropout: share of batches whose pictures are seen by the world model alone.
        latent_cache: folder of world latents, shared by runs; they are computed once, and training does not load the
            world model. None computes them in every step.
        latent_batch_size: pictures that the world model works on at once when it fills the cache.

    Learning.

    Args:
        learning_rate, warmup_steps, lr_scheduler, weight_decay, adam_beta2, max_grad_norm: of AdamW; the rate rises
            over `warmup_steps` steps and falls as `lr_scheduler` says.
        optimizer: `adamw`, or `muon` for the matrices inside the layers and AdamW for the rest.
        muon_learning_rate: peak rate of Muon.
        batch_size: samples of one forward on one device.
        gradient_accumulation_steps: forwards of one step; the loss is the mean over all their answer tokens.
        num_epochs, max_steps: length of the run; `max_steps` wins where it is given.
        use_gradient_checkpointing: keeps less for backward and computes it again.
        mixed_precision: `bf16`, `fp16` or `fp32`. What learns is always kept in float32; what is frozen is in bfloat16
            under `bf16`. `fp16` needs a GPU.
        seed: of the order of samples and of what is drawn for each batch.

    Saving, evaluating and logging.

    Args:
        output_dir: the trained model, `checkpoint-N/`, `logs/` and `samples/`.
        save_steps, save_total_limit: a checkpoint every so many steps; how many are kept.
        resume_from_checkpoint: a checkpoint's folder, a run's folder (its last checkpoint), `last` (of `output_dir`,
            if there is one), or a Hub id.
        do_eval, eval_steps, eval_batch_size, num_eval_samples: evaluation while training; None means `batch_size`, and
            all samples.
        shown_samples: evaluation samples whose answers and imagined futures are written at each evaluation.
        logging_steps, log_to_tensorboard, log_to_wandb, wandb_project, wandb_run_name: where figures go.

    Data.

    Args:
        dataset_name: a name in `theworld.training.dataset_loading.DATASETS`, a `.jsonl` file, a `.py` file with a
            `load_datasets(config)`, or a dataset on the Hub.
        dataset_options: further arguments of that dataset.
        train_dataset_path, eval_dataset_path: files of `jsonl`.
        train_split, eval_split: of a dataset with splits.
        image_key, text_key, label_key: the fields of a Hub dataset; several image fields are separated by commas.
        question_template: the question where a dataset has none; `{field}` is replaced by that field.
        num_samples: at most so many training samples.
        streaming: reads the dataset as it comes, in its own order; needs `max_steps`.
        max_seq_length: most text tokens of a sample, picture and world tokens not counted; a longer one is left out.
            None takes samples of any length and counts none beforehand.
        num_workers: processes that prepare batches.

    The Hub.

    Args:
        push_to_hub, hub_model_id, hub_strategy, hub_private_repo: upload while training.
        hf_token: moved into the environment (HF_TOKEN), where libraries look for it; never stored.

    Raises:
        ValueError: a value of another type or outside its range, or settings that exclude each other.
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
    projector_places: str = "zeros"
    lora: int | dict[str, Any] | None = None
    freeze_lora: bool = False
    freeze_projector: bool = False

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    world_seed: int = 0
    world_prompt: str | None = None
    futures_per_image: int = 1
    true_futures: float = 0.0
    world_steps_mix: dict[str, float] | None = None
    world_dropout: float = 0.0
    picture_dropout: float = 0.0
    latent_cache: str | None = None
    latent_batch_size: int = 16

    optimizer: str = "adamw"
    muon_learning_rate: float = 0.02
    learning_rate: float = 1e-4
    lr_scheduler: str = "linear"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    batch_size: int = 4
    gradient_accumulation_steps: int = 4
    num_epochs: float = 3
    max_steps: int | None = None
    use_gradient_checkpointing: bool = False
    mixed_precision: str = "bf16"
    seed: int = 0

    output_dir: str = "./checkpoints"
    save_steps: int = 500
    save_total_limit: int | None = 3
    resume_from_checkpoint: str | None = None
    do_eval: bool = False
    eval_steps: int = 500
    eval_batch_size: int | None = None
    num_eval_samples: int | None = None
    shown_samples: int = 4
    logging_steps: int = 10
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
    max_seq_length: int | None = 2048
    num_workers: int = 4

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_strategy: str = "every_save"
    hub_private_repo: bool = False
    hf_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):
            setattr(self, each.name, checked(each.name, getattr(self, each.name), hints[each.name]))
        self._name_file()
        self._check()

    def _name_file(self) -> None:
        """A `.jsonl` file as `dataset_name` is short for `jsonl` and where it lies."""
        if not self.dataset_name.endswith(JSON_LINES):
            return
        if self.train_dataset_path is not None:
            raise ValueError(
                f"dataset_name is {self.dataset_name!r} and train_dataset_path {self.train_dataset_path!r}, two files "
                "to train on; leave one of them out."
            )
        self.dataset_name, self.train_dataset_path = "jsonl", self.dataset_name

    def _check(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        for names, least in LEAST.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and value < least:
                    raise ValueError(f"{name} is {value}; give {least} or more.")
        for name in ("true_futures", "world_dropout", "picture_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a share lies between 0 and 1.")
        if self.world_dropout + self.picture_dropout > 1:
            raise ValueError("world_dropout and picture_dropout add up to more than 1; no batch can be without both.")
        for name in ("learning_rate", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if not 0 < self.adam_beta2 < 1:
            raise ValueError(f"adam_beta2 is {self.adam_beta2}; it must lie between 0 and 1.")
        if self.streaming and self.max_steps is None:
            raise ValueError("a streamed dataset has no length, so streaming needs max_steps; set it.")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs hub_model_id, the repository to push to (owner/name).")
        if self.push_to_hub and str(self.hub_model_id).startswith(PLACEHOLDER_OWNER):
            raise ValueError(
                f"hub_model_id is still the example {self.hub_model_id!r}; put your own name there, or set push_to_hub "
                "to false."
            )
        for steps, share in (self.world_steps_mix or {}).items():
            if not steps.isdecimal() or isinstance(share, bool) or not isinstance(share, int | float) or share <= 0:
                raise ValueError(
                    f"world_steps_mix has {steps!r}: {share!r}; give numbers of world steps and how often each is "
                    'drawn, such as {"0": 0.5, "4": 0.5}.'
                )
        if self.world_steps_mix is not None and not self.world_steps_mix:
            raise ValueError("world_steps_mix is empty; leave it out, or name at least one number of world steps.")
        self._check_vae()

    def _check_vae(self) -> None:
        if self.freeze_cosmos_vae:
            return
        if self.constant_world:
            raise ValueError("with constant_world the VAE encoder sees nothing to learn from; set freeze_cosmos_vae.")
        if self.latent_cache is not None:
            raise ValueError("a VAE encoder that learns changes its latents in every step; leave latent_cache out.")
        imagined = max([self.num_world_steps or 0, *(int(steps) for steps in self.world_steps_mix or {})])
        if imagined > 0:
            raise ValueError(
                f"freeze_cosmos_vae is false with {imagined} world steps, but no gradient comes back through a "
                "rollout; set num_world_steps to 0 to train the VAE encoder, or freeze it."
            )
        if self.num_world_steps is None:
            self.num_world_steps = 0  # rather than a trained model's own number, which could not be learned from

    # ------------------------------------------------------------------------------------------------- what follows

    @property
    def steps_shares(self) -> dict[int, float]:
        """Numbers of world steps that batches draw from, and their shares; empty without a mix."""
        mix = self.world_steps_mix or {}
        total = sum(mix.values())
        return {int(steps): share / total for steps, share in mix.items()}

    @property
    def autocast(self) -> str:
        """`bf16`, `fp16` or `no`, as accelerate calls it."""
        return "no" if self.mixed_precision == "fp32" else self.mixed_precision

    # ---------------------------------------------------------------------------------------------- reading, writing

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the config") -> TrainingConfig:
        """A config of some keys; the rest have their defaults.

        Raises:
            ValueError: a key that nobody reads, with the nearest one that is known, or a value that does not fit.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
                raise ValueError(f"{where} has a key {key!r} that nobody reads; {hint}")
        return cls(**values)

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None, changes: Sequence[str] = (), **values: Any) -> TrainingConfig:
        """Defaults, then a JSON file, then `key=value` changes, then `values` that are not None.

        Args:
            path: None takes the defaults alone.
            changes: as `learning_rate=1e-3`; values are JSON, or text where they are not.
        """
        content: dict[str, Any] = {} if path is None else read_json(path)
        cls.from_dict(content, str(path))  # said of the file, not of the command line
        given = {**assignments(changes), **{key: value for key, value in values.items() if value is not None}}
        if str(given.get("dataset_name")).endswith(JSON_LINES):
            content.pop("train_dataset_path", None)  # the file's own, in whose place this one comes
        return cls.from_dict({**content, **given}, "the command line")

    def to_dict(self) -> dict[str, Any]:
        """Every setting but the token."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != SECRET}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `read` takes."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def move_token(self) -> None:
        """Puts `hf_token` where Hugging Face's libraries look for it, and forgets it here."""
        if self.hf_token is not None:
            os.environ["HF_TOKEN"] = self.hf_token
            self.hf_token = None


CHOICES = {
    "mixed_precision": PRECISIONS,
    "hub_strategy": HUB_STRATEGIES,
    "lr_scheduler": SCHEDULES,
    "projector_places": PLACES,
    "optimizer": OPTIMIZERS,
}
# the smallest value of whole numbers and rates
LEAST = {
    "max_world_steps max_past_steps num_world_steps warmup_steps weight_decay num_workers shown_samples max_grad_norm "
    "num_epochs": 0,
    "batch_size gradient_accumulation_steps save_steps eval_steps logging_steps max_seq_length max_steps num_samples "
    "eval_batch_size num_eval_samples save_total_limit futures_per_image resampler_tokens latent_batch_size": 1,
}


def checked(name: str, value: Any, wanted: Any) -> Any:
    """`value` as the type that a field is annotated with; a whole number will do for a float.

    Raises:
        ValueError: another type; a secret is not repeated.
    """
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    kinds = tuple(typing.get_origin(option) or option for option in options)
    if isinstance(value, bool) and bool not in kinds:
        fits = False
    elif float in kinds and isinstance(value, int):
        fits, value = True, float(value)
    else:
        fits = isinstance(value, kinds)
    if not fits:
        shown = "of another type" if name == SECRET else repr(value)
        words = {
            str: "text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            dict: "a JSON object",
            types.NoneType: "null",
        }
        raise ValueError(f"{name} is {shown}; give {' or '.join(words[kind] for kind in kinds)}.")
    return value


def assignments(changes: Sequence[str]) -> dict[str, Any]:
    """`["seed=1", "output_dir=runs/a"]` as a dict.

    Raises:
        ValueError: one without `=`.
    """
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is no setting; write it as learning_rate=1e-3.")
        values[key.strip()] = text if key.strip() == SECRET else parsed(text)
    return values


def parsed(text: str) -> Any:
    """A value of the command line: JSON, or text where it is not; NaN and Infinity are no JSON."""
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except json.JSONDecodeError:
        return text


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"There is no config {path}; give the path of a JSON file, such as configs/default.json.")
    return read_json_file(file, 'write it as {"key": value}')
