"""The model that a config describes: fused afresh, or a trained one to go on from, with the parts that learn.

A later stage of a run starts from the model that an earlier one wrote: other parts may learn, and a LoRA may be added,
but what the projector is does not change any more.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from theworld.model import freezing
from theworld.model.configuration import TheWorldConfig
from theworld.model.lora_settings import lora_settings
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.model.projector import RESET_SEED
from theworld.model.spec import ModelSpec, resolve_model
from theworld.training.config import TrainingConfig
from theworld.world_models.configuration import CosmosPredict2Config

# fields of a fresh fusion, by their names in both configs
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
    def inside(self) -> str | None:
        """Folder that base names starting with `./` are relative to."""
        return self.spec.find_base_dir()


def describe(config: TrainingConfig) -> Described:
    """Reads the configurations of the model and its bases.

    Raises:
        ValueError: a model that cannot be read, or settings that it cannot take.
    """
    spec = resolve_model(config.model_name, world_model=config.cosmos_model_name, **fusion_values(config))
    model_config = copy.deepcopy(spec.config)
    if spec.is_fused:
        check_unchanged(config, model_config)
        model_config.enable_world = model_config.enable_world and config.enable_world
        if config.num_world_steps is not None:
            model_config.num_world_steps = model_config.check_world_steps(config.num_world_steps)
        if config.lora is not None:
            wanted = lora_settings(config.lora)
            if model_config.lora not in (None, wanted):
                raise ValueError(f"{config.model_name} has another LoRA ({model_config.lora}); leave lora out.")
            model_config.lora = wanted
    set_sampling(config, model_config.world_config)
    for steps in config.steps_shares:
        model_config.check_world_steps(steps)
    return Described(spec, model_config)


def fusion_values(config: TrainingConfig) -> dict[str, Any]:
    """Fields of a fresh fusion's TheWorldConfig."""
    values = {name: getattr(config, name) for name in FUSION_FIELDS}
    return {**values, "num_world_steps": config.num_world_steps or 0, "lora": config.lora}


def set_sampling(config: TrainingConfig, world: CosmosPredict2Config) -> None:
    """Puts a run's way to sample rollouts, where it has one, into a world model's config."""
    for name in ("num_inference_steps", "guidance_scale"):
        if getattr(config, name) is not None:
            setattr(world, name, getattr(config, name))


def check_unchanged(config: TrainingConfig, model: TheWorldConfig) -> None:
    """Raises a ValueError for a field of a fresh fusion that is set to another value than the trained model has."""
    for field in dataclasses.fields(TrainingConfig):
        if field.name not in FUSION_FIELDS or field.name == "enable_world":  # a world can be left out, of any model
            continue
        value = getattr(config, field.name)
        if value not in (field.default, getattr(model, field.name)):
            raise ValueError(
                f"{field.name} is {value!r}, but {config.model_name} was trained with "
                f"{getattr(model, field.name)!r}, which cannot be changed any more; leave {field.name} out."
            )


def frozen_dtype(config: TrainingConfig) -> torch.dtype:
    """The type of what does not learn: float16 would overflow in Gemma's layers, which bfloat16 does not."""
    return torch.bfloat16 if config.autocast == "bf16" else torch.float32


def learning_parts(config: TrainingConfig, model: TheWorldConfig) -> tuple[str, ...]:
    """The parts that learn, by the names of `theworld.model.freezing`.

    Raises:
        ValueError: none does.
    """
    learns = {
        "projector": model.enable_world and not config.freeze_projector,
        "lora": model.lora is not None and not config.freeze_lora,
        "vision": not config.freeze_gemma_vision,
        "language": not config.freeze_gemma_language,
        "vae_encoder": not config.freeze_cosmos_vae,
    }
    parts = tuple(part for part, does in learns.items() if does)
    if not parts:
        raise ValueError("nothing is left to learn: give a LoRA, or set one of the freeze switches to false.")
    return parts


def world_parts(config: TrainingConfig, model: TheWorldConfig) -> tuple[str, ...]:
    """The parts of the world model that training itself needs: none where its latents are in a cache, or constant."""
    if not model.enable_world or config.constant_world or config.latent_cache is not None:
        return ()
    return world_parts_of_draws(config, model)


def world_parts_of_draws(config: TrainingConfig, model: TheWorldConfig) -> tuple[str, ...]:
    """The parts of the world model that make the latents of a run."""
    imagines = config.true_futures < 1 or config.do_eval
    farthest = max([model.num_world_steps, *config.steps_shares])
    return ("encoder", "transformer") if imagines and farthest else ("encoder",)


def build_model(config: TrainingConfig, described: Described) -> TheWorldForConditionalGeneration:
    """Loads the model, draws its projector anew where that is wanted, and lets the config's parts learn, in float32.

    Raises:
        ValueError: weights that cannot be read or do not fit.
    """
    parts = learning_parts(config, described.config)  # said before the weights are read
    dtype, loaded = frozen_dtype(config), world_parts(config, described.config)
    torch.manual_seed(config.seed)  # of a fresh LoRA
    model = described.spec.load(dtype=dtype, world_parts=loaded, config=described.config)
    if config.reset_projector:
        model.projector.reset_parameters(model.text_embedding_rms(), seed=RESET_SEED + config.seed)
    if config.projector_places == "waves" and (config.reset_projector or not described.trained):
        model.projector.init_sinusoidal()
    if config.use_gradient_checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in every version
            model.gradient_checkpointing_enable({"use_reentrant": False})
    freezing.train_only(model, parts)
    if model.config.enable_world:
        model.config.reads_world_tokens = True  # also behind a projector that stays as it is
    for parameter in model.parameters():
        if parameter.requires_grad:
            # AdamW's small steps would be lost in bfloat16
            parameter.data = parameter.data.float()
    return model
