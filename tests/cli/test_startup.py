"""Start-up: what a command imports, and what it spends no time on. Each test is a new Python, not a fork."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.published import published_gemma

LIBRARIES = ("torch", "transformers", "diffusers", "peft", "numpy", "PIL", "huggingface_hub")
# packages that other commands need, and large parts of the libraries that only training or compiling needs
NOT_FOR_AN_ANSWER = (
    "diffusers", "peft", "sklearn", "pandas", "datasets", "matplotlib", "statsmodels", "pymunk", "av", "imageio",
    "tensorboard", "transformers.trainer", "torch._inductor.compile_fx",
)  # fmt: skip

# runs `theworld` with the arguments, and writes what the process looks like at its end to stderr
PROBE = """
import atexit, gc, json, os, sys
from theworld import cli

class Kept:
    def __del__(self):
        print("taken apart")

examined = [0]

def note_full_search(phase, info):
    if phase == "start" and info["generation"] == 2:
        examined.append(len(gc.get_objects()))

def report():
    gc.callbacks.remove(note_full_search)
    facts = {"enabled": gc.isenabled(), "examined": sum(examined), "modules": list(sys.modules)}
    facts["environment"] = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "TORCHDYNAMO_DISABLE")}
    print(json.dumps(facts), file=sys.stderr)

def app(run=cli.app):
    atexit.register(report)  # within main, as a library does
    run()

gc.callbacks.append(note_full_search)
kept = Kept()
cli.app = app
cli.main()
"""


def probe(*arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """The process of a command, and what it was like at its end."""
    command = [sys.executable, "-c", PROBE, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return result, json.loads(result.stderr.splitlines()[-1])


def test_help_imports_no_library() -> None:
    result, end = probe("ask", "--help")
    assert result.returncode == 0
    assert "--max-new-tokens" in result.stdout
    assert set(LIBRARIES) & set(end["modules"]) == set()


def test_an_answer_imports_only_what_it_needs(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 120, 200)).save(tmp_path / "image.png")
    image, gemma = str(tmp_path / "image.png"), str(published_gemma(tmp_path / "gemma"))
    result, end = probe("ask", image, "What is this?", "--model", gemma, "--no-world", "--max-new-tokens", "1")
    assert result.returncode == 0, result.stderr
    assert "taken apart" not in result.stdout, "the process ends without freeing each object"
    assert set(NOT_FOR_AN_ANSWER) & set(end["modules"]) == set()
    assert end["enabled"]
    assert end["examined"] < 200_000, "the objects of the libraries are not searched for unused ones"


@pytest.mark.parametrize("extra", [(), pytest.param(("bitsandbytes",), marks=pytest.mark.quantization)])
def test_an_answer_of_nano_imports_no_compiler(extra: tuple[str, ...], tmp_path: Path) -> None:
    """diffusers and peft import bitsandbytes, which imports the compiler of torch unless it is switched off."""
    Image.new("RGB", (64, 64), (90, 120, 200)).save(tmp_path / "image.png")
    result, end = probe("ask", str(tmp_path / "image.png"), "What is this?", "--steps", "1", "--max-new-tokens", "1")
    assert result.returncode == 0, result.stderr
    assert {"diffusers", "peft", *extra} <= set(end["modules"])
    unused = {*NOT_FOR_AN_ANSWER, "functorch.compile", "networkx"} - {"diffusers", "peft"}
    assert unused & set(end["modules"]) == set()
    assert end["environment"] == {"OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": None}


def test_a_command_that_fails_keeps_its_exit_code() -> None:
    result, _ = probe("ask", "missing.png", "What is this?")
    assert result.returncode == 1
    assert "missing.png" in result.stderr
