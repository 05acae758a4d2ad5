"""Rows of benchmarks: written as soon as they are measured, one per figure and arm, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rows import Rows


def test_rows_are_written_at_once_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    rows, child = (Rows("benchmarks.some_speed", file, "cpu", 2, only=["decode"]) for _ in range(2))
    rows.row("decode", "ours", 1, 0, "tokens/s", 8.0, lambda: 1.123456)
    child.row("decode", "ours", 8, 0, "tokens/s", 8.0, lambda: (4, {"max_error": 0.5}))  # of another process
    rows.row("first token", "ours", 1, 0, "ms", None, lambda: 3 / 0)
    rows.row("decode", "stock", 1, 4, "tokens/s", None, lambda: 3 / 0)
    rows.row("decode", "ours", 1, 0, "tokens/s", 8.0, lambda: 2)
    rows.row("decode", "peer", 1, 0, "tokens/s", None, lambda: (None, {"out_of_memory": True}))
    written = json.loads(file.read_text())
    assert [(row["arm"], row["batch"], row["value"]) for row in written] == [
        ("ours", 8, 4), ("stock", 1, None), ("ours", 1, 2), ("peer", 1, None)
    ]  # fmt: skip
    assert "ZeroDivisionError" in written[1]["error"]
    assert "error" not in written[3]
    assert written[0]["max_error"] == 0.5
    assert {"floor", "peak_gib", "warm_up_s", "command", "commit", "device", "torch", "date"} <= set(written[2])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "decode, ours, batch 1, N=0: 1.12346 tokens/s (floor 8.0)"
    assert said[2] == "decode, stock, batch 1, N=4: ZeroDivisionError: division by zero"
    assert said[-1] == "decode, peer, batch 1, N=0: out of memory"
    assert rows.seconds(lambda: None) >= 0
