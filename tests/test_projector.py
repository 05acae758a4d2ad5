"""Claims about the projector: order of tokens, what a merge keeps, size of its output, and its embeddings."""

from __future__ import annotations

import pytest
import torch

from tests.world_models.tiny import tiny_world_config
from theworld.configuration import TheWorldConfig
from theworld.projector import WorldProjector, merge_neighbours

TEXT = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 300_000}


def config(**values) -> TheWorldConfig:
    base = {"vlm_config": {"text_config": TEXT}, "world_config": tiny_world_config(), "world_image_size": 64}
    return TheWorldConfig(**{**base, **values})


@pytest.mark.parametrize("merge", [1, 2, 4])
def test_a_merge_keeps_every_number_in_film_strip_order(merge: int) -> None:
    latents = torch.arange(2 * 3 * 2 * 8 * 8.0).reshape(2, 3, 2, 8, 8)
    tokens = merge_neighbours(latents, merge)
    assert tokens.shape == (2, 2 * 64 // merge**2, 3 * merge**2)
    assert torch.equal(tokens.flatten().sort().values, latents.flatten())
    side = 8 // merge
    for token, (frame, row, column) in {0: (0, 0, 0), 1: (0, 0, 1), side: (0, 1, 0), side**2: (1, 0, 0)}.items():
        cell = latents[0, :, frame, row * merge : (row + 1) * merge, column * merge : (column + 1) * merge]
        assert torch.equal(tokens[0, token], cell.flatten())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("target", [1.0, 30.0])
def test_output_is_as_large_as_asked(kind: str, target: float) -> None:
    projector = WorldProjector(config(projector=kind, spatial_merge=2))
    projector.scale_to(target)
    tokens = projector(torch.randn(4, 4, 3, 8, 8))
    assert tokens.shape == (4, config(spatial_merge=2).world_token_count(2), 64)
    assert tokens.square().mean().sqrt().item() == pytest.approx(target, rel=0.1)


def test_place_and_moment_can_be_told_apart_and_boundaries_surround() -> None:
    projector = WorldProjector(config())
    latents = torch.zeros(1, 4, 2, 8, 8)
    still = projector(latents)
    assert (still[0, 1:-1] == still[0, 1]).all(), "embeddings start at zero"
    with torch.no_grad():
        for embedding in (projector.row, projector.column, projector.temporal):
            embedding.normal_()
    tokens = projector(latents)[0]
    assert torch.unique(tokens[1:-1], dim=0).shape[0] == 2 * 64
    assert torch.equal(tokens[[0, -1]], projector.boundaries)


def test_the_wrong_grid_or_too_many_frames_are_refused() -> None:
    projector = WorldProjector(config(max_world_steps=1))
    with pytest.raises(ValueError, match="4×4 grid, but this projector was built for 8×8"):
        projector(torch.zeros(1, 4, 1, 4, 4))
    with pytest.raises(ValueError, match="3 latent frames were given, but the temporal embedding has 2"):
        projector(torch.zeros(1, 4, 3, 8, 8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projector": "cnn"}, "choose one of linear, mlp"),
        ({"spatial_merge": 3}, "spatial_merge is 3"),
        ({"spatial_merge": 4, "world_image_size": 48}, "does not divide the 6×6"),
        ({"world_image_size": 60}, "multiple of the world model's 8"),
        ({"world_images": "some"}, "'first' or 'all'"),
        ({"num_world_steps": 17}, "takes 0 to 16"),
        ({"num_world_steps": 1.5}, "whole number"),
    ],
)
def test_settings_outside_their_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_the_published_sizes() -> None:
    published = TheWorldConfig(vlm_config={"text_config": {"hidden_size": 2560}}, num_world_steps=4)
    assert published.world_grid() == (28, 28)
    assert published.world_token_count(0) == 784 + 2
    assert published.world_token_count(4) == 5 * 784 + 2
    assert published.num_pixel_frames(4) == 17
    assert published.world_token_id == 262145, "the first row the published tokenizer leaves free"
    with torch.device("meta"):
        projection = WorldProjector(published).projection
    assert sum(p.numel() for p in projection.parameters()) == 43_520
