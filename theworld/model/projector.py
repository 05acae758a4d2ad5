"""The projector: world latents to world tokens.

Shapes: B images or videos, C latent channels, T latent frames (past, now, future), h×w latent grid, m spatial merge,
D width of the language model, P width at which position embeddings are added (D, or the resampler's own), K tokens per
frame of the resampler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from theworld.model.configuration import TheWorldConfig

RESAMPLER_LAYERS = 2
HEAD_DIM = 64  # of the resampler's attention, where its width allows
# Seeds of initial weights. They must differ, because training may stay so close to its initial weights that the same
# ones are half of a trained projector. nano's language model learned to read seed 0; the evaluation's random projectors
# use 1 and above.
INIT_SEED = 1000  # of every untrained model
RESET_SEED = 2000  # of a trained model's projector that is re-initialised, plus the training's own seed
QUERY_SCALE = 0.02  # small compared with what the queries read, so that initial tokens show the content of the frame


def merge_neighbours(latents_BCThw: Tensor, merge: int) -> Tensor:
    """Folds merge×merge neighbouring cells into one token: (B, C, T, h, w) -> (B, T·h·w/merge², C·merge²)."""
    B, C, T, h, w = latents_BCThw.shape
    cells = latents_BCThw.reshape(B, C, T, h // merge, merge, w // merge, merge)
    # (B, T, h/m, w/m, C, m, m): by frame, then row, then column
    return cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T * (h // merge) * (w // merge), C * merge**2)


def sinusoidal_embedding(length: int, width: int) -> Tensor:
    """Sines and cosines (length, width) of wavelengths from 2 to 4·length positions, with unit root mean square."""
    wavelengths = 2.0 * (2.0 * length) ** torch.linspace(0, 1, (width + 1) // 2)
    angles = 2 * torch.pi * torch.arange(length)[:, None] / wavelengths
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width] * 2**0.5


def drawn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Unit Gaussian numbers on the generator's device, also where another one is the default."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


@torch.no_grad()
def init_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """Initialises weights that preserve the variance of their input, and a bias of zero."""
    linear.weight.copy_(drawn(linear.weight.shape, generator) / linear.in_features**0.5)
    if linear.bias is not None:
        linear.bias.zero_()


class ResamplerLayer(nn.Module):
    """Pre-norm residual block: cross-attention from queries to cells, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, max(1, width // HEAD_DIM))
        self.query_norm, self.cell_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        # no biases: softmax ignores a constant added to all keys, so such a bias would get no gradient
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, cells: Tensor) -> Tensor:
        """Queries (n, K, P) and cells (n, h·w, P) to queries (n, K, P)."""
        normed = self.cell_norm(cells)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, K or h·w, P / heads)
            for x in (self.query(self.query_norm(queries)), self.key(normed), self.value(normed))
        )
        read = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.output(read)
        return queries + self.mlp(self.mlp_norm(queries))


