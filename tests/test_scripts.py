"""The scripts that make the figures and tables of the pages run on the committed results."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

from PIL import Image

from tests import commands

REPOSITORY = Path(__file__).parent.parent


def run(script: str, *arguments: object) -> str:
    result = commands.run(REPOSITORY / "scripts" / script, *arguments, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_curves_of_nano_are_drawn_from_its_csvs(tmp_path: Path) -> None:
    for file in (REPOSITORY / "docs" / "nano").glob("*.csv"):
        shutil.copy(file, tmp_path)
    run("plot_nano.py", "--folder", tmp_path)
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert drawn == {f"{name}.png" for name in ("foresight", "vae", "transformer", "language", "fusion")}
    assert drawn <= {file.name for file in (REPOSITORY / "docs" / "nano").glob("*.png")}, "the page shows all of them"


def test_a_page_of_wrong_answers_shows_those_and_no_others(tmp_path: Path) -> None:
    lines = [
        {
            "id": f"drop/test/{index}/next/bin_colour/free/the_yellow_ball",
            "family": "drop",
            "question": "What colour is the bin the yellow ball will land in?",
            "answer": "blue",
            "predictions": {"fused": said},
        }
        for index, said in enumerate(("Blue.", "red"))
    ]
    predictions = tmp_path / "results.predictions.jsonl"
    predictions.write_text("\n".join(map(json.dumps, lines)) + "\n")
    output = tmp_path / "wrong.png"
    assert "drop: 1 wrong of 2" in run("wrong_answers.py", predictions, "--steps", 1, "--output", output)
    assert Image.open(output).size[0] > 1000


def test_the_tables_of_the_test_split_are_what_was_measured(tmp_path: Path) -> None:
    """By the commands that the script itself names, on pages whose tables are gone."""
    script = (REPOSITORY / "scripts" / "nano_tables.py").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^python (scripts/nano_tables.py .*)", fold(script), re.M)]
    assert len(commands) == 2
    pages = {}
    for page in (Path("docs/nano.md"),):
        text = (REPOSITORY / page).read_text()
        emptied = re.sub(r"(<!-- (\S+): begin -->\n).*?(<!-- \2: end -->)", r"\1\3", text, flags=re.S)
        assert len(emptied) < len(text)
        pages[page] = tmp_path / page.name
        pages[page].write_text(emptied)
    for _, *arguments in commands:
        run("nano_tables.py", *(pages.get(Path(argument), argument) for argument in arguments))
    for page, filled in pages.items():
        assert filled.read_text() == (REPOSITORY / page).read_text()


def test_the_table_of_the_readme_is_what_was_measured() -> None:
    text = (REPOSITORY / "README.md").read_text()
    arms = json.loads((REPOSITORY / "docs" / "nano" / "physics_test.json").read_text())["arms"]
    rows = re.findall(r"\| .*\(`([a-z0-9-]+)`\) \| (\S+) % \| (\S+)–(\S+) \|", text)
    assert [arm for arm, *_ in rows] == ["fused", "fused-0", "matched-control", "wrong-future"]
    for arm, *figures in rows:
        expected = (arms[arm]["accuracy"], *arms[arm]["interval_95"])
        assert figures == [f"{100 * value:.1f}" for value in expected], arm
    assert f"({100 * arms['imagined-image']['accuracy']:.1f} %" in text


def test_the_readme_is_short() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1300
    assert "make run" in text
    assert "make test" in text


def fold(text: str) -> str:
    """Commands over several lines as one line each."""
    return re.sub(r"\\\n *", "", text)
