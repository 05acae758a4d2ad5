"""The page of speeds is what its script makes of the committed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance_plots
from benchmarks import performance_report as report


def row(arm: str, value: float | None, **others: Any) -> dict[str, Any]:
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


def test_the_plots_are_made_from_the_rows() -> None:
    for device, benches in report.read_rows().items():
        plots = performance_plots.plots_of([row for rows in benches.values() for row in rows], report.KINDS)
        file = report.PLOTS / f"speed-{device}.svg"
        assert f"drawn from {performance_plots.digest(plots)}" in file.read_text(
            encoding="utf-8"
        ), "run python -m benchmarks.performance_report"


def test_a_plot_has_what_was_measured_at_several_places(tmp_path: Path) -> None:
    rows = [row("stock", 8), row("ours", 4), row("ours (on)", 2), row("ours", 8, batch=8), row("stock", None, batch=8)]
    rows += [row("ours", 50, what="first token", world_steps=steps) for steps in (0, 4)]
    rows += [row("ours", 2, what="evaluation", unit="questions/s", world_steps=steps) for steps in (0, 4)]
    plots = performance_plots.plots_of(rows, report.KINDS)
    assert plots == {
        "batch size": {"encode, N=0": {"ours": [(1, 2.0), (8, 1.0)]}},
        "world steps": {"evaluation, B=1": {"ours": [(0, 500.0), (4, 500.0)]}},
        "tokens of the prompt": {"first token, B=1": {"ours": [(1063, 50.0), (4199, 50.0)]}},
    }
    performance_plots.write_plots(tmp_path / "new", "here", rows, report.KINDS)
    drawn = (tmp_path / "new" / "speed-here.svg").read_text(encoding="utf-8")
    assert performance_plots.digest(plots) in drawn
    assert all(text in drawn for text in ("encode, N=0", "best peer", "4,199"))
    performance_plots.write_plots(tmp_path, "none", rows[:1], report.KINDS)
    assert not (tmp_path / "speed-none.svg").exists()