class Resampler(nn.Module):
    """A fixed number of tokens per frame of any size: learned queries attend to the frame's cells.

    This is the resampler of Flamingo (https://arxiv.org/abs/2204.14198) without attention among the queries.
    """

    def __init__(self, tokens: int, width: int, output_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(tokens, width))
        self.layers = nn.ModuleList(ResamplerLayer(width) for _ in range(RESAMPLER_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, output_width)

    @torch.no_grad()
    def reset_parameters(self, target_rms: float, pos_embed_hwP: Tensor, generator: torch.Generator) -> None:
        """Initialises weights whose output on cells of unit variance plus `pos_embed_hwP` has rms `target_rms`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.queries.copy_(drawn(self.queries.shape, generator) * QUERY_SCALE)
        cells = drawn((16, *pos_embed_hwP.shape), generator).to(pos_embed_hwP) + pos_embed_hwP
        measured = self(cells).float().square().mean().sqrt()
        self.output.weight.mul_(target_rms / measured.to(self.output.weight))

    def forward(self, cells: Tensor) -> Tensor:
        """Cells of frames (n, h·w, P), position embeddings included, to tokens (n, K, D)."""
        queries = self.queries.expand(cells.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, cells)
        tokens: Tensor = self.output(self.norm(queries))
        return tokens


class WorldProjector(nn.Module):
    """Projects latents, adds spatial and temporal position embeddings, and surrounds the tokens with two boundaries.

    `linear` is one affine map, as in the source document; `mlp` is two with a GELU in between. Their row, column and
    temporal embeddings are initialised to zero, so that the initial tokens depend on the latents alone. `resampler`
    attends to the projected cells of each frame with `resampler_tokens` queries; its row and column embeddings are
    initialised at random, because attention could not distinguish cells without them.
    """

    def __init__(self, config: TheWorldConfig) -> None:
        super().__init__()
        width = config.get_text_config().hidden_size
        inputs = config.world_config.latent_channels * config.spatial_merge**2
        rows, columns = (side // config.spatial_merge for side in config.world_grid())
        self.merge = config.spatial_merge
        self.max_past_steps = config.max_past_steps
        self.projection: nn.Module
        self.resampler: Resampler | None = None
        inner = width
        if config.projector == "mlp":
            hidden = config.projector_hidden_size or width
            self.projection = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width))
        elif config.projector == "resampler":
            inner = config.projector_hidden_size or max(2, width // 4)
            self.projection = nn.Linear(inputs, inner)
            self.resampler = Resampler(config.resampler_tokens, inner, width)
        else:
            self.projection = nn.Linear(inputs, width)
        # one row per latent frame: first those before now, so that now is row max_past_steps
        self.temporal = nn.Parameter(torch.zeros(config.max_past_steps + 1 + config.max_world_steps, width))
        self.row = nn.Parameter(torch.zeros(rows, inner))
        self.column = nn.Parameter(torch.zeros(columns, inner))
        self.boundaries = nn.Parameter(torch.zeros(2, width))
        self.reset_parameters(1.0)

    @property
    def device(self) -> torch.device:
        return self.boundaries.device

    @property
    def dtype(self) -> torch.dtype:
        return self.boundaries.dtype

    @torch.no_grad()
    def reset_parameters(self, target_rms: float, seed: int = INIT_SEED) -> None:
        """Initialises weights whose output on unit-variance latents has the root mean square `target_rms`.

        The language model's layers expect inputs of the size of its text embeddings. Normalised latents have unit
        variance, so the size can be set before any image is seen.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        linears = [module for module in self.projection.modules() if isinstance(module, nn.Linear)]
        for linear in linears:
            init_linear(linear, generator)
        sample = drawn((1024, linears[0].in_features), generator)
        sample = sample.to(linears[0].weight.device, linears[0].weight.dtype)
        measured = self.projection(sample).float().square().mean().sqrt()
        projected_rms = target_rms if self.resampler is None else 1.0  # the resampler scales its own output
        linears[-1].weight.mul_(projected_rms / measured.to(linears[-1].weight))
        boundaries = drawn(self.boundaries.shape, generator) * target_rms
        self.boundaries.copy_(boundaries)
        for embedding in (self.temporal, self.row, self.column):
            embedding.zero_()
        if self.resampler is not None:
            for embedding in (self.row, self.column):
                embedding.copy_(drawn(embedding.shape, generator))
            self.resampler.reset_parameters(target_rms, self.spatial_pos_embed(), generator)

    @torch.no_grad()
    def is_initial(self, config: TheWorldConfig, target_rms: float) -> bool:
        """Whether the weights are still those that an untrained model of this config starts with."""
        with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
            initial = WorldProjector(config)
        initial.reset_parameters(target_rms)
        expected = initial.state_dict()
        return all(
            torch.equal(tensor.cpu(), expected[name].to(tensor.dtype))
            or torch.equal(tensor.cpu(), expected[name].to(torch.bfloat16).to(tensor.dtype))  # rounded before
            for name, tensor in self.state_dict().items()
        )

    @torch.no_grad()
    def init_sinusoidal(self, rms: float = 0.7) -> None:
        """Initialises the row and column embeddings to sinusoids, about as large as the cells they are added to.

        From zero, positions are learned along the order of the tokens, that is by rows, and columns are not learned for
        thousands of steps. A language model that was trained with sinusoids can read them at once.
        """
        self.row.copy_(sinusoidal_embedding(*self.row.shape) * rms)
        self.column.copy_(sinusoidal_embedding(*self.column.shape).flip(1) * rms)  # flipped to differ from the rows

    def spatial_pos_embed(self) -> Tensor:
        """Position embedding (h·w/merge², P) of the cells of a frame."""
        return (self.row[:, None] + self.column[None]).flatten(0, 1)

    def temporal_pos_embed(self, num_frames: int, num_past_steps: int) -> Tensor:
        """Position embedding (T, D) of latent frames, the first `num_past_steps` of which are before now."""
        if not 0 <= num_past_steps < num_frames:
            raise ValueError(
                f"num_past_steps is {num_past_steps} of {num_frames} latent frames; pass 0 to {num_frames - 1}, since "
                "one frame is now."
            )
        if num_past_steps > self.max_past_steps:
            raise ValueError(
                f"Got {num_past_steps} past latent frames, but the temporal embedding has {self.max_past_steps} rows "
                "for them (max_past_steps)."
            )
        known = self.temporal.shape[0] - self.max_past_steps
        if num_frames - num_past_steps > known:
            raise ValueError(
                f"Got {num_frames - num_past_steps} latent frames from now on, but the temporal embedding has {known} "
                "rows for them (1 + max_world_steps)."
            )
        first = self.max_past_steps - num_past_steps
        return self.temporal[first : first + num_frames]

    def forward(self, latents: Tensor, num_past_steps: int = 0) -> Tensor:
        """Projects world latents to world tokens.

        Args:
            latents: (B, C, T, h, w) normalised world latents.
            num_past_steps: number of the T frames that are before now.

        Returns:
            (B, T·h·w/merge² + 2, D) world tokens, boundaries included; (B, T·K + 2, D) with a resampler.
        """
        B, _, frames, h, w = latents.shape
        rows, columns = h // self.merge, w // self.merge
        if (rows, columns) != (self.row.shape[0], self.column.shape[0]):
            raise ValueError(
                f"The world latents have a {h}×{w} grid, but this projector expects "
                f"{self.row.shape[0] * self.merge}×{self.column.shape[0] * self.merge}; check world_image_size."
            )
        temporal_TD = self.temporal_pos_embed(frames, num_past_steps)
        cells = self.projection(merge_neighbours(latents.to(self.dtype), self.merge))  # (B, T·h·w/merge², P)
        tokens_BTnD = cells.unflatten(1, (frames, rows * columns)) + self.spatial_pos_embed()
        if self.resampler is not None:
            tokens_BTnD = self.resampler(tokens_BTnD.flatten(0, 1)).unflatten(0, (B, frames))  # (B, T, K, D)
        tokens = (tokens_BTnD + temporal_TD[:, None]).flatten(1, 2)
        begin, end = self.boundaries.expand(B, 2, -1).split(1, dim=1)
        return torch.cat([begin, tokens, end], dim=1)
