"""A run that is killed at any moment and resumed ends with the losses and weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests import commands
from tests.training.conftest import load, records, settings_in
from theworld.datasets.samples import TheWorldDataset
from theworld.training import recipe
from theworld.training.checkpointing import check_data, find_last_checkpoint
from theworld.training.config import TrainingConfig
from theworld.training.samplers import IndexedSamples
from theworld.training.stopping import BEFORE, TERMINATED, Stop
from theworld.training.trainer import TheWorldTrainer

Settings = Callable[..., TrainingConfig]

# everything that is random: a LoRA with dropout, world steps, futures, batches without world tokens
RANDOM: dict[str, Any] = {
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


EVENTS = (
    "on_step_begin",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_substep_end",
    "on_step_end",
    "on_log",
    "on_save",
)


class SignalAt(TrainerCallback):
    """Sends a signal to its own process at an event of the run, so that a test does not depend on the speed of it.

    Args:
        number: the signal.
        count: the number of events after which it is sent.
        events: names of the events that are counted.
    """

    def __init__(self, number: int, count: int, events: Sequence[str] = EVENTS) -> None:
        self.number = number
        self.left = count
        for event in events:
            setattr(self, event, self._count)

    def _count(self, *arguments: Any, **keywords: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def run(values: dict[str, Any], *signal_at: Any) -> None:
    """One process of a run, which sends itself a signal if the arguments of a SignalAt are given."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plain = recipe.TheWorldTrainer

    class Watched(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, callbacks: list[TrainerCallback], **keywords: Any) -> None:
            more = [SignalAt(*signal_at)] if signal_at else []
            super().__init__(*arguments, callbacks=[*callbacks, *more], **keywords)

    recipe.TheWorldTrainer = Watched  # type: ignore[misc]
    recipe.train(TrainingConfig.from_dict(values), load())


def exit_code(values: dict[str, Any], *signal_at: Any) -> int:
    """The exit code of a run in a process of its own."""
    return commands.exit_code(run, values, *signal_at)


def finish(values: dict[str, Any]) -> None:
    """A run to its end, in a process like those that are killed: sums depend on the number of threads."""
    assert exit_code(values) == 0


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


def kill_at_random_events(settings: Settings, folder: Path, kills: int, steps: int, **values: Any) -> tuple[str, str]:
    """The folders of an uninterrupted run, and of one that was killed and resumed several times."""
    plain = settings(**{**RANDOM, **values, "max_steps": steps, "output_dir": str(folder / "whole")})
    killed = {**plain.to_dict(), "output_dir": str(folder / "killed"), "resume_from_checkpoint": "last"}
    events = random.Random(0)
    finish(plain.to_dict())
    for _ in range(kills):
        assert exit_code(killed, signal.SIGKILL, events.randint(1, 7 * steps // kills)) == -signal.SIGKILL
    finish(killed)
    return plain.output_dir, killed["output_dir"]


@pytest.mark.slow
def test_killed_at_random_events(settings: Settings, tmp_path: Path) -> None:
    whole, killed = kill_at_random_events(settings, tmp_path, kills=4, steps=12)
    assert differences(whole, killed) == []


@pytest.mark.slow
def test_killed_at_twenty_random_events(settings: Settings, tmp_path: Path) -> None:
    whole, killed = kill_at_random_events(settings, tmp_path, kills=20, steps=100)
    assert differences(whole, killed) == []


@pytest.mark.slow
def test_killed_at_random_events_with_workers_and_a_cache(settings: Settings, tmp_path: Path) -> None:
    values = {"num_workers": 2, "latent_cache": str(tmp_path / "cache")}
    whole, killed = kill_at_random_events(settings, tmp_path, kills=5, steps=40, **values)
    assert differences(whole, killed) == []


@pytest.fixture(scope="module")
def uninterrupted(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """The config of a finished run."""
    config = settings_in(tmp_path_factory.mktemp("uninterrupted"), bases)(**RANDOM, max_steps=4)
    finish(config.to_dict())
    return config


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("save_model", marks=pytest.mark.slow),
        "_save_optimizer_and_scheduler",
        pytest.param("_save_rng_state", marks=pytest.mark.slow),
        "publish",
    ],
)
def test_killed_while_saving(uninterrupted: TrainingConfig, tmp_path: Path, moment: str) -> None:
    """Before each part of a checkpoint is written."""
    killed = {**uninterrupted.to_dict(), "output_dir": str(tmp_path / "killed"), "resume_from_checkpoint": "last"}
    assert commands.exit_code(run_into, killed, moment) == -signal.SIGKILL
    before = find_last_checkpoint(tmp_path / "killed")
    assert before is not None
    assert before.name == "checkpoint-1"
    finish(killed)
    assert differences(uninterrupted.output_dir, str(tmp_path / "killed")) == []


def run_into(values: dict[str, Any], moment: str) -> None:
    """A run that is killed when it calls `moment` for the second time."""
    from theworld.training import checkpointing, trainer

    torch.set_num_threads(1)
    owner = checkpointing if moment == "publish" else trainer.TheWorldTrainer
    whole = getattr(owner, moment)
    calls = []

    def killed(*arguments: Any, **keywords: Any) -> None:
        calls.append(moment)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*arguments, **keywords)

    setattr(owner, moment, killed)
    recipe.train(TrainingConfig.from_dict(values), load())


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_resuming_from_an_earlier_checkpoint_gives_the_same_result(
    settings: Settings, tmp_path: Path, optimizer: str
) -> None:
    """Also across the end of an epoch (three steps here), and over existing checkpoints."""
    values = {**RANDOM, "save_total_limit": None, "max_steps": 8, "gradient_accumulation_steps": 1}
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


