"""Runs on several processes: the strategies train the same model, and checkpoints move between them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import Tensor

from tests.training import processes
from tests.training.conftest import Record, records
from tests.training.test_resume import SignalAt, outcome
from theworld.model.saving import check_complete
from theworld.training import latent_precompute, recipe
from theworld.training.checkpointing import find_last_checkpoint
from theworld.training.config import TrainingConfig
from theworld.training.distributed import check_strategy, check_unused
from theworld.training.stopping import Stop

Settings = Callable[..., TrainingConfig]

CONFIGS = Path(__file__).parents[2] / "configs"
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2}},
    "zero2": {"deepspeed": str(CONFIGS / "deepspeed" / "zero2.json")},
    "zero3": {"deepspeed": str(CONFIGS / "deepspeed" / "zero3.json")},
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed; make test-deepspeed installs it"
)
ALL_OF_GEMMA: dict[str, Any] = {
    "freeze_gemma_vision": False,
    "freeze_gemma_language": False,
    "learning_rate": 1e-3,
    "lr_scheduler": "constant",
    "max_grad_norm": 0.5,
    "world_steps_mix": {"1": 1.0},
    "save_steps": 1,
    "save_total_limit": None,
    "max_steps": 4,
}  # of a global batch of 4


def mixed_records() -> list[Record]:
    """Records of which two in three have no image, so that a process has batches without images."""
    made = records(18)
    return [{"text": one["text"], "label": one["label"]} if number % 3 else one for number, one in enumerate(made)]


def train(rank: int, values: dict[str, Any], signals: dict[int, tuple[int, int]] | None = None) -> None:
    """One process of a run; `signals` are those that ranks send to themselves, with the step that begins then."""
    plain = recipe.TheWorldTrainer
    own = (signals or {}).get(rank)

    class Signalled(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, callbacks: list[Any], **keywords: Any) -> None:
            more = [SignalAt(*own, events=("on_step_begin",))] if own else []
            super().__init__(*arguments, callbacks=[*callbacks, *more], **keywords)

    recipe.TheWorldTrainer = Signalled  # type: ignore[misc]
    made = records(18) if values["output_dir"].endswith("-images") else mixed_records()
    with Stop() as stop:
        recipe.train(TrainingConfig.from_dict(values), lambda config: (made, None), stop=stop)


def made(settings: Settings, folder: Path, num_processes: int, strategy: str = "ddp", **changes: Any) -> dict[str, Any]:
    """The config of a run with a global batch of 4."""
    values = {**ALL_OF_GEMMA, "batch_size": 4 // num_processes, **STRATEGIES[strategy], **changes}
    return settings(**values, output_dir=str(folder)).to_dict()


def losses(output_dir: str) -> list[float]:
    return [entry["loss"] for entry in outcome(output_dir)[1] if "loss" in entry]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two runs have learned the same, but for the order of sums."""
    assert losses(other["output_dir"]) == pytest.approx(losses(one["output_dir"]), rel=1e-5)
    weights, others = outcome(one["output_dir"])[0], outcome(other["output_dir"])[0]
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert others[name].dtype == torch.float32
        torch.testing.assert_close(others[name], weight, rtol=0, atol=3e-4, msg=name)


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "fsdp2",
        pytest.param("zero2", marks=[pytest.mark.slow, needs_deepspeed]),
        pytest.param("zero3", marks=[pytest.mark.slow, needs_deepspeed]),
    ],
)
def test_two_processes_learn_what_one_learns(settings: Settings, tmp_path: Path, strategy: str) -> None:
    """Some of their batches have no images, so that one process has no gradient of the vision tower without care."""
    suffix = "-images" if strategy == "zero3" else ""  # which needs images in every batch
    one = made(settings, tmp_path / f"one{suffix}", 1)
    two = made(settings, tmp_path / f"two{suffix}", 2, strategy)
    started = processes.start(train, 1, one) + processes.start(train, 2, two)
    assert [process.wait() for process in started] == [0, 0, 0]
    assert_same(one, two)


@pytest.mark.parametrize(("stage", "refused"), [(2, False), (3, True)])
def test_a_batch_without_images_is_refused_with_zero3(stage: int, refused: bool) -> None:
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    words = "^A batch has no input for vision and projector, which ZeRO-3 cannot train on; use FSDP2"
    with pytest.raises(ValueError, match=words) if refused else nullcontext():
        check_unused(SimpleNamespace(state=state), ["vision", "projector"])  # type: ignore[arg-type]


