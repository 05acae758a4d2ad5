"""The loss by groups of packed rows is that of the model itself, with the same gradients."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, Gemma3ForConditionalGeneration

from benchmarks.random_weights import SIZES
from theworld.model import frozen_loss
from theworld.model.frozen_loss import FrozenLoss, share_of_wrong_rows
from theworld.model.packing import describe_rows, groups_of, shift
from theworld.model.placeholders import Tokens

B, L, D = 5, 90, 32
LABELS = 22  # in all rows


@pytest.fixture(scope="module")
def vlm() -> Gemma3ForConditionalGeneration:
    """Six layers of both kinds, whose window is shorter than a row."""
    torch.manual_seed(0)
    sizes = dict(SIZES["tiny"].gemma)
    sizes["text_config"] = {**sizes["text_config"], "num_hidden_layers": 6, "sliding_window": 24}
    return Gemma3ForConditionalGeneration(AutoConfig.for_model("gemma3", **sizes)).requires_grad_(False).eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Rows with an image and world tokens at different places, of two lengths; the second one has neither."""
    torch.manual_seed(1)
    images = torch.zeros(B, L, dtype=torch.long)
    world = torch.zeros(B, L, dtype=torch.bool)
    for row, start in ((0, 3), (2, 3), (3, 3), (4, 9)):
        images[row, start : start + 16] = 1
        world[row, start + 17 : start + 47] = True
    attention = torch.ones(B, L, dtype=torch.long)
    attention[2, 80:] = 0
    labels = torch.full((B, L), -100)
    labels[:, 70:74] = torch.randint(1, 600, (B, 4))
    labels[0, 60:62] = 7  # two answers
    assert (labels != -100).sum() == LABELS
    return {"world": world, "labels": labels, "attention_mask": attention, "token_type_ids": images}


def own_loss(vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor], embeds: Tensor) -> tuple[Tensor, Tensor]:
    """The model's loss and its gradient (B, L, D)."""
    inputs = {name: batch[name] for name in ("attention_mask", "token_type_ids")}
    logits = vlm(inputs_embeds=embeds, **inputs).logits
    targets = shift(batch["labels"])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / LABELS
    (gradient,) = torch.autograd.grad(loss, embeds)
    return loss, gradient


@pytest.mark.parametrize("group_tokens", [64, 200, 4096])
def test_loss_and_gradients_are_the_models(
    vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor], group_tokens: int
) -> None:
    embeds = torch.randn(B, L, D, requires_grad=True)
    loss, gradient = own_loss(vlm, batch, embeds)
    frozen = FrozenLoss(vlm, compiled=False, graphs=False, group_tokens=group_tokens)
    compute = frozen.prepare(**batch, skip_logits=True, num_items_in_batch=LABELS)
    assert compute is not None
    found = compute(embeds)
    (own,) = torch.autograd.grad(2 * found, embeds)
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert vlm.model.language_model.config._attn_implementation != frozen_loss.ATTENTION
    rows = describe_rows(batch["world"], shift(batch["labels"]), batch["token_type_ids"] == 1, batch["attention_mask"])
    assert len(groups_of(rows, group_tokens)) == {64: 4, 200: 2, 4096: 1}[group_tokens]
    for number, row in enumerate(rows):
        torch.testing.assert_close(own[number, row.prefix :], 2 * gradient[number, row.prefix :], atol=1e-8, rtol=1e-4)
        assert not own[number, : row.prefix].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.1},
        {"skip_logits": False},
        {"past_key_values": object()},
        {"position_ids": torch.arange(L)[None]},
        {"attention_mask": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_calls_are_left_to_the_model(
    vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor], changes: dict[str, Any]
) -> None:
    frozen = FrozenLoss(vlm, compiled=False, graphs=False)
    assert frozen.prepare(**{"skip_logits": True, **batch, **changes}) is None


def test_images_after_world_tokens_and_padding_on_the_left_are_left_to_the_model(
    vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor]
) -> None:
    frozen = FrozenLoss(vlm, compiled=False, graphs=False)
    assert frozen.prepare(**batch, skip_logits=True) is not None
    batch["token_type_ids"][0, 55:58] = 1
    assert frozen.prepare(**batch, skip_logits=True) is None
    batch["token_type_ids"][0, 55:58] = 0
    batch["attention_mask"][3, 0] = 0
    assert frozen.prepare(**batch, skip_logits=True) is None