def test_sigterm_saves_after_the_step_and_the_run_can_be_resumed(settings: Settings, tmp_path: Path) -> None:
    plain = settings(**{**RANDOM, "max_steps": 8, "save_steps": 1000, "output_dir": str(tmp_path / "whole")})
    finish({**plain.to_dict(), "save_steps": 8})
    stopped = {**plain.to_dict(), "output_dir": str(tmp_path / "stopped"), "resume_from_checkpoint": "last"}
    assert exit_code(stopped, signal.SIGTERM, 5, ("on_step_begin",)) == 0
    saved = find_last_checkpoint(tmp_path / "stopped")
    assert saved is not None
    assert saved.name == "checkpoint-5"
    finish({**stopped, "save_steps": 8})
    weights, history = outcome(str(tmp_path / "whole"))
    resumed_weights, resumed_history = outcome(str(tmp_path / "stopped"))
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses == [entry["loss"] for entry in resumed_history if "loss" in entry]


class SignalsAt(SignalAt):
    """Sends three signals at an event, as an impatient person or scheduler does."""

    def _count(self, *arguments: Any, **keywords: Any) -> None:
        self.left -= 1
        if self.left == 0:
            for _ in range(3):
                signal.raise_signal(self.number)


def stopped_run(
    monkeypatch: pytest.MonkeyPatch, config: TrainingConfig, event: str, number: int = signal.SIGTERM
) -> Path:
    """The folder that a run returns if three signals arrive at an event of it, in this process.

    The event is one of a callback, or a method of the trainer that is about to be called.
    """

    class Watched(TheWorldTrainer):
        def __init__(self, *arguments: Any, callbacks: list[TrainerCallback], **keywords: Any) -> None:
            more = [SignalsAt(number, 1, (event,))] if event.startswith("on_") else []
            super().__init__(*arguments, callbacks=[*callbacks, *more], **keywords)

    if not event.startswith("on_"):
        method = getattr(TheWorldTrainer, event)
        sender = SignalsAt(number, 1, ())

        def watched(self: TheWorldTrainer, *arguments: Any, **keywords: Any) -> Any:
            sender._count()
            return method(self, *arguments, **keywords)

        setattr(Watched, event, watched)
    monkeypatch.setattr(recipe, "TheWorldTrainer", Watched)
    return recipe.train(config, load())


STOPPED = "Stopped by SIGTERM during training: the last checkpoint is {}; resume the run with resume_from=last"


