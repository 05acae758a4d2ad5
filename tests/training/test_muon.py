"""Muon and AdamW as one optimizer: which parameters each updates, and that a restored state continues exactly."""

from __future__ import annotations

import copy

import torch
from torch import nn

from theworld.training.muon import MuonWithAdamW, inside_layers


def small_model() -> tuple[nn.Module, MuonWithAdamW]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "layers": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    named = dict(nn.ModuleDict({"tower": model}).named_parameters())
    matrices = [p for name, p in named.items() if inside_layers(name, p)]
    rest = [p for name, p in named.items() if not inside_layers(name, p)]
    assert [tuple(p.shape) for p in matrices] == [(4, 4), (4, 4)]
    assert len(rest) == 3, "an embedding and two biases"
    return model, MuonWithAdamW(matrices, [{"params": rest}], 0.02, 0.0, lr=0.01)


def step(model: nn.Module, optimizer: MuonWithAdamW, seed: int) -> None:
    hidden = model["embed"](torch.randint(5, (3,), generator=torch.Generator().manual_seed(seed)))  # type: ignore[index]
    for layer in model["layers"]:  # type: ignore[index]
        hidden = layer(hidden)
    optimizer.zero_grad()
    hidden.square().mean().backward()
    optimizer.step()


def test_all_parameters_change_and_a_schedule_applies_to_both() -> None:
    model, optimizer = small_model()
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 0)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_restored_state_continues_exactly() -> None:
    model, optimizer = small_model()
    step(model, optimizer, 0)
    other, again = small_model()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for groups in (optimizer.param_groups, again.param_groups):
        for group in groups:
            group["lr"] *= 0.5  # a schedule changes the groups of the restored state
    for seed in (1, 2):
        step(model, optimizer, seed)
        step(other, again, seed)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
