"""The first commands of a new user: setup.sh and make."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.loopback_hub import LoopbackHub, use_endpoint

REPOSITORY = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-quantization.lock")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_setup_explains_itself() -> None:
    result = run("bash", "scripts/setup.sh", "--help")
    assert result.returncode == 0
    for option in ("--skip-dev", "--skip-models", "--help"):
        assert option in result.stdout
    wrong = run("bash", "scripts/setup.sh", "--nonsense")
    assert (wrong.returncode, "unknown option --nonsense" in wrong.stderr) == (2, True)


def test_make_lists_its_targets() -> None:
    wanted = (
        "setup format check run train-simple train-hf smoke-test eval-blink eval-gemma compare-results clean test "
        "test-gpu typecheck docs help"
    )
    listed = re.findall(r"^  make (\S+)", run("make", "help").stdout, flags=re.MULTILINE)
    assert set(wanted.split()) <= set(listed)


def check_smoke_test(said: list[str], folder: Path) -> None:
    """What the script printed, and what it wrote over the earlier run in its folder."""
    assert said[0].startswith(
        "No HF_TOKEN: nano on two images of this repository, with a local hub at http://127.0.0.1"
    )
    assert said[-1].startswith("Passed with a local hub in ")
    assert not (folder / "checkpoint-1").exists(), "it starts again"
    for name in ("model.safetensors", "checkpoint-2/optimizer.pt", "samples/step-2.jsonl", "samples/imagined-0.png"):
        assert (folder / name).is_file(), name


def test_the_smoke_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has imported the libraries."""
    variables = LoopbackHub.environment

    def environment(hub: LoopbackHub, cache: Path, token: str | None = None) -> dict[str, str]:
        use_endpoint(monkeypatch, hub.url, cache, token)
        return variables(hub, cache, token)

    monkeypatch.setattr(LoopbackHub, "environment", environment)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(name, "")  # the script sets them, and they are restored
    monkeypatch.setattr(sys, "argv", ["smoke_test.py", "--output_dir", str(tmp_path / "run")])
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "scripts" / "smoke_test.py"), run_name="__main__")
    assert ended.value.code == 0
    check_smoke_test(capsys.readouterr().out.strip().splitlines(), tmp_path / "run")


@pytest.mark.slow
def test_training_by_make(tmp_path: Path) -> None:
    """Offline and without a token; then with another config and arguments."""
    for entry in REPOSITORY.iterdir():
        if entry.name in ("Makefile", "configs", "examples", "requirements.lock", "pyproject.toml", "scripts"):
            (tmp_path / entry.name).symlink_to(entry)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    offline.pop("HF_TOKEN", None)

    def make(*arguments: str) -> str:
        command = ["make", "--silent", *arguments, f"PYTHON={sys.executable}"]
        result = subprocess.run(
            command, cwd=tmp_path, env=offline, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    folder = tmp_path / "checkpoints" / "smoke-test"
    (folder / "checkpoint-1").mkdir(parents=True)
    check_smoke_test(make("smoke-test").splitlines(), folder)
    again = make("train-hf", "CONFIG=configs/smoke_test.json", "ARGS=--output_dir again --set do_eval=false")
    assert again == "again"
    assert not (tmp_path / "again" / "samples").exists()


def test_make_passes_a_config_and_arguments_on() -> None:
    given = "PYTHON=python", "CONFIG=a.json", "ARGS=--output_dir b --set c=d"
    shown = run("make", "-n", "--no-print-directory", "train-hf", *given).stdout
    assert shown.strip() == "python scripts/train_hf.py --config a.json --output_dir b --set c=d"


def test_locks_hold_versions_and_hashes_and_no_address() -> None:
    for name in LOCKS:
        text = (REPOSITORY / name).read_text("utf-8")
        assert "://" not in text
        assert not re.search(r"^\s*--(?!hash=sha256:)", text, flags=re.MULTILINE)
        pinned = re.findall(r"^([a-z0-9.-]+)==\S+.*\\$", text, flags=re.MULTILINE)
        required = re.findall(r"^[a-zA-Z].*$", text, flags=re.MULTILINE)
        assert len(pinned) == len(required) > 0


def test_the_lock_covers_what_the_project_asks_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    asked = {
        LOCKS[0]: project["project"]["dependencies"],
        LOCKS[1]: project["dependency-groups"]["dev"],
    }
    for name, requirements in asked.items():
        locked = set(re.findall(r"^([a-z0-9.-]+)==", (REPOSITORY / name).read_text("utf-8"), flags=re.MULTILINE))
        names = {re.split(r"[<>=\[;]", entry)[0].strip().lower().replace("_", "-") for entry in requirements}
        assert names <= locked


def test_every_extra_is_used_by_code() -> None:
    """An extra that nothing imports promises a feature that does not exist, and may keep `uv sync` from resolving."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    source = "".join(path.read_text("utf-8") for path in (REPOSITORY / "theworld").rglob("*.py"))
    for name, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            module = re.split(r"[<>=\[;]", requirement)[0].strip().replace("-", "_")
            assert re.search(rf"^\s*(from|import) {module}\b", source, flags=re.MULTILINE), f"{name}: {requirement}"


def test_setup_downloads_only_what_the_loaders_read(tmp_path: Path) -> None:
    script = (REPOSITORY / "scripts" / "setup.sh").read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r'"\$VENV/bin/hf" (download .*?) \|\|', script)]
    repositories = {
        "google/gemma-3-4b-it": {"config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja"},
        "nvidia/Cosmos-Predict2-2B-Video2World": {"model_index.json", "vae/config.json", "text_encoder/x.safetensors"},
    }
    extra = {"README.md": b"", "model-480p-16fps.pt": b"a copy of the weights"}
    contents = {name: {file: file.encode() for file in files} | extra for name, files in repositories.items()}
    assert [command[1] for command in commands] == list(repositories)
    with LoopbackHub(contents) as hub:
        for command in commands:
            hub.fetched.clear()
            environment = {**os.environ, **hub.environment(tmp_path)}
            hf = [str(Path(sys.executable).parent / "hf"), *command]
            subprocess.run(hf, env=environment, capture_output=True, timeout=100, check=True)
            assert set(hub.fetched) == {f"{command[1]}/{file}" for file in repositories[command[1]]}
