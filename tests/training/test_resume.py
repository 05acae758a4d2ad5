"""A run that is killed at any moment and resumed ends as the run that was not: the same losses, the same weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.training.conftest import load
from theworld.training import recipe
from theworld.training.callbacks import StopWhenAsked
from theworld.training.config import TrainingConfig
from theworld.training.trainer import find_last_checkpoint

Settings = Callable[..., TrainingConfig]

# everything that draws: a LoRA with dropout, steps, futures, batches without world
DRAWING: dict[str, Any] = {
    "lora": {"r": 2, "lora_dropout": 0.2},
    "world_steps_mix": {"0": 0.5, "1": 0.5},
    "world_dropout": 0.2,
    "true_futures": 0.5,
    "gradient_accumulation_steps": 2,
    "do_eval": True,
    "eval_steps": 3,
    "shown_samples": 0,
    "save_steps": 1,
}


class Begun(TrainerCallback):
    """Leaves a file where training begins, so that a test knows when the moments are that matter."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        self.file.touch()


def run(values: dict[str, Any], begun: str) -> None:
    """One process of a run."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plain = recipe.TheWorldTrainer

    class Watched(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, callbacks: list[TrainerCallback], **keywords: Any) -> None:
            super().__init__(*arguments, callbacks=[*callbacks, Begun(begun)], **keywords)

    recipe.TheWorldTrainer = Watched  # type: ignore[misc]
    recipe.train(TrainingConfig.from_dict(values), load())


def start(values: dict[str, Any], begun: Path) -> BaseProcess:
    begun.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["theworld.training.recipe", "diffusers.models", "tests.training.conftest"])
    process = context.Process(target=run, args=(values, str(begun)))
    process.start()
    return process


def finish(values: dict[str, Any], begun: Path) -> None:
    """A run to its end, in a process like those that are killed: another number of threads adds up in another order."""
    process = start(values, begun)
    process.join(300)
    assert process.exitcode == 0


def wait_until_it_trains(process: BaseProcess, begun: Path) -> None:
    until = time.monotonic() + 120
    while not begun.exists() and process.is_alive():
        assert time.monotonic() < until
        time.sleep(0.005)


def outcome(output_dir: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The final weights, and what was logged in every step."""
    last = find_last_checkpoint(output_dir)
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
    return load_file(last / "model.safetensors"), [
        {key: value for key, value in entry.items() if key not in timed}
        for entry in history
        if "train_runtime" not in entry
    ]


def differences(one: str, other: str) -> list[str]:
    """What two runs do not have in common to the last bit: weights by name, and what was logged."""
    weights, history = outcome(one)
    other_weights, other_history = outcome(other)
    assert weights.keys() == other_weights.keys()
    different = [name for name in weights if not torch.equal(weights[name], other_weights[name])]
    return different if history == other_history else [*different, "what was logged"]


def kill_at_random_moments(settings: Settings, folder: Path, kills: int, steps: int, **values: Any) -> tuple[str, str]:
    """The folders of a run that nothing interrupted, and of one that was killed and resumed as often as asked."""
    plain = settings(**{**DRAWING, **values, "max_steps": steps, "output_dir": str(folder / "whole")})
    killed = {**plain.to_dict(), "output_dir": str(folder / "killed"), "resume_from_checkpoint": "last"}
    moments = random.Random(0)
    begun = folder / "begun"
    finish(plain.to_dict(), begun)
    for _ in range(kills):
        process = start(killed, begun)
        wait_until_it_trains(process, begun)
        time.sleep(moments.uniform(0.0, 0.5))
        assert process.is_alive(), "the run is over before it could be killed as often as was asked"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    finish(killed, begun)
    return plain.output_dir, killed["output_dir"]


def test_killed_at_random_moments(settings: Settings, tmp_path: Path) -> None:
    whole, killed = kill_at_random_moments(settings, tmp_path, kills=4, steps=24)
    assert differences(whole, killed) == []


@pytest.mark.slow
def test_killed_at_twenty_random_moments(settings: Settings, tmp_path: Path) -> None:
    whole, killed = kill_at_random_moments(settings, tmp_path, kills=20, steps=100)
    assert differences(whole, killed) == []


@pytest.mark.slow
def test_killed_at_random_moments_with_workers_and_a_cache(settings: Settings, tmp_path: Path) -> None:
    values = {"num_workers": 2, "latent_cache": str(tmp_path / "cache")}
    whole, killed = kill_at_random_moments(settings, tmp_path, kills=5, steps=40, **values)
    assert differences(whole, killed) == []


