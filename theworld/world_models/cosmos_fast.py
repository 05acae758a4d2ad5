"""Chooses between the plain path and the captured one for each request, and keeps what was captured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from theworld.compilation import can_compile, compile_function
from theworld.cuda_graphs import Graphs, Recent
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
        self.known: dict[str, Weights] = {}
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

    def weights(self, kind: str, *modules: nn.Module) -> Weights:
        """The weights that requests of a kind read."""
        known = self.known.get(kind)
        if known is None or not known.are_of(modules):
            known = self.known[kind] = Weights(modules)
        return known

    def is_due(self, fast_path: str, reason: str | None, kind: str, shape: Hashable) -> bool:
        """Whether a request of this kind and shape takes the captured path; see `uses_fast_path`.

        An announcement counts for the first shape of a kind: a smaller last batch does not pay for a capture.
        """
        first = all(seen != kind for seen, _ in self.seen)
        pays = (kind, shape) in self.seen or (self.expects_repeats and first)
        self.seen.add((kind, shape))
        return uses_fast_path(fast_path, reason, pays=pays)

    def encode(self, fast_path: str, vae: AutoencoderKLWan, frames: Tensor) -> Tensor | None:
        """Latents (n, C, 1, h, w) of frames (n, 3, 1, H, W), or None where the plain path is due.

        That is so for clips, under gradients or autocast, and by the rule of `theworld.fast_path`.
        """
        device = vae.quant_conv.weight.device
        if fast_path == "off" or frames.shape[2] != 1 or not has_captures(device):
            return None
        weights = self.weights("encode", vae.encoder, vae.quant_conv)
        if torch.is_grad_enabled() and (frames.requires_grad or weights.require_grad()):
            return None
        shape = (*frames.shape[:2], *frames.shape[3:])
        reason = without_gpu(device) or first_frame.unsupported(vae) or weights.unsupported()
        if not self.is_due(fast_path, reason, "encode", shape):
            return None
        capture = self.capture(device)
        with self.lock:
            self.encoders.keep_for(weights.addresses)
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
        device = transformer.patch_embed.proj.weight.device
        shape = rollout_shape(given, noise, text, schedule["sigmas"])
        weights = self.weights("rollout", transformer)
        reason = without_gpu(device) or cosmos_rollout.unsupported(transformer) or weights.unsupported()
        if not has_captures(device) or not self.is_due(fast_path, reason, "rollout", shape):
            settings = {"fps": fps, "sigma_conditioning": sigma_conditioning, **schedule}
            return denoise(transformer, given, noise, text, **settings)
        with self.lock:
            self.rollouts.keep_for((weights.addresses, fps, sigma_conditioning))
            rollout = self.rollouts.get(
                shape,
                lambda: StaticRollout(transformer, shape, fps, sigma_conditioning, self.capture(device), self.block),
            )
            return rollout.run(given, noise, text, **schedule)


class Weights:
    """The parameters of modules, which are looked at in each call without a walk through the modules.

    Attributes:
        addresses: where they are in memory, as of the last call of `unsupported`; what was captured is valid as long as
            they stay there.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.roots = tuple(modules)
        parts = [part for module in modules for part in module.modules()]
        self.children = [part._modules for part in parts]
        self.known = self.current_children()
        self.owners = [part._parameters for part in parts if part._parameters]
        self.hooks = [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self.addresses: tuple[int, ...] = ()
        self.reason: str | None = None

    def current_children(self) -> list[nn.Module | None]:
        return [child for children in self.children for child in children.values()]

    def are_of(self, modules: Sequence[nn.Module]) -> bool:
        """Whether these are the modules, with the same submodules as before."""
        return self.roots == tuple(modules) and self.known == self.current_children()

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for owner in self.owners for parameter in owner.values() if parameter is not None]

    def require_grad(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def unsupported(self) -> str | None:
        """Why these weights cannot be captured, or None; sets `addresses`."""
        parameters = self.parameters()
        if set(map(type, parameters)) != {nn.Parameter}:
            return "its weights are sharded or quantised"
        if any(self.hooks):
            return "it has forward hooks"
        addresses = tuple([parameter.data_ptr() for parameter in parameters])
        if addresses != self.addresses:
            self.addresses = addresses
            self.reason = unusable(parameters)
        return self.reason


def unusable(parameters: Sequence[nn.Parameter]) -> str | None:
    if len({parameter.device for parameter in parameters}) > 1:
        return "its weights are on several devices"
    if any(parameter.is_inference() for parameter in parameters):
        return "its weights were made in inference mode, which does not count their changes"
    return None


def has_captures(device: torch.device) -> bool:
    """Whether calls on a device can be captured: neither on "meta", which computes nothing, nor under autocast."""
    return device.type != "meta" and not torch.is_autocast_enabled(device.type)


def rollout_shape(given: Tensor, noise: Tensor, text: Tensor, sigmas: Tensor) -> RolloutShape:
    """The shape of a call of `denoise`."""
    steps = len(moves(sigmas))
    n, _, num_given, height, width = given.shape
    passes, texts, tokens, _ = text.shape
    return RolloutShape(n, num_given, noise.shape[2], height, width, steps, passes, texts, tokens)
