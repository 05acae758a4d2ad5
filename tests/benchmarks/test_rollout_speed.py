"""The benchmark of the world model runs at tiny size on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import rollout_speed


@pytest.mark.slow
def test_every_figure_has_rows(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    output = tmp_path / "rows.json"
    rollout_speed.main(["--size", "tiny", "--output", str(output), "--repeats", "1", "--batches", "1"])
    rows = json.loads(output.read_text())
    assert not [row["error"] for row in rows if "error" in row]
    assert {row["what"] for row in rows} == {"encode", "pass", "rollout"}
    # bfloat16 against float32; the stock pipeline draws another image's rollout, so it has no distance
    assert all(row["rms_error"] < 0.1 * row["reference_rms"] for row in rows if "rms_error" in row)
