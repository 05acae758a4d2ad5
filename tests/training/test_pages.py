"""The tables of the training page agree with the code and with the measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path

from theworld.inspection.parameters import count_parts, describe_model
from theworld.model.lora_settings import lora_settings
from theworld.model.spec import resolve_model
from theworld.training.config import TrainingConfig, own_keys
from theworld.world_models.configuration import COSMOS_2B

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "training_infrastructure_design.md").read_text("utf-8")
GEMMA = "google/gemma-3-4b-it"


def rows_of(text: str) -> list[list[str]]:
    """The cells of a page's tables, without heads."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for number, row in enumerate(rows) if not is_rule(row) and not is_rule([*rows, []][number + 1])]


def is_rule(row: list[str]) -> bool:
    return bool(row) and all(set(cell) == {"-"} for cell in row)


def between(mark: str) -> list[list[str]]:
    found = re.search(rf"<!-- {mark}: begin -->(.*)<!-- {mark}: end -->", PAGE, flags=re.DOTALL)
    assert found is not None
    return rows_of(found[1])


def test_the_page_has_every_key_with_its_default() -> None:
    keys = PAGE.partition("\n## Keys\n")[2].partition("\n## Data\n")[0]
    said = {row[0].strip("`"): json.loads(row[1].strip("`")) for row in rows_of(keys)}
    defaults = TrainingConfig()
    assert said == {key: getattr(defaults, key) for key in own_keys()}
    assert len(rows_of(keys)) == len(said), "none twice"
    assert all(row[2] for row in rows_of(keys))


def test_the_page_says_what_learns_at_full_size() -> None:
    content = describe_model(GEMMA, COSMOS_2B, batch_size=4, num_world_steps=0)
    expected = {row["setting"]: (row["trainable"], row["percent"]) for row in content["freeze_settings"]}
    config = resolve_model(GEMMA, describe_only=True).config
    config.lora = lora_settings(16)
    counts = count_parts(config)
    learns = counts["projector"] + counts["lora"]
    expected["+ LoRA"] = (learns, 100 * learns / sum(counts.values()))
    found = {name: (trainable, share) for name, _, trainable, share, _ in between("trainable")}
    assert found == {name: (f"{count:,}", f"{percent:.4f} %") for name, (count, percent) in expected.items()}


def test_the_page_says_what_was_measured() -> None:
    measured = json.loads((REPOSITORY / "benchmarks" / "results" / "training_memory.json").read_text())
    figures = ("batch_size", "seconds_a_step", "samples_a_second", "peak_gib", "reserved_gib")
    found = {row[0]: row[1:6] for row in between("memory")}
    assert found == {name: [str(row[figure]) for figure in figures] for name, row in measured["rows"].items()}
    for said in (measured["commit"], measured["date"], f"torch {measured['versions']['torch']}"):
        assert said in PAGE
    rows = measured["rows"]
    for name in ("+ vision encoder", "+ vision encoder, checkpointing"):
        assert str(rows[name]["peak_gib"]) in PAGE.partition("memory: end")[2]
        assert str(rows[name]["seconds_a_step"]) in PAGE.partition("memory: end")[2]
    stages = (REPOSITORY / "docs" / "multi_stage_training.md").read_text("utf-8")
    for row in list(rows.values())[:4]:
        assert f"{row['peak_gib']:.1f}" in stages


def test_no_shipped_config_uploads_by_itself() -> None:
    for path in (REPOSITORY / "configs").glob("[!e]*.json"):
        assert not TrainingConfig.read(path).push_to_hub, path.name
