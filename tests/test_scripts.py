"""The scripts that draw what the pages show run on what is committed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).parent.parent


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
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
