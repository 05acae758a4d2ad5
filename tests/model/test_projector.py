"""Claims about the projector: order of tokens, what a merge keeps, size of its output, and its embeddings."""

from __future__ import annotations

import pytest
import torch

from tests.world_models.tiny import tiny_world_config
from theworld.model.configuration import TheWorldConfig
from theworld.model.projector import WorldProjector, merge_neighbours

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


@pytest.mark.parametrize(
    "values",
    [
        {"projector": "linear", "spatial_merge": 2},
        {"projector": "mlp", "spatial_merge": 2},
        {"projector": "resampler", "resampler_tokens": 24, "projector_hidden_size": 128},
    ],
)
@pytest.mark.parametrize("target", [1.0, 30.0])
def test_output_is_as_large_as_asked(values: dict[str, object], target: float) -> None:
    projector = WorldProjector(config(**values))
    projector.reset_parameters(target)
    tokens = projector(torch.randn(4, 4, 3, 8, 8))
    assert tokens.shape == (4, config(**values).world_token_count(2), 64)
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


@pytest.mark.parametrize("kind", ["linear", "mlp", "resampler"])
def test_without_a_past_a_projector_is_what_it_was(kind: str) -> None:
    """Same tensors and values under the same names; rows for a past only stand in front of those of now and later."""
    plain = WorldProjector(config(projector=kind, max_world_steps=4)).state_dict()
    assert plain["temporal"].shape == (5, 64)
    deeper = WorldProjector(config(projector=kind, max_world_steps=4, max_past_steps=3)).state_dict()
    assert plain.keys() == deeper.keys()
    assert deeper["temporal"].shape == (8, 64)
    assert all(torch.equal(tensor, deeper[name]) for name, tensor in plain.items() if name != "temporal")


@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_moments_are_counted_from_now(kind: str) -> None:
    projector = WorldProjector(config(projector=kind, resampler_tokens=6, max_world_steps=4, max_past_steps=3))
    still = torch.randn(1, 4, 1, 8, 8).expand(1, 4, 4, 8, 8)  # the same at each moment: what differs is when
    per_frame = 6 if kind == "resampler" else 64
    plain = projector(still, 2)[:, 1:-1].unflatten(1, (4, per_frame))
    with torch.no_grad():
        projector.temporal.copy_(torch.arange(-3.0, 5.0)[:, None].expand(8, 64))  # a row says when it is
    for past in range(4):
        tokens = projector(still, past)
        assert tokens.shape[1] == config(projector=kind, resampler_tokens=6).world_token_count(3 - past, past)
        said = (tokens[:, 1:-1].unflatten(1, (4, per_frame)) - plain).mean(dim=(0, 2, 3))
        torch.testing.assert_close(said, torch.arange(4.0) - past, atol=1e-4, rtol=0)


def test_moments_without_a_row_are_refused() -> None:
    projector = WorldProjector(config(max_world_steps=1, max_past_steps=1))
    latents = torch.zeros(1, 4, 3, 8, 8)
    assert projector(latents, 1).shape == (1, 3 * 64 + 2, 64)
    for past, says in (
        (0, "Got 3 latent frames from now on, but the temporal embedding has 2 rows"),
        (2, "Got 2 past latent frames, but the temporal embedding has 1 rows"),
        (3, "num_past_steps is 3 of 3 latent frames; pass 0 to 2"),
        (-1, "num_past_steps is -1"),
    ):
        with pytest.raises(ValueError, match=says):
            projector(latents, past)


def resampler(**values: object) -> WorldProjector:
    return WorldProjector(config(projector="resampler", **{"resampler_tokens": 6, "max_world_steps": 4, **values}))


@pytest.mark.parametrize("steps", range(5))
def test_a_resampler_makes_as_many_tokens_as_the_config_counts(steps: int) -> None:
    own = config(projector="resampler", resampler_tokens=6, max_world_steps=4)
    assert own.world_tokens_per_frame() == 6
    tokens = resampler()(torch.randn(2, 4, 1 + steps, 8, 8))
    assert tokens.shape == (2, own.world_token_count(steps), 64) == (2, 6 * (1 + steps) + 2, 64)


def test_a_resampler_reads_each_frame_by_itself_and_where_things_are() -> None:
    projector, latents = resampler(), torch.randn(2, 4, 3, 8, 8)
    tokens = projector(latents)[:, 1:-1].unflatten(1, (3, 6))
    alone = torch.cat([projector(latents[:, :, [t]])[:, None, 1:-1] for t in range(3)], dim=1)
    torch.testing.assert_close(tokens, alone)  # temporal embeddings start at zero
    other = latents.clone()
    other[:, :, 1] += 1
    changed = (projector(other)[:, 1:-1].unflatten(1, (3, 6)) - tokens).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert changed.tolist() == [False, True, False]
    moved = projector(latents.roll(1, dims=4))[:, 1:-1].unflatten(1, (3, 6))
    assert (moved - tokens).square().mean().sqrt() > 0.1, "the same cells elsewhere are another image"
    assert tokens.std(dim=2).mean() > 0.1, "the tokens of a frame differ from each other"


def test_gradient_reaches_every_parameter_of_a_resampler() -> None:
    projector = resampler(projector_hidden_size=128)
    assert projector.resampler is not None
    assert projector.resampler.layers[0].heads == 2
    (projector(torch.randn(2, 4, 5, 8, 8)) * torch.randn(2, 32, 64)).sum().backward()
    still = [n for n, p in projector.named_parameters() if p.grad is None or not (p.grad.abs().amax() > 1e-6)]
    assert not still
    rows = [p.grad.abs().amax(dim=1).min() for p in (projector.row, projector.column, projector.temporal)]
    assert all(smallest > 1e-6 for smallest in rows), "every row of every embedding"


@pytest.mark.parametrize("width", [2, 48, 100, 128, 200, 640, 1344])
def test_a_resampler_of_any_width_has_heads_that_divide_it(width: int) -> None:
    projector = resampler(projector_hidden_size=width)
    assert projector.resampler is not None
    assert width % projector.resampler.layers[0].heads == 0
    assert projector(torch.randn(1, 4, 1, 8, 8)).isfinite().all()


def test_the_wrong_grid_or_too_many_frames_are_refused() -> None:
    projector = WorldProjector(config(max_world_steps=1))
    with pytest.raises(ValueError, match="4×4 grid, but this projector expects 8×8"):
        projector(torch.zeros(1, 4, 1, 4, 4))
    with pytest.raises(ValueError, match="Got 3 latent frames from now on, but the temporal embedding has 2 rows"):
        projector(torch.zeros(1, 4, 3, 8, 8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projector": "cnn"}, "choose one of linear, mlp, resampler"),
        ({"projector": "resampler", "spatial_merge": 2}, "with projector 'resampler' it must be 1"),
        ({"projector": "mlp", "projector_hidden_size": 1}, "projector_hidden_size is 1"),
        ({"projector": "resampler", "resampler_tokens": 0}, "resampler_tokens is 0"),
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
