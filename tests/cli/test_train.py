"""Training and caching by the commands that people type, in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.tiny import tiny_bases
from tests.training.conftest import picture
from tests.world_models.tiny import TINY_SIZE
from theworld.cli import app
from theworld.cli.token import without_token
from theworld.training.trainer import checkpoints_in

REPOSITORY = Path(__file__).parents[2]
SECRET = "hf_" + "not-a-token-" * 3


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def config(bases: dict[str, str], tmp_path: Path) -> Path:
    """A config file of a tiny run on a JSON Lines file of two pictures."""
    for number in range(2):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    lines = [
        {
            "image": f"{number % 2}.png",
            "text": "Which bin will the ball land in?",
            "label": ("left", "right")[number % 2],
        }
        for number in range(6)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "model_name": bases["vlm_name_or_path"],
        "cosmos_model_name": bases["world_name_or_path"],
        "world_image_size": TINY_SIZE,
        "max_world_steps": 4,
        "mixed_precision": "fp32",
        "num_workers": 0,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "max_steps": 3,
        "save_steps": 1,
        "logging_steps": 1,
        "output_dir": str(tmp_path / "run"),
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    return file


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=hears_ctrl_c,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
    )


def hears_ctrl_c() -> None:
    """Whatever starts the tests: what a shell puts in the background ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_token_is_seen_nowhere_and_a_stopped_run_goes_on(config: Path, tmp_path: Path) -> None:
    """Started with a token on its command line, stopped by SIGTERM, ended by the script, which has the same flags."""
    data = tmp_path / "chats.jsonl"
    settings = ["--set", "max_steps=400", "--set", "save_steps=1000", "--set", "log_to_wandb=true", "--dataset", data]
    started = command(
        "-m", "theworld.cli", "train", config, *settings, "--hf_token", SECRET, "--set", f"hf_token={SECRET}",
        WANDB_MODE="offline", **{f"WANDB_{x}DIR": str(tmp_path / "run") for x in ("", "DATA_", "CACHE_", "CONFIG_")},
    )  # fmt: skip
    logs = tmp_path / "run" / "logs"
    until = time.monotonic() + 120
    while not (logs.is_dir() and any(logs.iterdir())) and started.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    title = Path(f"/proc/{started.pid}/cmdline").read_bytes().decode().split("\0")
    assert SECRET not in " ".join(title)
    assert title[1:5] == ["-m", "theworld.cli", "train", str(config)]
    time.sleep(1)
    asked = time.monotonic()
    started.send_signal(signal.SIGTERM)
    output, errors = started.communicate(timeout=60)
    assert started.returncode == 0, errors
    assert time.monotonic() - asked < 30
    (saved,) = checkpoints_in(tmp_path / "run")
    step = int(saved.name.removeprefix("checkpoint-"))
    assert 0 < step < 400

    last = step + 2
    resumed = command(
        "scripts/train_hf.py", "--config", config, "--resume_from", "last", "--dataset", data, "--num_samples", 4,
        "--set", f"max_steps={last}", f"--hf_token={SECRET}",
    )  # fmt: skip
    more, more_errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, more_errors
    assert more.strip() == str(tmp_path / "run")
    assert "num_samples (None, now 4)" in more_errors
    assert checkpoints_in(tmp_path / "run")[-1].name == f"checkpoint-{last}"
    assert json.loads((tmp_path / "run" / "training_config.json").read_text())["num_samples"] == 4

    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert any(path.suffix == ".wandb" for path in written)
    for text in (output, errors, more, more_errors, *(path.read_bytes().decode("latin-1") for path in written)):
        assert SECRET not in text


def test_the_token_goes_and_the_rest_stays() -> None:
    said = ["train", "a.json", "--hf_token", "x", "--set", "seed=1", "--set", "hf_token=y"]
    assert without_token(said) == (["train", "a.json", "--set", "seed=1"], "y")
    assert without_token(["--hf_token=x", "--set=seed=1"]) == (["--set=seed=1"], "x")
    assert without_token(["--set=hf_token=x"]) == ([], "x")
    assert without_token(["train", "--hf_token"]) == (["train", "--hf_token"], None)


def test_a_token_is_in_no_error(config: Path) -> None:
    for arguments in (["--set", "hf_token=" + SECRET, "--set", "batch_size=0"], ["--hf_token", SECRET, "--set", "x=1"]):
        result = invoke("train", config, *arguments)
        assert result.exit_code == 1
        assert SECRET not in result.output