@pytest.mark.parametrize("moment", ["_save", "_save_optimizer_and_scheduler", "_save_rng_state", "put_in_place"])
def test_killed_while_saving(settings: Settings, tmp_path: Path, moment: str) -> None:
    """Before and after each part of a checkpoint is written."""
    plain = settings(**{**DRAWING, "max_steps": 4, "output_dir": str(tmp_path / "whole")})
    finish(plain.to_dict(), tmp_path / "begun")
    killed = {**plain.to_dict(), "output_dir": str(tmp_path / "killed"), "resume_from_checkpoint": "last"}
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run_into, args=(killed, moment))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    before = find_last_checkpoint(tmp_path / "killed")
    assert before is not None
    assert before.name == "checkpoint-1"
    finish(killed, tmp_path / "begun")
    assert differences(str(tmp_path / "whole"), str(tmp_path / "killed")) == []


def run_into(values: dict[str, Any], moment: str) -> None:
    """A run that is killed the second time it comes to `moment`."""
    from theworld.training import trainer

    torch.set_num_threads(1)
    owner = trainer if moment == "put_in_place" else trainer.TheWorldTrainer
    whole = getattr(owner, moment)
    calls = []

    def killed(*arguments: Any, **keywords: Any) -> None:
        calls.append(moment)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*arguments, **keywords)

    setattr(owner, moment, killed)
    recipe.train(TrainingConfig.from_dict(values), load())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_from_an_earlier_checkpoint_takes_the_same_way(
    settings: Settings, tmp_path: Path, optimizer: str
) -> None:
    """Also across the end of an epoch (three steps here), and over checkpoints that are there already."""
    values = {**DRAWING, "save_total_limit": None, "max_steps": 8, "gradient_accumulation_steps": 1}
    values |= {"optimizer": optimizer, "lora": 2}
    recipe.train(settings(**values, output_dir=str(tmp_path / "whole")), load())
    for step in (2, 3, 7):
        again = settings(
            **values,
            output_dir=str(tmp_path / f"again-{step}"),
            resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"),
        )
        recipe.train(again, load())
        assert differences(str(tmp_path / "whole"), str(tmp_path / f"again-{step}")) == []


def test_sigterm_saves_and_ends_well(settings: Settings, tmp_path: Path) -> None:
    plain = settings(**{**DRAWING, "max_steps": 30, "save_steps": 1000, "output_dir": str(tmp_path / "whole")})
    finish({**plain.to_dict(), "save_steps": 30}, tmp_path / "begun")
    stopped = {**plain.to_dict(), "output_dir": str(tmp_path / "stopped"), "resume_from_checkpoint": "last"}
    begun = tmp_path / "begun"
    process = start(stopped, begun)
    wait_until_it_trains(process, begun)
    time.sleep(0.5)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 0
    assert time.monotonic() - asked < 30
    saved = find_last_checkpoint(tmp_path / "stopped")
    assert saved is not None
    assert 0 < int(saved.name.removeprefix("checkpoint-")) < 30
    finish({**stopped, "save_steps": 30}, begun)
    weights, history = outcome(str(tmp_path / "whole"))
    resumed_weights, resumed_history = outcome(str(tmp_path / "stopped"))
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses == [entry["loss"] for entry in resumed_history if "loss" in entry]


def test_sigterm_before_the_first_step_ends_at_once() -> None:
    with StopWhenAsked(), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 0


def test_places_to_go_on_from(settings: Settings, tmp_path: Path) -> None:
    config = settings(save_steps=1)
    recipe.train(config, load())
    last = Path(config.output_dir) / "checkpoint-2"
    from theworld.training.checkpointing import find_checkpoint

    def found(place: str | None) -> Path | None:
        return find_checkpoint(settings(resume_from_checkpoint=place))

    assert found(None) is None
    assert found("last") == last
    assert found(config.output_dir) == last
    assert found(str(last)) == last
    assert found(str(last.with_name("checkpoint-1"))) == last.with_name("checkpoint-1")
    elsewhere = settings(output_dir=str(tmp_path / "new"), resume_from_checkpoint="last")
    assert find_checkpoint(elsewhere) is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no state of training to go on from; to start anew"):
        found(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="There is no folder runs/nowhere/else"):
        found("runs/nowhere/else")


