"""The commands a newcomer types first: setup.sh, make, and the cache of the base models."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError

REPOSITORY = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")


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


def test_training_by_make(tmp_path: Path) -> None:
    """As a stranger types it, offline and without a token; then with another config and arguments."""
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

    for _ in range(2):  # twice: the second run starts again
        folder = tmp_path / make("smoke-test")
    written = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {
        "model.safetensors",
        "checkpoint-2/optimizer.pt",
        "samples/step-2.jsonl",
        "samples/imagined-0.png",
    } <= written
    again = make("train-hf", "CONFIG=configs/smoke_test.json", "ARGS=--output_dir again --set do_eval=false")
    assert again == "again"
    assert not (tmp_path / "again" / "samples").exists()


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


# --- the cache of the base models ---


@pytest.fixture
def cache_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cache_models", REPOSITORY / "scripts" / "cache_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = {"model.safetensors": 3 * 10**9, "config.json": 10**3, "original.pt": 5 * 10**9}
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    monkeypatch.setattr(
        module, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=siblings))
    )
    monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**11))
    return module


def test_sizes_are_said_before_the_download(
    cache_models: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    downloads: list[object] = []
    monkeypatch.setattr(
        cache_models, "snapshot_download", lambda name, allow_patterns: downloads.append((name, allow_patterns))
    )
    assert cache_models.main(["google/gemma-3-4b-it"]) == 0
    assert "3.0 GB of 8.0 GB are needed, 3.0 GB are missing, 100.0 GB are free" in capsys.readouterr().out
    assert downloads == [("google/gemma-3-4b-it", cache_models.BASE_MODELS["google/gemma-3-4b-it"])]


def test_a_full_disk_is_told_before_the_download(
    cache_models: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_models.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    monkeypatch.setattr(cache_models, "snapshot_download", lambda *_, **__: pytest.fail("downloaded all the same"))
    assert cache_models.main(["google/gemma-3-4b-it"]) == 1
    assert "does not fit on the disk" in capsys.readouterr().err


def test_a_gated_model_names_the_page_and_the_others_go_on(
    cache_models: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> None:
        if name.startswith("google/"):
            raise GatedRepoError.__new__(GatedRepoError)
        done.append(name)

    monkeypatch.setattr(cache_models, "snapshot_download", download)
    assert cache_models.main([]) == 1
    assert "https://huggingface.co/google/gemma-3-4b-it" in capsys.readouterr().err
    assert done == ["nvidia/Cosmos-Predict2-2B-Video2World"]


def test_no_network_is_told_in_one_sentence(cache_models: ModuleType) -> None:
    for error in (cache_models.TransportError("refused"), ConnectionError("offline")):
        assert "could not be downloaded" in cache_models.explain(error, "google/gemma-3-4b-it")