def test_a_disk_that_becomes_full_is_one_sentence(config: Path, tmp_path: Path) -> None:
    """In the middle of a run no file may grow beyond a kilobyte any more."""
    process = command(
        "-m", "theworld.cli", "train", config, "--dataset", tmp_path / "chats.jsonl", "--set", "max_steps=2000"
    )  # fmt: skip
    until = time.monotonic() + 120
    while len(checkpoints_in(tmp_path / "run")) < 2 and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, 1024))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    last = [line for line in errors.splitlines() if line.strip()][-1]
    whole = checkpoints_in(tmp_path / "run")[-1]
    assert f"{whole} is whole: make room, then resume" in last
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    step = int(whole.name.removeprefix("checkpoint-")) + 1
    resumed = invoke(
        "train", config, "--dataset", tmp_path / "chats.jsonl", "--resume_from", "last", "--set", f"max_steps={step}"
    )  # fmt: skip
    assert resumed.exit_code == 0, resumed.output
    assert checkpoints_in(tmp_path / "run")[-1].name == f"checkpoint-{step}"


def test_the_cache_is_filled_once(config: Path, tmp_path: Path) -> None:
    arguments = [
        "cache",
        config,
        "--dataset",
        tmp_path / "chats.jsonl",
        "--set",
        f"latent_cache={tmp_path / 'latents'}",
    ]
    first, second = invoke(*arguments), invoke(*arguments)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "2 entries, 2 of them new" in first.stdout
    assert "2 entries, 0 of them new" in second.stdout
    assert invoke("cache", config, "--dataset", tmp_path / "chats.jsonl").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json"], "There is no config none.json"),
        (["CONFIG", "--set", "lerning_rate=1"], "did you mean 'learning_rate'"),
        (["CONFIG", "--set", "learning_rate"], "write it as learning_rate=1e-3"),
        (["CONFIG", "--dataset", "nothing.jsonl"], "There is no file nothing.jsonl"),
        (["CONFIG", "--dataset", "mine.py"], "There is no file mine.py"),
        (["CONFIG", "--dataset", "phisics"], "did you mean 'physics'"),
        (["CONFIG", "--streaming"], "streaming needs max_steps"),
        (["CONFIG", "--resume_from", "runs/none/here"], "There is no folder runs/none/here"),
        (["CONFIG", "--num_samples", "0"], "num_samples is 0; give 1 or more"),
        (["CONFIG", "--set", "model_name=nowhere"], "nowhere"),
        (["CONFIG", "--output_dir", "FILE"], "config.json is a file; give a folder, or a new name"),
        (["CONFIG", "--set", "dataset_name=nothing.jsonl"], "There is no file nothing.jsonl"),
    ],
)
def test_what_goes_wrong_is_one_sentence(config: Path, arguments: list[str], words: str) -> None:
    changes = ["--set", "max_steps=null"] if "--streaming" in arguments else []
    given = [config if argument in ("CONFIG", "FILE") else argument for argument in arguments]
    result = invoke("train", *given, *changes)
    assert result.exit_code == 1
    assert words in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning_rate", "1e-3"], "No such option: --learning_rate; write --set learning_rate=1e-3."),
        (["--learning_rate=1e-3"], "No such option: --learning_rate; write --set learning_rate=1e-3."),
        (["--learning-rate", "1e-3"], "No such option: --learning-rate; write --set learning_rate=1e-3."),
        (["--do_eval", "--debug"], "No such option: --do_eval; write --set do_eval=VALUE."),
        (["--dataset_options", '{"a": 1}'], """write --set 'dataset_options={"a": 1}'."""),
        (["--num-samples", "3"], "No such option: --num-samples"),
        (["--frobnicate", "3"], "No such option: --frobnicate"),
        (["--hf-token", SECRET], "No such option: --hf-token"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "cache"])
def test_a_key_given_as_an_option(config: Path, verb: str, arguments: list[str], words: str) -> None:
    result = invoke(verb, config, *arguments)
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert words in said
    assert ("write --set" in said) == ("write --set" in words)
    assert SECRET not in said


def test_ctrl_c_says_what_goes_on(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a run one line names the last whole checkpoint; before the first, that there is none."""
    data = ["--dataset", tmp_path / "chats.jsonl"]
    process = command("-m", "theworld.cli", "train", config, *data, "--set", "max_steps=2000")
    until = time.monotonic() + 120
    while not checkpoints_in(tmp_path / "run") and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    last = checkpoints_in(tmp_path / "run")[-1]
    said = f"Stopped; {last} is whole, and the same command with --resume_from last goes on from it."
    assert errors.splitlines()[-1] == said
    assert "Traceback" not in errors
    step = int(last.name.removeprefix("checkpoint-")) + 1
    resumed = invoke("train", config, *data, "--resume_from", "last", "--set", f"max_steps={step}")
    assert resumed.exit_code == 0, resumed.output

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("theworld.training.recipe.build_model", stopped)
    result = invoke("train", config, *data, "--output_dir", tmp_path / "new")
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == f"Stopped; nothing was saved in {tmp_path / 'new'} yet."


@pytest.mark.parametrize("verb", ["train", "cache"])
def test_help_says_what_it_does(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    assert "Example: theworld " + verb in " ".join(result.output.split())
