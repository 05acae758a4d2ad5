"""The loss, evaluation, and checkpoints that are complete or absent."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.conftest import load, records
from theworld.datasets.samples import TheWorldDataset
from theworld.fast_path import uses_fast_path
from theworld.model import language_loss
from theworld.model.frozen_loss import FrozenLoss
from theworld.training import checkpointing, fast_path, recipe
from theworld.training.checkpointing import checkpoints_in, find_last_checkpoint
from theworld.training.config import TrainingConfig
from theworld.training.loss import answer_sums
from theworld.training.model_setup import build_model, describe
from theworld.training.samplers import IndexedSamples
from theworld.training.trainer import TheWorldTrainer

Settings = Callable[..., TrainingConfig]


def new_trainer(config: TrainingConfig, chats: list[dict[str, Any]]) -> TheWorldTrainer:
    """A trainer on these chats, before its first step."""
    described = describe(config)
    collator = recipe.new_collator(config, described)
    dataset = TheWorldDataset(chats)
    placed = IndexedSamples(dataset, range(len(dataset)))
    held_out = IndexedSamples(dataset, range(len(dataset)), deterministic=True)
    model = build_model(config, described)
    return TheWorldTrainer(model, config, collator, placed, held_out)


def batch_of(made: TheWorldTrainer, places: range) -> dict[str, Any]:
    return made._prepare_inputs(made.data_collator([made.train_dataset[place] for place in places]))


def test_the_loss_is_the_models_own(settings: Settings) -> None:
    """Logits at labelled positions only give the same loss and gradients as all logits."""
    made = new_trainer(settings(num_world_steps=1), records(3))
    inputs = batch_of(made, range(3))
    learned = int((inputs["labels"][:, 1:] != -100).sum())
    loss = made.compute_loss(made.model, inputs, num_items_in_batch=learned)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}
    made.model.zero_grad()
    whole = made.model(**{k: v for k, v in inputs.items() if k != "labels"}, labels=inputs["labels"]).loss
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-6)
    assert gradients
    for name, parameter in made.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_accumulating_is_one_large_batch(settings: Settings) -> None:
    """With answers of unequal length, the mean is over all tokens of a step, not over the means of its batches."""
    chats = records(4)
    chats[1]["label"] = "the middle bin, left of the right one"
    weights = []
    for batch_size, steps in ((4, 1), (1, 4), (2, 2)):
        made = new_trainer(
            settings(batch_size=batch_size, gradient_accumulation_steps=steps, max_steps=1, save_steps=50), chats
        )
        made.train()
        weights.append(made.model.projector.projection.weight.detach().clone())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-6, rtol=1e-5)


def test_a_batch_without_world_tokens_gives_the_projector_a_zero_gradient(settings: Settings) -> None:
    """Without one, the other processes of DDP would wait for ever."""
    made = new_trainer(settings(world_dropout=1.0), records(2))
    inputs = batch_of(made, range(2))
    assert not {"world_latents", "world_frames"} & set(inputs)
    made.model.train()
    made.compute_loss(made.model, inputs, num_items_in_batch=1).backward()
    for parameter in made.model.projector.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_sums_are_computed_per_answer() -> None:
    """Two answers in the first sample, the second of them wrong; one right answer in the second sample."""
    labels = torch.tensor([[-100, 5, 6, -100, 7, -100], [-100, -100, -100, 8, 9, -100]])
    targets = labels[:, 1:]
    logits = torch.zeros(2, 5, 10)
    said = {(0, 0): 5, (0, 1): 6, (0, 3): 1, (1, 2): 8, (1, 3): 9}
    for (row, place), token in said.items():
        logits[row, place, token] = 5.0
    sums = answer_sums(logits[targets != -100], labels)
    assert sums[:, 1:].tolist() == [[3, 1, 2], [2, 1, 1]]
    assert sums[0, 0] > sums[1, 0] > 0


def test_evaluation_is_the_mean_over_tokens_and_answers(settings: Settings) -> None:
    chats = records(3)
    chats[0]["label"] = "the middle bin, left of the right one"
    made = new_trainer(settings(eval_batch_size=2, num_world_steps=1), chats)
    metrics = made.evaluate()
    loss = tokens = right = 0.0
    for place in range(3):
        inputs = batch_of(made, range(place, place + 1))
        labels = inputs.pop("labels")
        with torch.no_grad():
            logits = made.model(**inputs).logits[:, :-1]
        learned = labels[:, 1:] != -100
        loss += torch.nn.functional.cross_entropy(logits[learned], labels[:, 1:][learned], reduction="sum").item()
        tokens += int(learned.sum())
        right += bool((logits.argmax(-1) == labels[:, 1:])[learned].all())
    assert metrics["eval_loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert metrics["eval_exact_match"] == pytest.approx(right / 3)
    assert metrics["eval_answers"] == 3


def test_evaluation_keeps_the_random_states(settings: Settings) -> None:
    made = new_trainer(settings(), records(2))
    before = (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    made.evaluate()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_the_content_of_a_checkpoint(settings: Settings) -> None:
    config = settings(save_steps=1, save_total_limit=1)
    recipe.train(config, load())
    (folder,) = checkpoints_in(config.output_dir)
    assert folder.name == "checkpoint-2"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "data.json",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
        "training_config.json",
    ]
    assert TrainingConfig.read(folder / "training_config.json") == config
    assert not list(Path(config.output_dir).glob(".*"))
    assert set(load_file(folder / "model.safetensors")) == {
        f"projector.{name}"
        for name in ("temporal", "row", "column", "boundaries", "projection.weight", "projection.bias")
    }


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_checkpoint_with_other_tensors_is_refused(settings: Settings, change: str) -> None:
    """Trainer's own way of resuming ignores all of these."""
    config = settings(save_steps=2)
    recipe.train(config, load())
    file = find_last_checkpoint(config.output_dir) / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        del tensors["projector.row"]
    elif change == "unexpected":
        tensors["projector.extra"] = torch.zeros(1)
    else:
        tensors["projector.row"] = torch.zeros(1, 32)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"checkpoint-2 does not match this model"):
        recipe.train(settings(max_steps=3, resume_from_checkpoint="last"), load())


