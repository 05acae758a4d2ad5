"""A fused model in vLLM's engine: vLLM's Gemma 3 with our world model and projector beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from theworld.media.images import frames_of
from theworld.model.call_plan import world_parts_for
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.serving.latents import LatentCache
from theworld.serving.settings import ServerSettings
from theworld.serving.vllm.blocks import NO_WORLD
from theworld.serving.vllm.gpu_attention import causal_world_tokens
from theworld.serving.vllm.processing import DummyInputs, ProcessingInfo, Processor


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class TheWorldModel(nn.Module, SupportsMultiModal):
    """Gemma 3 of vLLM, whose images are followed by the world tokens of our world model and projector."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.model_config = vllm_config.model_config
        self.config = vllm_config.model_config.hf_config
        self.vlm = init_vllm_registered_model(
            vllm_config=vllm_config,
            hf_config=self.config.vlm_config,
            architectures=["Gemma3ForConditionalGeneration"],
            prefix=maybe_prefix(prefix, "vlm"),
        )
        if not current_platform.is_cpu():
            for layer in self.vlm.language_model.modules():
                if isinstance(layer, Attention):
                    layer.attn_backend = causal_world_tokens(layer.attn_backend)
        self.make_empty_intermediate_tensors = self.vlm.make_empty_intermediate_tensors
        self.latents = LatentCache(ServerSettings.cache_bytes)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality != "image":
            raise ValueError(f"A fused model takes images in vLLM, and no {modality}: use `theworld serve` for videos.")
        return "<start_of_image>"

    def get_language_model(self) -> Any:
        return self.vlm.language_model

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the model as everywhere else, merges its LoRA, and gives Gemma's weights to vLLM.

        An adapter names its bases, which vLLM's own loader does not know; `weights` are therefore not used.
        """
        device = next(self.vlm.parameters()).device
        with set_default_torch_dtype(torch.float32), torch.device("cpu"):
            fused = TheWorldForConditionalGeneration.from_pretrained(
                self.model_config.model,
                revision=self.model_config.revision,
                dtype=self.model_config.dtype,
                world_parts=world_parts_for(self.config.max_world_steps),
            )
            if fused.config.lora is not None:
                fused.merge_lora()
        self.vlm.load_weights((vllm_name(name), tensor) for name, tensor in fused.vlm.state_dict().items())
        del fused.vlm
        self.fused = fused.to(device)
        self.fused.world.fast_path = "off"  # vLLM captures CUDA graphs of its own
        return {name for name, _ in self.named_parameters()}

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Image and world tokens (M + K, D) of each image, from what `Processor` made; K = 0 without world tokens."""
        pixel_values = kwargs.get("pixel_values")
        if pixel_values is None:
            return []
        one_each = torch.ones(len(pixel_values), dtype=torch.int64)
        images = self.vlm.embed_multimodal(pixel_values=pixel_values, num_patches=one_each)
        steps = kwargs["num_world_steps"].flatten().tolist()
        embeds = list(images)
        for number in sorted(set(steps) - {NO_WORLD}):
            rows = [row for row, each in enumerate(steps) if each == number]
            tokens = self.world_tokens(kwargs["world_pixels"][rows], kwargs["world_seeds"].flatten()[rows], number)
            for row, world in zip(rows, tokens, strict=True):
                embeds[row] = torch.cat([embeds[row], world.to(embeds[row])])
        return embeds

    @torch.no_grad()
    def world_tokens(self, pixels: Tensor, seeds: Tensor, num_world_steps: int) -> Tensor:
        """World tokens (n, K, D) of pixels (n, F, S, S, 3) uint8; an image that was imagined before is not again."""
        numbers = seeds.tolist()  # made from the pixels, the prompt and the user's seed

        def imagine(rows: list[int]) -> Tensor:
            frames = frames_of(pixels[rows].cpu().numpy()).to(self.fused.device)
            return self.fused.world_latents_of(frames, num_world_steps, [numbers[row] for row in rows])

        latents = self.latents.get([(number, num_world_steps) for number in numbers], imagine)
        return self.fused.projector(latents.to(self.fused.projector.device), 0)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        return self.vlm(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.vlm.compute_logits(hidden_states)


def vllm_name(name: str) -> str:
    """The name of one of Gemma's tensors in vLLM, which calls the vision tower as earlier versions of transformers."""
    tower = "model.vision_tower."
    inside = f"{tower}vision_model."
    return name.replace(tower, inside, 1) if name.startswith(tower) and not name.startswith(inside) else name
