"""Gemma 3's vision tower on a GPU: compiled layers, and one CUDA graph for each number of images.

Shapes: n images, P patches of width W, D width of the language model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theworld.compilation import mark_dynamic
from theworld.model.weights_state import WeightsState, WeightsWatch


def embed_patches(embeddings: Any, pixel_values: Tensor) -> Tensor:
    """Embeddings (n, P, W) of pixels (n, 3, H, W); patches do not overlap, so their convolution is one product."""
    convolution = embeddings.patch_embedding
    if type(convolution) is not nn.Conv2d:  # a LoRA
        return embeddings(pixel_values).contiguous()
    size = convolution.kernel_size[0]
    images, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    whole = pixel_values[:, :, : rows * size, : columns * size].to(convolution.weight.dtype)
    patches = whole.reshape(images, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
    embedded = F.linear(patches.reshape(images, rows * columns, -1), convolution.weight.flatten(1), convolution.bias)
    return embedded + embeddings.position_embedding(embeddings.position_ids)


def vision_layer(layer: Any, hidden: Tensor) -> Tensor:
    """One of SigLIP's layers, (n, P, W) to (n, P, W)."""
    first = layer.mlp.fc1
    if type(first) is not nn.Linear:
        output: Tensor = layer(hidden, attention_mask=None)
        return output
    attended, _ = layer.self_attn(layer.layer_norm1(hidden), attention_mask=None)
    hidden = hidden + attended
    # as a product and a sum, which the compiler adds in the activation's kernel: for a product of this shape with a
    # bias, cuBLAS copies the bias to all rows first
    inner = layer.layer_norm2(hidden) @ first.weight.t() + first.bias
    return hidden + layer.mlp.fc2(layer.mlp.activation_fn(inner))


def read_images(gemma: Any, layer_function: Callable[..., Tensor], pixel_values: Tensor, dynamic: bool) -> Tensor:
    """Soft tokens (n, tokens, D) of pixels (n, 3, H, W), as `Gemma3Model.get_image_features` computes them.

    Args:
        gemma: `Gemma3Model`.
        layer_function: `vision_layer`, or a compiled one.
        dynamic: whether compiled layers are made for any number of images above 1.
    """
    tower = gemma.vision_tower
    hidden = embed_patches(tower.embeddings, pixel_values)
    if dynamic and hidden.shape[0] > 1:
        mark_dynamic(hidden, 0)
    for layer in tower.encoder.layers:
        hidden = layer_function(layer, hidden)
    features: Tensor = gemma.multi_modal_projector(tower.post_layernorm(hidden))
    return features


class FastVision:
    """Reads images for answers, and keeps the features of the last ones.

    Args:
        gemma: `Gemma3Model`.
        layer_function: `vision_layer`, or a compiled one.
        compiled: whether it is one.
        graphs_of: turns a function of tensors into one that is recorded.
    """

    def __init__(
        self,
        gemma: Any,
        layer_function: Callable[..., Tensor],
        compiled: bool,
        graphs_of: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]],
    ) -> None:
        self.gemma = gemma
        self.weights = WeightsWatch(gemma.vision_tower, gemma.multi_modal_projector)
        self.read_images = partial(self._read, layer_function, compiled)
        self.graphs_of = graphs_of
        self.recorded: tuple[Any, Callable[[Tensor], Tensor]] | None = None  # where its weights are, and the function
        self.last: tuple[Tensor, Tensor, WeightsState] | None = None  # pixels, features, weights
        self.begun: tuple[Tensor, Tensor] | None = None  # the caller's pixels, and features on `stream`
        self.stream: torch.cuda.Stream | None = None

    def _read(self, layer_function: Callable[..., Tensor], compiled: bool, pixel_values: Tensor) -> Tensor:
        return read_images(self.gemma, layer_function, pixel_values, compiled)

    def begin(self, pixel_values: Tensor) -> None:
        """Starts to read images (n, 3, H, W) on a stream of its own: neither the host nor the current stream waits."""
        stream: Any = contextlib.nullcontext()
        if pixel_values.is_cuda:
            self.stream = self.stream or torch.cuda.Stream(pixel_values.device)
            self.stream.wait_stream(torch.cuda.current_stream())
            stream = torch.cuda.stream(self.stream)
        self.begun = None
        with stream:
            self.begun = pixel_values, self(pixel_values)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Features (n, tokens, D) of pixels (n, 3, H, W)."""
        if self.begun is not None and self.begun[0] is pixel_values:
            if self.stream is not None:
                torch.cuda.current_stream().wait_stream(self.stream)
            features, self.begun = self.begun[1], None
            return features
        weights = self.weights.state()
        if self.last is not None:
            pixels, features, of_weights = self.last
            if weights == of_weights and same_tensor(pixels, pixel_values):
                return features
        place = (weights.places, weights.adapters)
        if self.recorded is None or self.recorded[0] != place:
            self.recorded = place, self.graphs_of(self.read_images)
        features = self.recorded[1](pixel_values).clone()
        self.last = (pixel_values.clone(), features, weights)
        return features

    def forget(self) -> None:
        """Drops what was kept of the last images."""
        self.last = self.begun = None


def same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