@pytest.mark.parametrize("where", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_full_disk_is_one_sentence_and_keeps_the_last_checkpoint(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = settings(save_steps=1)
    whole = getattr(TheWorldTrainer, where)
    calls = []

    def full(self: TheWorldTrainer, *arguments: Any, **keywords: Any) -> None:
        calls.append(where)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, *arguments, **keywords)

    monkeypatch.setattr(TheWorldTrainer, where, full)
    with pytest.raises(
        ValueError, match=r"checkpoint-2 could not be written \(No space left on device\); .*-1 is complete"
    ):
        recipe.train(config, load())
    (last,) = checkpoints_in(config.output_dir)
    assert json.loads((last / "trainer_state.json").read_text())["global_step"] == 1
    assert not list(Path(config.output_dir).glob(".*"))


def test_incomplete_checkpoints_of_a_killed_run_are_removed(settings: Settings) -> None:
    config = settings(save_steps=1)
    left = Path(config.output_dir) / ".checkpoint-1.writing"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    recipe.train(config, load())
    assert not left.exists()
    assert len(checkpoints_in(config.output_dir)) == 2


def test_a_folder_without_training_state_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert checkpoints_in(tmp_path) == []
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / checkpointing.STATE_FILE).write_text("{}")
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_the_fast_path_learns_the_same(settings: Settings) -> None:
    """Chats of different lengths, one without an image, through Trainer's own loss."""
    chats = records(4)
    chats[1]["label"] = "the middle bin, left of the right one"
    chats[2] = {"text": "How many bins are there?", "label": "three"}
    made = new_trainer(settings(num_world_steps=1, batch_size=4), chats)
    inputs = batch_of(made, range(4))
    gradients = []
    for frozen in (None, FrozenLoss(made.model.vlm, compiled=False, graphs=False, group_tokens=32)):
        made.model.frozen_loss = frozen
        made.model.zero_grad()
        loss = made.compute_loss(made.model, inputs, num_items_in_batch=torch.tensor(7))
        loss.backward()
        gradients.append((loss.item(), {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}))
    (expected_loss, expected), (loss_found, found) = gradients
    assert loss_found == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-3)


def test_logits_are_computed_only_for_labels(settings: Settings) -> None:
    """Not for all positions that are a label in some sample of the batch."""
    chats = records(3)
    chats[1]["label"] = "the middle bin, left of the right one"
    made = new_trainer(settings(), chats)
    inputs = batch_of(made, range(3))
    rows = []
    made.model.vlm.lm_head.register_forward_hook(lambda module, given, logits: rows.append(logits[..., 0].numel()))
    made.model.train()
    made.compute_loss(made.model, inputs, num_items_in_batch=1)
    made.compute_loss(made.model, inputs, return_outputs=True, num_items_in_batch=1)
    labels = int((inputs["labels"][:, 1:] != -100).sum())
    assert rows == [labels, labels]


def test_long_answers_need_the_logits_of_one_chunk_at_a_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_trainer(settings(), records(3))
    inputs = batch_of(made, range(3))
    losses = []
    for chunk in (1024, 2):
        monkeypatch.setattr(language_loss, "CHUNK", chunk)
        made.model.zero_grad()
        loss = made.compute_loss(made.model, inputs, num_items_in_batch=1)
        loss.backward()
        losses.append((loss.item(), made.model.projector.projection.weight.grad.clone()))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    torch.testing.assert_close(losses[0][1], losses[1][1], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("wanted", "reason", "steps", "expected"),
    [("auto", None, 1000, True), ("auto", None, 10, False), ("on", None, 10, True), ("auto", "no GPU", 1000, False),
     ("off", None, 1000, False)],
)  # fmt: skip
def test_when_the_fast_path_is_used(wanted: str, reason: str | None, steps: int, expected: bool) -> None:
    assert uses_fast_path(wanted, reason, pays=fast_path.pays(steps, 1)) is expected
    assert not uses_fast_path("auto", None, pays=fast_path.pays(steps, 2))
