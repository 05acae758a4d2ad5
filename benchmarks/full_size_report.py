"""The findings of `benchmarks/full_size.py` as a page of Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30

# What the stock way took on one H100 with random weights of full size, 2026-11-22: from before this package, to compare
# with. By how a stage's or setting's name begins.
STOCK = {
    "VAE encode, 1 frame": "10 ms",
    "rollout, N=4": "1,383 ms",
    "prefill": "74 ms for 1,104 tokens",
    "decode": "7 to 19 tokens/s",
    "projector, B=1": "0.201 s",
    "projector, B=4 *": "0.367 s, 41.8 GiB",
}


def stock(name: str) -> str:
    return next((took for start, took in STOCK.items() if name.startswith(start) and "future" not in name), "")


def markdown(report: Mapping[str, Any]) -> str:
    """The page; a section that did not run, or was cut off, says so."""
    found = report["sections"]
    lines = ["# Full size", "", "Written by `benchmarks/full_size.py` from `full_size.json` in the same folder.", ""]
    lines += facts(report)
    pages = {
        "make": made,
        "describe": described,
        "answers": answered,
        "commands": commanded,
        "parity": compared,
        "training": trained,
    }
    for name, page in pages.items():
        if name in found:
            lines += ["", *page(found[name])]
    return "\n".join(lines) + "\n"


def facts(report: Mapping[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"- {report['date']}, commit `{report['commit']}`",
        f"- `{report['command']}`",
        f"- {report['card']}; {packages}",
        f"- weights: {report['weights']}; photograph: `{report['photo']}`; question: {report['question']}",
    ]
    for what in ("skipped", "failed"):
        lines += [f"- **{name} {what}**: {why}" for name, why in report[what].items()]
    for name, section in report["sections"].items():
        lines += [f"- **left out of {name}**: {', '.join(section['left_out'])}"] if "left_out" in section else []
    return lines


def made(section: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in section["bytes"].items())
    lines = ["## Repositories", "", f"Written in {section['write_seconds']} s: {sizes}."]
    if "fuse_seconds" in section:
        lines.append(
            f"`TheWorld(...)` fused them in {section['fuse_seconds']:.1f} s; its adapter is "
            f"{section['adapter_bytes'] / 1e6:.2f} MB."
        )
    return lines


def described(section: Mapping[str, Any]) -> list[str]:
    lines = ["## Parameters", "", *table(("component", "parameters"), section["components"].items())]
    if "differ_from_published" in section:
        differ = section["differ_from_published"]
        verdict = f"differ: {differ}" if differ else "equal, every one"
        lines += ["", f"Against the published counts: {verdict}."]
    if "doctor_works" in section:
        lines += ["", f"`theworld doctor` says the call would {'work' if section['doctor_works'] else 'fail'}."]
    return lines


def answered(section: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            f"{name} (N={row['num_world_steps']})",
            f"{row['first_seconds']:.2f}",
            f"{row['median_seconds']:.2f}",
            gib(row["peak"]["allocated"]),
            gib(row["predicted"]),
            f"{row['predicted_over_measured']:.3f}",
            f"`{row['answer'][:40]}`",
        )
        for name, row in section["calls"].items()
    ]
    titles = ("call", "first, s", "then, s", "peak GiB", "predicted", "ratio", "answer begins")
    lines = ["## Answers", ""]
    lines += [f"Loaded in {section['load_seconds']} s. Each answer has at most 32 tokens.", "", *table(titles, rows)]
    if "imagine and decode" in section:
        row = section["imagine and decode"]
        lines += [
            "",
            f"Imagining and decoding frames {tuple(row['frames'])}: peak {gib(row['peak']['allocated'])} GiB, "
            f"predicted {gib(row['predicted'])} ({row['predicted_over_measured']:.3f}).",
        ]
    if section["stages"]:
        rows = []
        for name, row in section["stages"].items():
            speed = f", {row['tokens_per_second']:.1f} tokens/s" if "tokens_per_second" in row else ""
            rows.append((name, f"{row['median_ms']:.1f}{speed}", stock(name)))
        lines += ["", *table(("stage", "ms", "stock way, 2026-11-22"), rows)]
    return lines


def commanded(section: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            name,
            f"{row['seconds']:.1f}",
            "" if row["card_bytes"] is None else gib(row["card_bytes"]),
            str(row["returncode"]),
            row["errors"].splitlines()[-1] if row["returncode"] else "",
        )
        for name, row in section.items()
        if isinstance(row, Mapping)
    ]
    return ["## Commands", "", *table(("command", "seconds, all", "card GiB", "exit", "says"), rows)]


def compared(section: Mapping[str, Any]) -> list[str]:
    off = section["world_off"]
    lines = [
        "## The same as stock",
        "",
        f"World off, logits {tuple(off['logits_shape'])}: bit for bit Gemma's: **{yes(off['logits_equal'])}**; same "
        f"inputs: {yes(off['inputs_equal'])}; same greedy answer: {yes(off['answers_equal'])}. World tokens change the "
        f"last logits by up to {off['world_on_changes_logits_by']:.2f}.",
    ]
    if "latents" in section:
        rows = [
            (name, f"{row['difference']:.2e}", f"{row['tolerance']:.2e}", f"{row['largest']:.2e}", yes(row["within"]))
            for name, row in section["latents"].items()
            if isinstance(row, Mapping)
        ]
        titles = ("imagined latents", "‖ours − theirs‖ / ‖theirs‖", "tolerance", "largest", "within")
        lines += ["", *table(titles, rows), ""]
        lines.append(
            "Against `Cosmos2VideoToWorldPipeline`. In bfloat16 the tolerance is what the pipeline's own latents move "
            "by between bfloat16 and float32."
        )
    return lines


def trained(section: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            name,
            f"{row['trainable']:,}" if "trainable" in row else "",
            f"{row['seconds']:.3f}" if "seconds" in row else "",
            gib(row["peak"]["allocated"]) if "peak" in row else row["out_of_memory"],
            gib(row["predicted"]),
            f"{row['predicted_over_measured']:.3f}" if "predicted_over_measured" in row else "",
            stock(name),
        )
        for name, row in section.items()
        if isinstance(row, Mapping)
    ]
    titles = ("learns", "trainable", "s a step", "peak GiB", "predicted", "ratio", "stock way, 2026-11-22")
    return ["## Training", "", "AdamW, fused; * marks the source document's rows.", "", *table(titles, rows)]


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    written = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *written)]


def gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def yes(fact: bool) -> str:
    return "yes" if fact else "no"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
