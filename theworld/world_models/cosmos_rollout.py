"""A rollout of one shape with static tensors: what is the same in all steps is computed once, and a step is captured.

Three things are the same in every pass of a rollout, and `prepare` computes them: the keys and values of the text in
each cross attention, the rotary embedding, and the modulation (shift, scale, gate) of each normalisation, which depends
on the noise level of a frame alone. Of those there are two in a pass: the given frames' and that of the imagined ones.
diffusers' modules are used as they are; only the forward of a block is written for these inputs.

Shape legend: n samples, r = 1 or n texts per pass, C latent channels, P + 1 given latent frames, N imagined ones,
T = P + 1 + N, h×w cells, L prompt tokens, D the width, S cells after patching, B = n, or 2n with guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theworld.world_models.cosmos_sampler import euler_step, guided_passes, moves

if TYPE_CHECKING:
    from diffusers import CosmosTransformer3DModel

Block = Callable[..., Tensor]
Capture = Callable[[Callable[[], None]], Callable[[], None]]

PER_BLOCK = 9  # shift, scale and gate of three normalisations
ROTARY: dict[str, Any] = {"use_real": True, "use_real_unbind_dim": -2}  # as in diffusers' attention processor


def unsupported(transformer: CosmosTransformer3DModel) -> str | None:
    """Why `StaticRollout` does not compute what this transformer does, or None if it does."""
    config = transformer.config
    additions = (config.extra_pos_embed_type, config.use_crossattn_projection, config.img_context_dim_in)
    if any(additions) or config.patch_size[0] != 1:
        return "its transformer is not of Cosmos-Predict2's architecture"
    return None


@dataclass(frozen=True)
class RolloutShape:
    """What the static tensors of a rollout depend on.

    Attributes:
        samples, given, future, height, width: n, P + 1, N, h, w.
        steps: passes of the transformer.
        passes: 2 if any step is guided, otherwise 1.
        texts: r.
        tokens: L.
    """

    samples: int
    given: int
    future: int
    height: int
    width: int
    steps: int
    passes: int
    texts: int
    tokens: int


def block_step(
    block: Any, x: Tensor, modulation: Tensor, text_key: Tensor, text_value: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """The forward of diffusers' `CosmosTransformerBlock`, with the modulation and the text's keys and values given.

    Args:
        x: (B, T, S, D).
        modulation: (9, T, 1, D).
        text_key, text_value: (g, heads, L, head width), g a divisor of B: B/g samples in a row share a text.
        cos, sin: (T·S, head width).
    """
    from diffusers.models.embeddings import apply_rotary_emb

    def heads(projected: Tensor, groups: int) -> Tensor:  # (B, T·S, D) -> (groups, heads, B/groups·T·S, head width)
        return projected.reshape(groups, -1, block.attn1.heads, projected.shape[-1] // block.attn1.heads).transpose(
            1, 2
        )

    def joined(attended: Tensor, output: Any) -> Tensor:
        return output[1](output[0](attended.transpose(1, 2).flatten(2))).view_as(x)

    batch = x.shape[0]
    shift, scale, gate = modulation[0], modulation[1], modulation[2]
    tokens = (block.norm1.norm(x) * (1 + scale) + shift).flatten(1, 2)
    query = apply_rotary_emb(block.attn1.norm_q(heads(block.attn1.to_q(tokens), batch)), (cos, sin), **ROTARY)
    key = apply_rotary_emb(block.attn1.norm_k(heads(block.attn1.to_k(tokens), batch)), (cos, sin), **ROTARY)
    value = heads(block.attn1.to_v(tokens), batch)
    x = x + gate * joined(F.scaled_dot_product_attention(query, key, value), block.attn1.to_out)

    shift, scale, gate = modulation[3], modulation[4], modulation[5]
    tokens = (block.norm2.norm(x) * (1 + scale) + shift).flatten(1, 2)
    query = block.attn2.norm_q(heads(block.attn2.to_q(tokens), text_key.shape[0]))
    x = x + gate * joined(F.scaled_dot_product_attention(query, text_key, text_value), block.attn2.to_out)

    shift, scale, gate = modulation[6], modulation[7], modulation[8]
    return x + gate * block.ff(block.norm3.norm(x) * (1 + scale) + shift)


class StaticRollout:
    """Denoises rollouts of one shape.

    Args:
        capture: turns a function without arguments into one that replays it (see `FastPaths.capture`), or returns it
            as it is.
        block: `block_step`, or the compiled one.
    """

    @torch.inference_mode(False)  # tensors made in inference mode could not be written outside of it
    @torch.no_grad()
    def __init__(
        self,
        transformer: CosmosTransformer3DModel,
        shape: RolloutShape,
        fps: int,
        sigma_conditioning: float,
        capture: Capture,
        block: Block = block_step,
    ) -> None:
        self.transformer, self.shape, self.block = transformer, shape, block
        config, weight = transformer.config, transformer.patch_embed.proj.weight
        self.dtype = weight.dtype
        layers, width = len(transformer.transformer_blocks), weight.shape[0]
        n, frames, grid = shape.samples, shape.given + shape.future, (shape.height, shape.width)
        heads, rows = config.num_attention_heads, shape.passes * shape.texts

        def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=weight.device)

        self.given = empty(n, config.out_channels, shape.given, *grid)
        self.future = empty(n, config.out_channels, shape.future, *grid)
        self.text = empty(rows, shape.tokens, config.text_embed_dim, dtype=self.dtype)
        self.levels = empty(shape.steps, 2) + torch.tensor(
            (1.0, 0.5), device=weight.device
        )  # no division by 0 at first
        self.step = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.scale = empty()
        t_given = torch.tensor(sigma_conditioning)
        self.t_given = (t_given / (t_given + 1)).to(weight.device)
        self.texts = empty(layers, 2, rows, heads, shape.tokens, width // heads, dtype=self.dtype)
        self.table = empty(shape.steps, PER_BLOCK * layers + 2, 2, width, dtype=self.dtype)
        # row 0 of the table is that of given frames, row 1 that of imagined ones
        self.row_of_frame = (torch.arange(frames, device=weight.device) >= shape.given).long()
        self.mask = empty(1, 1, frames, *grid, dtype=self.dtype)
        self.mask[:, :, : shape.given] = 1
        # the channels of latents, of the mask, and of the padding mask: its 0 means that no pixel is padded
        self.padding = empty(1, int(config.concat_padding_mask), frames, *grid, dtype=self.dtype)
        like = empty(1, 1, frames, *grid, dtype=self.dtype)
        self.cos, self.sin = transformer.rope(like, fps=fps)
        self.capture = capture
        self.prepare = capture(self.prepare_once)
        self.passes: dict[bool, Callable[[], None]] = {}

    def prepare_once(self) -> None:
        """Fills `texts` from `text`, and `table` from `levels`."""
        model = self.transformer
        for keys_and_values, block in zip(self.texts, model.transformer_blocks, strict=True):
            attention = block.attn2
            key, value = (
                projection(self.text).unflatten(2, (attention.heads, -1)).transpose(1, 2)
                for projection in (attention.to_k, attention.to_v)
            )
            keys_and_values[0].copy_(attention.norm_k(key))
            keys_and_values[1].copy_(value)
        t = self.levels[:, 0] / (self.levels[:, 0] + 1)  # the network's time: 0 is clean, 1 is noise
        times = torch.stack([self.t_given.expand_as(t), t], dim=1).to(self.dtype).flatten()
        temb, embedded = model.time_embed(self.text, times)  # (2·steps, 3·D), (2·steps, D)
        norms = [norm for block in model.transformer_blocks for norm in (block.norm1, block.norm2, block.norm3)]
        rows = [norm.linear_2(norm.linear_1(norm.activation(embedded))) + temb for norm in norms]
        last = model.norm_out
        width = embedded.shape[1]
        rows.append(last.linear_2(last.linear_1(last.activation(embedded))) + temb[:, : 2 * width])
        for number, row in enumerate(rows):
            parts = row.view(self.shape.steps, 2, -1, width).transpose(1, 2)  # (steps, 3, 2, D)
            self.table[:, 3 * number : 3 * number + parts.shape[1]].copy_(parts)

    def velocity(self, passes: int) -> Tensor:
        """The transformer's prediction (passes·n, C, N, h, w) for the imagined frames at the current step."""
        shape, model = self.shape, self.transformer
        sigma = self.levels.index_select(0, self.step)[0, 0]
        t = sigma / (sigma + 1)
        # given frames go in clean, the others as (1-t)·x0 + t·noise
        latents = torch.cat([self.given, self.future * (1 - t)], dim=2).to(self.dtype)
        fixed = torch.cat([self.mask, self.padding], dim=1).expand(shape.samples, -1, -1, -1, -1)
        x = model.patch_embed(torch.cat([latents, fixed], dim=1).repeat(passes, 1, 1, 1, 1))  # (B, T, h', w', D)
        rows, columns = x.shape[2:4]
        x = x.flatten(2, 3)
        table = self.table.index_select(0, self.step)[0]
        modulation = table.index_select(1, self.row_of_frame).unsqueeze(2)  # (9·layers + 2, T, 1, D)
        groups = passes * shape.texts
        for number, block in enumerate(model.transformer_blocks):
            own = modulation[PER_BLOCK * number : PER_BLOCK * (number + 1)]
            key, value = self.texts[number, 0, :groups], self.texts[number, 1, :groups]
            x = self.block(block, x, own, key, value, self.cos, self.sin)
        shift, scale = modulation[-2][shape.given :], modulation[-1][shape.given :]
        out = model.proj_out(model.norm_out.norm(x[:, shape.given :]) * (1 + scale) + shift)
        _, p_h, p_w = model.config.patch_size
        out = out.unflatten(3, (p_h, p_w, -1)).unflatten(2, (rows, columns))  # (B, N, h', w', p_h, p_w, C)
        return out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def take_step(self, passes: int) -> None:
        """Moves `future` from the level of `step` to the next one."""
        sigma, next_sigma = self.levels.index_select(0, self.step)[0]
        velocity = self.velocity(passes)
        self.future.copy_(euler_step(self.future, velocity, sigma, next_sigma, self.scale, self.dtype))

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(
        self,
        given: Tensor,
        noise: Tensor,
        text: Tensor,
        *,
        sigmas: Tensor,
        guidance_scale: float,
        guidance_interval: Sequence[float] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """As `cosmos_sampler.denoise`, for inputs of this shape."""
        steps = moves(sigmas)
        guided = guided_passes(len(steps), guidance_scale, guidance_interval)
        replays = [self.pass_of(is_guided) for is_guided in guided]  # a capture runs the steps, so it comes first
        self.given.copy_(given)
        self.future.copy_(noise)
        self.text.view(self.shape.passes, self.shape.texts, *text.shape[2:]).copy_(text)
        self.levels.copy_(torch.stack([sigmas[step : step + 2] for step in steps]))
        self.scale.fill_(guidance_scale)
        self.prepare()
        for number, replay in enumerate(replays):
            self.step.fill_(number)
            replay()
            if progress is not None:
                progress(number + 1, len(steps))
        return self.future.clone()

    def pass_of(self, is_guided: bool) -> Callable[[], None]:
        if is_guided not in self.passes:
            self.passes[is_guided] = self.capture(lambda: self.take_step(1 + is_guided))
        return self.passes[is_guided]
