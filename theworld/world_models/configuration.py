"""The configuration of a Cosmos-Predict2 world model, and the published values of its 2B variant."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.gemma3 import Gemma3Config

from theworld.messages import suggest
from theworld.storage.hub import COSMOS_2B as COSMOS_2B  # the default of a new model is needed before transformers

# Cosmos-Predict2-2B-Video2World as published: https://huggingface.co/nvidia/Cosmos-Predict2-2B-Video2World
COSMOS_2B_TRANSFORMER: dict[str, Any] = {
    "in_channels": 17,
    "out_channels": 16,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": [128, 240, 240],
    "patch_size": [1, 2, 2],
    "rope_scale": [1.0, 3.0, 3.0],
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}
COSMOS_SCHEDULER: dict[str, Any] = {
    "use_karras_sigmas": True,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "sigma_data": 1.0,
    "final_sigmas_type": "sigma_min",
}
WEIGHTS_FROM = ("own", "nvidia")
WAN_LATENT_CHANNELS = 16  # AutoencoderKLWan's default z_dim, for a vae dict that leaves it out


def check_keys(config_class: type[PreTrainedConfig], keys: Iterable[str]) -> None:
    """Raises a ValueError for a key that neither the class nor transformers knows, with the nearest known one.

    transformers keeps any key as an unused attribute, so a misspelt setting would silently have no effect.
    """
    own = [name for name in inspect.signature(config_class.__init__).parameters if name not in ("self", "kwargs")]
    for key in keys:
        if key not in own and key not in keys_of_transformers() and not key.startswith("_"):
            raise ValueError(f"A {config_class.model_type} config has no key {key!r}; {suggest(key, own)}")


@cache
def keys_of_transformers() -> frozenset[str]:
    """Keys of transformers' own in any config; versions differ in which class a key belongs to."""
    configs = (PreTrainedConfig(), Gemma3Config(), Gemma3Config().get_text_config())
    # what `AutoModel.from_pretrained(…)` passes through the config to the model
    passed_on = ("attn_implementation", "experts_implementation", "torch_dtype")
    return frozenset((*dir(PreTrainedConfig), *passed_on)).union(*(config.to_dict() for config in configs))


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raises a ValueError for a setting that must be an integer and is not."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} is {value!r}; it must be an integer.")


def check_interval(interval: Any) -> list[float] | None:
    """Returns a guidance interval as a list, or None for all of the schedule.

    Raises:
        ValueError: unless it is None or two numbers with 0 <= start < end <= 1.
    """
    if interval is None:
        return None
    numbers = list(interval) if isinstance(interval, Sequence) and not isinstance(interval, str) else []
    numeric = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 2 or not numeric or not 0 <= numbers[0] < numbers[1] <= 1:
        raise ValueError(
            f"guidance_interval is {interval!r}; it must be two shares [start, end], 0 <= start < end <= 1."
        )
    return numbers


class CosmosPredict2Config(PreTrainedConfig):
    """A Cosmos-Predict2 world model: the diffusers configs of its components, and how a rollout is sampled.

    Args:
        vae: keyword arguments of diffusers' `AutoencoderKLWan`; empty means the published VAE.
        transformer: keyword arguments of `CosmosTransformer3DModel`; default is the 2B model.
        scheduler: keyword arguments of `FlowMatchEulerDiscreteScheduler`.
        text_tokens: length of a prompt embedding (512 for Cosmos-Predict2's T5).
        num_inference_steps: denoising steps of a rollout; at least 2, because one step returns noise.
        guidance_scale: classifier-free guidance; 1.0 disables it and halves the computation.
        guidance_interval: (start, end), the part of the schedule in which guidance is applied, as shares from 0 to 1;
            the other passes cost half as much. None applies it everywhere.
        sigma_conditioning: noise level of the conditioning frames.
        fps: frames per second of the videos that are read and imagined; scales the transformer's temporal rotary
            embedding.
        weights_from: origin of the weights, `own` (trained from scratch) or `nvidia` (NVIDIA's, or fine-tuned from
            them). It is saved in a world folder; a folder without it is treated as NVIDIA's.

    Raises:
        ValueError: if `weights_from` is neither 'own' nor 'nvidia', or a value has the wrong type.
    """

    model_type = "cosmos_predict2"

    def __init__(
        self,
        vae: dict[str, Any] | None = None,
        transformer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        text_tokens: int = 512,
        num_inference_steps: int = 10,
        guidance_scale: float = 7.0,
        guidance_interval: Sequence[float] | None = None,
        sigma_conditioning: float = 0.0001,
        fps: int = 16,
        weights_from: str = "own",
        **kwargs: Any,
    ) -> None:
        check_keys(CosmosPredict2Config, kwargs)
        check_numbers({"text_tokens": text_tokens, "num_inference_steps": num_inference_steps, "fps": fps})
        if fps < 1:
            raise ValueError(f"fps is {fps}; it must be 1 or more.")
        for name, component in (("vae", vae), ("transformer", transformer), ("scheduler", scheduler)):
            if component is not None and not isinstance(component, dict):
                raise ValueError(f"{name} is {component!r}; pass its diffusers config, a JSON object.")
        self.vae = dict(vae or {})
        self.transformer = dict(transformer or COSMOS_2B_TRANSFORMER)
        self.scheduler = dict(scheduler or COSMOS_SCHEDULER)
        self.text_tokens = text_tokens
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.guidance_interval = check_interval(guidance_interval)
        self.sigma_conditioning = sigma_conditioning
        self.fps = fps
        self.weights_from = weights_from
        if weights_from not in WEIGHTS_FROM:
            raise ValueError(f"weights_from is {weights_from!r}; choose one of {', '.join(WEIGHTS_FROM)}.")
        super().__init__(**kwargs)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.get("z_dim", WAN_LATENT_CHANNELS))

    @property
    def temporal_factor(self) -> int:
        """Pixel frames per latent frame after the first one."""
        downsample = self.vae.get("temperal_downsample", [False, True, True])  # diffusers' spelling
        return int(2 ** sum(bool(d) for d in downsample))

    @property
    def seconds_per_world_step(self) -> float:
        """How long a world step is."""
        return self.temporal_factor / self.fps

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.vae.get("dim_mult", [1, 2, 4, 4])) - 1))

    def largest_image(self) -> int:
        """Side, in pixels, of the largest square image whose latents fit the transformer's position embedding."""
        _, rows, columns = self.transformer.get("max_size", COSMOS_2B_TRANSFORMER["max_size"])
        return int(min(rows, columns)) * self.spatial_factor
