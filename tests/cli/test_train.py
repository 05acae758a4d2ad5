"""`theworld train`, `theworld cache` and scripts/train_hf.py, in processes of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests import commands
from tests.tiny import tiny_bases
from tests.training.conftest import image, wait_for
from tests.world_models.tiny import TINY_SIZE
from theworld.cli import app
from theworld.training.checkpointing import checkpoints_in
from theworld.training.command_line import keys_as_set
from theworld.training.token import without_token

REPOSITORY = Path(__file__).parents[2]
SECRET = "hf_" + "not-a-token-" * 3


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def config(bases: dict[str, str], tmp_path: Path) -> Path:
    """A config file of a tiny run on a JSON Lines file with two images."""
    for number in range(2):
        Image.fromarray(image(number)).save(tmp_path / f"{number}.png")
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


class NewPython:
    """Runs `python …` in a process group of its own. A forked command is faster, but has imported the libraries."""

    def __init__(self, *arguments: object, stdout: int, stderr: int, env: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            preexec_fn=restore_ctrl_c,
            start_new_session=True,
        )
        self.pid, self.wait, self.kill = self.process.pid, self.process.wait, self.process.kill

    def running(self) -> bool:
        return self.process.poll() is None


class Command:
    """A running Python command, whose lines a test can wait for."""

    def __init__(self, *arguments: object, start: Any = commands.Command, **environment: str) -> None:
        self.output: list[str] = []
        self.errors: list[str] = []
        pipes = [os.pipe(), os.pipe()]
        self.process = start(
            *arguments,
            stdout=pipes[0][1],
            stderr=pipes[1][1],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        )
        self.readers = []
        for (reading, writing), lines in zip(pipes, (self.output, self.errors), strict=True):
            os.close(writing)
            self.readers.append(threading.Thread(target=read_lines, args=(reading, lines)))
            self.readers[-1].start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        for reader in self.readers:
            reader.join()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits for an event of the command; it is a failure if the command ends before."""
        wait_for(lambda: condition() or not self.process.running())
        assert condition(), "".join(self.errors)

    def finish(self) -> tuple[int, str, str]:
        """The exit code, standard output and standard error of the command when it has ended."""
        code = self.process.wait()
        for reader in self.readers:
            reader.join()
        return code, "".join(self.output), "".join(self.errors)


def read_lines(file: int, lines: list[str]) -> None:
    with open(file, encoding="utf-8") as stream:
        for line in stream:
            lines.append(line)


