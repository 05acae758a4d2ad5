"""Chooses between the plain path and the captured one for each request, and keeps what was captured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from theworld.cuda_graphs import Graphs, Recent, can_compile, compile_function
from theworld.fast_path import uses_fast_path, without_gpu
from theworld.world_models import cosmos_rollout, first_frame
from theworld.world_models.cosmos_rollout import RolloutShape, StaticRollout
from theworld.world_models.cosmos_sampler import denoise, moves
from theworld.world_models.first_frame import FirstFrameEncoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel

KEPT_SHAPES = 8  # of rollouts, and of images


class FastPaths:
    """The captured rollouts and encoders of one world model; a copy of the model starts without any.

    Attributes:
        expects_repeats: whether the caller announced many requests of one shape.
    """

    def __init__(self) -> None:
        self.expects_repeats = False
        self.seen: set[tuple[str, Hashable]] = set()
        self.graphs = Graphs()
        self.rollouts: Recent[StaticRollout] = Recent(KEPT_SHAPES)
        self.encoders: Recent[FirstFrameEncoder] = Recent(KEPT_SHAPES)
        self.lock = threading.Lock()  # the tensors of a shape belong to one request at a time

    def __reduce__(self) -> tuple[type[FastPaths], tuple[()]]:
        return FastPaths, ()

    @cached_property
    def block(self) -> Callable[..., Tensor]:
        return compile_function(cosmos_rollout.block_step) if can_compile() else cosmos_rollout.block_step

    @cached_property
    def residual(self) -> Callable[..., Tensor]:
        return compile_function(first_frame.residual_block) if can_compile() else first_frame.residual_block

    def capture(self, device: torch.device) -> Callable[[Callable[[], None]], Callable[[], None]]:
        return partial(self.graphs.capture, device=device)

    def is_due(self, fast_path: str, module: nn.Module, kind: str, shape: Hashable) -> bool:
        """Whether a request of this kind and shape takes the captured path.

        An announcement counts for the first shape of a kind: a smaller last batch does not pay for a capture.
        """
        parameters = list(module.parameters())
        device = parameters[0].device
        first = all(seen != kind for seen, _ in self.seen)
        pays = (kind, shape) in self.seen or (self.expects_repeats and first)
        due = uses_fast_path(fast_path, without_gpu(device), pays=pays)
        self.seen.add((kind, shape))
        # sharded and quantised parameters, and those that are offloaded, have another type or device
        return due and all(type(p) is nn.Parameter and p.device == device for p in parameters)

    def encode(self, fast_path: str, vae: AutoencoderKLWan, frames: Tensor) -> Tensor | None:
        """Latents (n, C, 1, h, w) of frames (n, 3, 1, H, W), or None where the plain path is due.

        That is so for clips, under gradients or autocast, and by the rule of `theworld.fast_path`.
        """
        device_type = vae.quant_conv.weight.device.type
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (frames, *vae.parameters()))
        if device_type == "meta" or frames.shape[2] != 1 or needs_grad or torch.is_autocast_enabled(device_type):
            return None
        shape = (*frames.shape[:2], *frames.shape[3:])
        if not first_frame.is_supported(vae) or not self.is_due(fast_path, vae, "encode", shape):
            return None
        capture = self.capture(vae.quant_conv.weight.device)
        with self.lock:
            self.encoders.keep_for(addresses(vae))
            encoder = self.encoders.get(shape, lambda: FirstFrameEncoder(vae, shape, capture, self.residual))
            return encoder.run(frames)

    def denoise(
        self,
        fast_path: str,
        transformer: CosmosTransformer3DModel,
        given: Tensor,
        noise: Tensor,
        text: Tensor,
        *,
        fps: int,
        sigma_conditioning: float,
        **schedule: Any,
    ) -> Tensor:
        """`cosmos_sampler.denoise`, captured by the rule of `theworld.fast_path` and where autocast is off."""
        shape = rollout_shape(given, noise, text, schedule["sigmas"])
        device = transformer.patch_embed.proj.weight.device
        usable = device.type != "meta" and cosmos_rollout.is_supported(transformer)
        usable = usable and not torch.is_autocast_enabled(device.type)
        if not usable or not self.is_due(fast_path, transformer, "rollout", shape):
            settings = {"fps": fps, "sigma_conditioning": sigma_conditioning, **schedule}
            return denoise(transformer, given, noise, text, **settings)
        with self.lock:
            self.rollouts.keep_for((addresses(transformer), fps, sigma_conditioning))
            rollout = self.rollouts.get(
                shape,
                lambda: StaticRollout(transformer, shape, fps, sigma_conditioning, self.capture(device), self.block),
            )
            return rollout.run(given, noise, text, **schedule)


def addresses(module: nn.Module) -> tuple[int, ...]:
    """Where the weights are in memory; what was captured is valid as long as they stay there."""
    return tuple(parameter.data_ptr() for parameter in module.parameters())


def rollout_shape(given: Tensor, noise: Tensor, text: Tensor, sigmas: Tensor) -> RolloutShape:
    """The shape of a call of `denoise`."""
    steps = len(moves(sigmas))
    n, _, num_given, height, width = given.shape
    passes, texts, tokens, _ = text.shape
    return RolloutShape(n, num_given, noise.shape[2], height, width, steps, passes, texts, tokens)
