"""Claims about stages (c) and (d): samples read what they ask about, and both stages run end to end."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.nano import language
from recipes.nano.clips import ClipSettings
from recipes.nano.foresight import ForesightSettings
from recipes.nano.fusion import FUSED, KINDS, FusionSettings
from recipes.nano.fusion import TRAINING as FUSION_TRAINING
from recipes.nano.language import TRAINING as LANGUAGE_TRAINING
from recipes.nano.language import LanguageSettings, init_positions, now_accuracy
from recipes.nano.now import NowSamples, draw_images, encode_images
from recipes.nano.recipe import NanoSettings, publish, run_fusion, run_language, run_world, with_values
from recipes.nano.vae import VAESettings
from recipes.nano.world import NANO_VAE, TransformerSettings, nano_world_config
from tests.tiny import tiny_bases, tiny_model
from theworld import TheWorld
from theworld.datasets.physics import make_clip
from theworld.world_models.cosmos_predict2 import CosmosPredict2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def test_every_place_starts_with_an_embedding_of_its_own(bases: dict[str, str]) -> None:
    model, _ = tiny_model(bases)
    init_positions(model.vlm, rms=0.7)
    model.projector.init_sinusoidal(0.7)
    (vision,) = (p for name, p in model.vlm.model.vision_tower.named_parameters() if "position_embedding" in name)
    for places in (model.projector.spatial_pos_embed(), vision):
        distance = torch.cdist(places, places) + 10 * torch.eye(len(places))
        assert distance.min() > 0.5, "two places look alike"
    assert vision.square().mean().sqrt().item() == pytest.approx(0.7, rel=0.1)


def test_samples_read_what_they_ask_about(bases: dict[str, str]) -> None:
    """Latents and images belong to the frame that the questions are about, and are the same in every run."""
    model, _ = tiny_model(bases)
    assert model.world is not None
    images = draw_images("train", 0, 1, 5, 4, 0)
    images.clips = np.ascontiguousarray(images.clips[:, :, ::2, ::2])  # the tiny world is half as wide
    latents = encode_images(images, model.world)
    turns = {"benchmark": 2, "cell": 1, "scan": 1}

    def samples(**changes: Any) -> NowSamples:
        return NowSamples(images, latents, turns, **{"chats_of_first": 3, "chats_of_later": 2, **changes})

    both, later = samples(ahead=True, late=1.0), samples(late=0.0, hidden=1.0)
    assert len(both) == 3 * (3 + 4 * 2)
    for index in range(len(both)):
        sample, again, alone = both[index], samples(ahead=True, late=1.0)[index], later[index]
        entry, _ = both.chats[index]
        clip, number = images.entries[entry]
        assert sample.messages == again.messages == both.messages(index)
        asked = {question for own in images.questions[entry].values() for question in own}
        assert set(both.asked(index)) <= asked
        assert len(both.asked(index)) == 4
        assert np.array_equal(sample.images[0], images.clips[clip, number])
        assert sample.num_world_steps == (0 if number else None)
        frames = torch.from_numpy(images.clips[clip]).permute(3, 0, 1, 2)[None] / 127.5 - 1
        inside = model.world.encode(frames)[0]
        if number == 0:
            torch.testing.assert_close(sample.world_latents, inside, atol=1e-4, rtol=1e-4)
        elif number % 4 == 0:
            torch.testing.assert_close(sample.world_latents, inside[:, number // 4][:, None], atol=1e-4, rtol=1e-4)
        if number:
            here = model.world.encode(frames[:, :, number : number + 1])[0]
            torch.testing.assert_close(alone.world_latents, here, atol=1e-4, rtol=1e-4)
        assert alone.num_world_steps == 0
        assert (sample.hide_images, alone.hide_images) == (False, True)
    assert len({tuple(both.asked(index)) for index in range(3)}) > 1, "chats about one image have different questions"


def test_accuracy_on_the_present_counts_answers(bases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model(bases)
    assert model.world is not None
    images = draw_images("validation", 0, 1, 5, 4, 0)
    images.clips = np.ascontiguousarray(images.clips[:, :, ::2, ::2])  # the tiny world is half as wide
    samples = NowSamples(
        images,
        encode_images(images, model.world),
        {"cell": 1},
        chats_of_first=2,
        chats_of_later=1,
        late=0.0,
        hidden=0.0,
    )
    found = now_accuracy(model, processor, samples, batch_size=2)
    assert {key for key in found if "/" not in key} == {"image", "world", "both"}
    assert all(0 <= share <= 1 for share in found.values())
    forward = model.forward

    def knows(**inputs: Any) -> Any:
        """Logits of the labels themselves, which `now_accuracy` passes on in place of the model's."""
        outputs = forward(**inputs)
        outputs.logits.zero_()
        outputs.logits[range(len(wanted[0])), wanted.pop(0)] = 1.0
        return outputs

    wanted = []
    plain = language.shift

    def noted(labels: torch.Tensor) -> torch.Tensor:
        targets = plain(labels)
        wanted.append(targets[targets != -100])
        return targets

    monkeypatch.setattr(language, "shift", noted)
    monkeypatch.setattr(model, "forward", knows)
    assert set(now_accuracy(model, processor, samples, batch_size=2).values()) == {1.0}


