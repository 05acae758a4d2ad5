"""theworld bench runs the benchmarks of a checkout, and reports what failed."""

from __future__ import annotations

import json
import subprocess
import typing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks import training_memory
from theworld.cli import app, bench


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


class Benchmark:
    """Stands in for the process of a benchmark."""

    def __init__(self, rows: list[dict[str, Any]], code: int = 0) -> None:
        self.rows, self.code, self.command = rows, code, [""]

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.command = command
        Path(command[-1]).write_text(json.dumps(self.rows))
        return subprocess.CompletedProcess(command, self.code)


def test_every_name_is_a_benchmark() -> None:
    names = typing.get_args(typing.get_args(typing.get_type_hints(bench.bench, include_extras=True)["name"])[0])
    assert set(names) == set(bench.BENCHES)
    for module, *_ in bench.BENCHES.values():
        assert (bench.CHECKOUT / module.replace(".", "/")).with_suffix(".py").is_file()


def test_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Benchmark([{"what": "encode"}])
    monkeypatch.setattr(bench.subprocess, "run", stand_in)
    file = tmp_path / "new" / "rows.json"
    result = run("rollout", "--size", "tiny", "--output", str(file))
    assert result.exit_code == 0, result.output
    assert "1 row" in result.output
    assert stand_in.command[1:] == [
        "-m", "benchmarks.rollout_speed", "--only", "pass", "rollout", "--size", "tiny", "--output", str(file)
    ]  # fmt: skip


def test_failures_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "rows.json")
    assert "name the file of its rows with --output" in run("ask", "--size", "tiny").stderr
    monkeypatch.setattr(bench.subprocess, "run", Benchmark([], code=3))
    assert "ended with exit code 3" in run("encode", "--output", file).stderr
    monkeypatch.setattr(bench.subprocess, "run", Benchmark([{"error": "a traceback"}, {"what": "encode"}]))
    assert "has 1 row with an error" in " ".join(run("encode", "--output", file).stderr.split())
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert "needs a checkout" in run("encode", "--output", file).stderr


def test_parts_of_answer_share_its_rows() -> None:
    files = {name: bench.default_output(name).name for name in bench.BENCHES}
    assert files == {name: f"{name}.json" for name in bench.BENCHES} | dict.fromkeys(
        ("prefill", "decode"), "answer.json"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whats"),
    [
        (
            "train",
            {"step, nothing cached", "step, vision and latents cached", "step, latents cached", "with the loader"},
        ),
        ("eval", {"evaluation in 1 arm", "evaluation in 4 arms"}),
        ("memory", {f"training, {name}" for name in training_memory.ROWS}),
        ("decode", {"decode", "decoding steps"}),
    ],
)
def test_benchmarks_run_at_tiny_size(name: str, whats: set[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    result = run(name, "--size", "tiny", "--output", str(file))
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert {row["what"] for row in rows} == whats
    assert all(row["value"] > 0 for row in rows)
    if name in ("train", "eval"):  # the same losses and answers in float32
        assert all(
            row["max_error"] <= 1e-4 for row in rows if row["arm"] == "ours" and row["what"] != "with the loader"
        )


@pytest.mark.slow
def test_the_example_of_the_help_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("encode", "--size", "tiny", "--output", "encode.json")
    assert result.exit_code == 0, result.output
    assert {row["what"] for row in json.loads((tmp_path / "encode.json").read_text())} == {"encode"}
