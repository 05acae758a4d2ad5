"""World latents to world tokens.

Shapes: B pictures or videos, C latent channels, T latent frames (past, now, future), h×w latent grid, m spatial merge,
D width of the language model, P width in which places are added (D, or the resampler's own), K tokens a frame that the
resampler makes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from theworld.model.configuration import TheWorldConfig

RESAMPLER_LAYERS = 2
HEAD_DIM = 64  # of the resampler's attention, where its width allows
# Draws of weights that must not be one another: training may stay so near to where it began that the same draw is half
# the way back. Nano's language model learned to read draw 0; controls (`TheWorld.world_tokens`) draw 1 and onwards.
FRESH_SEED = 1000  # of every fresh fusion
RESET_SEED = 2000  # of a trained model's projector that is drawn anew: this and the seed of the training
QUERY_SCALE = 0.02  # small beside what the queries read, so that a fresh token says what is in the frame


def merge_neighbours(latents_BCThw: Tensor, merge: int) -> Tensor:
    """Folds merge×merge neighbouring cells into one token: (B, C, T, h, w) -> (B, T·h·w/merge², C·merge²)."""
    B, C, T, h, w = latents_BCThw.shape
    cells = latents_BCThw.reshape(B, C, T, h // merge, merge, w // merge, merge)
    # (B, T, h/m, w/m, C, m, m): frame-major, then rows, then columns, as a reader scans a film strip
    return cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T * (h // merge) * (w // merge), C * merge**2)


def waves(places: int, width: int) -> Tensor:
    """(places, width) of unit root mean square: sines and cosines of wavelengths from 2 to 4·places cells."""
    wavelengths = 2.0 * (2.0 * places) ** torch.linspace(0, 1, (width + 1) // 2)
    angles = 2 * torch.pi * torch.arange(places)[:, None] / wavelengths
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width] * 2**0.5


@torch.no_grad()
def draw_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """Fresh weights that keep the variance of what comes in; a bias starts at zero."""
    linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / linear.in_features**0.5)
    if linear.bias is not None:
        linear.bias.zero_()


class ResamplerLayer(nn.Module):
    """Queries read cells by cross-attention and think about them in an MLP; both add to what the queries were."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, max(1, width // HEAD_DIM))
        self.query_norm, self.cell_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        # no biases: softmax ignores what is added to all keys alike, and such a bias would never learn
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, cells: Tensor) -> Tensor:
        """Queries (n, K, P) and cells (n, h·w, P) to queries (n, K, P)."""
        seen = self.cell_norm(cells)
        asked = self.query(self.query_norm(queries))
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, K or h·w, P / heads)
            for x in (asked, self.key(seen), self.value(seen))
        )
        read = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.output(read)
        return queries + self.mlp(self.mlp_norm(queries))


