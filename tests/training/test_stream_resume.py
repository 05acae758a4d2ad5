"""A stream on two processes with workers: killed in mid-stream, the run repeats no sample, leaves none out, and learns
what an uninterrupted run learns."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import commands
from tests.training.conftest import records
from tests.training.test_resume import EVENTS, SignalAt, differences, outcome
from theworld.datasets.streams import StreamedSamples
from theworld.training import recipe
from theworld.training.checkpointing import find_last_checkpoint
from theworld.training.config import TrainingConfig

Settings = Callable[..., TrainingConfig]
ROWS = 53  # not a multiple of parts or batches
STREAM = {
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_workers": 2,
    "save_steps": 1,
    "save_total_limit": 2,
    "lora": {"r": 2, "lora_dropout": 0.2},
    "shuffle_buffer_size": 5,
}
SEEN = "seen-{}.jsonl"  # what each process trained on


def rows() -> list[dict[str, Any]]:
    return [{**record, "text": f"Question {number}?"} for number, record in enumerate(records(ROWS))]


def train_rank(values: dict[str, Any], rank: int, num_processes: int, port: int, *signal_at: Any) -> None:
    """One process of a run on a stream, which writes down the samples of each batch that it trains on."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    config = TrainingConfig.from_dict(values)
    plain = recipe.TheWorldTrainer

    class Watched(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, callbacks: list[Any], **keywords: Any) -> None:
            more = [SignalAt(*signal_at)] if signal_at else []
            super().__init__(*arguments, callbacks=[*callbacks, *more], **keywords)

        def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any) -> Any:
            texts = self.data_collator.processor.tokenizer.batch_decode(inputs["input_ids"])
            numbers = [int(text.partition("Question ")[2].partition("?")[0]) for text in texts]
            with (Path(config.output_dir).parent / SEEN.format(rank)).open("a") as file:
                file.write(json.dumps([self.state.global_step, numbers]) + "\n")
            return super().training_step(model, inputs, *arguments)

    recipe.TheWorldTrainer = Watched  # type: ignore[misc]
    stream = StreamedSamples(rows(), shuffle=config.shuffle_buffer_size, seed=config.seed)
    recipe.train(config, lambda config: (stream, None))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(values: dict[str, Any], num_processes: int = 2, killed: tuple[int, int] | None = None) -> None:
    """A run to its end, or until a process kills itself by SIGKILL: (rank, number of events)."""
    Path(values["output_dir"]).parent.mkdir(exist_ok=True)
    port = free_port()
    started = []
    for rank in range(num_processes):
        signal_at = (signal.SIGKILL, killed[1], EVENTS) if killed and killed[0] == rank else ()
        started.append(commands.start(train_rank, values, rank, num_processes, port, *signal_at))
    if killed:
        assert started[killed[0]].wait() == -signal.SIGKILL
        for rank, process in enumerate(started):
            if rank != killed[0]:
                process.kill()
        return
    assert [process.wait() for process in started] == [0] * num_processes


def seen(output_dir: str, num_processes: int) -> list[list[int]]:
    """The samples of each step that counts, of all processes; what was lost by a kill was trained on again."""
    steps: dict[int, list[int]] = {}
    for rank in range(num_processes):
        own: dict[int, list[list[int]]] = {}
        for line in (Path(output_dir).parent / SEEN.format(rank)).read_text().splitlines():
            step, numbers = json.loads(line)
            own.setdefault(step, []).append(numbers)
        for step, batches in own.items():
            steps.setdefault(step, []).extend(number for batch in batches[-2:] for number in batch)
    return [sorted(steps[step]) for step in sorted(steps)]


