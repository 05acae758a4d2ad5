"""The fused model: Gemma 3, a world model, and the projector between them.

From an image to an answer: embed the text, scatter Gemma's image features over its image placeholders, scatter the
projected world latents over the world placeholders, and call Gemma's own forward. With the world model disabled, all
inputs are passed to Gemma unchanged.

Shapes: B prompts, L tokens, n images or videos with world placeholders, F pixel frames, C latent channels,
T = P + 1 + N latent frames (past, now, imagined), h×w latent grid, K = world_token_count(N, P) placeholders per image,
D width of the language model.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3ForConditionalGeneration,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3CausalLMOutputWithPast

from theworld.model import freezing, loading, lora, saving
from theworld.model.call_plan import NO_WORLD_MODEL, world_parts_for
from theworld.model.configuration import TheWorldConfig
from theworld.model.fast_path import FastPathMixin
from theworld.model.language_loss import call_language, with_unused
from theworld.model.placeholders import Tokens, find_placeholders, scatter, single_value
from theworld.model.processing import TheWorldProcessor, prompts_each
from theworld.model.projector import WorldProjector
from theworld.quantization import MERGE, is_quantised
from theworld.storage.adapters import copy_tensors
from theworld.storage.hub import resolve, split_checkpoint_name
from theworld.world_models import world_model_class
from theworld.world_models.base import WorldModel

if TYPE_CHECKING:
    from theworld.model.frozen_loss import FrozenLoss

logger = logging.getLogger(__name__)

WORLD_INPUTS = (
    "world_frames",
    "world_latents",
    "world_embeds",  # one of them is given
    "world_seeds",
    "num_world_steps",
    "num_past_steps",
    "world_prompt",
)
PREFILL_INPUTS = ("pixel_values", "image_features", *WORLD_INPUTS)  # used once, before the first token is generated


class TheWorldForConditionalGeneration(FastPathMixin, PreTrainedModel, GenerationMixin):
    """A Gemma 3 that also reads world tokens.

    Args:
        config: the model's configuration.
        vlm, world: loaded base models; None builds them from the config with random weights.
        world_parts: parts of the world model to build if `world` is None.
    """

    config_class = TheWorldConfig
    config: TheWorldConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False  # Gemma averages over its labels itself, so Trainer must not divide by token counts
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["Gemma3DecoderLayer", "SiglipEncoderLayer", "CosmosTransformerBlock", "WorldProjector"]
    _skip_keys_device_placement = ["past_key_values"]
    _tied_weights_keys = {"vlm.lm_head.weight": "vlm.model.language_model.embed_tokens.weight"}

    def __init__(
        self,
        config: TheWorldConfig,
        vlm: Gemma3ForConditionalGeneration | None = None,
        world: WorldModel | None = None,
        world_parts: Sequence[str] | None = None,
    ) -> None:
        super().__init__(config)
        rows = config.get_text_config().vocab_size
        if config.world_token_id >= rows:
            raise ValueError(f"world_token_id is {config.world_token_id}; the vocabulary has only {rows} rows.")
        self.vlm = vlm if vlm is not None else Gemma3ForConditionalGeneration(copy.deepcopy(config.vlm_config))
        # one config object, not two: masks and caches read the attention implementation that the VLM sets on its own
        config.vlm_config = self.vlm.config
        self.world: WorldModel | None = world if config.enable_world else None
        if config.enable_world and world is None:
            parts = world_parts_for(config.max_world_steps) if world_parts is None else tuple(world_parts)
            self.world = world_model_class(config.world_config.model_type)(config.world_config, parts=parts)
        self.projector = WorldProjector(config)
        if config.lora is not None:
            lora.inject(self.language_model, config.lora)
        self.frozen_loss: FrozenLoss | None = None  # set by Trainer for the fast path, as is the next one
        self.frozen_vision: Callable[[Tensor], Tensor] | None = None
        self.bases_folder: str | None = None  # folder that base names starting with `./` are relative to
        self.loaded_weights: freezing.PartChecksums | None = None
        self.generation_config = copy.deepcopy(self.vlm.generation_config)
        self.post_init()
        if self.device.type != "meta":
            self.projector.reset_parameters(self.text_embedding_rms())

    def init_weights(self) -> None:
        """Initialises nothing: each part initialises its own weights when it is built, and loaded ones must stay."""
        self.tie_weights(recompute_mapping=False)

    def enable_input_require_grads(self) -> None:
        """Does nothing. With gradient checkpointing, transformers would register a hook on every embedding.

        World tokens carry gradients into the language model without it, and a hook on SigLIP's patch embedding would
        run the backward pass of a frozen vision tower for nothing.
        """

    @classmethod
    def from_bases(
        cls,
        config: TheWorldConfig,
        dtype: torch.dtype | str | None,
        world_parts: Sequence[str] | None,
        base_dir: str | None = None,
        **loading_arguments: Any,
    ) -> TheWorldForConditionalGeneration:
        """Loads the base models that a config names, with an untrained projector (and LoRA); see `load_bases`."""
        parts = world_parts_for(config.num_world_steps) if world_parts is None else tuple(world_parts)
        if isinstance(attention := loading_arguments.get("attn_implementation"), str):
            config._attn_implementation = attention
        elif attention is None and config._attn_implementation is not None:  # AutoModel passes it in the config
            loading_arguments["attn_implementation"] = config._attn_implementation
        vlm, world = loading.load_bases(config, dtype, parts, base_dir, **loading_arguments)
        model = cls(config, vlm=vlm, world=world)
        model.bases_folder = base_dir
        model.projector.to(device=vlm.get_input_embeddings().weight.device, dtype=vlm.dtype)
        if "hf_device_map" in vars(vlm):
            model.hf_device_map = vlm.hf_device_map  # Trainer does not move a model that has one
        freezing.train_only(model, ())
        model.loaded_weights = freezing.PartChecksums(model)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: TheWorldConfig | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        world_parts: Sequence[str] | None = None,
        checkpoint_name: str | None = None,
        world_config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> TheWorldForConditionalGeneration:
        """Loads the base models that an adapter names, then the adapter, without missing or unexpected tensors.

        Args:
            pretrained_model_name_or_path: `nano`, a folder, or a Hub id.
            config: replaces the folder's own.
            dtype: of all parts; None keeps the dtype of the stored Gemma.
            world_parts: parts of the world model to load; None means what `config.num_world_steps` needs.
            checkpoint_name: a folder or file inside the repository, such as `checkpoint-1000`.
            world_config: the configuration in the world model's own folder, if it has been read already.
            kwargs: `quantization_config` ("4bit", "8bit" or a `BitsAndBytesConfig`) and `world_model_offload`, which
                hold for both base models; others are passed to Gemma's `from_pretrained` (`device_map`, …).

        Raises:
            ValueError: if it is not a TheWorld model, or its tensors do not match the config.
        """
        kwargs.pop("trust_remote_code", None)
        legacy_dtype = kwargs.pop("torch_dtype", None)  # transformers' earlier name
        dtype = legacy_dtype if dtype is None else dtype
        name = os.fspath(pretrained_model_name_or_path)
        config, tensors, base_dir = loading.read_adapter(name, checkpoint_name, revision, config)
        loaded = cls.from_bases(config, dtype, world_parts, base_dir, world_config=world_config, **kwargs)
        loaded.load_adapter_tensors(tensors, name)
        if loaded.world is not None:
            loaded.world.read_kept_prompts(resolve(name), split_checkpoint_name(checkpoint_name)[0], revision)
        loaded.config._name_or_path = name
        return loaded

    def load_adapter_tensors(self, tensors: dict[str, Tensor], where: str) -> None:
        """Copies the tensors of an adapter after checking that they are exactly those of `config.trained_parts`."""
        copy_tensors(dict(freezing.parameters_of(self, self.config.trained_parts)), tensors, where)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Named tensors that an adapter of this model holds (see `theworld.model.saving`); tied ones once."""
        return dict(freezing.parameters_of(self, saving.parts_to_save(self)))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        full: bool = False,
        dtype: torch.dtype | str | None = None,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Writes the adapter atomically.

        It has `config.json`, `model.safetensors` with the trained parts, and, if the world model's own folder has no
        default prompts, `prompt_embeds.safetensors` with the embeddings that were computed.

        Args:
            save_directory: folder to write to.
            full: also write both base models into it, so that it needs nothing else.
            dtype: of the base models in a full export. None keeps the dtype in which Gemma is stored, unless a base
                model was changed: changed weights keep the dtype that they have in memory.
            is_main_process: False writes nothing.
            state_dict: the adapter's tensors, where the model holds shards of them.
            max_shard_size: not used; transformers' `push_to_hub` passes it.

        Raises:
            ValueError: if `dtype` is given without `full`, or the model has a LoRA that cannot be saved in this way, or
                weights that are sharded.
        """
        if is_main_process:
            saving.save(self, save_directory, full, dtype, state_dict)

    def merge_lora(self) -> None:
        """Merges the LoRA into the language model's weights and removes its layers; the logits stay the same.

        The language model then differs from the base's, so an adapter that is saved afterwards contains all of it.

        Raises:
            ValueError: if the model has no LoRA, or its weights are quantised.
        """
        if self.config.lora is None:
            raise ValueError("This model has no LoRA to merge.")
        if any(map(is_quantised, self.language_model.parameters())):
            raise ValueError(MERGE)
        lora.merge(self.language_model)
        self.config.lora = None
        parts = {*self.config.trained_parts, "language"} - {"lora"}
        self.config.trained_parts = [part for part in freezing.PARTS if part in parts]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.lm_head

    @property
    def language_model(self) -> nn.Module:
        return self.vlm.model.language_model

    def text_embedding_rms(self) -> float:
        """Root mean square of the embeddings that the first layer receives (Gemma scales them by √D)."""
        ids = torch.arange(min(4096, self.config.get_text_config().vocab_size))
        embeddings = self.get_input_embeddings()
        with torch.no_grad():
            return float(embeddings(ids.to(next(embeddings.parameters()).device)).float().square().mean().sqrt())

    def lora_disabled(self) -> AbstractContextManager[None]:
        """A context in which the LoRA is disabled."""
        return lora.disabled(self.language_model)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Gemma's soft tokens (images, tokens, D) of pixels (images, 3, H, W) from its image processor."""
        if self.frozen_vision is not None:
            return self.frozen_vision(pixel_values)
        return self.vlm.model.get_image_features(pixel_values, return_dict=True).pooler_output

    def world_latents_of(
        self,
        world_frames: Tensor,
        num_world_steps: int,
        seeds: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        world_prompt: str | Sequence[str] | None = None,
        **rollout: Any,
    ) -> Tensor:
        """Latents of the given frames and, for N > 0, of the imagined ones after them.

        Args:
            world_frames: (n, 3, F, S, S) in [-1, 1], in order of time, F = 1 + 4·P; the last one is now.
            num_world_steps: N, future latent frames.
            seeds: one per image, for the noise of its rollout.
            progress: called with (denoising steps done, total).
            world_prompt: text that describes the future, one for all images or one per image; None or empty is the
                default.
            rollout: further arguments of `WorldModel.imagine`; by default the config's values.

        Returns:
            (n, C, T, h, w) normalised latents, T = P + 1 + N; the first P + 1 do not depend on N.

        Raises:
            ValueError: if the model has no world model.
        """
        if self.world is None:
            raise ValueError(NO_WORLD_MODEL)
        self.config.check_world_steps(num_world_steps)
        prompts = prompts_each(world_prompt, world_frames.shape[0])
        for name in ("num_inference_steps", "guidance_scale", "guidance_interval"):
            rollout.setdefault(name, getattr(self.config.world_config, name))
        return self.world.imagine(
            world_frames, num_world_steps, seeds=seeds, prompts=prompts, progress=progress, **rollout
        )

    def world_tokens(
        self,
        world_frames: Tensor | None = None,
        world_latents: Tensor | None = None,
        world_embeds: Tensor | None = None,
        world_seeds: Tensor | None = None,
        num_world_steps: Tensor | int | None = None,
        num_past_steps: Tensor | int | None = None,
        world_prompt: str | Sequence[str] | None = None,
    ) -> Tensor | None:
        """World tokens (n, K, D) from frames, latents or projected tokens; None if none of them is given."""
        given = [form for form in (world_frames, world_latents, world_embeds) if form is not None]
        if len(given) > 1:
            raise ValueError("Pass only one of world_frames, world_latents and world_embeds.")
        if world_frames is None and world_prompt is not None:
            raise ValueError("world_prompt has no effect without world_frames to imagine from.")
        if world_embeds is not None or not given:
            return world_embeds
        if world_latents is None:
            assert world_frames is not None
            steps = single_value(num_world_steps, self.config.num_world_steps, "num_world_steps")
            seeds = [0] * world_frames.shape[0] if world_seeds is None else world_seeds.tolist()
            world_latents = self.world_latents_of(world_frames, steps, seeds, world_prompt=world_prompt)
            past = world_latents.shape[2] - 1 - steps
            if single_value(num_past_steps, past, "num_past_steps") != past:
                raise ValueError(
                    f"num_past_steps does not match world_frames, which have {past} past steps; leave it out."
                )
        else:
            self.config.check_world_latents(world_latents)
            past = single_value(num_past_steps, 0, "num_past_steps")
        return self.projector(world_latents.to(self.projector.device), past)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        world_frames: Tensor | None = None,
        world_latents: Tensor | None = None,
        world_embeds: Tensor | None = None,
        world_seeds: Tensor | None = None,
        num_world_steps: Tensor | int | None = None,
        num_past_steps: Tensor | int | None = None,
        world_prompt: str | Sequence[str] | None = None,
        image_features: Tensor | None = None,
        unused_parts: Sequence[str] = (),
        skip_logits: bool = False,
        on_host: Tokens | None = None,
        **kwargs: Any,
    ) -> Gemma3CausalLMOutputWithPast:
        """Gemma 3's forward pass with world tokens in place of their placeholders.

        Args:
            input_ids: (B, L) with image and world placeholders, from `TheWorldProcessor`.
            pixel_values: (images, 3, H, W) for Gemma's vision tower.
            world_frames: (n, 3, F, S, S) in [-1, 1]; or `world_latents` (n, C, T, h, w), normalised; or `world_embeds`
                (n, K, D), already projected. Without any of them, the world model is not used.
            world_seeds: (n,) int64, for the noise of each image's rollout.
            num_world_steps: N, or (n,) equal values; used with `world_frames`.
            num_past_steps: P, or (n,) equal values: frames of `world_latents` before now; None means 0.
            world_prompt: texts that describe the future of `world_frames`, as passed to the processor, whose seeds
                depend on them.
            image_features: (images, tokens, D) from `image_features()`, instead of `pixel_values`.
            unused_parts: "vision" and "projector", if trained and without input in this batch. Their outputs are added
                to the logits with weight 0, since processes that train together need a gradient for every parameter.
            labels: (B, L), -100 where the loss is not computed.
            logits_to_keep: as in transformers; or (B, L) bool, which gives logits (M, vocabulary) of its M positions.
            skip_logits: returns no logits but only the loss, computed at the labels, which needs much less memory. It
                is the sum divided by `num_items_in_batch` (default the number of labels), with `label_smoothing`.
            on_host: the same tokens on the CPU, so that the host need not wait for the GPU to look at them.

        Returns:
            Gemma 3's output: logits (B, L, vocabulary), and the loss if labels are given.

        Raises:
            ValueError: if the numbers of world placeholders and world tokens differ.
        """
        world_tokens = self.world_tokens(
            world_frames, world_latents, world_embeds, world_seeds, num_world_steps, num_past_steps, world_prompt
        )
        # Parts run in one order in all processes, which gather what they share in that order.
        unused = [self.projector(self.no_latents(), 0)] if "projector" in unused_parts else []
        passed_on: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "token_type_ids": token_type_ids,
            "labels": labels,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "skip_logits": skip_logits,
            **kwargs,
        }
        if world_tokens is None and image_features is None:
            # a decoding step of one token has no placeholders, and a look for them would synchronise the GPU
            if input_ids is not None and input_ids.shape[1] > 1 and (input_ids == self.config.world_token_id).any():
                raise ValueError(
                    "The prompt has world placeholders; pass world_frames, world_latents or world_embeds with it."
                )
            if "vision" in unused_parts:
                inputs_embeds, input_ids = self.get_input_embeddings()(input_ids), None
                unused.append(self.image_features(self.no_image()))
            passed_on |= {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "pixel_values": pixel_values}
            return with_unused(call_language(self.vlm, **passed_on), unused)
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("World tokens and image features need input_ids, whose placeholders they replace.")
        # before the vision tower, so that the GPU is busy with it while the host prepares the rest
        ids_BL, world_id = on_host.input_ids if on_host else input_ids, self.config.world_token_id
        kinds = self.vlm.config.image_token_id, world_id
        image_places, world_places = find_placeholders(ids_BL, input_ids.device, *kinds)
        frozen = None
        if self.frozen_loss is not None and world_tokens is not None:
            frozen = self.frozen_loss.prepare(ids_BL == world_id, on_host=on_host, **passed_on)
        embeds_BLD = self.get_input_embeddings()(input_ids)
        if image_features is None and pixel_values is not None:
            image_features = self.image_features(pixel_values)
        if "vision" in unused_parts:
            unused.append(self.image_features(self.no_image()))
        if image_features is not None:
            embeds_BLD = scatter(embeds_BLD, image_places, image_features, "image")
        if world_tokens is None:
            world_tokens = embeds_BLD.new_empty(
                0, 0, embeds_BLD.shape[-1]
            )  # scatter reports placeholders without tokens
        embeds_BLD = scatter(embeds_BLD, world_places, world_tokens, "world")
        if frozen is not None and embeds_BLD.requires_grad:
            return with_unused(Gemma3CausalLMOutputWithPast(loss=frozen(embeds_BLD)), unused)
        return with_unused(call_language(self.vlm, inputs_embeds=embeds_BLD, **passed_on), unused)

    def no_image(self) -> Tensor:
        """Pixels (1, 3, H, W) of a grey image."""
        size = self.config.vlm_config.vision_config.image_size
        return torch.zeros(1, 3, size, size, device=self.device)

    def no_latents(self) -> Tensor:
        """World latents (1, C, 1, h, w) of zeros."""
        channels = self.config.world_config.latent_channels
        return torch.zeros(1, channels, 1, *self.config.world_grid(), device=self.device)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' `generate`; the future is imagined once, before the first token.

        Returns:
            Ids (B, L + new tokens) int64, or what the arguments ask for.
        """
        tokens = self.world_tokens(**{name: kwargs.pop(name, None) for name in WORLD_INPUTS})
        if tokens is not None:
            kwargs["world_embeds"] = tokens
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, use_cache: bool = True, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        token_type_ids = kwargs.get("token_type_ids")
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, use_cache=use_cache, is_first_iteration=is_first_iteration, **kwargs
        )
        prefill = is_first_iteration or not use_cache
        # Gemma's rule: image tokens attend in both directions at prefill; later tokens are text, which is causal
        model_inputs["token_type_ids"] = token_type_ids if prefill else None
        if not prefill:
            for name in PREFILL_INPUTS:
                model_inputs.pop(name, None)
        return model_inputs

    @staticmethod
    def create_masks_for_generate(config: TheWorldConfig, *args: Any, **kwargs: Any) -> Any:
        """Gemma's masks; without this, a static cache would silently treat image tokens as causal text."""
        return Gemma3ForConditionalGeneration.create_masks_for_generate(config, *args, **kwargs)


AutoConfig.register(TheWorldConfig.model_type, TheWorldConfig, exist_ok=True)
AutoProcessor.register(TheWorldConfig, TheWorldProcessor, exist_ok=True)
AutoModelForImageTextToText.register(TheWorldConfig, TheWorldForConditionalGeneration, exist_ok=True)