def test_other_settings_are_named(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    recipe.train(settings(save_steps=1), load())
    recipe.train(settings(save_steps=2, max_steps=3, batch_size=1, resume_from_checkpoint="last"), load())
    (line,) = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert "batch_size (2, now 1)" in line
    assert "max_steps (2, now 3)" in line
    assert "save_steps" not in line


# ------------------------------------------------------------------------------- what a checkpoint itself brings back


def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs that must be refused before weights are read."""
    monkeypatch.setattr(recipe, "build_model", lambda *_: pytest.fail("the weights were read first"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 0.02),
        ("weight_decay", 0.5),
        ("adam_beta2", 0.9),
        ("optimizer", "adamw"),
        ("muon_learning_rate", 0.5),
        ("freeze_projector", True),
        ("freeze_gemma_vision", False),
        ("projector_places", "waves"),
    ],
)
def test_what_the_checkpoint_brings_back_is_refused_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    first = settings(lora=2, optimizer="muon")
    recipe.train(first, load())
    nothing_is_read(monkeypatch)
    again = settings(**{"lora": 2, "optimizer": "muon", "resume_from_checkpoint": "last", "max_steps": 3, key: value})
    with pytest.raises(ValueError, match=f"^{key} was .* and is now ") as error:
        recipe.train(again, load())
    assert f"{key} was {getattr(first, key)!r} and is now {value!r}, but" in str(error.value)
    assert f"model_name={Path(first.output_dir) / 'checkpoint-2'} and another output_dir" in str(error.value)
    assert json.loads((Path(first.output_dir) / "training_config.json").read_text())[key] == getattr(first, key)


def rates(output_dir: str) -> list[float]:
    _, history = outcome(output_dir)
    return [entry["learning_rate"] for entry in history if "learning_rate" in entry]


def test_why_these_are_refused(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal a new rate, decay or beta is not used: the run ends as if nobody had asked for it."""
    values: dict[str, Any] = {"save_steps": 2, "max_steps": 4}
    recipe.train(settings(**values), load())
    monkeypatch.setattr(recipe, "check_changes", lambda *_: None)
    for key, value in {"learning_rate": 0.5, "weight_decay": 0.9, "adam_beta2": 0.5}.items():
        again = settings(
            **{**values, "output_dir": str(tmp_path / key), key: value},
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"),
        )
        recipe.train(again, load())
        assert differences(str(tmp_path / "run"), str(tmp_path / key)) == []


@pytest.mark.parametrize(
    "changes",
    [{"lr_scheduler": "cosine"}, {"warmup_steps": 5}, {"max_steps": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_schedule_may_change_between_two_halves(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    """From the step after next on, rates are those of a whole run with the new schedule."""
    values: dict[str, Any] = {"save_steps": 2, "max_steps": 6, "lr_scheduler": "linear"}
    recipe.train(settings(**values), load())
    recipe.train(settings(**{**values, **changes, "output_dir": str(tmp_path / "whole")}), load())
    again = settings(
        **{**values, **changes, "output_dir": str(tmp_path / "again")},
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"),
    )
    recipe.train(again, load())
    (key,) = changes
    assert f"{key} (" in caplog.text
    assert rates(str(tmp_path / "again"))[3:] == rates(str(tmp_path / "whole"))[3:]
    assert rates(str(tmp_path / "again"))[3:] != rates(str(tmp_path / "run"))[3:]


# ---------------------------------------------------------------------------------------------------- one run a folder


def test_two_runs_do_not_share_a_folder(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.train(settings(save_steps=1), load())
    recipe.train(settings(save_steps=1, output_dir=str(tmp_path / "other")), load())
    with monkeypatch.context() as patch:
        nothing_is_read(patch)
        said = (
            r"holds checkpoints of another run \(the last is checkpoint-2\); go on with that run by --resume_from last"
        )
        for place in (None, str(tmp_path / "other"), str(tmp_path / "other" / "checkpoint-1")):
            with pytest.raises(ValueError, match=said):
                recipe.train(settings(resume_from_checkpoint=place), load())
    # its own checkpoints, however they are named, and a folder without any
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("last", "run", str(tmp_path / "run" / "checkpoint-1")), start=3):
        values: dict[str, Any] = {"save_steps": 1, "save_total_limit": None, "max_steps": number}
        recipe.train(settings(**values, resume_from_checkpoint=place), load())
    recipe.train(settings(output_dir=str(tmp_path / "new"), resume_from_checkpoint="last"), load())
    recipe.train(settings(output_dir=str(tmp_path / "newer"), resume_from_checkpoint="run", max_steps=6), load())


@pytest.mark.parametrize("place", ["scene.png", "scene.png/run"])
def test_an_output_dir_that_is_a_file_is_one_sentence(settings: Settings, tmp_path: Path, place: str) -> None:
    (tmp_path / "scene.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^output_dir is \S+, but \S+/scene\.png is a file; give a folder, or a new"):
        recipe.train(settings(output_dir=str(tmp_path / place)), load())