MOVES = [
    ("ddp", 2, "ddp", 1),
    ("ddp", 2, "ddp", 4),
    ("ddp", 1, "fsdp2", 2),
    ("fsdp2", 2, "ddp", 1),
    ("fsdp2", 2, "fsdp2", 4),
    *(
        pytest.param(*move, marks=needs_deepspeed)
        for move in (
            ("ddp", 1, "zero2", 2),
            ("zero2", 2, "zero3", 4),
            ("zero3", 2, "ddp", 1),
            ("fsdp2", 2, "zero3", 2),
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "num_first", "second", "num_second"), MOVES)
def test_a_killed_run_resumes_with_another_strategy_and_number_of_processes(
    settings: Settings, tmp_path: Path, first: str, num_first: int, second: str, num_second: int
) -> None:
    suffix = "-images" if "zero3" in (first, second) else ""
    whole = made(settings, tmp_path / f"whole{suffix}", 1)
    killed = made(settings, tmp_path / f"killed{suffix}", num_first, first)
    processes.run(train, 1, whole)
    last_rank = num_first - 1
    ended = [p.wait() for p in processes.start(train, num_first, killed, {last_rank: (signal.SIGKILL, 3)})]
    assert ended[last_rank] == -signal.SIGKILL
    assert 0 not in ended
    last = find_last_checkpoint(killed["output_dir"])
    assert last is not None
    assert last.name == "checkpoint-2"
    resumed = made(settings, tmp_path / f"killed{suffix}", num_second, second, resume_from_checkpoint="last")
    processes.run(train, num_second, resumed)
    assert_same(whole, resumed)


def test_processes_end_together_if_one_is_asked_to_stop(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = made(settings, tmp_path / "run", 2, max_steps=8)
    processes.run(train, 2, values, {0: (signal.SIGTERM, 2)})
    last = find_last_checkpoint(values["output_dir"])
    assert last is not None
    assert last.name == "checkpoint-2"
    assert "run; resume the run with resume_from=last" not in capfd.readouterr().err


def test_the_end_of_another_process_is_an_error_of_one_sentence(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = made(settings, tmp_path / "run", 2)
    ended = [p.wait() for p in processes.start(train, 2, values, {1: (signal.SIGKILL, 2)})]
    assert ended == [1, -signal.SIGKILL]
    expected = "ValueError: Process 0 lost the connection to another process of this run, which ended or is unreachable"
    assert f"{expected}; the last checkpoint is {tmp_path / 'run' / 'checkpoint-1'}" in capfd.readouterr().err


def launched_with(rank: int, values: dict[str, Any], environment: dict[str, str]) -> None:
    """One process of a run that `accelerate launch` starts."""
    os.environ |= environment
    train(rank, values)


@pytest.mark.slow
def test_accelerate_launch_with_the_shipped_config(settings: Settings, tmp_path: Path) -> None:
    parser = launch_command_parser()
    config, one = CONFIGS / "accelerate" / "fsdp2.yaml", made(settings, tmp_path / "one", 1, max_steps=1)
    given, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(config), "train.py"]))
    variables = {name: value for name, value in prepare_multi_gpu_env(given).items() if os.environ.get(name) != value}
    two = made(settings, tmp_path / "two", 2, max_steps=1)
    started = processes.start(train, 1, one) + processes.start(launched_with, 2, two, variables)
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    assert [process.wait() for process in started] == [0, 0, 0]
    assert_same(one, two)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_shipped_configs_of_accelerate(name: str) -> None:
    values = yaml.safe_load((CONFIGS / "accelerate" / f"{name}.yaml").read_text())
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert values["distributed_type"] == kinds[name]
    assert values.get("mixed_precision", "no") == "no", "the config of the run decides"
    if kinds[name] == "DEEPSPEED":
        file = CONFIGS.parent / values["deepspeed_config"]["deepspeed_config_file"]
        assert json.loads(file.read_text())["zero_optimization"]["stage"] == int(name[-1])


def fill(rank: int, values: dict[str, Any], out: str) -> None:
    plain = latent_precompute.compute_with
    computed: list[int] = []

    def counted(*arguments: Any) -> Any:
        compute = plain(*arguments)

        def call(pixels: Tensor, *rest: Any) -> Tensor:
            computed.append(len(pixels))
            return compute(pixels, *rest)

        return call

    latent_precompute.compute_with = counted
    cache, new = recipe.fill(TrainingConfig.from_dict(values), lambda config: (records(40)[:30] + records(20), None))
    (Path(out) / f"{rank}").write_text(f"{len(cache)} {new} {sum(computed)}")


def test_processes_share_the_world_latents(settings: Settings, tmp_path: Path) -> None:
    values = settings(latent_cache=str(tmp_path / "cache"), num_world_steps=0).to_dict()
    processes.run(fill, 2, values, str(tmp_path))
    found = [[int(number) for number in (tmp_path / str(rank)).read_text().split()] for rank in (0, 1)]
    assert [numbers[:2] for numbers in found] == [[30, 30]] * 2
    first, second = (numbers[2] for numbers in found)
    assert first + second == 30, "no process computes what the other does; shards alone do not show it"
    assert min(first, second) > 0
    entries = [key for shard in (tmp_path / "cache").rglob("*.safetensors") for key in keys_of(shard)]
    assert len(entries) == len(set(entries)) == 30  # although 20 images occur twice


def keys_of(shard: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize(
    ("plugin", "optimizer", "trainable", "words"),
    [
        ({"fsdp_version": 2}, "muon", "language", "Muon needs complete matrices, which FSDP shards; set optimizer to"),
        ({"zero_stage": 3}, "muon", "language", "Muon needs complete matrices, which DeepSpeed shards; set optimizer"),
        ({"fsdp_version": 2}, "adamw", "vae_encoder", "The VAE encoder cannot be trained with FSDP; set freeze_cosmos"),
        ({"zero_stage": 0}, "adamw", "language", "DeepSpeed without ZeRO is not supported; set its stage to 1, 2 or 3"),
        ({"fsdp_version": 1}, "adamw", "language", "FSDP version 1 is not supported; set fsdp_version to 2"),
    ],
)
def test_what_cannot_be_sharded_is_refused(plugin: dict[str, int], optimizer: str, trainable: str, words: str) -> None:
    name = "fsdp_plugin" if "fsdp_version" in plugin else "deepspeed_plugin"
    state = SimpleNamespace(**{name: SimpleNamespace(**plugin)})
    with pytest.raises(ValueError, match=f"^{words}"):
        check_strategy(SimpleNamespace(state=state, mixed_precision="no"), optimizer, [trainable])  # type: ignore[arg-type]


@pytest.mark.parametrize("tensor", [torch.zeros(0), torch.nn.Parameter(torch.zeros(0, 4))])
def test_an_empty_tensor_is_not_saved(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^a\.weight is sharded over several processes, so this process cannot save"):
        check_complete({"b": torch.ones(1), "a.weight": tensor})
