"""The model that a config describes: a new fusion or a trained model, with its trainable parts.

A later stage of training starts from the model that an earlier one wrote. Other parts may be trainable then, and a LoRA
may be added, but the architecture of the projector does not change.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from theworld.model import freezing
from theworld.model.configuration import TheWorldConfig
from theworld.model.lora_settings import lora_settings
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.projector import RESET_SEED
from theworld.model.spec import ModelSpec, resolve_model
from theworld.quantization import check_settings
from theworld.training.config import TrainingConfig
from theworld.world_models.configuration import check_interval

# fields of a new fusion that have the same name in both configs
FUSION_FIELDS = (
    "max_world_steps",
    "max_past_steps",
    "enable_world",
    "projector",
    "projector_hidden_size",
    "resampler_tokens",
    "spatial_merge",
    "world_image_size",
    "world_images",
)


@dataclass(frozen=True)
class Described:
    """What a config says its model is, before any weights are read.

    Attributes:
        spec: the model, by name.
        config: its configuration, with this run's settings.
    """

    spec: ModelSpec
    config: TheWorldConfig

    @property
    def trained(self) -> bool:
        """Whether the run continues from a trained TheWorld model."""
        return self.spec.is_fused

    @property
    def base_dir(self) -> str | None:
        """Folder that base names starting with `./` are relative to."""
        return self.spec.find_base_dir()


def describe(config: TrainingConfig) -> Described:
    """Reads the configurations of the model and its bases.

    Raises:
        ValueError: a model that cannot be read, or settings that it cannot take.
    """
    check_settings(config.quantization, fast_path=config.fast_path)
    values = {name: getattr(config, name) for name in FUSION_FIELDS}
    values |= {"num_world_steps": config.num_world_steps or 0, "lora": config.lora}
    spec = resolve_model(config.model_name, world_model=config.cosmos_model_name, **values)
    model_config = copy.deepcopy(spec.config)
    if spec.is_fused:
        check_unchanged(config, model_config)
        model_config.enable_world = model_config.enable_world and config.enable_world
        if config.num_world_steps is not None:
            model_config.num_world_steps = model_config.check_world_steps(config.num_world_steps)
        if config.lora is not None:
            wanted = lora_settings(config.lora)
            if model_config.lora not in (None, wanted):
                raise ValueError(f"{config.model_name} has another LoRA ({model_config.lora}); remove lora.")
            model_config.lora = wanted
    for name in ("num_inference_steps", "guidance_scale", "guidance_interval"):
        if getattr(config, name) is not None:
            setattr(model_config.world_config, name, getattr(config, name))
    check_interval(config.guidance_interval)
    for steps in config.steps_shares:
        model_config.check_world_steps(steps)
    return Described(spec, model_config)


def check_unchanged(config: TrainingConfig, model: TheWorldConfig) -> None:
    """Raises a ValueError if a setting of new fusions differs from the value of the trained model."""
    for name in FUSION_FIELDS:
        value, trained = getattr(config, name), getattr(model, name)
        # enable_world may be switched off for any model
        if name != "enable_world" and value not in (getattr(TrainingConfig, name), trained):
            raise ValueError(
                f"{name} is {value!r}, but {config.model_name} was trained with {trained!r}, which cannot be changed; "
                f"remove {name}."
            )


def frozen_dtype(config: TrainingConfig) -> torch.dtype:
    """The dtype of frozen parameters. float16 would overflow in Gemma's layers; bfloat16 does not."""
    return torch.bfloat16 if config.autocast == "bf16" else torch.float32


def trainable_parts(config: TrainingConfig, model: TheWorldConfig) -> tuple[str, ...]:
    """The trainable parts, by the names of `theworld.model.freezing`.

    Raises:
        ValueError: if there are none.
    """
    trainable = {
        "projector": model.enable_world and not config.freeze_projector,
        "lora": model.lora is not None and not config.freeze_lora,
        "vision": not config.freeze_gemma_vision,
        "language": not config.freeze_gemma_language,
        "vae_encoder": not config.freeze_cosmos_vae,
    }
    parts = tuple(part for part, is_trainable in trainable.items() if is_trainable)
    if not parts:
        raise ValueError("No trainable parameters: set lora, or set one of the freeze_* keys to false.")
    if config.quantization is not None and {"vision", "language"} & set(parts):
        raise ValueError(
            f"quantization is {config.quantization}, but quantised weights cannot be trained; set freeze_gemma_vision "
            "and freeze_gemma_language to true (and lora to train the language model), or remove quantization."
        )
    return parts


def world_parts(config: TrainingConfig, model: TheWorldConfig) -> tuple[str, ...]:
    """The parts of the world model that training needs; none if its latents come from a cache or are constant."""
    if not model.enable_world or config.constant_world or config.latent_cache is not None:
        return ()
    return world_parts_for_latents(config, model)


def world_parts_for_latents(config: TrainingConfig, model: TheWorldConfig) -> tuple[str, ...]:
    """The parts of the world model that compute the latents of a run."""
    rolls_out = config.true_futures < 1 or config.do_eval
    farthest = max([model.num_world_steps, *config.steps_shares])
    return ("encoder", "transformer") if rolls_out and farthest else ("encoder",)


def build_model(config: TrainingConfig, described: Described) -> TheWorldForConditionalGeneration:
    """Loads the model, re-initialises its projector if requested, and makes the config's parts trainable, in float32.

    Raises:
        ValueError: if weights cannot be read or do not fit.
    """
    parts = trainable_parts(config, described.config)  # may raise, so before the weights are read
    dtype, loaded = frozen_dtype(config), world_parts(config, described.config)
    torch.manual_seed(config.seed)  # initialises a new LoRA
    model = described.spec.load(
        dtype=dtype, world_parts=loaded, config=described.config, quantization=config.quantization
    )
    if config.reset_projector:
        model.projector.reset_parameters(model.text_embedding_rms(), seed=RESET_SEED + config.seed)
    if config.projector_positions == "sinusoidal" and (config.reset_projector or not described.trained):
        model.projector.init_sinusoidal()
    freezing.train_only(model, parts)
    model.use_fast_path(config.fast_path)
    if model.config.enable_world:
        model.config.reads_world_tokens = True  # also with a frozen projector
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # AdamW's small steps would be lost in bfloat16
    return model
