"""`evaluate` from Python: names or a loaded model in, results out, resumable, with the errors of the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.planted import planted_benchmark
from theworld import TheWorld
from theworld.evaluation import Results, compare, evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    planted_benchmark(folder, 4)
    return folder / "planted.jsonl"


def test_a_loaded_model_is_evaluated_saved_resumed_and_compared(family: Path, data: Path, tmp_path: Path) -> None:
    model = TheWorld.from_pretrained(family / "fused", device="cpu")
    steps: list[tuple[str, int, int]] = []

    def run(arms: list[str]) -> Results:
        return evaluate(
            model,
            "mcq",
            arms=arms,
            num_world_steps=1,
            data=data,
            max_new_tokens=2,
            device="cpu",
            output=tmp_path / "run",
            progress=lambda *step: steps.append(step),
        )

    results = run(["fused", "no-world"])
    assert steps[-1] == ("Answering questions", 8, 8)
    assert set(results.accuracies) == {"fused", "no-world", "(most common answer)"}
    assert set(results.paired) == {"no-world"}
    assert (results.content["questions"], results.content["dtype"]) == (4, "float32")
    assert results.content["seconds_per_world_step"] == 0.25
    pace = results.content["questions_per_second"]
    assert 4 / results.content["seconds"] <= pace * 1.1
    assert "1 world steps of 0.25 s" in results.to_markdown()
    assert f", {pace:g} questions per second" in results.to_markdown()
    assert "| `fused` |" in results.to_markdown()
    assert "<svg" in results.to_html()
    assert (tmp_path / "run" / "results.json").read_text() == results.to_json()
    steps.clear()
    assert run(["fused", "no-world", "zero"]).answers["fused"] == results.answers["fused"]
    assert steps[-1] == ("Answering questions", 4, 4)  # of the new arm only
    assert "questions_per_second" not in run(["fused", "no-world", "zero"]).content  # nothing was missing
    compared = compare(tmp_path / "run")
    assert set(compared.accuracies) == {"fused", "no-world", "zero", "(most common answer)"}
    assert "1 world steps of 0.25 s" in compared.to_markdown()


def test_wrong_arguments_are_reported_before_a_model_is_loaded(family: Path, data: Path) -> None:
    def load(spec: object) -> TheWorld:
        pytest.fail("loaded a model")

    fused = family / "fused"
    for arguments, message in (
        ({"arms": "fusd"}, "no arm 'fusd'"),
        ({"num_world_steps": 5}, "at most 4 world steps"),
        ({"num_world_steps": -1}, "must be 0 or more"),
        ({"benchmark": "mqc"}, "did you mean 'mcq'"),
        ({"model": family / "untrained"}, "leave out the arms that read them"),
        ({"split": "val"}, "is one file"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be between 0 and 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; it must be between 0 and 4294967295"),
        ({"seed": 0.5}, "seed is 0.5; it must be an integer"),
        ({"world_model": "other"}, "already fused"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(**{"model": fused, "benchmark": "mcq", "data": data, "load": load, **arguments})  # type: ignore[arg-type]


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, theworld.evaluation as e; dir(e); print(*{'torch', 'numpy', 'jinja2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