def test_a_compiler_that_gives_wrong_gradients_is_noticed(
    vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in for compiled layers doubles the gradient of single tokens and leaves the loss alone."""
    embeds = torch.randn(B, L, D, requires_grad=True)
    _, gradient = own_loss(vlm, batch, embeds)

    def broken(layer: Any, hidden: Tensor, *rest: Any) -> Tensor:
        if hidden.requires_grad:
            hidden = hidden * 1.0
            weights = torch.ones(hidden.shape[1], 1)
            weights[::16] = 3.0
            hidden.register_hook(lambda gradient: gradient * weights)
        return frozen_loss.following_layer(layer, hidden, *rest)

    frozen = FrozenLoss(vlm, compiled=False, graphs=False)
    plain = frozen_loss.PLAIN_LAYERS
    frozen.layers = (plain[0], broken, plain[2])
    compute = frozen.prepare(**batch, skip_logits=True, num_items_in_batch=LABELS)
    assert compute is not None
    with caplog.at_level(logging.WARNING):
        (own,) = torch.autograd.grad(compute(embeds), embeds)
    assert "other gradients than the plain ones" in caplog.text
    assert frozen.layers is plain
    torch.testing.assert_close(own[0, 20:], gradient[0, 20:], atol=1e-8, rtol=1e-4)


def test_right_layers_pass_the_comparison(
    vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = FrozenLoss(vlm, compiled=False, graphs=False)
    frozen.layers = tuple(frozen_loss.PLAIN_LAYERS)[:1] + tuple(frozen_loss.PLAIN_LAYERS)[1:]
    layers = frozen.layers = list(frozen.layers)
    compute = frozen.prepare(**batch, skip_logits=True)
    assert compute is not None
    seen = []

    def kept(tensor: Tensor) -> Tensor:
        seen.append(tensor.numel())
        return tensor

    def run() -> int:
        seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            compute(torch.randn(B, L, D, requires_grad=True))
        return sum(seen)

    with_comparison = run()
    assert frozen.layers is layers
    monkeypatch.setattr(frozen_loss, "COMPARED_LAYERS", frozen_loss.PLAIN_LAYERS)
    assert with_comparison < 0.7 * run(), "the comparison keeps no activations of its layers"


def test_the_share_of_wrong_rows() -> None:
    expected = torch.ones(100, 4)
    expected[90:] = 0  # unused places
    found = expected + 0.01
    assert share_of_wrong_rows(found, expected) == 0
    found[3] = float("nan")
    found[5] = 9.0
    found[95] = 50.0
    assert share_of_wrong_rows(found, expected) == pytest.approx(2 / 90)


def test_a_batch_is_planned_from_the_tokens_on_the_host(
    vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor]
) -> None:
    """Only the values of the tensors on the host may decide; those on a GPU would have to be waited for."""
    frozen = FrozenLoss(vlm, compiled=False, graphs=False)
    embeds = torch.randn(B, L, D)
    given = {**batch, "skip_logits": True, "num_items_in_batch": LABELS}
    expected = frozen.prepare(**given)
    assert expected is not None
    inputs = {name: batch[name] for name in ("attention_mask", "token_type_ids", "labels")}
    found = frozen.prepare(
        **{**given, "attention_mask": torch.zeros_like(batch["attention_mask"])},
        on_host=Tokens(torch.zeros(B, L), **inputs),
    )
    assert found is not None
    assert torch.equal(found(embeds), expected(embeds))


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_gpu(vlm: Gemma3ForConditionalGeneration, batch: dict[str, Tensor]) -> None:
    inputs = {name: batch[name] for name in ("attention_mask", "token_type_ids", "labels")}
    on_host = Tokens(torch.zeros(B, L), **inputs)
    moved = {name: tensor.cuda() for name, tensor in inputs.items()}
    frozen = FrozenLoss(copy.deepcopy(vlm).cuda(), compiled=False, graphs=False)
    embeds = torch.randn(B, L, D, device="cuda", requires_grad=True)
    count = torch.tensor(LABELS, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute = frozen.prepare(batch["world"], **moved, on_host=on_host, skip_logits=True, num_items_in_batch=count)
        assert compute is not None
        compute(embeds).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert embeds.grad is not None
