"""The run at full size, rehearsed: its layout with the published counts on shapes, and all it does on tiny models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks import full_size, full_size_run, full_size_sections
from benchmarks.full_size_parity import distance, parity
from benchmarks.full_size_report import markdown
from benchmarks.full_size_run import Run
from benchmarks.random_weights import FULL, cosmos_config, gemma_on_meta, published_name, write_tokenizer
from theworld.world_models.cosmos_components import new_transformer, new_vae


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Tiny repositories and an adapter, made as at full size."""
    folder = tmp_path_factory.mktemp("run")
    made = Run("tiny", folder, torch.device("cpu"), time.time() + 600, repeats=1)
    made.keep("make", full_size_sections.make(made))
    return made


def test_the_layout_has_the_published_counts_and_names() -> None:
    gemma = gemma_on_meta(FULL)
    names = {published_name(name) for name in gemma.state_dict()} - {"lm_head.weight"}
    assert sum(parameter.numel() for parameter in gemma.parameters()) == full_size_run.PUBLISHED_SUMS["Gemma 3 4B"]
    assert len(names) == len(gemma.state_dict()) - 1, "no two tensors under one name"
    assert {
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.33.self_attn.q_norm.weight",
        "language_model.model.norm.weight",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.26.mlp.fc2.bias",
        "multi_modal_projector.mm_input_projection_weight",
    } <= names
    starts = ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.")
    assert all(name.startswith(starts) for name in names)
    with torch.device("meta"):
        vae, transformer = new_vae(cosmos_config(FULL)), new_transformer(cosmos_config(FULL))
    assert sum(parameter.numel() for parameter in vae.parameters()) == full_size_run.PUBLISHED_SUMS["VAE"]
    assert (
        sum(parameter.numel() for parameter in transformer.parameters()) == full_size_run.PUBLISHED["world transformer"]
    )


def test_the_tokenizer_has_the_published_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FULL)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert len(tokenizer) == 262_145
    for token, index in FULL.special.items():
        assert tokenizer.convert_tokens_to_ids(token) == index
    question = full_size_run.QUESTION
    assert tokenizer.decode(tokenizer(question, add_special_tokens=False)["input_ids"]) == question


@pytest.mark.slow  # half a minute; a rehearsal of the measurements on a GPU
def test_answers_come_with_times_and_memory(run: Run) -> None:
    found = full_size_sections.answers(run)
    assert list(found["calls"]) == list(full_size_run.CALLS)
    for name, row in found["calls"].items():
        assert row["answer"], name
        assert row["alike"], name
        assert row["median_seconds"] > 0
        assert 0.5 < row["predicted_over_measured"] < 2, name  # what is constant weighs most here
    assert found["calls"]["future, tokens"]["peak"]["allocated"] > found["calls"]["now, tokens"]["peak"]["allocated"]
    assert found["imagine and decode"]["frames"] == [1, 5, 224, 224, 3]
    assert found["stages"]["rollout, N=1"]["transformer_passes"] == 9
    assert all(row["median_ms"] > 0 for name, row in found["stages"].items() if not name.startswith("decode"))
    assert json.loads(run.piece("answers").read_text())["calls"] == found["calls"], "kept as it went"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' NumPy use
def test_both_parities_hold(run: Run) -> None:
    found = parity(run)
    off = found["world_off"]
    assert off["inputs_equal"]
    assert off["logits_equal"]
    assert off["answers_equal"]
    assert off["logits_finite"]
    assert off["world_on_changes_logits_by"] > 0.01
    rows = [row for row in found["latents"].values() if isinstance(row, dict)]
    assert len(rows) == 4
    assert all(row["within"] and row["tolerance"] > 0 and row["rms"] > 0.1 for row in rows)
    assert all(row["given_difference"] < 1e-5 for row in rows)
    one = torch.randn(4, 4)
    assert distance(1.1 * one, one) == pytest.approx(0.1, rel=1e-4), "and it would be seen if they did not"


@pytest.mark.slow  # half a minute; a rehearsal of the measurements on a GPU
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able.* is deprecated:FutureWarning")
def test_every_training_setting_steps(run: Run) -> None:
    found = full_size_sections.training(run)
    assert list(found) == list(full_size_run.TRAINING)
    for name, row in found.items():
        assert len(row["losses"]) == 3, name
        assert row["losses"][0] != row["losses"][-1], name
        assert 0.5 < row["predicted_over_measured"] < 2, name
    trainable = [
        found[name]["trainable"] for name in ("projector, B=4 *", "+ vision, B=4 *", "all, B=1, checkpointing *")
    ]
    assert trainable == sorted(set(trainable))
    plain, again = (found[name]["peak"]["allocated"] for name in ("+ vision, B=4 *", "+ vision, B=4, checkpointing *"))
    assert again < plain