def test_settings_are_changed_by_name_and_unknown_ones_refused() -> None:
    changes = [
        "language.training.max_steps=7",
        "language.turns.scan=0",
        'fusion.fused.world_steps_mix={"0": 1}',
        "vae.learning_rate=1",
    ]
    settings = with_values(NanoSettings(), changes)
    assert (settings.language.training["max_steps"], settings.language.turns["scan"]) == (7, 0)
    assert settings.language.turns["cell"] == LanguageSettings().turns["cell"]
    assert settings.fusion.fused["world_steps_mix"] == {"0": 1}
    assert settings.vae.learning_rate == 1.0
    assert NanoSettings().language.training["max_steps"] != 7
    for wrong, said in (
        ("language.training.max_stepps=7", "did you mean 'max_steps'"),
        ("langage.seed=7", "did you mean 'language'"),
        ("language.seed", "language.training.max_steps=4000"),
        ("language.seed=many", "give int, like"),
        ("language.seed.more=1", "has no parts"),
    ):
        with pytest.raises(ValueError, match=said):
            with_values(NanoSettings(), [wrong])


def test_publishing_needs_every_part_and_names_the_shipped_bases(tmp_path: Path) -> None:
    work, weights = tmp_path / "work", tmp_path / "weights"
    config = {"vlm_name_or_path": str(work / "gemma"), "world_name_or_path": "w", "vlm_config": {"_name_or_path": "x"}}
    for name in ("world", "gemma", "reader", *KINDS):
        (work / name).mkdir(parents=True)
        (work / name / "config.json").write_text(json.dumps(config))
    (work / "provenance.json").write_text("{}")
    (weights / "gemma").mkdir(parents=True)
    (work / "matched-control").rename(tmp_path / "matched-control")
    with pytest.raises(ValueError, match="has no matched-control to publish"):
        publish(work, weights)
    assert [path.name for path in weights.iterdir()] == ["gemma"], "the shipped models are unchanged"
    (tmp_path / "matched-control").rename(work / "matched-control")
    publish(work, weights)
    shipped = {"cosmos", "gemma", "reader", *KINDS, "provenance.json"}
    assert {path.name for path in weights.iterdir()} == shipped
    reader = json.loads((weights / "reader" / "config.json").read_text())
    assert reader["vlm_name_or_path"] == reader["vlm_config"]["_name_or_path"] == "nano/gemma"
    assert str(tmp_path) not in (weights / "reader" / "config.json").read_text()


