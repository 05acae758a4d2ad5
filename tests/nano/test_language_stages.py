"""Claims about stages (c) and (d): chats equal the processor's, and both stages run end to end and learn."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import CORPUS, tiny_bases, tiny_model
from theworld import TheWorld
from theworld.api import user_turn
from theworld.datasets.physics import make_clip
from theworld.nano.chats import ANSWER_OPENING, QUESTION_OPENING, ChatWriter, TurnTable, answered_rightly
from theworld.nano.clips import ClipSettings
from theworld.nano.foresight import ForesightSettings
from theworld.nano.fusion import FusionSettings
from theworld.nano.language import LanguageSettings, NowBatches, clip_latents, place_positions
from theworld.nano.now import draw_pictures
from theworld.nano.recipe import NanoSettings, publish, run_fusion, run_language, run_world, with_values
from theworld.nano.vae import VAESettings
from theworld.nano.world import NANO_VAE, TransformerSettings, nano_world_config
from theworld.world_models.cosmos_predict2 import CosmosPredict2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("mode", ["picture", "both"])
def test_chats_equal_the_processors(bases: dict[str, str], mode: str) -> None:
    _, processor = tiny_model(bases)
    writer = ChatWriter(processor)
    prompt = processor.apply_chat_template(user_turn(1, CORPUS[0]), add_generation_prompt=True)
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    theirs = processor(
        images=picture,
        text=prompt,
        add_special_tokens=False,
        return_tensors="pt",
        enable_world=mode == "both",
        num_world_steps=2,
    )
    ours = writer.batch([[writer.turn(CORPUS[0], "yes")]], mode, 2)
    length = theirs["input_ids"].shape[1]
    assert torch.equal(ours.input_ids[:, :length], theirs["input_ids"])
    assert torch.equal(ours.token_type_ids[:, :length], theirs["token_type_ids"])
    answer = ours.input_ids[0, length:]
    assert processor.tokenizer.decode(answer) == "yes<end_of_turn>"
    assert torch.equal(ours.labels[0, length:], answer)
    assert (ours.labels[0, :length] == -100).all()


def test_labels_cover_every_answer_and_nothing_else(bases: dict[str, str]) -> None:
    _, processor = tiny_model(bases)
    writer = ChatWriter(processor)
    batch = writer.batch(
        [[writer.turn("Is it red?", "yes"), writer.turn("Where?", "left")], [writer.turn("a", "b")]], "picture"
    )
    learned = [processor.tokenizer.decode(row[row != -100]) for row in batch.labels]
    assert learned == ["yes<end_of_turn>left<end_of_turn>", "b<end_of_turn>"]
    text = processor.tokenizer.decode(batch.input_ids[0])
    assert text.endswith(
        f"Is it red?{ANSWER_OPENING}yes<end_of_turn>\n<start_of_turn>user\nWhere?{ANSWER_OPENING}left<end_of_turn>"
    )
    assert batch.attention_mask.sum(1)[1] < batch.attention_mask.sum(1)[0] == batch.input_ids.shape[1]


def test_one_wrong_token_makes_an_answer_wrong() -> None:
    labels = torch.tensor([[-100, 3, 1], [-100, 3, 1], [-100, -100, 2]])
    logits = torch.zeros(3, 3, 5)
    for row, tokens in enumerate([(3, 1), (3, 2), (0, 2)]):
        for place, token in enumerate(tokens):
            logits[row, place, token] = 1.0
    assert answered_rightly(logits, labels).tolist() == [True, False, True]


def test_every_place_starts_with_an_embedding_of_its_own(bases: dict[str, str]) -> None:
    model, _ = tiny_model(bases)
    place_positions(model, rms=0.7)
    projector = model.projector
    cells = (projector.row[:, None] + projector.column[None]).flatten(0, 1)
    (vision,) = (p for name, p in model.vlm.model.vision_tower.named_parameters() if "position_embedding" in name)
    for places in (cells, vision):
        distance = torch.cdist(places, places) + 10 * torch.eye(len(places))
        assert distance.min() > 0.5, "two places look alike"
    assert projector.row.square().mean().sqrt().item() == pytest.approx(0.7, rel=0.1)


def test_a_table_of_turns_gives_the_writers_chats(bases: dict[str, str]) -> None:
    writer = ChatWriter(tiny_model(bases)[1])
    known = [
        {"cell": [("Is it red?", "yes"), ("Where?", "left")], "scan": [("Which colours?", "red no red")]},
        {"cell": [("Where?", "right")], "scan": []},
    ]
    table = TurnTable(writer, known, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for mode, steps in (("picture", 0), ("world", 1), ("both", 2)):
        batch = table.draw(torch.tensor([0, 1, 0]), {"cell": 2, "scan": 1}, mode, steps, generator, room=300)
        assert batch.input_ids.shape[1] == len(writer.prefix(mode, steps)) + 300
        closing = len(writer.ids(QUESTION_OPENING))
        for row, (picture, turns) in enumerate(((0, 3), (1, 1), (0, 3))):
            pairs = [pair for own in known[picture].values() for pair in own]
            length = int(batch.attention_mask[row].sum())
            assert (batch.attention_mask[row, :length] == 1).all(), "padding is on the right"
            matches = [
                order
                for order in itertools.permutations(pairs)
                if torch.equal(
                    (own := writer.batch([[writer.turn(*pair) for pair in order]], mode, steps)).input_ids[0],
                    batch.input_ids[row, : length - closing],
                )
                and torch.equal(own.labels[0], batch.labels[row, : length - closing])
                and torch.equal(own.token_type_ids[0], batch.token_type_ids[row, : length - closing])
            ]
            assert [len(match) for match in matches] == [turns], "each turn once, in some order"
            assert (batch.labels[row, length - closing :] == -100).all()


def test_fewer_turns_than_there_are_are_drawn_without_repeating(bases: dict[str, str]) -> None:
    writer = ChatWriter(tiny_model(bases)[1])
    answers = ["yes", "no", "left", "right", "middle"]
    table = TurnTable(writer, [{"cell": [("Where?", answer) for answer in answers]}], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        batch = table.draw(torch.tensor([0]), {"cell": 2}, "picture", 0, generator, room=100)
        text = writer.processor.tokenizer.decode(batch.labels[0][batch.labels[0] != -100])
        drawn = text.split("<end_of_turn>")[:-1]
        assert len(set(drawn)) == 2
        seen |= set(drawn)
    assert seen == set(answers)


def test_turns_that_do_not_fit_are_left_out_whole(bases: dict[str, str]) -> None:
    writer = ChatWriter(tiny_model(bases)[1])
    known = [("Where?", "left"), ("Is it red?", "yes")]
    table = TurnTable(writer, [{"cell": known}], torch.device("cpu"))
    room = max(len(writer.batch([[writer.turn(*pair)]], "world").input_ids[0]) for pair in known)
    room += len(writer.ids(QUESTION_OPENING)) - len(writer.prefix("world", 0))  # enough for either, not for both
    for seed in range(9):
        batch = table.draw(torch.tensor([0]), {"cell": 2}, "world", 0, torch.Generator().manual_seed(seed), room)
        answer = writer.processor.tokenizer.decode(batch.labels[0][batch.labels[0] != -100])
        assert answer in ("left<end_of_turn>", "yes<end_of_turn>")


def test_batches_read_what_they_ask_about(bases: dict[str, str]) -> None:
    """Latents and pictures belong to the frame that the questions are about, and are the same in every run."""
    model, processor = tiny_model(bases)
    settings = LanguageSettings(batch_size=8, modes=(0.0, 0.0, 1.0), future=0.5, late=1.0, world_steps=(1, 2))
    pictures = draw_pictures("train", 0, 1, 5, 4, 0)
    pictures.clips = np.ascontiguousarray(pictures.clips[:, :, ::2, ::2])  # the tiny world is half as wide

    def batches() -> Iterator[tuple[str, int, dict[str, torch.Tensor]]]:
        return iter(NowBatches(model, pictures, ChatWriter(processor), settings, torch.device("cpu")))

    ahead = set()
    for (mode, steps, inputs), (_, _, again) in itertools.islice(zip(batches(), batches(), strict=True), 24):
        ahead.add(steps)
        assert mode == "both"
        assert torch.equal(inputs["input_ids"], again["input_ids"])
        count = (inputs["input_ids"] == processor.config.world_token_id).sum(1)
        assert (count == processor.config.world_token_count(steps)).all()
        assert inputs["world_latents"].shape[2] == 1 + steps
        frames = ((inputs["pixel_values"] + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        for frame, latents in zip(frames, inputs["world_latents"], strict=True):
            clip, number = next((c, f) for c, f in pictures.entries if np.array_equal(pictures.clips[c, f], frame))
            if steps or number % 4:
                alone = clip_latents(model, torch.from_numpy(frame)[None, None])
                torch.testing.assert_close(latents[:, :1], alone[0], atol=1e-4, rtol=1e-4)
            elif number:
                whole = clip_latents(model, torch.from_numpy(pictures.clips[clip])[None])[0]
                torch.testing.assert_close(latents[:, 0], whole[:, number // 4], atol=1e-4, rtol=1e-4)
            assert steps == 0 or number == 0, "a clip's later moments are those after its first frame"
    assert ahead == {0, 1, 2}


def test_settings_are_changed_by_name_and_unknown_ones_refused() -> None:
    changes = ["language.steps=7", "language.turns.scan=0", "fusion.world_steps=[0, 4]", "vae.learning_rate=1"]
    settings = with_values(NanoSettings(), changes)
    assert (settings.language.steps, settings.language.turns["scan"]) == (7, 0)
    assert settings.language.turns["cell"] == LanguageSettings().turns["cell"]
    assert settings.fusion.world_steps == (0, 4)
    assert settings.vae.learning_rate == 1.0
    assert NanoSettings().language.steps != 7
    for wrong, said in (
        ("language.stepps=7", "did you mean 'steps'"),
        ("langage.steps=7", "did you mean 'language'"),
        ("language.steps", "language.steps=4000"),
        ("language.steps=many", "give int, like"),
        ("language.steps.more=1", "has no parts"),
    ):
        with pytest.raises(ValueError, match=said):
            with_values(NanoSettings(), [wrong])


def test_publishing_needs_every_part_and_names_the_shipped_bases(tmp_path: Path) -> None:
    work, weights = tmp_path / "work", tmp_path / "weights"
    config = {"vlm_name_or_path": str(work / "gemma"), "world_name_or_path": "w", "vlm_config": {"_name_or_path": "x"}}
    for name in ("world", "gemma", "reader", "fused", "direct"):
        (work / name).mkdir(parents=True)
        (work / name / "config.json").write_text(json.dumps(config))
    (work / "provenance.json").write_text("{}")
    (weights / "gemma").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no matched-control to publish"):
        publish(work, weights)
    assert [path.name for path in weights.iterdir()] == ["gemma"], "what was shipped is as it was"
    (work / "matched-control").mkdir()
    publish(work, weights)
    shipped = {"cosmos", "gemma", "reader", "fused", "direct", "matched-control", "provenance.json"}
    assert {path.name for path in weights.iterdir()} == shipped
    reader = json.loads((weights / "reader" / "config.json").read_text())
    assert reader["vlm_name_or_path"] == reader["vlm_config"]["_name_or_path"] == "nano/gemma"
    assert str(tmp_path) not in (weights / "reader" / "config.json").read_text()


def test_both_stages_run_and_their_models_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = nano_world_config(2)
    config.vae = {**NANO_VAE, "base_dim": 4}
    config.transformer.update(num_attention_heads=1, num_layers=1, adaln_lora_dim=4)
    CosmosPredict2(config).to(torch.bfloat16).save_pretrained(tmp_path / "world")
    settings = NanoSettings(
        language=LanguageSettings(
            steps=4, warmup=1, batch_size=8, clips_per_family=2, workers=0, validation_clips=1, tokenizer_clips=2
        ),
        fusion=FusionSettings(
            steps=4,
            warmup=1,
            batch_size=4,
            scenes_per_family=2,
            validation_scenes=1,
            futures=2,
            evaluate_every=2,
            workers=0,
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
    assert {"picture", "world", "both"} <= set(gate)
    assert "gate" in caplog.text, "a model that learned nothing does not pass in silence"
    results = run_fusion(tmp_path, settings, torch.device("cpu"))
    assert set(results) == {"fused", "matched-control", "direct"}
    trained = {kind: json.loads((tmp_path / kind / "config.json").read_text())["trained_parts"] for kind in results}
    assert trained == {"fused": ["projector", "lora"], "matched-control": ["lora"], "direct": ["vision", "language"]}
    for kind in results:  # the names of the shipped bases, put back to where this run's lie
        file = tmp_path / kind / "config.json"
        text = file.read_text().replace("nano/gemma", str(tmp_path / "gemma"))
        file.write_text(text.replace("nano/cosmos", str(tmp_path / "world")))
    frame = make_clip("drop", "test", 0).frames[0]
    fused = TheWorld.from_pretrained(tmp_path / "fused")
    answer = fused.generate(frame, "Which bin?", max_new_tokens=4, num_world_steps=2)
    assert isinstance(answer, str)
    assert TheWorld.from_pretrained(tmp_path / "direct").model.world is None


@pytest.mark.slow  # half a minute, most of it the wall-clock budgets of the two stages
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
        vae=VAESettings(seconds=10, phases=((0.4, 1, 8), (1.0, 5, 2)), min_clips=9, measure_seconds=4),
        transformer=TransformerSettings(seconds=5, batch=4, min_clips=9, encode_clips=4, max_clips=40),
        foresight=ForesightSettings(scenes=2, reader_steps=5, reader_batch=4),
        denoise_steps=(2,),
    )
    folder = run_world(tmp_path, settings, torch.device("cpu"))
    assert CosmosPredict2.from_pretrained(folder).parts == ("encoder", "decoder", "transformer")
    for curve in ("vae_loss.csv", "vae_measure.csv", "transformer_loss.csv", "foresight.csv"):
        assert len((tmp_path / curve).read_text().splitlines()) > 1, curve
    assert (tmp_path / "sheet.png").stat().st_size > 0
