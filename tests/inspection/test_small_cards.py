"""Predictions for small cards: quantised weights take the predicted bytes, and a setting is named only if it fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.inspection.test_memory import COUNTS_2B, COUNTS_4B
from theworld.inspection import small_cards
from theworld.inspection.parameters import build_on_meta
from theworld.inspection.small_cards import CARDS, MARGIN, quantised_counts, stored_counts, what_fits
from theworld.model.configuration import TheWorldConfig
from theworld.model.published import published_gemma
from theworld.quantization import BYTES

COUNTS = COUNTS_4B | COUNTS_2B


@pytest.fixture(scope="module")
def published() -> TheWorldConfig:
    return TheWorldConfig(vlm_config=published_gemma("google/gemma-3-4b-it"), max_world_steps=16)


@pytest.fixture(scope="module")
def quantised(published: TheWorldConfig) -> dict[str, int]:
    return quantised_counts(build_on_meta(published))


@pytest.mark.quantization
def test_a_quantised_weight_takes_the_predicted_bytes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    rows, columns = 1024, 2560
    layer = bitsandbytes.nn.Linear4bit(columns, rows, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")
    state = layer.weight.quant_state
    stored = [layer.weight.data, state.absmax, state.state2.absmax]  # and two tables of all layers' size
    assert sum(tensor.nbytes for tensor in stored) == pytest.approx(BYTES["4bit"] * rows * columns, rel=1e-3)
    layer = bitsandbytes.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False).to("cpu")
    assert layer.weight.nbytes == BYTES["8bit"] * rows * columns
    assert layer.weight.dtype == torch.int8


def test_what_is_quantised_of_the_published_models(quantised: dict[str, int]) -> None:
    shares = {part: count / COUNTS[part] for part, count in quantised.items()}
    assert set(shares) == {"language", "vision", "world_transformer"}
    assert shares["language"] == pytest.approx(0.826, abs=0.002), "the rest is the embedding"
    assert shares["vision"] > 0.97
    assert shares["world_transformer"] == pytest.approx(0.89, abs=0.02), "the rest are adaptive norms"
    stored = stored_counts(COUNTS, quantised, "4bit")
    assert stored["projector"] == COUNTS["projector"]
    assert stored["vision"] < 0.3 * COUNTS["vision"]
    assert stored_counts(COUNTS, quantised, None) == COUNTS


def test_the_first_setting_that_fits_is_named(published: TheWorldConfig, quantised: dict[str, int]) -> None:
    rows = {row["use"]: row for row in what_fits(published, COUNTS, quantised)}
    assert list(rows) == [
        "answer, 0 world steps",
        "answer, 4 world steps",
        "train the projector, 1 sample",
        "train a LoRA, 1 sample",
    ]
    for row in rows.values():
        for card, name in row["fits"].items():
            earlier = list(row["peaks"]).index(name)
            peaks = [peak * MARGIN / 10**9 for peak in row["peaks"].values()]
            assert all(peak > card for peak in peaks[:earlier])
            assert peaks[earlier] <= card
    assert rows["answer, 4 world steps"]["fits"] == {12: "offload", 16: "plain", 24: "plain"}
    assert rows["answer, 4 world steps"]["peaks"]["4bit"] < 6 * 2**30
    assert rows["train the projector, 1 sample"]["peaks"]["4bit"] * MARGIN < 16 * 10**9


def test_what_does_not_fit_is_said(published: TheWorldConfig, quantised: dict[str, int]) -> None:
    larger = {part: 12 * count for part, count in COUNTS.items()}
    rows = what_fits(published, larger, {part: 12 * count for part, count in quantised.items()})
    assert rows[0]["fits"][min(CARDS)] is None
    assert rows[0]["fits"][max(CARDS)] is None


def test_offloading_leaves_two_blocks_on_the_card(published: TheWorldConfig, quantised: dict[str, int]) -> None:
    settings: dict[str, Any] = {"num_world_steps": 4, "quantization": "4bit"}
    kept, waiting = (
        small_cards.answering(published, COUNTS, quantised, offload=offload, **settings) for offload in (False, True)
    )
    transformer = stored_counts(COUNTS, quantised, "4bit")["world_transformer"] * 2
    assert kept.persistent["weights"] - waiting.persistent["weights"] == transformer
    assert waiting.transient["rollout"] - kept.transient["rollout"] == pytest.approx(2 / 28 * transformer, rel=1e-3)