@pytest.mark.parametrize(
    ("event", "step"),
    [("on_train_begin", 1), ("on_prediction_step", 1), ("_save_optimizer_and_scheduler", 1), ("on_save", 2)],
)
def test_sigterm_during_training_saves_one_checkpoint(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, event: str, step: int
) -> None:
    """However many signals arrive, and also while an evaluation runs or a checkpoint is written."""
    config = settings(max_steps=3, save_steps=1, do_eval=event == "on_prediction_step", eval_steps=1, shown_samples=0)
    last = Path(config.output_dir) / f"checkpoint-{step}"
    assert stopped_run(monkeypatch, config, event) == last
    assert find_last_checkpoint(config.output_dir) == last
    assert load_file(last / "model.safetensors")
    assert not (Path(config.output_dir) / "model.safetensors").exists()
    messages = [record.getMessage() for record in caplog.records if record.name.endswith("stopping")]
    assert messages[0] == "SIGTERM received: the run ends when a checkpoint is saved after this step"
    assert messages[1:3] == ["SIGTERM received again: the run ends when a checkpoint is saved after this step"] * 2
    assert messages[3].startswith(STOPPED.format(last))
    assert len(messages) == 4


@pytest.mark.parametrize("event", ["on_step_begin", "on_prediction_step", "on_train_end"])
def test_sigterm_in_the_last_step_or_later_leaves_the_final_model(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    config = settings(max_steps=1, do_eval=True, eval_steps=1, shown_samples=0)
    folder = Path(config.output_dir)
    assert stopped_run(monkeypatch, config, event) == folder
    assert load_file(folder / "model.safetensors").keys() == load_file(folder / "checkpoint-1/model.safetensors").keys()
    messages = [record.getMessage() for record in caplog.records if record.name.endswith("stopping")]
    assert messages[0] == "SIGTERM received after the last step: the run ends when the model is saved"
    assert len(messages) == 3


@pytest.mark.parametrize(
    "moment", ["check_machine", "describe", "index_samples", "fill_cache", "build_model", "report"]
)
def test_sigterm_before_the_first_step_is_a_failure_of_one_sentence(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    moment: str,
) -> None:
    """Nothing was trained, so a scheduler must not take the run for a finished one."""
    config = settings(latent_cache=str(tmp_path / "latents"))
    monkeypatch.setattr(recipe, moment, lambda *arguments: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        recipe.train(config, load())
    assert ended.value.code == TERMINATED == 143
    said = f"Stopped by SIGTERM before the first step: no checkpoint was written in {config.output_dir}."
    assert [record.getMessage() for record in caplog.records if record.name.endswith("stopping")] == [said]


def test_sigterm_before_the_first_step_of_a_resumed_run_names_the_last_checkpoint(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe.train(settings(max_steps=1), load())
    resumed = settings(resume_from_checkpoint="last")
    with pytest.raises(SystemExit, match=str(TERMINATED)):
        stopped_run(monkeypatch, resumed, "on_init_end")
    assert f"before the first step: the last checkpoint is {resumed.output_dir}/checkpoint-1; resume" in caplog.text


def test_ctrl_c_names_what_is_saved(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while a checkpoint is written: an incomplete one is never found."""
    monkeypatch.setattr(signal, "raise_signal", interrupt)
    config = settings(max_steps=3, save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        stopped_run(monkeypatch, config, "_save_rng_state")
    assert find_last_checkpoint(config.output_dir) is None
    assert f"Stopped by Ctrl-C during training: no checkpoint was written in {config.output_dir}." in caplog.text
    with pytest.raises(KeyboardInterrupt):
        stopped_run(monkeypatch, config, "on_save")
    assert f"during training: the last checkpoint is {config.output_dir}/checkpoint-1; resume" in caplog.text


def interrupt(number: int) -> None:
    raise KeyboardInterrupt


def test_a_stop_that_a_library_caught_ends_the_run_before_its_first_step() -> None:
    with Stop() as stop:
        with suppress(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        assert stop.phase == BEFORE
        with pytest.raises(SystemExit, match=str(TERMINATED)):
            stop.begin()


def test_sigterm_is_handled_as_before_when_the_run_has_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_in_a_thread_leaves_signals_alone(settings: Settings) -> None:
    """Python handles signals in the main thread only."""
    config = settings(max_steps=1)
    thread = threading.Thread(target=recipe.train, args=(config, load()))
    thread.start()
    thread.join()
    assert (Path(config.output_dir) / "model.safetensors").exists()


def test_names_of_checkpoints(settings: Settings, tmp_path: Path) -> None:
    config = settings(save_steps=1)
    recipe.train(config, load())
    last = Path(config.output_dir) / "checkpoint-2"
    from theworld.training.checkpointing import find_checkpoint

    def found(name: str | None) -> Path | None:
        return find_checkpoint(settings(resume_from_checkpoint=name))

    assert found(None) is None
    assert found("last") == last
    assert found(config.output_dir) == last
    assert found(str(last)) == last
    assert found(str(last.with_name("checkpoint-1"))) == last.with_name("checkpoint-1")
    elsewhere = settings(output_dir=str(tmp_path / "new"), resume_from_checkpoint="last")
    assert find_checkpoint(elsewhere) is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no training state to resume from; to start from its weights"):
        found(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="There is no folder runs/nowhere/else"):
        found("runs/nowhere/else")


def test_changed_settings_are_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    recipe.train(settings(save_steps=1), load())
    recipe.train(settings(save_steps=2, max_steps=3, batch_size=1, resume_from_checkpoint="last"), load())
    (line,) = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert "batch_size (2, now 1)" in line
    assert "max_steps (2, now 3)" in line
    assert "save_steps" not in line


def test_other_training_samples_are_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A file that grew between two halves of a run changes the order of all samples."""

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if "training samples are not" in record.getMessage()]
        caplog.clear()
        return found

    def fingerprint(samples: list[Any]) -> dict[str, Any]:
        return IndexedSamples(TheWorldDataset(samples), range(len(samples))).fingerprint()

    recipe.train(settings(), load())
    recipe.train(settings(max_steps=3, resume_from_checkpoint="last"), load(8))
    (line,) = lines()
    assert "(6 then, 8 now)" in line
    checkpoint = find_last_checkpoint(settings().output_dir)
    assert checkpoint is not None
    check_data(fingerprint(records(8)), checkpoint)
    assert lines() == []
    check_data(fingerprint([*records(7), {**records(8)[-1], "label": "in none"}]), checkpoint)
    (line,) = lines()
    assert "(8 as then, with other texts)" in line


# ------------------------------------------------------------------------------- settings that a checkpoint restores


def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs that must be refused before weights are loaded."""
    monkeypatch.setattr(recipe, "build_model", lambda *_: pytest.fail("the weights were loaded first"))


@pytest.fixture(scope="module")
def muon(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """The config of a finished run of Muon on a LoRA and the projector."""
    config = settings_in(tmp_path_factory.mktemp("muon"), bases)(lora=2, optimizer="muon")
    recipe.train(config, load())
    return config


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
        ("projector_positions", "sinusoidal"),
        ("adam_epsilon", 1e-6),
    ],
)
def test_new_values_for_restored_settings_are_refused_first(
    muon: TrainingConfig, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    nothing_is_loaded(monkeypatch)
    again = TrainingConfig.from_dict({**muon.to_dict(), "resume_from_checkpoint": "last", "max_steps": 3, key: value})
    with pytest.raises(ValueError, match=f"^{key} was .* and is now ") as error:
        recipe.train(again, load())
    before = muon.to_dict().get(key)
    assert f"{key} was {before!r} and is now {value!r}, but" in str(error.value)
    assert f"model_name={Path(muon.output_dir) / 'checkpoint-2'} and another output_dir" in str(error.value)
    assert json.loads((Path(muon.output_dir) / "training_config.json").read_text()).get(key) == before


def rates(output_dir: str) -> list[float]:
    _, history = outcome(output_dir)
    return [entry["learning_rate"] for entry in history if "learning_rate" in entry]


def test_new_values_for_restored_settings_would_have_no_effect(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the refusal a new learning rate, decay or beta is not used."""
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


LINEAR: dict[str, Any] = {"save_steps": 2, "max_steps": 6, "lr_scheduler": "linear"}


@pytest.fixture(scope="module")
def linear(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a linear schedule."""
    return recipe.train(settings_in(tmp_path_factory.mktemp("linear"), bases)(**LINEAR), load())


@pytest.mark.parametrize(
    "changes",
    [{"lr_scheduler": "cosine"}, {"warmup_steps": 5}, {"max_steps": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_schedule_may_change_on_resuming(
    settings: Settings, linear: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    """From the step after next, learning rates equal those of a run with the new schedule from the beginning."""
    recipe.train(settings(**{**LINEAR, **changes, "output_dir": str(tmp_path / "whole")}), load())
    again = settings(
        **{**LINEAR, **changes, "output_dir": str(tmp_path / "again")},
        resume_from_checkpoint=str(linear / "checkpoint-2"),
    )
    recipe.train(again, load())
    (key,) = changes
    assert f"{key} (" in caplog.text
    assert rates(str(tmp_path / "again"))[3:] == rates(str(tmp_path / "whole"))[3:]
    assert rates(str(tmp_path / "again"))[3:] != rates(str(linear))[3:]


# -------------------------------------------------------------------------------------------------- one run per folder


def test_two_runs_do_not_share_a_folder(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.train(settings(save_steps=1), load())
    recipe.train(settings(save_steps=1, output_dir=str(tmp_path / "other")), load())
    with monkeypatch.context() as patch:
        nothing_is_loaded(patch)
        said = r"holds checkpoints of another run \(the last is checkpoint-2\); resume that run with resume_from=last"
        for name in (None, str(tmp_path / "other"), str(tmp_path / "other" / "checkpoint-1")):
            with pytest.raises(ValueError, match=said):
                recipe.train(settings(resume_from_checkpoint=name), load())
    # the same run under any of its names, and a folder without checkpoints
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("last", "run", str(tmp_path / "run" / "checkpoint-4")), start=3):
        values: dict[str, Any] = {"save_steps": 1, "save_total_limit": None, "max_steps": number}
        recipe.train(settings(**values, resume_from_checkpoint=name), load())
    recipe.train(settings(output_dir=str(tmp_path / "new"), resume_from_checkpoint="last"), load())
    recipe.train(settings(output_dir=str(tmp_path / "newer"), resume_from_checkpoint="run", max_steps=6), load())


def test_an_abandoned_branch_is_not_mixed_with_its_replacement(settings: Settings, tmp_path: Path) -> None:
    """Resumed from checkpoint-2 beside checkpoint-4, a run had the later one taken for its last."""
    run = str(recipe.train(settings(save_steps=1, max_steps=4, save_total_limit=None), load()))
    branch = {"resume_from_checkpoint": f"{run}/checkpoint-2", "max_steps": 3, "save_total_limit": 2}
    with pytest.raises(
        ValueError, match=r"checkpoint-2 is not the last checkpoint of its run, which is checkpoint-4; "
    ):
        recipe.train(settings(**branch), load())
    assert len(list(Path(run).glob("checkpoint-*"))) == 4
    recipe.train(settings(**branch, output_dir=str(tmp_path / "branch")), load())
    assert [path.name for path in (tmp_path / "branch").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_finished_run_takes_no_further_step(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Two steps end inside an epoch of three."""
    folder = recipe.train(settings(save_steps=1, save_total_limit=1), load())
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert recipe.train(settings(save_steps=1, save_total_limit=1, resume_from_checkpoint="last"), load()) == folder
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert "checkpoint-2 has all 2 steps of this run; increase max_steps to train further" in caplog.text


@pytest.mark.parametrize("name", ["scene.png", "scene.png/run"])
def test_an_output_dir_that_is_a_file_is_one_sentence(settings: Settings, tmp_path: Path, name: str) -> None:
    (tmp_path / "scene.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^output_dir is \S+, but \S+/scene\.png is a file; choose another"):
        recipe.train(settings(output_dir=str(tmp_path / name)), load())
