"""Uploads to a local hub, over HTTP with the real client: strategies, model cards, and a hub that fails."""

from __future__ import annotations

import json
import logging
import random
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from tests.loopback_hub import ACCEPTED, BROKEN, OTHER_ACCOUNT, LoopbackHub
from tests.training.conftest import image, load
from theworld import TheWorld
from theworld.cli import app
from theworld.storage.hub import hub_answers
from theworld.training import recipe, uploads
from theworld.training.card import model_card
from theworld.training.checkpointing import checkpoints_in
from theworld.training.command_line import main
from theworld.training.config import TrainingConfig

Settings = Callable[..., TrainingConfig]
MODEL = {"README.md", "config.json", "model.safetensors", "training_config.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    hub_answers.cache_clear()
    monkeypatch.setattr(uploads, "WAITS", (0.01,) * 5)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with LoopbackHub({}) as server:
        server.use(monkeypatch, tmp_path / "cache", ACCEPTED)
        yield server
    hub_answers.cache_clear()


def pushing(settings: Settings, **changes: Any) -> TrainingConfig:
    return settings(**{"push_to_hub": True, "hub_model_id": "me/mine", "max_steps": 3, "save_steps": 1, **changes})


@pytest.mark.parametrize(
    "strategy",
    ["checkpoint", *(pytest.param(x, marks=pytest.mark.slow) for x in ("end", "every_save", "all_checkpoints"))],
)
def test_each_strategy(hub: LoopbackHub, settings: Settings, strategy: str) -> None:
    recipe.train(pushing(settings, hub_strategy=strategy, hub_private_repo=True, save_total_limit=1), load())
    files = set(hub.repositories["me/mine"])
    assert files >= MODEL
    folders = {name.partition("/")[0] for name in files if "/" in name} - {"logs", "samples"}
    every = {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert folders == {"checkpoint": {"last-checkpoint"}, "all_checkpoints": every}.get(strategy, set())
    expected = ["checkpoint-1", "checkpoint-2", "checkpoint-3"] if strategy != "end" else []
    assert [message for _, message, _ in hub.commits] == [f"Upload {name}" for name in [*expected, "the final model"]]
    assert hub.private == {"me/mine"}
    assert not any(name.endswith("training_args.bin") for name in files), "a pickle of no use"
    assert hub.tokens == {ACCEPTED}
    for name, content in hub.repositories["me/mine"].items():
        assert ACCEPTED.encode() not in content, f"the token is in {name}"


def test_a_pushed_model_is_loaded_and_resumed_from(
    hub: LoopbackHub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.train(pushing(settings, hub_strategy="checkpoint"), load())
    answer = TheWorld.from_pretrained(str(tmp_path / "run"), device="cpu").generate(None, "Why?", 4, enable_world=False)
    again = TheWorld.from_pretrained("me/mine", device="cpu")
    assert again.generate(None, "Why?", 4, enable_world=False) == answer
    resumed = settings(max_steps=4, save_steps=1, resume_from_checkpoint="me/mine", output_dir=str(tmp_path / "other"))
    recipe.train(resumed, load())
    assert [folder.name for folder in checkpoints_in(tmp_path / "other")] == ["checkpoint-4"]
    old_name = TheWorld.from_pretrained("me/mine", "last-checkpoint/pytorch_model.bin", device="cpu")
    assert old_name.generate(None, "Why?", 4, enable_world=False) == answer


def test_one_checkpoint_is_downloaded_and_its_settings_are_used(
    hub: LoopbackHub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.train(pushing(settings, hub_strategy="all_checkpoints", max_steps=11, save_steps=4), load())
    hub.fetched.clear()
    monkeypatch.chdir(tmp_path)
    script = ["--resume_from", "me/mine", "--push_to_hub=false", "--output_dir", "again", "--max_steps", "12"]
    assert main(load(), "", "configs/none.json", script) == 0
    assert [folder.name for folder in checkpoints_in(tmp_path / "again")] == ["checkpoint-12"]
    fetched = {name.removeprefix("me/mine/").partition("/")[0] for name in hub.fetched}
    assert fetched == {"training_config.json", "checkpoint-11"}


def test_the_example_loads_from_the_hub(
    hub: LoopbackHub, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.train(pushing(settings, hub_strategy="all_checkpoints", max_steps=2), load())
    Image.fromarray(image(0)).save(tmp_path / "image.png")
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "load_from_hub.py"))
    options = ["--num_world_steps", "1", "--max_new_tokens", "2"]
    example["main"](["me/mine", str(tmp_path / "image.png"), "What?", "--checkpoint", "checkpoint-1", *options])
    printed = capsys.readouterr().out
    assert "Trained parts: projector" in printed
    assert printed.count("world steps: ") == 2


def test_a_hub_that_fails_at_random_costs_no_checkpoint(
    hub: LoopbackHub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Three in ten requests fail; in ten runs every checkpoint is on the hub, or named and kept."""
    monkeypatch.setattr(uploads, "WAITS", (0.01,))  # so few attempts that some commits fail
    dice = random.Random(0)
    hub.fault = lambda path: dice.choice([500, 429, BROKEN]) if "create" not in path and dice.random() < 0.3 else None
    folder = tmp_path / "model"
    recipe.train(settings(max_steps=1, save_steps=1, output_dir=str(folder)), load())
    (checkpoint,) = checkpoints_in(folder)
    named = 0
    for number in range(10):
        hub.repositories = {**hub.repositories, f"me/mine{number}": {}}
        made = uploads.Uploads(folder, f"me/mine{number}", "all_checkpoints", private=False)
        steps = [checkpoint.with_name(f"checkpoint-{step}") for step in range(1, 6)]
        for step in steps:
            if not step.exists():
                step.symlink_to(checkpoint)
            made.add(step)
        said = ""
        try:
            made.finish()
        except uploads.NotPushed as error:
            said = str(error)
        assert (f"theworld push {folder} me/mine{number} --all-checkpoints" in said) == bool(made.missing)
        assert all(name in said for name in made.missing)
        there = {name.partition("/")[0] for name in hub.repositories[f"me/mine{number}"]}
        for step in steps:
            assert step.name in there or step.name in made.missing
            assert made.keeps(step) == (step.name in made.missing)
        named += len(made.missing)
    assert 0 < named < 60, "some failed, and some did not"
    assert ACCEPTED not in caplog.text


def test_a_hub_that_refuses_stops_no_run(
    hub: LoopbackHub, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fault = lambda path: 403 if path.endswith("/commit/main") else None
    config = pushing(settings, hub_strategy="all_checkpoints", save_total_limit=1)
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="could not be uploaded") as error:
        recipe.train(config, load())
    said = str(error.value)
    assert "checkpoint-1, checkpoint-2, checkpoint-3, the final model could not be uploaded to me/mine (403, " in said
    command = f"theworld push {config.output_dir} me/mine --all-checkpoints"
    assert said.endswith(f"Upload it with: {command}")
    assert caplog.text.count("training continues, and all of it is kept") == 1
    assert len(checkpoints_in(config.output_dir)) == 3, "save_total_limit removes nothing that is not uploaded"
    assert (tmp_path / "run" / "model.safetensors").is_file()

    hub.fault = lambda path: None
    done = CliRunner().invoke(app, command.split()[1:])
    assert done.exit_code == 0, done.output
    folders = {name.partition("/")[0] for name in hub.repositories["me/mine"]}
    assert folders >= {"checkpoint-1", "checkpoint-2", "checkpoint-3", *MODEL}


def test_a_transient_fault_is_repeated(hub: LoopbackHub, settings: Settings) -> None:
    faults = iter([503, BROKEN, 429])
    hub.fault = lambda path: next(faults, None) if path.endswith("/commit/main") else None
    recipe.train(pushing(settings, hub_strategy="end"), load())
    assert set(hub.repositories["me/mine"]) >= MODEL
    assert "| 3 | `loss` | " in hub.repositories["me/mine"]["README.md"].decode(), "the final model has its metrics"


def test_a_public_repository_is_not_taken_for_a_private_one(
    hub: LoopbackHub, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories = {"me/mine": {}}
    with pytest.raises(ValueError, match="me/mine exists and is public, but it was to be private"):
        recipe.train(pushing(settings, hub_private_repo=True), load())
    for key, name in (("model_name", "vlm_name_or_path"), ("cosmos_model_name", "world_name_or_path")):
        assert f"Train with the Hub id of the base ({key}), or write it into {name} in config.json." in caplog.text


def test_push_says_what_is_wrong(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def refusal(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["push", *map(str, arguments)])
        assert result.exit_code == 1
        return " ".join(result.output.split())

    assert "There is no folder" in refusal(tmp_path / "none", "me/mine")
    (tmp_path / "any").mkdir()
    assert "'me/mine/too' is not a valid repository name" in refusal(tmp_path / "any", "me/mine/too")
    (tmp_path / "empty").mkdir()
    assert "holds no TheWorld model" in refusal(tmp_path / "empty", "me/mine")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "theworld"}')
    assert "has no model.safetensors" in refusal(tmp_path / "empty", "me/mine")
    recipe.train(settings(max_steps=1), load())
    TheWorld.from_pretrained(str(tmp_path / "run"), device="cpu").save_pretrained(tmp_path / "full", full=True)
    assert "is a full export" in refusal(tmp_path / "full", "me/mine")
    assert "use one of them" in refusal(tmp_path / "run", "me/mine", "--last-checkpoint", "--all-checkpoints")
    monkeypatch.setenv("HF_TOKEN", OTHER_ACCOUNT)
    said = refusal(tmp_path / "run", "me/mine")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for key in ("vlm_name_or_path", "world_name_or_path"):
        assert f"Note: {key} is {config[key]}, a folder of this machine: elsewhere the pushed" in said
    assert "The Hub does not let this token write to me/mine (403)" in said
    assert "push_to_hub" not in said


def test_the_card_says_what_the_model_is(settings: Settings, tmp_path: Path) -> None:
    recipe.train(settings(max_steps=2, save_steps=2, dataset_name="someone/data"), load())
    last = checkpoints_in(tmp_path / "run")[-1]
    config = json.loads((last / "config.json").read_text())
    config |= {
        "vlm_name_or_path": "google/gemma-3-4b-it",
        "world_name_or_path": "nvidia/Cosmos-Predict2-2B-Video2World",
    }
    (last / "config.json").write_text(json.dumps(config))
    results = {
        "arms": {"fused": {"accuracy": 0.924, "interval_95": [0.9, 0.94]}},
        "benchmark": "physics",
        "questions": 300,
        "headline": "accuracy",
        "command": "theworld eval physics",
    }
    (last / "results.json").write_text(json.dumps(results))
    text = model_card(last, "me/mine")
    card = ModelCard(text)
    assert card.data.library_name == "theworld"
    assert card.data.base_model == ["google/gemma-3-4b-it", "nvidia/Cosmos-Predict2-2B-Video2World"]
    assert card.data.datasets == ["someone/data"]
    assert card.data.license == "other"
    for expected in (
        'TheWorld.from_pretrained("me/mine")', "| projector | ", "| `learning_rate` | `0.01` |", "| 2 | `loss` | ",
        "| fused | 92.4 % | 90.0 … 94.0 |", "theworld eval physics", "Gemma Terms of Use", "NVIDIA Open Model License",
        "## Limits",
    ):  # fmt: skip
        assert expected in text
    assert "More information needed" not in text