class Resampler(nn.Module):
    """A fixed number of tokens for each frame, whatever its grid: learned queries read the frame's cells.

    The resampler of Flamingo (https://arxiv.org/abs/2204.14198), without attention among the queries.
    """

    def __init__(self, tokens: int, width: int, output_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(tokens, width))
        self.layers = nn.ModuleList(ResamplerLayer(width) for _ in range(RESAMPLER_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, output_width)

    @torch.no_grad()
    def scale_to(self, target_rms: float, where_hwP: Tensor, generator: torch.Generator) -> None:
        """BatchSampling fresh weights whose output on cells of unit variance at these places has rms `target_rms`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw_linear(module, generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.queries.copy_(torch.randn(self.queries.shape, generator=generator) * QUERY_SCALE)
        cells = torch.randn(16, *where_hwP.shape, generator=generator).to(where_hwP) + where_hwP
        measured = self(cells).float().square().mean().sqrt()
        self.output.weight.mul_(target_rms / measured.to(self.output.weight))

    def forward(self, cells: Tensor) -> Tensor:
        """Cells of frames (n, h·w, P), places added, to tokens (n, K, D)."""
        queries = self.queries.expand(cells.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, cells)
        tokens: Tensor = self.output(self.norm(queries))
        return tokens


class WorldProjector(nn.Module):
    """Projects latents, adds where and when each cell is, and puts a learned boundary on either side.

    `linear` is one affine map, as in the source document; `mlp` is two with a GELU between. Their row, column and
    temporal embeddings start at zero, so that a fresh projector passes on what the latents say and nothing else.
    `resampler` reads the cells of each frame, mapped and with their places, into `resampler_tokens` tokens; its places
    start at random, since attention without them would not tell one cell from another.
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
        inside = width
        if config.projector == "mlp":
            hidden = config.projector_hidden_size or width
            self.projection = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width))
        elif config.projector == "resampler":
            inside = config.projector_hidden_size or max(2, width // 4)
            self.projection = nn.Linear(inputs, inside)
            self.resampler = Resampler(config.resampler_tokens, inside, width)
        else:
            self.projection = nn.Linear(inputs, width)
        # a row a moment, counted from now: first those before it, so that now is row max_past_steps
        self.temporal = nn.Parameter(torch.zeros(config.max_past_steps + 1 + config.max_world_steps, width))
        self.row = nn.Parameter(torch.zeros(rows, inside))
        self.column = nn.Parameter(torch.zeros(columns, inside))
        self.boundaries = nn.Parameter(torch.zeros(2, width))
        self.scale_to(1.0)

    @torch.no_grad()
    def scale_to(self, target_rms: float, seed: int = FRESH_SEED) -> None:
        """BatchSampling fresh weights whose output on unit-variance latents has root mean square `target_rms`.

        The language model's layers expect inputs as large as its text embeddings; tokens far larger or smaller drown,
        or drown the rest. Normalised latents have unit variance, so this can be set before any picture is seen.
        """
        generator = torch.Generator().manual_seed(seed)
        linears = [module for module in self.projection.modules() if isinstance(module, nn.Linear)]
        for linear in linears:
            draw_linear(linear, generator)
        sample = torch.randn(1024, linears[0].in_features, generator=generator)
        sample = sample.to(linears[0].weight.device, linears[0].weight.dtype)
        measured = self.projection(sample).float().square().mean().sqrt()
        projected_rms = target_rms if self.resampler is None else 1.0  # the resampler sees to the size behind it
        linears[-1].weight.mul_(projected_rms / measured.to(linears[-1].weight))
        boundaries = torch.randn(self.boundaries.shape, generator=generator) * target_rms
        self.boundaries.copy_(boundaries)
        for embedding in (self.temporal, self.row, self.column):
            embedding.zero_()
        if self.resampler is not None:
            for place in (self.row, self.column):
                place.copy_(torch.randn(place.shape, generator=generator))
            self.resampler.scale_to(target_rms, self.places(), generator)

    @torch.no_grad()
    def start_as_waves(self, rms: float = 0.7) -> None:
        """Starts the places as sines and cosines of row and column, about as large as the cells they are added to.

        From zero, what stands where is learned along the order of tokens, that is by rows, and columns stay unread for
        thousands of steps; and a language model that has learned to read waves need not learn another code.
        """
        self.row.copy_(waves(*self.row.shape) * rms)
        self.column.copy_(waves(*self.column.shape).flip(1) * rms)  # flipped: no row is taken for a column

    def places(self) -> Tensor:
        """(h·w/merge², P): what each cell of a frame is told about where it is."""
        return (self.row[:, None] + self.column[None]).flatten(0, 1)

    def moments(self, num_frames: int, num_past_steps: int) -> Tensor:
        """(T, D): what the tokens of each latent frame are told about when it is.

        Raises:
            ValueError: a moment that the temporal embedding has no row for.
        """
        if not 0 <= num_past_steps < num_frames:
            raise ValueError(
                f"num_past_steps is {num_past_steps} of {num_frames} latent frames; give 0 to {num_frames - 1}: one of "
                "them is now."
            )
        if num_past_steps > self.max_past_steps:
            raise ValueError(
                f"{num_past_steps} past latent frames were given, but the temporal embedding has {self.max_past_steps} "
                "for them (max_past_steps)."
            )
        known = self.temporal.shape[0] - self.max_past_steps
        if num_frames - num_past_steps > known:
            raise ValueError(
                f"{num_frames - num_past_steps} latent frames were given, but the temporal embedding has {known} "
                "(1 + max_world_steps)."
            )
        first = self.max_past_steps - num_past_steps
        return self.temporal[first : first + num_frames]

    def forward(self, latents: Tensor, num_past_steps: int = 0) -> Tensor:
        """Args:
            latents: (B, C, T, h, w) normalised world latents.
            num_past_steps: how many of the T frames lie before now.

        Returns:
            (B, T·h·w/merge² + 2, D) world tokens, boundaries included; (B, T·K + 2, D) with a resampler.

        Raises:
            ValueError: another grid than the config's, or a moment without a row in the temporal embedding.
        """
        B, _, frames, h, w = latents.shape
        rows, columns = h // self.merge, w // self.merge
        if (rows, columns) != (self.row.shape[0], self.column.shape[0]):
            raise ValueError(
                f"the world latents have a {h}×{w} grid, but this projector was built for "
                f"{self.row.shape[0] * self.merge}×{self.column.shape[0] * self.merge}; "
                "check world_image_size."
            )
        moments_TD = self.moments(frames, num_past_steps)
        cells = self.projection(merge_neighbours(latents.to(self.row.dtype), self.merge))  # (B, T·h·w/merge², P)
        tokens_BTnD = cells.unflatten(1, (frames, rows * columns)) + self.places()
        if self.resampler is not None:
            tokens_BTnD = self.resampler(tokens_BTnD.flatten(0, 1)).unflatten(0, (B, frames))  # (B, T, K, D)
        tokens = (tokens_BTnD + moments_TD[:, None]).flatten(1, 2)
        begin, end = self.boundaries.expand(B, 2, -1).split(1, dim=1)
        return torch.cat([begin, tokens, end], dim=1)