def restore_ctrl_c() -> None:
    """A shell starts background processes with Ctrl-C ignored, which their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("new", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["forked", "new"])
def test_a_token_is_hidden_and_a_stopped_run_is_resumed(config: Path, tmp_path: Path, new: bool) -> None:
    """Started with a token, stopped by SIGTERM, and resumed by the script.

    The signal is sent to all processes of the run, as `timeout` and schedulers do; the run needs its worker to go on.
    In new processes, the token is on the command line, and Weights & Biases logs.
    """
    data = tmp_path / "chats.jsonl"
    settings = [
        "--max_steps",
        "100000",
        "--set",
        "save_steps=100000",
        "--num_workers",
        1,
        "--dataset",
        data,
    ]
    start, token, environment = commands.Command, [], {"HF_TOKEN": SECRET}
    if new:
        start, token = NewPython, [f"--hf_token={SECRET}"]
        settings += ["--log-to-wandb", "--hf_token", SECRET, "--set", f"hf_token={SECRET}", "--hub-token", SECRET]
        environment = {f"WANDB_{x}DIR": str(tmp_path / "run") for x in ("", "DATA_", "CACHE_", "CONFIG_")}
        environment["WANDB_MODE"] = "offline"
    with Command("-m", "theworld.cli", "train", config, *settings, start=start, **environment) as started:
        started.wait_for(lambda: any("step 1 of 100000" in line for line in started.errors))
        title = Path(f"/proc/{started.process.pid}/cmdline").read_bytes().decode().split("\0")
        os.killpg(started.process.pid, signal.SIGTERM)
        code, output, errors = started.finish()
    assert code == 0, errors
    assert not new or (title[1:5] == ["-m", "theworld.cli", "train", str(config)] and SECRET not in " ".join(title))
    (saved,) = checkpoints_in(tmp_path / "run")
    step = int(saved.name.removeprefix("checkpoint-"))

    last = step + 2
    with Command(
        "scripts/train_hf.py", "--config", config, "--resume_from", "last", "--dataset", data,
        "--num_samples", 4, f"--max_steps={last}", *token, HF_TOKEN="" if token else SECRET,
    ) as resumed:  # fmt: skip
        code, more, more_errors = resumed.finish()
    assert code == 0, more_errors
    assert more.strip() == str(tmp_path / "run")
    assert "num_samples (None, now 4)" in more_errors
    assert checkpoints_in(tmp_path / "run")[-1].name == f"checkpoint-{last}"
    assert json.loads((tmp_path / "run" / "training_config.json").read_text())["num_samples"] == 4

    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert any(path.suffix == ".wandb" for path in written) == new
    for text in (output, errors, more, more_errors, *(path.read_bytes().decode("latin-1") for path in written)):
        assert SECRET not in text


@pytest.mark.parametrize(
    "module",
    ["from theworld.cli import main; main()", "from scripts.train_hf import main; main()"],
    ids=["train", "script"],
)
def test_a_token_is_not_on_the_command_line_when_the_imports_begin(module: str, config: Path) -> None:
    """The process list shows what the process prints here, when torch is about to be imported."""
    show = "print(open('/proc/self/cmdline').read(), os.environ['HF_TOKEN']); sys.stdout.flush(); os._exit(0)"
    code = SLOW_IMPORT.replace("os.kill(os.getpid(), SIGNAL)", show).replace("*ARGUMENTS", "*sys.argv[1:]") + module
    given = [config] if "cli" in module else ["--config", config]
    given = ["train", *given] if "cli" in module else given
    with Command("-c", code, *given, "--max_steps=1", "--hf_token", SECRET, start=NewPython) as started:
        status, output, errors = started.finish()
    title, token = output.split("\0 ")
    assert (status, token.strip()) == (0, SECRET), errors
    assert title.split("\0")[-2:] == [str(config), "--max_steps=1"]
    assert SECRET not in title


def test_without_token_removes_the_token_only() -> None:
    arguments = ["train", "a.json", "--hf_token", "x", "--set", "seed=1", "--set", "hf_token=y"]
    assert without_token(arguments) == (["train", "a.json", "--set", "seed=1"], "y")
    assert without_token(["--hf_token=x", "--set=seed=1"]) == (["--set=seed=1"], "x")
    assert without_token(["--set=hf_token=x"]) == ([], "x")
    assert without_token(["--hub-token", "x", "--set", "hub_token=y", "--seed", "1"]) == (["--seed", "1"], "y")
    assert without_token(["train", "--hf_token"]) == (["train", "--hf_token"], None)


def test_keys_are_options() -> None:
    known = {"--set", "--dataset", "--streaming", "--debug"}
    given = ["a.json", "--learning_rate", "1e-3", "--max-steps=-1", "--dataset", "b", "--do_eval", "--debug", "--bf16"]
    settings = ["learning_rate=1e-3", "max_steps=-1", "do_eval=true", "bf16=true"]
    first, second, third, fourth = (["--set", setting] for setting in settings)
    assert keys_as_set(given, known) == ["a.json", *first, *second, "--dataset", "b", *third, "--debug", *fourth]
    assert keys_as_set(["--max_steps", "-1", "--", "--odd name"], known) == [*second, "--", "--odd name"]


def test_a_token_is_in_no_error_message(config: Path) -> None:
    for arguments in (
        ["--set", "hf_token=" + SECRET, "--set", "batch_size=0"],
        ["--hf_token", SECRET, "--set", "x=1"],
        ["--hf-token", SECRET, "--x", "1"],
    ):
        result = invoke("train", config, *arguments)
        assert result.exit_code == 1
        assert SECRET not in result.output


def test_a_disk_that_becomes_full_is_one_sentence(config: Path, tmp_path: Path) -> None:
    """During the run, files are limited to a kilobyte."""
    data = ["--dataset", tmp_path / "chats.jsonl"]
    with Command("-m", "theworld.cli", "train", config, *data, "--max_steps", 100000) as started:
        started.wait_for(lambda: len(checkpoints_in(tmp_path / "run")) >= 2)
        resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (1024, 1024))
        code, _, errors = started.finish()
    assert code == 1
    last = checkpoints_in(tmp_path / "run")[-1]
    message = [line for line in errors.splitlines() if line.strip()][-1]
    assert f"{last} is complete. Free some space, then resume." in message
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    step = int(last.name.removeprefix("checkpoint-")) + 1
    resumed = invoke("train", config, *data, "--resume_from", "last", "--set", f"max_steps={step}")
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
        (["CONFIG", "--set", "learning_rate"], "is not a setting; write it as learning_rate=1e-3"),
        (["CONFIG", "--dataset", "nothing.jsonl"], "There is no file nothing.jsonl"),
        (["CONFIG", "--dataset", "mine.py"], "There is no file mine.py"),
        (["CONFIG", "--dataset", "phisics"], "did you mean 'physics'"),
        (["CONFIG", "--streaming"], "streaming needs max_steps"),
        (["CONFIG", "--resume_from", "runs/none/here"], "There is no folder runs/none/here"),
        (["CONFIG", "--num_samples", "0"], "num_samples is 0; it must be at least 1"),
        (["CONFIG", "--set", "model_name=nowhere"], "nowhere"),
        (["CONFIG", "--output_dir", "FILE"], "config.json is a file; choose another folder"),
        (["CONFIG", "--set", "dataset_name=nothing.jsonl"], "There is no file nothing.jsonl"),
    ],
)
def test_errors_are_one_sentence(config: Path, arguments: list[str], words: str) -> None:
    changes = ["--set", "max_steps=null"] if "--streaming" in arguments else []
    given = [config if argument in ("CONFIG", "FILE") else argument for argument in arguments]
    result = invoke("train", *given, *changes)
    assert result.exit_code == 1
    assert words in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lerning_rate", "1e-3"], "Unknown key 'lerning_rate' in the command line; did you mean 'learning_rate'?"),
        (["--lr-scheduler-kwarg={}"], "did you mean 'lr_scheduler_kwargs'?"),
        (["--num-samples", "0"], "num_samples is 0; it must be at least 1."),
        (["--optim", "adam"], "adam is not a valid OptimizerNames"),
        (
            ["--load_best_model_at_end"],
            "load_best_model_at_end, which TheWorld does not support: the last model is saved",
        ),
    ],
)
def test_a_wrong_option_is_one_sentence(config: Path, arguments: list[str], words: str) -> None:
    result = invoke("train", config, *arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_options_reach_the_run(config: Path, tmp_path: Path) -> None:
    """Also of `theworld cache`, which takes the same config."""
    data = ["--dataset", tmp_path / "chats.jsonl"]
    options = ["--optim", "adafactor", "--lr_scheduler_kwargs", '{"num_cycles": 2}', "--per-device-train-batch-size=3"]
    result = invoke("train", config, *data, *options, "--lr_scheduler_type=cosine_with_restarts", "--max_steps", "1")
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert (saved["optim"], saved["lr_scheduler"], saved["batch_size"]) == ("adafactor", "cosine_with_restarts", 3)
    assert saved["lr_scheduler_kwargs"] == {"num_cycles": 2}
    cached = invoke("cache", config, *data, "--latent_cache", tmp_path / "latents", "--world-seed", 3)
    assert cached.exit_code == 0, cached.output


def test_a_json_lines_file_replaces_the_dataset_of_the_config(config: Path, tmp_path: Path) -> None:
    """The options and the evaluation of the config's dataset are not used, and hide no wrong key in the file."""
    values = {**json.loads(config.read_text()), "dataset_options": {"scenes_per_family": 2}, "do_eval": True}
    config.write_text(json.dumps(values))
    result = invoke("train", config, "--dataset", tmp_path / "chats.jsonl", "--max_steps", 1)
    assert result.exit_code == 0, result.output
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({"image": "0.png", "text": "Which?", "lable": "left"}) + "\n")
    result = invoke("train", config, "--dataset", wrong, "--output_dir", tmp_path / "new")
    assert result.exit_code == 1
    assert "lable" in result.output


