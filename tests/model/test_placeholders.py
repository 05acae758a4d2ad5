"""Features take the places of placeholders."""

from __future__ import annotations

import pytest
import torch

from theworld.model.placeholders import find_placeholders, scatter

CPU = torch.device("cpu")

IMAGE, WORLD = 7, 8


def test_features_and_gradients_are_those_of_masked_scatter() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[7, 7, 1, 8], [1, 7, 7, 8]])
    embeds = torch.randn(2, 4, 3, requires_grad=True)
    features = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    images, world = find_placeholders(ids, CPU, IMAGE, WORLD)
    assert images.tolist() == [0, 1, 5, 6]
    assert world.tolist() == [3, 7]
    found = scatter(embeds, images, features, "image")
    expected = embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), features.to(embeds))
    assert torch.equal(found, expected)
    weights = torch.randn(2, 4, 3)
    own, theirs = (torch.autograd.grad((each * weights).sum(), (embeds, features)) for each in (found, expected))
    assert all(map(torch.equal, own, theirs))


def test_no_features_for_no_placeholders() -> None:
    embeds = torch.randn(1, 2, 3)
    (none,) = find_placeholders(torch.tensor([[1, 2]]), CPU, WORLD)
    assert torch.equal(scatter(embeds, none, embeds.new_empty(0, 0, 3), "world"), embeds)
    with pytest.raises(ValueError, match="The prompt has 0 world placeholders, but there are 2 world tokens"):
        scatter(embeds, none, torch.randn(1, 2, 3), "world")


@pytest.mark.gpu
def test_gradients_do_not_wait_for_the_gpu() -> None:
    ids = torch.full((2, 4), WORLD, device="cuda")
    embeds = torch.randn(2, 4, 3, device="cuda")
    features = torch.randn(2, 4, 3, device="cuda", requires_grad=True)
    on_host = ids.cpu()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (places,) = find_placeholders(on_host, ids.device, WORLD)
        scatter(embeds, places, features, "world").sum().backward()  # an error if it waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert features.grad is not None
    assert torch.equal(features.grad, torch.ones_like(features))