@pytest.mark.slow  # half a minute; a rehearsal of the measurements on a GPU
def test_a_run_leaves_its_findings_and_says_what_failed(tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    base = ["--size", "tiny", "--device", "cpu", "--folder", str(tmp_path / "work"), "--results", str(results)]
    assert full_size.main([*base, "--sections", "make", "--commit", "abc"]) == 0
    report: dict[str, Any] = json.loads(results.read_text())
    assert (report["commit"], report["failed"], report["skipped"]) == ("abc", {}, {})
    assert report["sections"]["make"]["bytes"]["gemma"] > 0
    assert str(tmp_path) not in results.read_text(), "folders of this machine are named FOLDER"
    page = results.with_suffix(".md").read_text()
    assert page == markdown(report)
    assert "## Repositories" in page
    # where nothing has been made, a section fails; the run ends, and says so
    elsewhere = ["--folder", str(tmp_path / "elsewhere"), "--sections", "parity", "--commit", "abc"]
    assert full_size.main([*base, *elsewhere]) == 1
    report = json.loads(results.read_text())
    assert report["failed"]["parity"].startswith("exit code 1")
    assert "parity failed" in results.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="'nonsense'"):
        full_size.main([*base, "--sections", "nonsense"])


def test_the_page_of_a_run_that_was_cut_shows_what_there_is() -> None:
    report = {
        **dict.fromkeys(("date", "commit", "command", "card", "weights", "photo", "question"), "…"),
        "versions": {"torch": "2.11.0"},
        "skipped": {"commands": "3 s were left and it takes 45 or more"},
        "failed": {"answers": "cut off at the end of the budget"},
        "sections": {
            "make": {"write_seconds": 12.3, "bytes": {"gemma": 8_600_000_000}},
            "answers": {"load_seconds": 4.5, "calls": {}, "stages": {}, "left_out": ["future, frames"]},
            "training": {
                "all, B=1, checkpointing *": {"predicted": 36 * 2**30, "out_of_memory": "CUDA out of memory"},
                "projector, B=1": {
                    "predicted": 17 * 2**30,
                    "peak": {"allocated": 16 * 2**30},
                    "predicted_over_measured": 1.0625,
                    "trainable": 235_520,
                    "seconds": 0.25,
                },
            },
        },
    }
    page = markdown(report)
    assert "**commands skipped**: 3 s were left" in page
    assert "**answers failed**: cut off" in page
    assert "**left out of answers**: future, frames" in page
    assert "gemma 8.60 GB" in page
    assert "| all, B=1, checkpointing * |  |  | CUDA out of memory | 36.00 |  |  |" in page
    assert "| projector, B=1 | 235,520 | 0.250 | 16.00 | 17.00 | 1.062 | 0.201 s |" in page


def test_the_committed_page_is_what_its_file_says() -> None:
    results = Path(full_size.__file__).parent / "results" / "full_size.json"
    report = json.loads(results.read_text(encoding="utf-8"))
    assert results.with_suffix(".md").read_text(encoding="utf-8") == markdown(report)
    found = report["sections"]
    assert found["describe"]["differ_from_published"] == {}
    assert found["parity"]["world_off"]["logits_equal"]
    assert all(row["within"] for row in found["parity"]["latents"].values() if isinstance(row, dict))
    rows = [*found["answers"]["calls"].values(), *found["training"].values()]
    measured = [row for row in rows if isinstance(row, dict)]
    assert len(measured) == len(full_size_run.CALLS) + len(full_size_run.TRAINING)
    # README says so
    assert all(row["predicted_over_measured"] == pytest.approx(1, abs=0.0205) for row in measured)


def test_what_no_longer_fits_is_left_out(tmp_path: Path) -> None:
    now = time.time()
    full = Run("full", tmp_path, torch.device("cpu"), until=now + 20)
    assert full.fits(10)
    assert not full.fits(30)


@pytest.mark.slow  # eight processes, each of which loads its libraries again
def test_the_commands_of_a_person_end_as_they_should(run: Run) -> None:
    described = full_size_sections.describe(run)
    assert described["components"]["projection"] > 0
    assert described["doctor_works"]
    assert "this machine can run" in described["doctor_text"]
    found = full_size_sections.commands(run)
    ended = {name: row["returncode"] for name, row in found.items()}
    assert ended == {
        "ask, now, tokens": 0,
        "ask, future, tokens": 0,
        "ask, future, frames": 0,
        "ask without training, tokens": 1,
        "imagine": 1,
        "imagine, own weights": 0,
    }
    assert "projector of this model is untrained" in found["ask without training, tokens"]["errors"]
    assert "guardrail" in found["imagine"]["errors"]
    assert found["ask, future, frames"]["said"]["mode"] == "frames"
    assert found["imagine, own weights"]["said"]["frames"] == 5
