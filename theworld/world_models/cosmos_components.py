"""Cosmos-Predict2's three components, built from a config, and their files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.initialization import no_init_weights

from theworld.quantization import prepare_world_transformer, quantised_parameter
from theworld.world_models.base import PROMPT_EMBEDS
from theworld.world_models.configuration import COSMOS_SCHEDULER, CosmosPredict2Config
from theworld.world_models.diffusers_folder import read_component_config, read_json, read_weights
from theworld.world_models.offload import offload_transformer

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler

MODEL_INDEX = {
    "_class_name": "Cosmos2VideoToWorldPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "CosmosTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
ROLLOUT_CONFIG = "rollout_config.json"  # our own file: fields of a config besides the three components'
ROLLOUT_FIELDS = (
    "text_tokens",
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "sigma_conditioning",
    "fps",
    "weights_from",
)


def read_config(folder: Path) -> CosmosPredict2Config:
    """Reads the config of a local world folder; fields missing in `rollout_config.json` have their defaults."""
    rollout = read_json(folder / ROLLOUT_CONFIG) if (folder / ROLLOUT_CONFIG).is_file() else {}
    unknown = sorted(rollout.keys() - set(ROLLOUT_FIELDS))
    if unknown:
        raise ValueError(f"{folder / ROLLOUT_CONFIG} has an unknown key {unknown[0]!r}; known: {ROLLOUT_FIELDS}.")
    # weights of unknown origin count as NVIDIA's, because the published folders do not name it
    rollout.setdefault("weights_from", "nvidia")
    return CosmosPredict2Config(
        vae=read_component_config(folder / "vae"),
        transformer=read_component_config(folder / "transformer"),
        scheduler=read_component_config(folder / "scheduler"),
        **rollout,
    )


def file_patterns(parts: Sequence[str]) -> list[str]:
    """Patterns of the files of a repository that these parts need."""
    configs = ["vae/config.json", "transformer/config.json", "scheduler/scheduler_config.json"]
    patterns = ["model_index.json", ROLLOUT_CONFIG, *configs]
    if "encoder" in parts or "decoder" in parts:
        patterns.append("vae/diffusion_pytorch_model*safetensors*")
    if "transformer" in parts:
        patterns += ["transformer/diffusion_pytorch_model*safetensors*", PROMPT_EMBEDS]
    return patterns


def _check_keys(name: str, cls: type, config: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    known = set(inspect.signature(cls.__init__).parameters) - {"self"} | set(extra)  # type: ignore[misc]
    unknown = sorted(config.keys() - known)
    if unknown:
        raise ValueError(
            f"The world model's {name} config has a key {unknown[0]!r} that {cls.__name__} does not have; correct it, "
            "or use the version of diffusers that wrote it."
        )


def new_vae(config: CosmosPredict2Config) -> AutoencoderKLWan:
    """A VAE with random weights, or without storage under `torch.device("meta")`."""
    from diffusers import AutoencoderKLWan

    _check_keys("vae", AutoencoderKLWan, config.vae)
    vae = AutoencoderKLWan(**config.vae)
    for name in ("latents_mean", "latents_std"):
        if len(vae.config[name]) != config.latent_channels:
            raise ValueError(
                f"The vae config's {name} has {len(vae.config[name])} values; z_dim is {config.latent_channels}."
            )
    return vae


def new_transformer(config: CosmosPredict2Config) -> CosmosTransformer3DModel:
    """A transformer with random weights, or without storage under `torch.device("meta")`."""
    from diffusers import CosmosTransformer3DModel

    _check_keys("transformer", CosmosTransformer3DModel, config.transformer)
    transformer = CosmosTransformer3DModel(**config.transformer)
    channels = (transformer.config.in_channels, transformer.config.out_channels)
    if channels != (config.latent_channels + 1, config.latent_channels):
        raise ValueError(
            f"The transformer has {channels[0]} input and {channels[1]} output channels; with a VAE of "
            f"{config.latent_channels} channels it must have {config.latent_channels + 1} (one is the mask) and "
            f"{config.latent_channels}."
        )
    return transformer


def read_vae(
    folder: Path,
    config: CosmosPredict2Config,
    prefixes: Sequence[str],
    dtype: torch.dtype | None,
    device: torch.device,
) -> AutoencoderKLWan:
    """The VAE of a local world folder, in eval mode; only the tensors with these prefixes are on `device`."""
    with torch.device("meta"), no_init_weights():
        vae = new_vae(config)
    vae.load_state_dict(read_weights(folder, vae.state_dict(), prefixes, dtype, device), strict=False, assign=True)
    return vae.eval()


def read_transformer(
    folder: Path,
    config: CosmosPredict2Config,
    dtype: torch.dtype | None,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    offload: bool = False,
) -> CosmosTransformer3DModel:
    """The transformer of a local world folder, in eval mode on `device`; each weight is quantised as it is read.

    With `offload`, its weights wait in CPU memory, and run on `device`.
    """
    with torch.device("meta"), no_init_weights():
        transformer = new_transformer(config)
    expected = transformer.state_dict()
    if quantization is None:
        place = torch.device("cpu") if offload else device
        transformer.load_state_dict(read_weights(folder, expected, dtype=dtype, device=place), assign=True)
    else:
        prepare_world_transformer(transformer, quantization)
        read_quantised(transformer, folder, expected, dtype, device)
    if offload:
        offload_transformer(transformer, device)
    return transformer.eval()


def read_quantised(
    transformer: nn.Module,
    folder: Path,
    expected: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Reads the weights of a transformer that `prepare_world_transformer` has prepared."""

    def convert(name: str, value: Tensor) -> Tensor:
        quantised = quantised_parameter(transformer, name, value)
        return nn.Parameter(value, requires_grad=False) if quantised is None else quantised

    weights = read_weights(folder, expected, dtype=dtype, device=device, convert=convert)
    for name, parameter in weights.items():
        owner, _, last = name.rpartition(".")
        setattr(transformer.get_submodule(owner), last, parameter)


def new_scheduler(config: CosmosPredict2Config) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler with the values that Cosmos adds to its config; a new one each time, because it has state."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    cosmos = {key: value for key, value in COSMOS_SCHEDULER.items() if key != "use_karras_sigmas"}
    _check_keys("scheduler", FlowMatchEulerDiscreteScheduler, config.scheduler, extra=tuple(cosmos))
    scheduler = FlowMatchEulerDiscreteScheduler(**{k: v for k, v in config.scheduler.items() if k not in cosmos})
    scheduler.register_to_config(**{key: config.scheduler.get(key, value) for key, value in cosmos.items()})
    if scheduler.config.sigma_data != 1.0:
        raise ValueError(f"sigma_data is {scheduler.config.sigma_data}; it must be 1.0, as for normalised latents.")
    if scheduler.config.stochastic_sampling:
        raise ValueError("stochastic_sampling must be off, because a rollout is determined by its seeds.")
    return scheduler
