"""The latent of a single frame: the Wan VAE's causal 3-D convolutions are 2-D ones there.

The frames before the first are zeros, so of a kernel's taps in time only the last one counts. diffusers' modules are
used for all that is not a causal convolution. The 2-D weights are copies, in channels-last order, which tensor cores
read without a conversion.

Shape legend: n images, C channels of a stage or of the latents, H×W pixels, h×w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

Capture = Callable[[Callable[[], None]], Callable[[], None]]
Residual = Callable[..., Tensor]


def unsupported(vae: AutoencoderKLWan) -> str | None:
    """Why `FirstFrameEncoder` does not compute what this VAE does, or None if it does."""
    config = vae.config
    if config.is_residual or config.patch_size or config.dropout:
        return "its VAE is not of Wan 2.1's architecture"
    return "its VAE encodes images in tiles or slices" if vae.use_tiling or vae.use_slicing else None


def convolved(x: Tensor, convolution: Any, weight: Tensor) -> Tensor:
    """A causal convolution whose last tap is `weight` (C_out, C_in, k, k), of one frame (n, C_in, H, W)."""
    return F.conv2d(x, weight, convolution.bias, padding=weight.shape[-1] // 2)


def residual_block(block: Any, x: Tensor, first: Tensor, second: Tensor, shortcut: Tensor | None) -> Tensor:
    """The forward of diffusers' `WanResidualBlock` for one frame (n, C, H, W) and 2-D weights."""

    def activated(norm: Any, x: Tensor) -> Tensor:
        return block.nonlinearity(norm(x.unsqueeze(2)).squeeze(2))

    y = convolved(activated(block.norm1, x), block.conv1, first)
    y = convolved(activated(block.norm2, y), block.conv2, second)
    return y + (x if shortcut is None else convolved(x, block.conv_shortcut, shortcut))


class FirstFrameEncoder:
    """Encodes single frames of one shape into normalised latents, with static tensors.

    Args:
        shape: (n, 3, H, W).
        capture: see `StaticRollout`.
        residual: `residual_block`, or the compiled one.
        memory_format: of activations and 2-D weights.
    """

    @torch.inference_mode(False)  # tensors made in inference mode could not be written outside of it
    @torch.no_grad()
    def __init__(
        self,
        vae: AutoencoderKLWan,
        shape: tuple[int, ...],
        capture: Capture,
        residual: Residual = residual_block,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        self.vae, self.residual, self.format = vae, residual, memory_format
        weight = vae.quant_conv.weight
        modules = [*vae.encoder.modules(), vae.quant_conv]
        self.convolutions: list[nn.Conv3d] = [module for module in modules if isinstance(module, WanCausalConv3d)]
        self.taps: dict[nn.Module, Tensor] = {}
        self.versions: list[int] = []
        self.frames = torch.zeros(shape, dtype=weight.dtype, device=weight.device).to(memory_format=memory_format)
        self.center, self.spread = (
            torch.tensor(values, device=weight.device).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        factor = 2 ** (len(vae.config.dim_mult) - 1)
        grid = (shape[2] // factor, shape[3] // factor)
        self.latents = torch.zeros(shape[0], vae.config.z_dim, *grid, device=weight.device)
        self.take_weights()
        self.replay = capture(self.encode_once)

    def take_weights(self) -> None:
        """Copies the last taps of the convolutions, if a weight has changed since the last copy."""
        versions = [module.weight._version for module in self.convolutions]
        if versions == self.versions:
            return
        for module in self.convolutions:
            tap = module.weight.detach()[:, :, -1]
            if module in self.taps:
                self.taps[module].copy_(tap)
            else:
                self.taps[module] = tap.clone(memory_format=self.format)
        self.versions = versions

    def encode_once(self) -> None:
        """Fills `latents` from `frames`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock

        encoder, taps = self.vae.encoder, self.taps
        x = convolved(self.frames, encoder.conv_in, taps[encoder.conv_in])
        middle = encoder.mid_block
        between = [layer for pair in zip(middle.attentions, middle.resnets[1:], strict=True) for layer in pair]
        for layer in (*encoder.down_blocks, middle.resnets[0], *between):
            if isinstance(layer, WanResidualBlock):
                shortcut = taps.get(layer.conv_shortcut)
                x = self.residual(layer, x, taps[layer.conv1], taps[layer.conv2], shortcut)
            elif isinstance(layer, WanResample):  # without its convolution in time, which starts at the second chunk
                x = layer.resample(x)
            else:
                assert isinstance(layer, WanAttentionBlock)
                x = layer(x.unsqueeze(2)).squeeze(2).contiguous(memory_format=self.format)
        x = encoder.nonlinearity(encoder.norm_out(x.unsqueeze(2)).squeeze(2))
        x = convolved(x, encoder.conv_out, taps[encoder.conv_out])
        mean = convolved(x, self.vae.quant_conv, taps[self.vae.quant_conv])[:, : self.latents.shape[1]].float()
        self.latents.copy_((mean - self.center) / self.spread)

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, frames: Tensor) -> Tensor:
        """Normalised mean latents (n, C, 1, h, w), float32, of frames (n, 3, 1, H, W)."""
        self.take_weights()
        self.frames.copy_(frames[:, :, 0])
        self.replay()
        return self.latents.unsqueeze(2).clone()
