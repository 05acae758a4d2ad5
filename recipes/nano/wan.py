"""The Wan VAE over whole clips at once, for training and for encoding many clips.

diffusers walks a clip in chunks of four frames and keeps the last frames of every convolution, so that hour-long videos
fit in memory. For 17 frames that is five times the kernel launches for the same sums. Here every layer sees all frames:
time is folded into the batch, and a causal 3-D convolution becomes one 2-D convolution over a frame and the two before
it, stacked along channels. Same weights, same result (`tests/recipes/test_world_stages.py` holds the two equal).

Shapes: n clips, F pixel frames, T latent frames (F = 1 + 4(T-1)), C channels, H x W pixels, h x w latent cells. Inside,
activations are (n·F, C, H, W), and F shrinks or grows as time does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

NORM_EPS = 1e-12  # diffusers divides by max(norm, 1e-12): only an all-zero vector could tell the difference


def encode_moments(vae: AutoencoderKLWan, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the posterior, not normalised.

    Args:
        frames: (n, 3, F, H, W), float in [-1, 1], F = 1 + 4k.

    Returns:
        Two float32 tensors (n, C, T, h, w).
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    n = frames.shape[0]
    encoder = vae.encoder
    x = _causal(encoder.conv_in, _fold(frames), n)
    for layer in encoder.down_blocks:
        x = _downsample(layer, x, n) if isinstance(layer, WanResample) else _residual(layer, x, n)
    x = _middle(encoder.mid_block, x, n)
    x = _causal(encoder.conv_out, F.silu(_norm(encoder.norm_out, x)), n)
    mean, logvar = _unfold(_causal(vae.quant_conv, x, n), n).float().chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)  # the bounds of diffusers' DiagonalGaussianDistribution


def decode_frames(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels (n, 3, F, H, W), float32, around [-1, 1] but not clamped: a clamp has no gradient outside.

    Args:
        latents: (n, C, T, h, w), not normalised.
    """
    n = latents.shape[0]
    decoder = vae.decoder
    x = _causal(vae.post_quant_conv, _fold(latents), n)
    x = _middle(decoder.mid_block, _causal(decoder.conv_in, x, n), n)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x, n)
        if block.upsamplers is not None:
            x = _upsample(block.upsamplers[0], x, n)
    x = _causal(decoder.conv_out, F.silu(_norm(decoder.norm_out, x)), n)
    return _unfold(x, n).float()


def latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """The VAE config's per-channel mean and std, each (1, C, 1, 1, 1) float32 on the VAE's device."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=vae.device, dtype=torch.float32).view(shape)
    std = torch.tensor(vae.config.latents_std, device=vae.device, dtype=torch.float32).view(shape)
    return mean, std


def _fold(x: Tensor) -> Tensor:
    """(n, C, F, H, W) -> (n·F, C, H, W), channels last in memory: the layout whose convolutions are fast in bf16."""
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _unfold(x: Tensor, n: int) -> Tensor:
    """(n·F, C, H, W) -> (n, C, F, H, W)."""
    return x.unflatten(0, (n, -1)).transpose(1, 2)


def _causal(conv: Any, x: Tensor, n: int) -> Tensor:
    """A WanCausalConv3d: each frame sees itself and the frames before it, zeros before the first."""
    taps, height, _ = conv.kernel_size
    if taps == 1:
        return F.conv2d(x, conv.weight[:, :, 0], conv.bias, padding=height // 2)
    frames = x.unflatten(0, (n, -1))  # (n, F, C, H, W)
    if frames.shape[1] == 1:  # a lone frame has only zeros before it, so only the last tap counts
        return F.conv2d(x, conv.weight[:, :, -1], conv.bias, padding=height // 2)
    padded = F.pad(frames, (0, 0, 0, 0, 0, 0, taps - 1, 0))
    stacked = torch.cat([padded[:, tap : tap + frames.shape[1]] for tap in range(taps)], dim=2).flatten(0, 1)
    weight = conv.weight.transpose(1, 2).flatten(1, 2)  # (out, taps·C, kh, kw), oldest tap first
    return F.conv2d(
        stacked.contiguous(memory_format=torch.channels_last),
        weight.contiguous(memory_format=torch.channels_last),
        conv.bias,
        padding=height // 2,
    )


def _norm(norm: Any, x: Tensor) -> Tensor:
    """A WanRMS_norm over channels: x / ‖x‖ · √C · gamma is an RMS norm."""
    channels = x.shape[1]
    gamma = norm.gamma.flatten().to(x.dtype)
    normalised = F.rms_norm(x.permute(0, 2, 3, 1), (channels,), gamma, NORM_EPS)
    return normalised.to(x.dtype).permute(0, 3, 1, 2)


def _residual(block: Any, x: Tensor, n: int) -> Tensor:
    shortcut = x if block.conv1.in_channels == block.conv1.out_channels else _causal(block.conv_shortcut, x, n)
    x = _causal(block.conv1, F.silu(_norm(block.norm1, x)), n)
    x = _causal(block.conv2, F.silu(_norm(block.norm2, x)), n)
    return x + shortcut


def _middle(block: Any, x: Tensor, n: int) -> Tensor:
    x = _residual(block.resnets[0], x, n)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = attention(x.unsqueeze(2)).squeeze(2)  # attends within one frame, so time may stay in the batch
        x = _residual(resnet, x, n)
    return x


def _downsample(layer: Any, x: Tensor, n: int) -> Tensor:
    """Halves space; in `downsample3d` also halves time, the first frame kept as it is."""
    x = layer.resample(x)
    frames = x.unflatten(0, (n, -1))
    if layer.mode != "downsample3d" or frames.shape[1] == 1:
        return x
    conv = layer.time_conv  # kernel (3, 1, 1), stride 2, no padding: windows (0, 1, 2), (2, 3, 4), …
    stacked = torch.cat([frames[:, :-2:2], frames[:, 1:-1:2], frames[:, 2::2]], dim=2)  # (n, (F-1)/2, 3C, H, W)
    weight = conv.weight.transpose(1, 2).flatten(1, 2)
    later = F.conv2d(stacked.flatten(0, 1).contiguous(memory_format=torch.channels_last), weight, conv.bias)
    joined = torch.cat([frames[:, :1].to(later.dtype), later.unflatten(0, (n, -1))], dim=1).flatten(0, 1)
    return joined.contiguous(memory_format=torch.channels_last)


def _upsample(layer: Any, x: Tensor, n: int) -> Tensor:
    """Doubles space; in `upsample3d` also doubles time, the first frame kept single and unseen by the later ones."""
    frames = x.unflatten(0, (n, -1))
    if layer.mode == "upsample3d" and frames.shape[1] > 1:
        later = _causal(layer.time_conv, frames[:, 1:].flatten(0, 1), n)  # (n·(F-1), 2C, H, W)
        later = later.unflatten(1, (2, -1)).unflatten(0, (n, -1)).flatten(1, 2)  # two frames out of each one
        joined = torch.cat([frames[:, :1].to(later.dtype), later], dim=1).flatten(0, 1)
        x = joined.contiguous(memory_format=torch.channels_last)
    return layer.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