def test_a_terminal_shows_one_progress_bar_for_the_whole_run(config: Path, tmp_path: Path) -> None:
    """On a pseudo-terminal: log lines are complete lines, and every bar is ours."""
    options = ["--dataset", tmp_path / "chats.jsonl", "--max_steps", "4", "--latent_cache", tmp_path / "latents"]
    screen = rendered(["-m", "theworld.cli", "train", str(config), *map(str, options)])
    assert re.search(r"Training +.*0/4", screen), screen
    assert "it/s" not in screen
    assert "Loading weights" not in screen
    assert "Writing model shards" not in screen
    assert "{'loss'" not in screen
    steps = [line.strip() for line in re.split(r"[\r\n]+", plain_text(screen)) if "step 2 of 4" in line]
    assert len(steps) == 1
    assert re.fullmatch(r"\d\d:\d\d:\d\d step 2 of 4: loss \S+ grad_norm \S+ learning_rate \S+ epoch \S+", steps[0])


def rendered(arguments: list[str]) -> str:
    """What a command writes to a terminal of 120 columns."""
    main, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120", "TERM": "xterm"}
    process = commands.Command(*arguments, stdin=other, stdout=other, stderr=other, cwd=REPOSITORY, env=environment)
    os.close(other)
    written = []
    while True:
        try:
            written.append(os.read(main, 65536))
        except OSError:  # closed: the command has ended
            break
    os.close(main)
    assert process.wait() == 0, b"".join(written).decode()
    return b"".join(written).decode()