def whole_and_killed(settings: Settings, folder: Path, kills: int, steps: int) -> tuple[str, str]:
    """The folders of an uninterrupted run, and of one that was killed and resumed several times."""
    plain = settings(**STREAM, max_steps=steps, output_dir=str(folder / "whole" / "run")).to_dict()
    killed = {**plain, "output_dir": str(folder / "killed" / "run"), "resume_from_checkpoint": "last"}
    events = random.Random(1)
    run(plain)
    for _ in range(kills):
        run(killed, killed=(events.randint(0, 1), events.randint(1, 8 * steps // kills)))
    run(killed)
    return plain["output_dir"], killed["output_dir"]


def samples_of(output_dir: str, steps: int) -> list[list[int]]:
    """The samples of each step, none of which is repeated within an epoch."""
    trained = seen(output_dir, 2)
    numbers = [number for step in trained for number in step]
    assert len(numbers) == 4 * steps
    first_epoch = numbers[: ROWS // 4 * 4 - 4]
    assert len(set(first_epoch)) == len(first_epoch)
    return trained


def test_a_run_on_a_stream_resumes_exactly(settings: Settings, tmp_path: Path) -> None:
    values = {"lora": {"r": 2, "lora_dropout": 0.2}, "save_steps": 1, "lr_scheduler": "constant"}

    def load(config: TrainingConfig) -> Any:
        return StreamedSamples(rows(), shuffle=5, seed=config.seed), None

    whole = settings(**values, max_steps=4, stream_parts=3, output_dir=str(tmp_path / "whole"))
    recipe.train(whole, load)
    for steps in (1, 3, 4):
        part = settings(**values, max_steps=steps, stream_parts=3, resume_from_checkpoint="last")
        recipe.train(part, load)
    (weights, history), (other_weights, other_history) = outcome(whole.output_dir), outcome(part.output_dir)
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in other_history]
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


@pytest.mark.slow
def test_killed_in_mid_stream(settings: Settings, tmp_path: Path) -> None:
    whole, killed = whole_and_killed(settings, tmp_path, kills=2, steps=8)
    assert samples_of(killed, 8) == samples_of(whole, 8)
    assert differences(whole, killed) == []


@pytest.mark.slow
def test_killed_ten_times_in_mid_stream(settings: Settings, tmp_path: Path) -> None:
    whole, killed = whole_and_killed(settings, tmp_path, kills=10, steps=40)
    assert samples_of(killed, 40) == samples_of(whole, 40)
    assert differences(whole, killed) == []


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (4, 1)])
def test_a_run_on_two_processes_resumes_on_one_and_on_four(
    settings: Settings, tmp_path: Path, processes: int, accumulation: int
) -> None:
    """At the same global batch: the same samples in every step, and the same losses but for the order of sums."""
    plain = settings(**STREAM, max_steps=6, output_dir=str(tmp_path / "whole" / "run")).to_dict()
    run(plain)
    part = {**plain, "max_steps": 3, "output_dir": str(tmp_path / "part" / "run"), "lr_scheduler": "constant"}
    plain |= {"lr_scheduler": "constant", "output_dir": str(tmp_path / "constant" / "run")}
    run(plain)
    run(part)
    resumed = {
        **plain,
        "output_dir": part["output_dir"],
        "gradient_accumulation_steps": accumulation,
        "resume_from_checkpoint": "last",
        "num_workers": 1,
    }
    for rank in range(processes):
        (tmp_path / "part" / SEEN.format(rank)).unlink(missing_ok=True)
    run(resumed, processes)
    found: dict[int, list[int]] = {}
    for rank in range(processes):
        for line in (tmp_path / "part" / SEEN.format(rank)).read_text().splitlines():
            step, numbers = json.loads(line)
            found.setdefault(step, []).extend(numbers)
    assert [sorted(found[step]) for step in (3, 4, 5)] == seen(plain["output_dir"], 2)[3:]


def test_a_checkpoint_without_positions_is_refused(settings: Settings, tmp_path: Path) -> None:
    config = settings(max_steps=1, save_steps=1)

    def load(config: TrainingConfig) -> Any:
        return StreamedSamples(rows()), None

    recipe.train(config, load)
    last = find_last_checkpoint(config.output_dir)
    assert last is not None
    (last / "stream.json").unlink()
    again = settings(max_steps=2, save_steps=1, resume_from_checkpoint="last")
    with pytest.raises(ValueError, match=r"has no stream\.json, so it was not saved while training on a stream"):
        recipe.train(again, load)
    shutil.rmtree(last)
