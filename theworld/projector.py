"""World latents to world tokens.

Shapes: B pictures, C latent channels, T latent frames, h×w latent grid, m spatial merge, D width of the language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from theworld.configuration import TheWorldConfig


def merge_neighbours(latents_BCThw: Tensor, merge: int) -> Tensor:
    """Folds merge×merge neighbouring cells into one token: (B, C, T, h, w) -> (B, T·h·w/merge², C·merge²)."""
    B, C, T, h, w = latents_BCThw.shape
    cells = latents_BCThw.reshape(B, C, T, h // merge, merge, w // merge, merge)
    # (B, T, h/m, w/m, C, m, m): frame-major, then rows, then columns, as a reader scans a film strip
    return cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T * (h // merge) * (w // merge), C * merge**2)


class WorldProjector(nn.Module):
    """Projects latents, adds where and when each cell is, and puts a learned boundary on either side.

    `linear` is one affine map, as in the source document; `mlp` is two with a GELU between. The row, column and
    temporal embeddings start at zero, so that a fresh projector passes on what the latents say and nothing else.
    """

    def __init__(self, config: TheWorldConfig) -> None:
        super().__init__()
        width = config.get_text_config().hidden_size
        inputs = config.world_config.latent_channels * config.spatial_merge**2
        hidden = config.projector_hidden_size or width
        rows, columns = (side // config.spatial_merge for side in config.world_grid())
        self.merge = config.spatial_merge
        self.projection = (
            nn.Linear(inputs, width)
            if config.projector == "linear"
            else nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width))
        )
        self.temporal = nn.Parameter(torch.zeros(1 + config.max_world_steps, width))
        self.row = nn.Parameter(torch.zeros(rows, width))
        self.column = nn.Parameter(torch.zeros(columns, width))
        self.boundaries = nn.Parameter(torch.zeros(2, width))
        self.scale_to(1.0)

    @torch.no_grad()
    def scale_to(self, target_rms: float, seed: int = 0) -> None:
        """Draws fresh weights whose output on unit-variance latents has root mean square `target_rms`.

        The language model's layers expect inputs as large as its text embeddings; tokens far larger or smaller drown,
        or drown the rest. Normalised latents have unit variance, so this can be set before any picture is seen.
        """
        generator = torch.Generator().manual_seed(seed)
        linears = [module for module in self.projection.modules() if isinstance(module, nn.Linear)]
        for linear in linears:
            weight = torch.randn(linear.weight.shape, generator=generator) / linear.in_features**0.5
            linear.weight.copy_(weight)
            linear.bias.zero_()
        sample = torch.randn(1024, linears[0].in_features, generator=generator)
        sample = sample.to(linears[0].weight.device, linears[0].weight.dtype)
        measured = self.projection(sample).float().square().mean().sqrt()
        linears[-1].weight.mul_(target_rms / measured.to(linears[-1].weight))
        boundaries = torch.randn(self.boundaries.shape, generator=generator) * target_rms
        self.boundaries.copy_(boundaries)
        for embedding in (self.temporal, self.row, self.column):
            embedding.zero_()

    def forward(self, latents: Tensor) -> Tensor:
        """Args:
            latents: (B, C, T, h, w) normalised world latents.

        Returns:
            (B, T·h·w/merge² + 2, D) world tokens, boundaries included.
        """
        B, _, frames, h, w = latents.shape
        rows, columns = h // self.merge, w // self.merge
        if (rows, columns) != (self.row.shape[0], self.column.shape[0]):
            raise ValueError(
                f"the world latents have a {h}×{w} grid, but this projector was built for "
                f"{self.row.shape[0] * self.merge}×{self.column.shape[0] * self.merge}; "
                "check world_image_size."
            )
        moments = self.temporal.shape[0]
        if frames > moments:
            raise ValueError(
                f"{frames} latent frames were given, but the temporal embedding has {moments} " "(1 + max_world_steps)."
            )
        tokens = self.projection(merge_neighbours(latents.to(self.row.dtype), self.merge))
        when_TD = self.temporal[:frames].repeat_interleave(rows * columns, dim=0)
        where_hwD = (self.row[:, None] + self.column[None]).flatten(0, 1).repeat(frames, 1)
        tokens = tokens + when_TD + where_hwD
        begin, end = self.boundaries.expand(B, 2, -1).split(1, dim=1)
        return torch.cat([begin, tokens, end], dim=1)
