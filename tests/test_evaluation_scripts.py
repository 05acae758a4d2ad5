"""Scripts around evaluations: the source document's flags and make targets, the shipped config, and failures."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from rich.console import Console

from tests import commands
from tests.evaluation.tiny_family import tiny_family

REPOSITORY = Path(__file__).parent.parent
TASKS = ("Counting", "Relative_Depth")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def blink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of two questions each, in the layout of the Hub dataset."""
    folder = tmp_path_factory.mktemp("blink")
    for task in TASKS:
        rows = []
        for number in (1, 2):
            file = io.BytesIO()
            Image.new("RGB", (32, 32), (number * 40, 0, 0)).save(file, "PNG")
            rows.append(
                {
                    "idx": f"val_{task}_{number}",
                    "sub_task": task,
                    "question": "Which one?",
                    "prompt": "Which one?\nSelect from the following choices.\n(A) left\n(B) right",
                    **{f"image_{place}": {"bytes": file.getvalue(), "path": None} for place in (1, 2)},
                    "choices": ["left", "right"],
                    "answer": "(A)",
                }
            )
        (folder / task).mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / task / "val-00000-of-00001.parquet")
    return folder


def test_the_make_targets_evaluate_and_compare(family: Path, blink: Path, tmp_path: Path) -> None:
    """`make eval-blink` uses `configs/eval_blink.json`."""
    for entry in ("Makefile", "scripts", "configs", "theworld", "requirements.lock", "pyproject.toml"):
        (tmp_path / entry).symlink_to(REPOSITORY / entry)

    def make(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
        command = ["make", "--silent", *arguments, f"PYTHON={commands.programs() / 'python'}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    short = f"ARGS=--task {','.join(TASKS)} --device cpu --max_new_tokens 2"
    make("eval-blink", f"MODEL={family / 'fused'}", f"DATA={blink}", f"{short} --save_errors --num_world_steps 0,2")
    make("eval-gemma", f"GEMMA={family / 'bases' / 'gemma'}", f"DATA={blink}", short)
    ours, gemma = sorted((tmp_path / "runs" / "blink").iterdir(), key=lambda path: path.name.endswith("gemma"))
    content = json.loads((ours / "results.json").read_text())
    assert list(content["arms"]) == ["fused@0", "fused@2", "no-world"]  # the arms of the config
    assert (content["headline"], content["split"], content["seed"]) == ("mean_of_families", "val", 0)
    wrong = [json.loads(line)["id"] for line in (ours / "errors.jsonl").read_text().splitlines()]
    assert set(wrong) <= {f"val_{task}_{number}" for task in TASKS for number in (1, 2)}
    assert list(json.loads((gemma / "results.json").read_text())["arms"]) == ["gemma"]
    make("compare-results")
    compared = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert len(compared["runs"]) == 2
    assert compared["reference"] == f"{ours.name}/fused@2"
    assert compared["headline"] == "mean_of_families"


def test_settings_are_defaults_then_the_file_then_the_command_line(tmp_path: Path) -> None:
    read_settings = script("evaluate_blink").read_settings
    place = tmp_path / "blink.json"
    place.write_text(json.dumps({"split": "test", "seed": 3}))
    settings, _ = read_settings(["--config", str(place), "--seed", "4"])
    assert (settings["split"], settings["seed"], settings["batch_size"]) == ("test", 4, 8)
    place.write_text(json.dumps({"num_sample": 3}))
    with pytest.raises(SystemExit):
        read_settings(["--config", str(place)])
    place.write_text(json.dumps({"num_samples": "all"}))  # as refused as on the command line
    with pytest.raises(SystemExit):
        read_settings(["--config", str(place)])
    shipped = json.loads((REPOSITORY / "configs" / "eval_blink.json").read_text())
    assert shipped.keys() <= script("evaluate_blink").DEFAULTS.keys()


def test_flags_become_arguments_of_evaluate(family: Path) -> None:
    module = script("evaluate_blink")
    flags = ["--model", str(family / "fused"), "--task", "Counting", "--num_world_steps", "0,4", "--num_samples", "9"]
    settings, _ = module.read_settings([*flags, "--split", "test", "--dtype", "bfloat16"])
    arguments = module.arguments_of(settings)
    assert arguments["dtype"] == "bfloat16"
    assert (arguments["num_world_steps"], arguments["tasks"], arguments["limit"]) == ([0, 4], ["Counting"], 9)
    assert (arguments["benchmark"], arguments["split"], arguments["arms"]) == ("blink", "test", "fused,no-world")
    plain, _ = module.read_settings(["--model", str(family / "bases" / "gemma")])
    assert module.arguments_of(plain)["arms"] == "gemma"


def test_failing_scripts_exit_with_an_error(
    family: Path, blink: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure must not look like a success, and must not name a results file that does not exist."""
    output = ["--data", str(blink), "--output", str(tmp_path / "run")]
    for flags, message in (
        (["--model", str(tmp_path / "missing")], "missing"),
        (["--model", str(family / "fused"), "--arms", "fusd"], "no arm 'fusd'"),
        (["--model", str(family / "fused"), "--num_world_steps", "99"], "world steps"),
        (
            ["--model", str(family / "fused"), "--num_world_steps", "four"],
            "num_world_steps is 'four': write one integer",
        ),
        (["--config", str(tmp_path / "nowhere.json")], "There is no file"),
        (["--config", __file__], "is not valid JSON"),
    ):
        assert script("evaluate_blink").main([*flags, *output]) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert "results.json" not in captured.out
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert script("compare_results").main([str(tmp_path / "damaged"), "-o", str(tmp_path / "report")]) == 1
    assert "is not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("folder", ["scripts", "benchmarks", "examples", "theworld/evaluation"])
def test_the_library_is_called_and_not_the_command_line(folder: str) -> None:
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any((module or "").startswith("theworld.cli") for module in modules), path


def test_comparing_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("compare_results").main([str(tmp_path)]) == 1
    assert "There is no run in" in capsys.readouterr().err


def test_the_demo_executes_its_commands(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("inference_demo")
    file = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda: Console(file=file, width=80))
    typed = io.StringIO("n\n\np\n3\ns 1\ns 9\nWhat colour is it?\nq\nn\n")
    flags = ["--model", str(family / "fused"), "--task", "drop", "--num_samples", "3", "--device", "cpu"]
    loaded: dict[str, Any] = {}
    load = module.TheWorld.from_pretrained
    monkeypatch.setattr(module.TheWorld, "from_pretrained", lambda *a, **k: load(*a, **loaded.setdefault("given", k)))
    flags += ["--dtype", "float32"]
    assert module.main([*flags, "--output", str(tmp_path)], typed) == 0
    shown = [line for line in file.getvalue().splitlines() if " of 3 · drop" in line]
    places = [line.strip("─ ").partition(" of ")[0] for line in shown]
    assert places == ["1", "2", "3", "2", "3", "3", "3"]  # first, next, next, previous, 3, steps, own question
    assert [line.count("1 world steps") for line in shown] == [0] * 5 + [1, 1]
    text = file.getvalue()
    assert "num_world_steps is 9; this model takes 0 to 4" in text
    assert "What colour is it?" in text
    assert text.count("correct:") == 6
    assert "▀" in text
    assert Image.open(tmp_path / "0003.png").size[0] > 2 * 112  # input and imagined
    assert loaded["given"]["dtype"] == "float32"


def test_the_demo_reports_errors(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[Any] = ["--benchmark", "mcq"]
    assert script("inference_demo").main(arguments, io.StringIO()) == 1
    assert "no data of its own" in capsys.readouterr().err
