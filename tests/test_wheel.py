"""What people install is what is in the repository: code, weights, types, licences, and the command."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the working tree, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=120, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder of their own, apart from the repository."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the wheel's package and not the repository's, in another folder, offline."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_everything_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    files = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "theworld").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "theworld/py.typed" in files
    assert files <= set(zipfile.ZipFile(wheel).namelist())


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"theworld", f"theworld-{version}.dist-info"}


def test_licences_and_the_command_come_along(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info")
    for name in ("LICENSE", "NOTICE"):
        assert (metadata / "licenses" / name).read_bytes() == (REPOSITORY / name).read_bytes()
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert f"theworld = {scripts['theworld']}" in (metadata / "entry_points.txt").read_text("utf-8")


def test_the_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = run_installed(installed, tmp_path, "-c", "import theworld; print(theworld.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed)
    shown = run_installed(installed, tmp_path, "-m", "theworld.cli", "--help")
    assert shown.returncode == 0, shown.stderr
    for verb in ("ask", "imagine", "info", "eval"):
        assert verb in shown.stdout
