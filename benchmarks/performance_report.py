"""Writes `docs/performance.md` from the rows in `benchmarks/results/<device>/<benchmark>.json`.

python -m benchmarks.performance_report
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.performance_plots import plots_of, write_plots

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "performance.md"

# which arm stands in which column; of several, the fastest
STOCK = ("stock", "eager")
PEERS = ("best-peer", "graph of the plain pass", "graph of the eager pass", "blocks compiled", "blocks compiled, graph")
OURS = ("ours", "ours (on)", "text and modulation once, compiled, graph")
KINDS = {"stock": STOCK, "best peer": PEERS, "ours": OURS}
PLOTS = REPOSITORY / "docs" / "assets"
RATES = ("/s", "share")  # units of which more is better

Row = Mapping[str, Any]

HEAD = """\
# Speed

This page is written by `python -m benchmarks.performance_report` from the rows in `benchmarks/results`; do not edit it.

Weights are random, of the shapes of Gemma 3 4B and Cosmos-Predict2-2B, and in bfloat16. All arms of a benchmark run on
the same inputs, in one process and in turn (in training, in a process each), and a figure is the median after the
warm-up. *Stock* is transformers or diffusers as their documentation uses them, *best peer* the fastest arm that needs
nothing but their code and torch.compile or a CUDA graph, and *ours* the [fast path](python.md#the-fast-path). The
*floor* is arithmetic: the larger one of the operations at 775 TFLOP/s and the bytes at 4.2 TB/s. The *error* is the
distance of ours from a reference in higher precision, or from the plain path: the largest one, and the root mean square
as a share of that of the values. The *warm-up* of an arm leaves out what an earlier arm of the process has compiled
already. B is the batch size, N the number of world steps, and *memory* the peak of the process. A *sample* of the plots
is an image, a pass, a rollout, a token, an answer or a question.
"""


def read_rows(results: Path = RESULTS) -> dict[str, dict[str, list[Row]]]:
    """The rows by device and benchmark."""
    return {
        folder.name: {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
        for folder in sorted(results.iterdir())
        if folder.is_dir()
    }


def markdown(devices: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    lines = [HEAD]
    for device, benches in devices.items():
        measured = [row for rows in benches.values() for row in rows if row.get("value") is not None]
        lines.append(f"## {measured[0]['device']}\n")
        if plots := plots_of(measured, KINDS):
            lines.append(f"![What a sample costs against {', '.join(plots)}](assets/speed-{device}.svg)\n")
        for bench, rows in benches.items():
            lines += section(bench, [row for row in rows if row.get("value") is not None])
    return "\n".join(lines)


def section(bench: str, rows: Sequence[Row]) -> list[str]:
    """A summary of a benchmark with one line per stage, and a table of all arms."""
    stages: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        stages.setdefault(stage(row), []).append(row)
    lines = [f"### {bench}\n"]
    lines += table(
        ("stage", "B", "N", "stock", "best peer", "ours", "floor", "share of the floor", "error", "warm-up", "memory"),
        (summary(key, group) for key, group in stages.items()),
    )
    if len(rows) > len(stages):
        lines += ["All arms:\n"]
        lines += every_arm(rows)
    commands = dict.fromkeys(
        f"`{row['command']}` (torch {row['torch']}, {row['commit']}, {row['date']})" for row in rows
    )
    return [*lines, "Measured by:\n", *(f"- {command}" for command in commands), ""]


def every_arm(rows: Sequence[Row]) -> list[str]:
    return table(
        ("stage", "B", "N", "arm", "value", "share of the floor", "error", "warm-up", "memory"),
        (
            (*map(str, stage(row)), row["arm"], value(row), share(row), error(row), seconds(row), memory(row))
            for row in rows
        ),
    )


def stage(row: Row) -> tuple[str, int, int]:
    return row["what"], row["batch"], row["world_steps"]


def summary(key: tuple[str, int, int], rows: Sequence[Row]) -> Sequence[str]:
    stock, peer, ours = (best(rows, arms) for arms in (STOCK, PEERS, OURS))
    floor = f"{rows[0]['floor']:.4g} {rows[0]['unit']}" if rows[0]["floor"] else ""
    last = ("",) * 4 if ours is None else (share(ours), error(ours), seconds(ours), memory(ours))
    return (*map(str, key), *("" if row is None else value(row) for row in (stock, peer, ours)), floor, *last)


def best(rows: Iterable[Row], arms: Sequence[str]) -> Row | None:
    """The fastest row of these arms."""
    found = [row for row in rows if row["arm"] in arms]
    return min(found, key=lambda row: -row["value"] if is_rate(row) else row["value"], default=None)


def is_rate(row: Row) -> bool:
    return str(row["unit"]).endswith(RATES)


def value(row: Row) -> str:
    return f"{row['value']:.4g} {row['unit']}"


def share(row: Row) -> str:
    """How near a value is to the floor, in percent."""
    if not row["floor"]:
        return ""
    return f"{100 * (row['value'] / row['floor'] if is_rate(row) else row['floor'] / row['value']):.0f} %"


def error(row: Row) -> str:
    if row.get("max_error") is None:
        return ""
    if "rms_error" not in row:
        return f"{row['max_error']:.2g}"
    return f"{row['max_error']:.2g}; {100 * row['rms_error'] / row['reference_rms']:.2g} %"


def seconds(row: Row) -> str:
    return "" if row.get("warm_up_s") is None else f"{row['warm_up_s']:.3g} s"


def memory(row: Row) -> str:
    return "" if row.get("peak_gib") is None else f"{row['peak_gib']:.3g} GiB"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


if __name__ == "__main__":
    PAGE.write_text(markdown(read_rows()), encoding="utf-8")
    for device, benches in read_rows().items():
        write_plots(PLOTS, device, [row for rows in benches.values() for row in rows], KINDS)
