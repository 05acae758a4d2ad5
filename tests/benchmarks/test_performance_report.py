"""The page of speeds is what its script makes of the committed rows."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import performance_report as report


def row(arm: str, value: float, **others: Any) -> dict[str, Any]:
    known = {"what": "encode", "batch": 1, "world_steps": 0, "unit": "ms", "floor": 1.0, "max_error": None}
    return {**known, "arm": arm, "value": value, **others}


def test_the_page_is_made_from_the_rows() -> None:
    expected = report.markdown(report.read_rows())
    assert report.PAGE.read_text(encoding="utf-8") == expected, "run python -m benchmarks.performance_report"


def test_rows_have_all_fields() -> None:
    fields = {"what", "arm", "batch", "world_steps", "value", "unit", "floor", "command", "commit", "device", "torch"}
    for device, benches in report.read_rows().items():
        for bench, rows in benches.items():
            for each in rows:
                assert "error" in each or fields | {"date"} <= set(each), f"{device}/{bench}: {each}"


@pytest.mark.parametrize(("unit", "fastest", "share"), [("ms", 2.0, "50 %"), ("tokens/s", 4.0, "400 %")])
def test_a_summary_has_the_fastest_arm_of_each_kind(unit: str, fastest: float, share: str) -> None:
    rows = [row("stock", 9, unit=unit), row("ours", 2, unit=unit), row("ours (on)", 4, unit=unit)]
    cells = report.summary(("encode", 1, 0), rows)
    assert cells[3:8] == (f"9 {unit}", "", f"{fastest:g} {unit}", f"1 {unit}", share)


def test_an_error_is_a_distance_and_a_share() -> None:
    assert report.error(row("ours", 1)) == ""
    assert report.error(row("ours", 1, max_error=0.5)) == "0.5"
    assert report.error(row("ours", 1, max_error=0.5, rms_error=0.01, reference_rms=2.0)) == "0.5; 0.5 %"
