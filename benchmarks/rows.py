"""What all benchmarks share: timing, and rows of figures with their origin, written as soon as they are measured."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
BANDWIDTH, FLOPS = 4.2e12, 775e12  # measured on one H200: bytes/s of a copy, bfloat16 operations/s of a matrix product
KEY = ("what", "arm", "batch", "world_steps")


class Rows:
    """The rows of one benchmark. A row replaces an earlier one of the same KEY.

    Args:
        module: of the benchmark, for the command in its rows.
        output: JSON file of the rows, which is extended.
        repeats: timed calls, of which a figure is the median.
        only: beginnings of the figures to measure; empty for all.
    """

    def __init__(
        self, module: str, output: Path, device: str | torch.device, repeats: int, only: Sequence[str] = ()
    ) -> None:
        self.output, self.repeats, self.only = output, repeats, tuple(only)
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.origin = {
            "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
            "commit": commit(),
            "device": torch.cuda.get_device_name() if self.on_gpu else "cpu",
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], repeats: int | None = None) -> float:
        """Median seconds of a call."""
        return statistics.median(self.timed(call)[0] for _ in range(repeats or self.repeats))

    def timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of one call, and its result."""
        self.wait()
        started = time.perf_counter()
        result = call()
        self.wait()
        return time.perf_counter() - started, result

    def row(
        self, what: str, arm: str, batch: int, steps: int, unit: str, floor: float | None, measure: Callable[[], Any]
    ) -> None:
        """Measures and keeps one row.

        Args:
            measure: returns the value, or it and further fields; None as the value if it does not fit into memory.
        """
        if self.only and not what.startswith(self.only):
            return
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = {"what": what, "arm": arm, "batch": batch, "world_steps": steps, "unit": unit}
        try:
            measured = measure()
            value, more = measured if isinstance(measured, tuple) else (measured, {})
            row |= {
                "value": None if value is None else round(value, 5),
                "floor": None if floor is None else round(floor, 5),
                **more,
            }
        except Exception:  # noqa: BLE001 (it is in the row)
            row |= {"value": None, "error": traceback.format_exc()[-3000:]}
        self.keep({**self.memory(), **row})

    def memory(self) -> dict[str, float | None]:
        """The largest memory since it was reset."""
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.on_gpu else None}

    def keep(self, row: Mapping[str, Any]) -> None:
        """Adds a row with its origin, prints it, and writes the file, one line per row."""
        # read each time, because another process of the benchmark may have written to it
        rows = json.loads(self.output.read_text(encoding="utf-8")) if self.output.exists() else []
        rows = [old for old in rows if any(old.get(name) != row.get(name) for name in KEY)]
        rows.append({"floor": None, "peak_gib": None, "max_error": None, "warm_up_s": None, **row, **self.origin})
        self.output.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
        print(described(rows[-1]), flush=True)


def described(row: Mapping[str, Any]) -> str:
    """A row on one line; of one without a figure, the last line of its error."""
    head = f"{row['what']}, {row['arm']}, batch {row.get('batch')}, N={row.get('world_steps')}"
    if "error" in row:
        return f"{head}: {row['error'].strip().splitlines()[-1]}"
    if row["value"] is None:
        return f"{head}: out of memory"
    floor = f" (floor {row['floor']})" if row["floor"] else ""
    distance = f", rms error {row['rms_error']:.2g} of {row['reference_rms']:.2g}" if "rms_error" in row else ""
    memory = f", {row['peak_gib']} GiB" if row["peak_gib"] else ""
    return f"{head}: {row['value']} {row['unit']}{floor}{distance}{memory}"


def commit() -> str:
    """Commit of the source tree, or "unknown" outside of one."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    return found.stdout.strip() or "unknown"
