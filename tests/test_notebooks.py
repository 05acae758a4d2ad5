"""The notebooks of `examples/` run from top to bottom, offline, and are stored with their outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
# Each notebook with the figure that a short run reduces: questions, or training steps.
SHORTENED = {"quickstart": ("QUESTIONS = 60", "QUESTIONS = 2"), "train_your_own": ("MAX_STEPS = 60", "MAX_STEPS = 1")}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def execute(notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs all cells in a new kernel in `folder`, and returns what they print."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return printed(notebook)


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("name", SHORTENED)
def test_a_shortened_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read(name)
    long, short = SHORTENED[name]
    assert sum(long in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace(long, short)
    assert execute(notebook, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTENED)
def test_a_notebook_prints_what_is_stored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read(name)
    stored = printed(notebook)
    now = execute(notebook, tmp_path, monkeypatch)
    assert re.sub(r"0\.\d+", "", now) == re.sub(r"0\.\d+", "", stored), "except for probabilities"


@pytest.mark.parametrize("name", SHORTENED)
def test_a_notebook_is_stored_with_its_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 1_000_000
    assert "%pip install" in next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert printed(notebook)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    code = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not re.search(r"HF_TOKEN|login|token=", code)