@pytest.mark.slow
def test_both_stages_run_and_their_models_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = nano_world_config(2)
    config.vae = {**NANO_VAE, "base_dim": 4}
    config.transformer.update(num_attention_heads=1, num_layers=1, adaln_lora_dim=4)
    CosmosPredict2(config).to(torch.bfloat16).save_pretrained(tmp_path / "world")
    short = {"max_steps": 4, "warmup_steps": 1, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "num_workers": 0}
    settings = NanoSettings(
        language=LanguageSettings(
            clips_per_family=2,
            chats_of_first=2,
            chats_of_later=2,
            workers=0,
            validation_clips=1,
            tokenizer_clips=2,
            training={**LANGUAGE_TRAINING, **short, "batch_size": 8},
        ),
        fusion=FusionSettings(
            training={
                **FUSION_TRAINING,
                **short,
                "batch_size": 4,
                "dataset_options": {
                    "scenes_per_family": 2,
                    "chats_per_scene": 3,
                    "what_happens": 3,
                    "now": 2,
                    "eval_scenes_per_family": 1,
                },
            },
            fused={**FUSED, "futures_per_image": 2},
        ),
        text={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 1024,
        },
        vision={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 8,
        },
    )
    with caplog.at_level(logging.WARNING):
        gate = run_language(tmp_path, settings, torch.device("cpu"))
    assert {"image", "world", "both"} <= set(gate)
    assert "required: 97 %" in caplog.text, "a model that learned nothing does not pass in silence"
    results = run_fusion(tmp_path, settings, torch.device("cpu"))
    assert set(results) == set(KINDS)
    again = replace(settings, fusion=replace(settings.fusion, kinds=("matched-control",)))
    assert run_fusion(tmp_path, again, torch.device("cpu")) == {"matched-control": results["matched-control"]}
    trained = {kind: json.loads((tmp_path / kind / "config.json").read_text())["trained_parts"] for kind in results}
    assert trained == {
        **{kind: ["projector", "lora"] for kind in KINDS},
        "matched-control": ["lora"],
        "direct": ["vision", "language"],
    }
    for kind in results:  # replaces the names of the shipped bases by the folders of this run
        file = tmp_path / kind / "config.json"
        text = file.read_text().replace("nano/gemma", str(tmp_path / "gemma"))
        file.write_text(text.replace("nano/cosmos", str(tmp_path / "world")))
    frame = make_clip("drop", "test", 0).frames[0]
    fused = TheWorld.from_pretrained(tmp_path / "fused")
    answer = fused.generate(frame, "Which bin?", max_new_tokens=4, num_world_steps=2)
    assert isinstance(answer, str)
    assert TheWorld.from_pretrained(tmp_path / "direct").model.world is None
    reader = TheWorld.from_pretrained(tmp_path / "trained-dummy").model.projector.state_dict()
    drawn = TheWorld.from_pretrained(tmp_path / "frozen-random-projection").model.projector.state_dict()
    assert not any(torch.equal(drawn[name], tensor) for name, tensor in reader.items() if tensor.ndim == 2)


@pytest.mark.slow  # half a minute
def test_the_world_stage_runs_from_scenes_to_a_folder(tmp_path: Path) -> None:
    world = nano_world_config(3)
    world.vae["base_dim"] = 4
    world.transformer.update(num_attention_heads=1, num_layers=1, adaln_lora_dim=4)
    settings = NanoSettings(
        world=world,
        clips=ClipSettings(
            workers=1, per_family=1, wild_per_family=2, max_clips=60, labelled_per_family=6, head_start=2
        ),
        capacity=60,
        vae=VAESettings(seconds=2, phases=((0.4, 1, 8), (1.0, 5, 2)), min_clips=9, log_seconds=0),
        transformer=TransformerSettings(seconds=1, batch=4, min_clips=9, encode_clips=4, max_clips=40, log_seconds=0),
        foresight=ForesightSettings(scenes=2, reader_steps=5, reader_batch=4),
        denoise_steps=(2,),
    )
    folder = run_world(tmp_path, settings, torch.device("cpu"))
    assert CosmosPredict2.from_pretrained(folder).parts == ("encoder", "decoder", "transformer")
    for curve in ("vae_loss.csv", "vae_measure.csv", "transformer_loss.csv", "foresight.csv"):
        assert len((tmp_path / curve).read_text().splitlines()) > 1, curve
    assert (tmp_path / "sheet.png").stat().st_size > 0
