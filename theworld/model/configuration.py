"""The configuration of a TheWorld model: its two base models, the latent grid, and how latents become tokens.

The latent grid and `world_token_count` are defined only here: the processor counts placeholders with them, the model
checks features against them, and `theworld info` prints them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.gemma3 import Gemma3Config

from theworld.media.video import Video
from theworld.model.gate import Gate, gate_settings
from theworld.model.lora_settings import lora_settings
from theworld.model.published import DEFAULT_GEMMA
from theworld.world_models.configuration import COSMOS_2B, CosmosPredict2Config, check_keys, check_numbers

PROJECTORS = ("linear", "mlp", "resampler")
WORLD_IMAGES = ("first", "all")
WORLD_IMAGE_SIZE = 224  # pixels per side that the world model of a new fusion sees
SPATIAL_MERGES = (1, 2, 4)


class TheWorldConfig(PreTrainedConfig):
    """A Gemma 3 vision-language model, a Cosmos-Predict2 world model and the projector between them.

    Args:
        vlm_config, world_config: the two base models.
        vlm_name_or_path, vlm_revision, world_name_or_path, world_revision: where their weights come from; an adapter
            checkpoint stores these instead of the weights.
        enable_world: False gives Gemma's own logits, bit for bit.
        num_world_steps: default number of future latent frames to imagine (one is 4 pixel frames).
        max_world_steps: rows of the temporal embedding after now.
        max_past_steps: rows of the temporal embedding before now: past latent frames of a video that are read at most.
            0 accepts images and no videos.
        world_image_size: side, in pixels, of the square image that the world model sees; None means 224, or the largest
            that the world model accepts.
        world_images: which images and videos of a question get world tokens, `first` or `all`.
        projector: `linear` (the source document's), `mlp`, or `resampler` (a fixed number of tokens per latent frame).
        spatial_merge: 1, 2 or 4; neighbouring cells along each side that are merged into one token (space-to-depth).
        projector_hidden_size: width inside `mlp` and `resampler`; None means the language model's width, and a quarter
            of it inside `resampler`.
        resampler_tokens: world tokens per latent frame of `resampler`.
        world_token_id: id of the world placeholder; None means the row after Gemma's image token, which the published
            tokenizer leaves free, so that no embedding is resized. A new fusion takes the first row that the base's own
            tokenizer leaves free.
        lora: LoRA on the language model: its rank, or `{"r": …, "lora_alpha": …, "target_modules": […]}`, or None.
            Defaults: rank 16, alpha twice the rank, all linear layers.
        trained_parts: parts (see `theworld.model.freezing`) whose weights an adapter of this model holds.
        reads_world_tokens: whether the projector was trained, so that the language model can read world tokens. The
            projector of a new fusion that was saved is not. None means that it was if `trained_parts` contains it.
        gate: when an answer needs an imagined future (`min_confidence`) and which futures are used (`max_jump`), chosen
            by `theworld gate`; see `Gate`. None means the defaults of `Gate`.

    Raises:
        ValueError: if a value is outside its range; the message names both.
    """

    model_type = "theworld"
    sub_configs = {"vlm_config": Gemma3Config, "world_config": CosmosPredict2Config}

    def __init__(
        self,
        vlm_config: Gemma3Config | dict[str, Any] | None = None,
        world_config: CosmosPredict2Config | dict[str, Any] | None = None,
        vlm_name_or_path: str = DEFAULT_GEMMA,
        vlm_revision: str | None = None,
        world_name_or_path: str = COSMOS_2B,
        world_revision: str | None = None,
        enable_world: bool = True,
        num_world_steps: int = 0,
        max_world_steps: int = 16,
        max_past_steps: int = 0,
        world_image_size: int | None = None,
        world_images: str = "first",
        projector: str = "linear",
        spatial_merge: int = 1,
        projector_hidden_size: int | None = None,
        resampler_tokens: int = 64,
        world_token_id: int | None = None,
        lora: dict[str, Any] | int | None = None,
        trained_parts: Sequence[str] = (),
        reads_world_tokens: bool | None = None,
        gate: Gate | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_keys(TheWorldConfig, kwargs)
        check_numbers({"max_world_steps": max_world_steps, "max_past_steps": max_past_steps})
        for name, config in (("vlm_config", vlm_config), ("world_config", world_config)):
            if config is not None and not isinstance(config, dict | PreTrainedConfig):
                raise ValueError(f"{name} is {config!r}; give the base model's config, a JSON object.")
        vlm = Gemma3Config(**vlm_config) if isinstance(vlm_config, dict) else vlm_config or Gemma3Config()
        if isinstance(world_config, dict):
            world_config = CosmosPredict2Config(**world_config)
        # Copies, because PreTrainedConfig sets the attention implementation of its sub-configs: a loaded model that
        # shared its config with us would silently lose its own, and with it its masks.
        self.vlm_config = copy.deepcopy(vlm)
        self.world_config = copy.deepcopy(world_config or CosmosPredict2Config())
        if world_image_size is None:
            world_image_size = min(WORLD_IMAGE_SIZE, self.world_config.largest_image())
        check_numbers({"world_image_size": world_image_size})
        self.vlm_name_or_path = vlm_name_or_path
        self.vlm_revision = vlm_revision
        self.world_name_or_path = world_name_or_path
        self.world_revision = world_revision
        self.enable_world = enable_world
        self.num_world_steps = num_world_steps
        self.max_world_steps = max_world_steps
        self.max_past_steps = max_past_steps
        self.world_image_size = world_image_size
        self.world_images = world_images
        self.projector = projector
        self.spatial_merge = spatial_merge
        self.projector_hidden_size = projector_hidden_size
        self.resampler_tokens = resampler_tokens
        self.world_token_id = self.vlm_config.image_token_id + 1 if world_token_id is None else world_token_id
        self.lora = lora_settings(lora)
        self.trained_parts = list(trained_parts)
        trained = "projector" in self.trained_parts
        self.reads_world_tokens = trained if reads_world_tokens is None else reads_world_tokens
        self.gate = gate_settings(gate)
        kwargs.setdefault("tie_word_embeddings", self.vlm_config.tie_word_embeddings)
        super().__init__(**kwargs)
        self._check()

    def _get_generation_parameters(self) -> dict[str, Any]:
        """What should be in `generation_config` but was set here, as in transformers.

        Its versions up to 5.17 compare with a default configuration, which takes milliseconds before each answer.
        """
        from transformers import GenerationConfig  # not above: only generation and saving need it

        names = set(GenerationConfig._get_default_generation_params()) - {"use_cache"}
        return {name: value for name, value in vars(self).items() if name in names and value is not None}

    def _check(self) -> None:
        if self.projector not in PROJECTORS:
            raise ValueError(f"projector is {self.projector!r}; choose one of {', '.join(PROJECTORS)}.")
        if self.spatial_merge not in SPATIAL_MERGES:
            raise ValueError(f"spatial_merge is {self.spatial_merge}; choose one of {SPATIAL_MERGES}.")
        if self.projector == "resampler" and self.spatial_merge != 1:
            raise ValueError(
                f"spatial_merge is {self.spatial_merge}; with projector 'resampler' it must be 1, since "
                "resampler_tokens says how many tokens a frame has."
            )
        if self.projector_hidden_size is not None and self.projector_hidden_size < 2:
            raise ValueError(f"projector_hidden_size is {self.projector_hidden_size}; it must be 2 or more.")
        if self.resampler_tokens < 1:
            raise ValueError(f"resampler_tokens is {self.resampler_tokens}; it must be 1 or more.")
        self.check_world_images(self.world_images)
        if self.world_image_size < 1 or self.world_image_size % self.world_config.spatial_factor:
            raise ValueError(
                f"world_image_size is {self.world_image_size}; it must be a multiple of the world model's "
                f"{self.world_config.spatial_factor} pixels per latent cell."
            )
        if self.enable_world and self.max_world_steps and self.world_image_size > self.world_config.largest_image():
            raise ValueError(
                f"world_image_size is {self.world_image_size}, and this world model imagines images of at most "
                f"{self.world_config.largest_image()} pixels per side; give a number up to that."
            )
        side, _ = self.world_grid()
        if side % self.spatial_merge:
            raise ValueError(
                f"spatial_merge {self.spatial_merge} does not divide the {side}×{side} latent grid of "
                f"world_image_size {self.world_image_size}."
            )
        for name, value in (("max_world_steps", self.max_world_steps), ("max_past_steps", self.max_past_steps)):
            if value < 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more.")
        self.check_world_steps(self.num_world_steps)

    def check_world_steps(self, num_world_steps: int) -> int:
        """Returns `num_world_steps`, or raises a ValueError when the temporal embedding has no row for it."""
        if isinstance(num_world_steps, bool) or not isinstance(num_world_steps, int):
            raise ValueError(f"num_world_steps is {num_world_steps!r}; give a whole number.")
        if not 0 <= num_world_steps <= self.max_world_steps:
            raise ValueError(
                f"num_world_steps is {num_world_steps}; this model takes 0 to {self.max_world_steps} (max_world_steps)."
            )
        return num_world_steps

    def check_world_latents(self, latents: Any, count: int | None = None) -> None:
        """Raises a ValueError unless these are float latents (count, C, T, h, w) of this model's grid."""
        from torch import Tensor

        channels, (height, width) = self.world_config.latent_channels, self.world_grid()
        wanted = f"({'n' if count is None else count}, {channels}, T, {height}, {width})"
        if not isinstance(latents, Tensor):
            raise ValueError(f"world_latents have the type {type(latents).__name__}; pass a tensor {wanted}.")
        shape = tuple(latents.shape)
        expected = (count, channels, None, height, width)
        if len(shape) != 5 or 0 in shape or any(b not in (None, a) for a, b in zip(shape, expected, strict=True)):
            raise ValueError(f"world_latents have the shape {shape}; they must be {wanted}, as `imagine` returns them.")
        if not latents.is_floating_point():
            raise ValueError(f"world_latents are {latents.dtype}; they must be floats.")

    def check_world_images(self, world_images: str) -> str:
        """Returns `world_images`, or raises a ValueError for anything but `first` and `all`."""
        if world_images not in WORLD_IMAGES:
            raise ValueError(f"world_images is {world_images!r}; choose 'first' or 'all'.")
        return world_images

    def past_steps_of(self, num_frames: int) -> int:
        """Past latent frames P of a video of `num_frames` that ends now: its last `num_pixel_frames(0, P)` are read.

        P is as large as the video and `max_past_steps` allow. One frame is an image, and has no past.

        Raises:
            ValueError: if there are frames before now, and none of them would be read.
        """
        factor = self.world_config.temporal_factor
        if num_frames > 1 and self.max_past_steps == 0:
            raise ValueError(
                f"Got a video of {num_frames:,} frames, and this model reads images only; give its last frame as an "
                "image, or use a model with max_past_steps of 1 or more."
            )
        if 1 < num_frames <= factor:
            raise ValueError(
                f"A video of {num_frames} frames is too short to have a past: one past world step is {factor} frames "
                f"at {self.world_config.fps} per second; give {1 + factor} or more, or the last frame as an image."
            )
        return min((num_frames - 1) // factor, self.max_past_steps)

    def read_video(self, video: Video) -> Video:
        """Loads a video as this model reads it: now, and what its past world steps need, at the world model's rate."""
        return video.load_past(self.world_config.fps, self.num_pixel_frames(0, self.max_past_steps))

    def read_future(self, future: Sequence[Any] | Video, count: int) -> Sequence[Any]:
        """The first `count` frames after now: a video at the world model's rate, anything else as it is."""
        if isinstance(future, Video):
            return future.load_future(self.world_config.fps, count).frames
        return future[:count]

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The language model's config, which `generate` and its caches read."""
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)

    def world_grid(self) -> tuple[int, int]:
        """Latent cells (h, w) of one frame."""
        side = self.world_image_size // self.world_config.spatial_factor
        return side, side

    def world_tokens_per_frame(self) -> int:
        """World tokens of one latent frame, after the spatial merge or the resampler."""
        if self.projector == "resampler":
            return self.resampler_tokens
        h, w = self.world_grid()
        return h * w // self.spatial_merge**2

    def world_token_count(self, num_world_steps: int, num_past_steps: int = 0) -> int:
        """Placeholders of one image or video: the world tokens of T = P + 1 + N latent frames, and two boundaries.

        Args:
            num_world_steps: N, imagined latent frames.
            num_past_steps: P, latent frames of a video before now.
        """
        return (num_past_steps + 1 + num_world_steps) * self.world_tokens_per_frame() + 2

    def num_pixel_frames(self, num_world_steps: int, num_past_steps: int = 0) -> int:
        """Pixel frames that T = P + 1 + N latent frames decode to; for N = 0, those that are encoded."""
        return 1 + self.world_config.temporal_factor * (num_past_steps + num_world_steps)
