"""What people install is what is in the repository: code, weights, types, licences, and the command."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import pytest
from PIL import Image

from theworld.datasets.physics import make_clip

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the working tree, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=120, check=True)
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """An environment that has theworld from the wheel, everything else from this one, and no network."""

    folder: Path
    site: Path

    def run(self, folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
        """`theworld` commands in another folder, with an empty home, so that no cache of a person helps.

        They are run by one process, since each would import the libraries again.
        """
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME", "HF_TOKEN")}
        environment = {**kept, "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [str(self.folder / "bin" / "python"), "-c", COMMAND, json.dumps(commands)]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )


# What an installer writes into bin/theworld, from the wheel's own metadata.
COMMAND = """
import importlib.metadata, json, sys
(entry,) = importlib.metadata.entry_points(group="console_scripts", name="theworld")
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["theworld", *arguments]
    try:
        entry.load()()
    except SystemExit as ended:
        if ended.code:
            raise
"""

NETWORK_OFF = """
import socket
def refuse(*_, **__):
    raise OSError("there is no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Lines of a .pth come after site's own folder, and what they add is not searched for further .pth files, so an
    # editable theworld of the environment of the tests stays out of sight.
    theirs = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (site / "everything_else.pth").write_text("\n".join([*theirs, "import network_off"]))
    (site / "network_off.py").write_text(NETWORK_OFF)
    return Installed(folder, site)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "scene.png"
    Image.fromarray(make_clip("drop", "test", 0).frames[0]).save(path)
    return str(path)


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


def test_licences_and_the_command_come_along(installed: Installed) -> None:
    (metadata,) = installed.site.glob("theworld-*.dist-info")
    for name in ("LICENSE", "NOTICE"):
        assert (metadata / "licenses" / name).read_bytes() == (REPOSITORY / name).read_bytes()
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert f"theworld = {scripts['theworld']}" in (metadata / "entry_points.txt").read_text("utf-8")


def test_the_package_is_the_one_of_the_wheel_and_the_network_is_off(installed: Installed, tmp_path: Path) -> None:
    code = "import socket, theworld; print(theworld.__file__); socket.create_connection(('127.0.0.1', 9))"
    python = str(installed.folder / "bin" / "python")
    result = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert Path(result.stdout.strip()).is_relative_to(installed.site)
    assert "there is no network" in result.stderr


def test_the_wheel_answers_and_imagines(installed: Installed, image: str, tmp_path: Path) -> None:
    ask = ["ask", image, "Which bin will the ball land in?", "--steps", "2", "--json"]
    result = installed.run(tmp_path, ask, ["imagine", image, "-o", "future.gif", "--steps", "2"])
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout.partition("\n}\n")[0] + "}")
    assert content["answer"]
    assert (content["model"], content["num_world_steps"]) == ("nano", 2)
    assert "note" not in content
    frames = iio.imread(tmp_path / "future.gif")
    assert frames.shape[0] == 1 + 4 * 2
    assert (frames[0] != frames[-1]).any(), "something happens"