def plain_text(screen: str) -> str:
    """Terminal output without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)


def test_ctrl_c_names_the_last_checkpoint(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the last checkpoint, or says that there is none."""
    data = ["--dataset", tmp_path / "chats.jsonl"]
    with Command("-m", "theworld.cli", "train", config, *data, "--max_steps", 100000) as started:
        started.wait_for(lambda: bool(checkpoints_in(tmp_path / "run")))
        os.kill(started.process.pid, signal.SIGINT)
        code, output, errors = started.finish()
    assert (code, output) == (130, "")
    last = checkpoints_in(tmp_path / "run")[-1]
    said = f"Stopped by Ctrl-C during training: the last checkpoint is {last}; resume the run with resume_from"
    assert said in errors.splitlines()[-1]
    assert "Traceback" not in errors
    step = int(last.name.removeprefix("checkpoint-")) + 1
    resumed = invoke("train", config, *data, "--resume_from", "last", "--set", f"max_steps={step}")
    assert resumed.exit_code == 0, resumed.output

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("theworld.training.recipe.build_model", stopped)
    result = invoke("train", config, *data, "--output_dir", tmp_path / "new")
    assert result.exit_code == 130
    assert f"before the first step: no checkpoint was written in {tmp_path / 'new'}." in caplog.text


SLOW_IMPORT = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), SIGNAL)

sys.meta_path.insert(0, Watch())
sys.argv = ["theworld", *ARGUMENTS]
"""


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("train", signal.SIGTERM),
        ("script", signal.SIGTERM),
        ("cache", signal.SIGINT),
        pytest.param("train", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("script", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("cache", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_stop_during_the_imports_is_one_sentence(config: Path, tmp_path: Path, command: str, number: int) -> None:
    """The signal arrives when torch is about to be imported, which takes seconds."""
    arguments = ["--config", str(config)] if command == "script" else [command, str(config)]
    arguments += ["--dataset", str(tmp_path / "chats.jsonl"), "--latent_cache", str(tmp_path / "latents")]
    if command == "script":
        run = "import runpy; runpy.run_path('scripts/train_hf.py', run_name='__main__')"
    else:
        run = "from theworld.cli import main; main()"
    code = SLOW_IMPORT.replace("SIGNAL", str(int(number))).replace("ARGUMENTS", repr(arguments)) + run
    with Command("-c", code, start=NewPython) as started:
        status, output, errors = started.finish()
    assert (status, output) == (128 + number, "")
    (line,) = errors.splitlines()
    cause = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    saved = "the entries that were computed are kept" if command == "cache" else "nothing was trained, and no"
    assert f"Stopped by {cause} before the first step: {saved}" in line


def test_what_needs_no_library_comes_before_the_imports(config: Path) -> None:
    """torch and transformers take seconds to import. One process runs all commands."""
    expected = {
        ("none.json",): "There is no config none.json",
        (
            "CONFIG",
            "--lerning_rate",
            "1",
        ): "Unknown key 'lerning_rate' in the command line; did you mean 'learning_rate'?",
        ("CONFIG", "--optimm", "sgd"): "Unknown key 'optimm' in the command line; did you mean 'optim'?",
        ("CONFIG", "--dataset", "none.jsonl"): "There is no file none.jsonl, which train_dataset_path names",
        ("CONFIG", "--dataset", "none.py"): "There is no file none.py, which dataset_name names",
        ("--help",): "Example: theworld train",
    }
    given = [["train", *(str(config) if word == "CONFIG" else word for word in words)] for words in expected]
    code = (
        "import json, sys; from typer.testing import CliRunner; from theworld.cli import app\n"
        f"for given in {given!r}:\n"
        "    output = CliRunner().invoke(app, given).output\n"
        "    print(json.dumps([output, sorted({'torch', 'transformers'} & set(sys.modules))]))"
    )
    with Command("-c", code, start=NewPython) as started:
        _, lines, errors = started.finish()
    assert len(lines.splitlines()) == len(expected), errors
    for line, words in zip(lines.splitlines(), expected.values(), strict=True):
        output, imported = json.loads(line)
        assert words in " ".join(output.split())
        assert imported == [], words
        assert "dataset_options" not in output


def test_what_the_configs_write_is_ignored_by_git() -> None:
    """A run from the root of the repository leaves no untracked files."""
    configs = [json.loads(path.read_text()) for path in (REPOSITORY / "configs").glob("*.json")]
    written = {config[key] for config in configs for key in ("latent_cache", "output_dir") if config.get(key)}
    assert len(written) > 1
    for folder in sorted(written):
        ignored = subprocess.run(["git", "check-ignore", "-q", f"{folder}/file"], cwd=REPOSITORY)
        assert ignored.returncode == 0, folder


def test_the_shell_can_complete_commands() -> None:
    assert "--install-completion" in invoke("--help").output


@pytest.mark.parametrize("verb", ["train", "cache"])
def test_help_says_what_it_does(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    assert "Example: theworld " + verb in " ".join(result.output.split())
