"""The recipe from config to trained model: trainable parts, precision, stages, latents, logs and warnings."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.conftest import load, records, wait_for
from theworld import TheWorld
from theworld.model import freezing
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.training import recipe
from theworld.training.checkpointing import find_last_checkpoint
from theworld.training.config import TrainingConfig
from theworld.training.model_setup import build_model, describe
from theworld.world_models.cosmos_predict2 import CosmosPredict2

Settings = Callable[..., TrainingConfig]


def losses(output_dir: str | Path) -> list[float]:
    last = find_last_checkpoint(output_dir)
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_trained_model_answers(settings: Settings) -> None:
    """Overfitted to two samples, the saved model gives their answers."""
    config = settings(max_steps=60, learning_rate=5e-3, freeze_gemma_language=False, save_steps=60, num_world_steps=1)
    folder = recipe.train(config, load(train=2))
    assert losses(folder)[-1] < 0.05 < losses(folder)[0]
    model = TheWorld.from_pretrained(folder)
    assert model.config.trained_parts == ["projector", "language"]
    chats = records(2)
    asked = [chat["image"] for chat in chats], [chat["text"] for chat in chats]
    assert model.generate(*asked, max_new_tokens=8) == [chat["label"] for chat in chats]


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({}, {"projector"}),
        ({"lora": 2}, {"projector", "lora"}),
        ({"freeze_gemma_vision": False}, {"projector", "vision"}),
        ({"freeze_gemma_language": False}, {"projector", "language"}),
        ({"freeze_cosmos_vae": False}, {"projector", "vae_encoder"}),
    ],
)
def test_exactly_the_unfrozen_parts_change(settings: Settings, changes: dict[str, Any], moves: set[str]) -> None:
    config = settings(**changes, max_steps=3, weight_decay=0.1)
    before = dict(build_model(config, describe(config)).named_parameters())
    folder = recipe.train(config, load())
    after = TheWorldForConditionalGeneration.from_pretrained(folder, world_parts=("encoder",))
    assert set(after.config.trained_parts) == moves
    still = set()
    for name, parameter in after.named_parameters():
        if freezing.part_of(name) in moves:
            if torch.equal(parameter, before[name]):
                still.add(name)
        else:
            assert torch.equal(parameter, before[name]), name
    # Weight decay changes parameters without a gradient, unless they are zero: with one frame that excludes the
    # temporal rows of later ones and the VAE's convolutions over time.
    assert {name for name in still if "time_conv" not in name and not name.startswith("projector.")} == set()


def test_an_unfrozen_vae_receives_gradients(settings: Settings) -> None:
    config = settings(freeze_cosmos_vae=False)
    described = describe(config)
    model = build_model(config, described)
    collator = recipe.new_collator(config, described)
    training, _ = recipe.index_samples(config, load(), collator)
    trainer = recipe.TheWorldTrainer(model, config, collator, training)
    inputs = trainer._prepare_inputs(collator([training[0], training[1]]))
    assert "world_frames" in inputs
    trainer.compute_loss(model, inputs, num_items_in_batch=1).backward()
    without = [
        name
        for name, parameter in model.world.vae.encoder.named_parameters()
        if "time_conv" not in name and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []


def test_controls_without_information_from_the_world_model(settings: Settings, tmp_path: Path) -> None:
    """Constant world tokens, and an untrained projector: one key each, saved and loaded."""
    folder = recipe.train(settings(lora=2, constant_world=True), load())
    model = TheWorld.from_pretrained(folder).model
    assert model.projector.row.any(), "position embeddings of constant tokens are trained"
    untrained = settings(lora=2, freeze_projector=True, output_dir=str(tmp_path / "frozen"))
    before = build_model(untrained, describe(untrained)).projector.state_dict()
    loaded = TheWorld.from_pretrained(recipe.train(untrained, load())).model
    after = loaded.projector.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any(parameter.any() for name, parameter in loaded.named_parameters() if ".lora_B." in name)
    assert loaded.config.reads_world_tokens, "the LoRA was trained with them"


def test_each_stage_starts_from_the_one_before(settings: Settings, tmp_path: Path) -> None:
    """Projector, then a LoRA as well, then the language model: each stage starts from the folder of the one before."""
    first = recipe.train(settings(output_dir=str(tmp_path / "1")), load())
    second_config = settings(model_name=str(first), lora=2, output_dir=str(tmp_path / "2"))
    start = build_model(second_config, describe(second_config))
    trained = load_file(first / "model.safetensors")
    assert all(torch.equal(dict(start.named_parameters())[name], tensor) for name, tensor in trained.items())
    second = recipe.train(second_config, load())
    assert json.loads((second / "config.json").read_text())["trained_parts"] == ["projector", "lora"]
    third_config = settings(
        model_name=str(second), freeze_gemma_language=False, freeze_lora=True, output_dir=str(tmp_path / "3")
    )
    third = recipe.train(third_config, load())
    after, before = load_file(third / "model.safetensors"), load_file(second / "model.safetensors")
    assert json.loads((third / "config.json").read_text())["trained_parts"] == ["projector", "lora", "language"]
    lora = [name for name in before if ".lora_" in name]
    assert lora
    assert all(torch.equal(after[name], before[name]) for name in lora)
    assert not torch.equal(after["projector.projection.weight"], before["projector.projection.weight"])
    assert TheWorld.from_pretrained(third).generate(records(1)[0]["image"], "Which?", max_new_tokens=2) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"projector": "mlp"}, "projector is 'mlp', but .* was trained with 'linear', which cannot be changed"),
        ({"spatial_merge": 2}, "spatial_merge is 2, but"),
        ({"num_world_steps": 9}, "num_world_steps is 9; this model takes 0 to 4"),
        ({"world_steps_mix": {"9": 1}}, "num_world_steps is 9; this model takes 0 to 4"),
    ],
)
def test_settings_that_a_trained_model_refuses(
    settings: Settings, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    first = recipe.train(settings(), load())
    with pytest.raises(ValueError, match=words):
        recipe.train(settings(model_name=str(first), output_dir=str(tmp_path / "2"), **changes), load())


def test_another_lora_is_refused(settings: Settings, tmp_path: Path) -> None:
    first = recipe.train(settings(lora=2), load())
    with pytest.raises(ValueError, match="has another LoRA"):
        recipe.train(settings(model_name=str(first), lora=4, output_dir=str(tmp_path / "2")), load())


def test_bf16_keeps_trainable_parameters_in_float32(settings: Settings) -> None:
    config = settings(mixed_precision="bf16", lora=2, max_steps=3, num_world_steps=1)
    model = build_model(config, describe(config))
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert (kinds, frozen) == ({torch.float32}, {torch.bfloat16})
    folder = recipe.train(config, load())
    assert all(map(math.isfinite, losses(folder)))
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_precisions_that_a_cpu_does_not_support(settings: Settings) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU, and there is none; use bf16 or fp32"):
        recipe.train(settings(mixed_precision="fp16"), load())
    with pytest.raises(ValueError, match="set mixed_precision to fp32"):
        recipe.train(settings(mixed_precision="bf16", freeze_cosmos_vae=False), load())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_precision_trains_on_a_gpu(settings: Settings, precision: str) -> None:
    folder = recipe.train(settings(mixed_precision=precision, lora=2, max_steps=8), load())
    found = losses(folder)
    assert all(map(math.isfinite, found))
    assert found[-1] < found[0]


# ------------------------------------------------------------------------------------------------------------ latents


def test_cached_and_uncached_runs_have_the_same_losses(settings: Settings, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "num_world_steps": 1,
        "world_steps_mix": {"0": 0.4, "1": 0.6},
        "true_futures": 0.5,
        "futures_per_image": 2,
        "max_steps": 8,
        "do_eval": True,
        "eval_steps": 4,
        "save_steps": 8,
    }
    plain = recipe.train(settings(**values, output_dir=str(tmp_path / "plain")), load())
    cached = recipe.train(
        settings(**values, output_dir=str(tmp_path / "cached"), latent_cache=str(tmp_path / "cache")), load()
    )
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-5)
    history = [json.loads((find_last_checkpoint(run) / "trainer_state.json").read_text()) for run in (plain, cached)]
    evaluated = [[e["eval_loss"] for e in each["log_history"] if "eval_loss" in e] for each in history]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)
    assert len(evaluated[0]) == 2


def test_with_a_full_cache_the_world_model_is_never_loaded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"num_world_steps": 1, "latent_cache": str(tmp_path / "cache"), "do_eval": True, "eval_steps": 1}
    cache, new = recipe.fill(settings(**values), load())
    assert new == len(cache) == 6 + 2 + 2  # training samples, evaluation samples, and two futures to show
    loaded = []
    whole = CosmosPredict2._load

    def watched(self: CosmosPredict2, folder: Path, parts: tuple[str, ...], *more: Any) -> None:
        loaded.extend(parts)
        whole(self, folder, parts, *more)

    monkeypatch.setattr(CosmosPredict2, "_load", watched)
    folder = recipe.train(settings(**values), load())
    assert loaded == []
    assert (folder / "samples" / "imagined-0.png").is_file()
    # other futures: those are computed
    recipe.train(settings(**values, world_seed=1, output_dir=str(tmp_path / "other")), load())
    assert {"encoder", "transformer"} <= set(loaded)


@pytest.mark.parametrize("cached", [False, True])
def test_a_sample_without_a_true_future_gets_a_rollout(settings: Settings, tmp_path: Path, cached: bool) -> None:
    """Also if all other samples have one, so that the run has not loaded the transformer."""
    chats = records(2)
    del chats[1]["future_frames"]
    config = settings(
        num_world_steps=1, true_futures=1.0, latent_cache=str(tmp_path / "cache") if cached else None, max_steps=1
    )
    recipe.train(config, lambda config: (chats, None))
    assert all(map(math.isfinite, losses(config.output_dir)))


def test_a_cache_needs_a_folder(settings: Settings) -> None:
    with pytest.raises(ValueError, match="set latent_cache to a folder"):
        recipe.fill(settings(), load())


# --------------------------------------------------------------------------------------------------------------- logs


def test_logs_are_in_the_output_folder(settings: Settings) -> None:
    folder = recipe.train(settings(log_to_tensorboard=True, do_eval=True, eval_steps=1, num_world_steps=1), load())
    events = EventAccumulator(str(folder / "logs"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "eval/exact_match"} <= set(scalars)
    assert [event.step for event in events.Scalars("eval/loss")] == [1, 2]
    assert events.Tags()["images"] == ["imagined/0", "imagined/1"]
    assert {"samples/0/text_summary", "samples/1/text_summary"} <= set(events.Tags()["tensors"])


def test_samples_are_shown_at_each_evaluation(settings: Settings) -> None:
    folder = recipe.train(settings(do_eval=True, eval_steps=1, num_world_steps=2, shown_samples=1), load())
    for step in (1, 2):
        (line,) = [json.loads(line) for line in (folder / "samples" / f"step-{step}.jsonl").read_text().splitlines()]
        assert line["question"] == "Which bin will the ball land in?"
        assert line["truth"] in ("left", "middle", "right")
        assert isinstance(line["answer"], str)
        assert line["strip"] == "imagined-0.png"
    strip = np.asarray(Image.open(folder / "samples" / "imagined-0.png"))
    assert strip.shape[1] > 3 * strip.shape[0] - 20  # now, and two world steps


def test_weights_and_biases_gets_metrics_and_samples(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the library itself, offline: its folder holds what `wandb sync` would upload."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for folder in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(folder, str(tmp_path))
    wandb = importlib.import_module("wandb")
    values = {"do_eval": True, "eval_steps": 2, "num_world_steps": 1}
    config = settings(log_to_wandb=True, wandb_project="mine", wandb_run_name="first", **values)
    try:
        recipe.train(config, load())
        assert (wandb.run.project, wandb.run.name, wandb.run.offline) == ("mine", "first", True)
    finally:
        wandb.finish()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (history,) = folder.glob("run-*.wandb")
    wait_for(lambda: b"imagined-1.png" in history.read_bytes())  # its service writes on after `finish` has returned
    sent = history.read_bytes()
    assert all(key in sent for key in (b"train/loss", b"eval/loss", b"eval/exact_match", b"samples"))
    (table,) = (folder / "files" / "media").rglob("samples*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == ["origin", "question", "answer", "truth", "imagined"]
    assert [row[3] for row in shown["data"]] == ["middle", "right"]
    staged = [file.read_bytes() for file in (tmp_path / "artifacts" / "staging").iterdir()]
    for strip in ("imagined-0.png", "imagined-1.png"):
        assert (Path(config.output_dir) / "samples" / strip).read_bytes() in staged
        assert strip.encode() in sent


def test_a_tracker_that_is_not_installed_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"`uv pip install --python \S+ wandb`, .* or set log_to_wandb to false"):
        recipe.train(settings(log_to_wandb=True), load())


def test_memory_is_predicted_before_weights_are_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Loading(Exception):
        pass

    def build(*_: Any) -> None:
        raise Loading

    monkeypatch.setattr(recipe, "build_model", build)
    monkeypatch.setattr(recipe, "gpus", list)
    for free, warned in ((2**40, False), (2**10, True)):
        monkeypatch.setattr(recipe, "free_ram", lambda free=free: free)
        caplog.clear()
        with caplog.at_level("INFO"), pytest.raises(Loading):
            recipe.train(settings(), load())
        assert "GiB of RAM per process, for 60 text tokens" in caplog.text
        assert ("use a smaller batch_size with gradient_accumulation_steps" in caplog.text) is warned


def test_trainable_parts_and_lengths_of_samples_are_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="theworld")
    recipe.train(settings(num_world_steps=1, world_steps_mix={"0": 1, "2": 1}), load())
    model = build_model(settings(), describe(settings()))
    rows = freezing.count_parameters(model)
    trainable = sum(row.trainable for row in rows)
    assert f"trainable: projector, {trainable:,} parameters" in caplog.text
    text, image, world = 2048, 16 + 2, 3 * 16 + 2
    lengths = f"2,048 of text, {image} of the image, {world} of the world model at 2 steps"
    assert f"up to {text + image + world:,} tokens: {lengths}" in caplog.text
    assert "6 training samples, none for evaluation" in caplog.text


def test_a_dataset_without_evaluation_samples(settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"do_eval is true, but .* has no evaluation samples; set it to false"):
        recipe.train(settings(do_eval=True), lambda config: (records(2), None))


# ----------------------------------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup_steps": 4, "max_steps": 4}, True),
        ({"warmup_steps": 100, "max_steps": None, "num_epochs": 1}, True),
        ({"warmup_steps": 3, "max_steps": 4}, False),
        ({"warmup_steps": 0, "max_steps": 1}, False),
        ({"warmup_steps": 4, "max_steps": 4, "lr_scheduler": "constant"}, False),
        ({"warmup_steps": 0.5, "max_steps": 4}, False),
    ],
)
def test_a_learning_rate_that_never_reaches_its_peak_is_warned_of(
    settings: Settings, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], said: bool
) -> None:
    config = settings(**changes)
    recipe.train(config, load())
    steps = config.max_steps or 3  # six samples, two at once
    line = f"warmup_steps is {config.warmup_steps} and the run has {steps} steps, so the learning rate never reaches"
    assert (line in caplog.text) == said
    last = find_last_checkpoint(config.output_dir)
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    peak = max(entry["learning_rate"] for entry in history if "learning_rate" in entry)
    assert (peak < config.learning_rate) == said, "the warning is true"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_fp32_is_advised_on_a_cpu_without_bfloat16(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
) -> None:
    monkeypatch.setattr(recipe, "cpu_has_bfloat16", lambda: has_bfloat16)
    recipe.check_machine(settings(mixed_precision="fp32"))
    assert caplog.text == ""
    recipe.check_machine(settings(mixed_precision="bf16"))
    assert ("this CPU has no bfloat16 instructions: fp32 is faster" in caplog.text) == (not has_bfloat16)


@pytest.mark.parametrize("mix", [None, {"1": 0.5, "4": 0.5}])
def test_a_true_future_that_is_too_short_is_an_early_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, mix: dict[str, float] | None
) -> None:
    chats = records(4)
    chats[2]["future_frames"] = chats[2]["future_frames"][:15]

    def index(**changes: Any) -> None:
        config = settings(**{"num_world_steps": 4 if mix is None else 1, "world_steps_mix": mix, **changes})
        collator = recipe.new_collator(config, describe(config))
        recipe.index_samples(config, lambda config: (chats, None), collator)

    said = "training sample 2 has 15 future frames, and 4 world steps need 16: give it more, use fewer steps, or set"
    with pytest.raises(ValueError, match=said):
        index(true_futures=0.5)
    index(true_futures=0.0)
    index(true_futures=1.0, num_world_steps=3, world_steps_mix=None)
    index(true_futures=1.0, num_samples=2)  # without this sample
    index(true_futures=1.0, enable_world=False, lora=2)
    index(true_futures=1.0, constant_world=True)
    del chats[2]["future_frames"]  # replaced by a rollout
    index(true_futures=1.0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_samples_without_a_true_future_are_counted(
    settings: Settings, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    """They are imagined instead, which a user of true_futures should know."""
    config = settings(true_futures=share, num_world_steps=1)
    chats = records(3)
    del chats[0]["future_frames"]
    chats[1]["future_frames"] = []
    recipe.index_samples(config, lambda _: (chats, None), recipe.new_collator(config, describe(config)))
    said = (
        f"true_futures is {share:g}, but 2 of 3 training samples have no future_frames and no video, so the world model"
    )
    assert said in caplog.text
    caplog.clear()
    recipe.index_samples(config, load(), recipe.new_collator(config, describe(config)))
    none = settings(true_futures=share, num_world_steps=0)
    recipe.index_samples(none, lambda _: (chats, None), recipe.new_collator(none, describe(none)))
    assert caplog.text == ""


@pytest.mark.parametrize(("save_steps", "kept"), [(1, "checkpoint-1"), (100, None)])
def test_a_run_that_diverges_ends_with_an_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, save_steps: int, kept: str | None
) -> None:
    """At the next checkpoint or the next loss that is logged; what was saved before stays."""
    one_step = recipe.TheWorldTrainer.training_step

    def diverging(self: recipe.TheWorldTrainer, model: torch.nn.Module, *arguments: Any, **keywords: Any) -> Any:
        loss = one_step(self, model, *arguments, **keywords)
        if self.state.global_step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(recipe.TheWorldTrainer, "training_step", diverging)
    config = settings(max_steps=9, save_steps=save_steps)
    with pytest.raises(
        ValueError, match=r"^projector\.\S+ has values that are infinite or no number, .* diverged\. Res"
    ):
        recipe.train(config, load())
    last = find_last_checkpoint(config.output_dir)
    assert (None if last is None else last.name) == kept
    assert not (Path(config.output_dir) / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["datacomp_test", "smoke_test"])
def test_the_first_step_of_a_short_config_trains(settings: Settings, name: str) -> None:
    """Their runs may have no second one, so that a warm-up would train nothing."""
    file = json.loads((Path(__file__).parents[2] / "configs" / f"{name}.json").read_text())
    shared = {
        key: file[key] for key in ("warmup_steps", "learning_rate", "lr_scheduler", "num_world_steps") if key in file
    }
    config = settings(**shared, max_steps=1)
    before = build_model(config, describe(config)).state_dict()
    trained = load_file(recipe.train(config, load()) / "model.safetensors")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trained.items())
