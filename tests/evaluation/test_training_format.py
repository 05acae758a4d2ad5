"""`eval jsonl`: questions in the training format, asked as in training, with the figures of training's evaluation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from theworld import TheWorld
from theworld.cli import app
from theworld.datasets.collator import BatchSampling, ChatCollator, IndexedSample
from theworld.datasets.jsonl import JsonlDataset
from theworld.evaluation import compare, evaluate
from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.evaluation.tasks import Request, load_benchmark
from theworld.evaluation.training_format import TRAINING_CONFIG, note_on_format
from theworld.inference.latent_cache import compute_with, latents_of
from theworld.model.packing import shift
from theworld.training.checkpointing import CONFIG_FILE
from theworld.training.loss import answer_sums

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "Is the <bos> ball left?"}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


RECORDS: list[dict[str, Any]] = [
    {"image": "0.png", "text": " Which bin?\n", "label": "left"},
    {"text": "Is the ball red?", "label": "yes"},
    {"images": ["0.png", "1.png"], "messages": [turn("user", [IMAGE, TEXT, IMAGE]), turn("assistant", "No.<eos> ")]},
    {
        "image": "1.png",
        "messages": [
            turn("system", "Be brief."),
            *(turn("user", [TEXT, IMAGE]), turn("assistant", "middle")),
            *(turn("user", "And the bin?"), turn("assistant", "right")),
        ],
    },
    {"video": "clip", "now": 1, "text": "Which bin will it be?", "label": "middle"},
    {"image": "1.png", "future_frames": [f"{number}.png" for number in range(4)], "text": "Is it?", "label": "no"},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    (folder / "clip").mkdir()
    rng = np.random.default_rng(0)
    for place in [folder / f"{number}.png" for number in range(4)] + [
        folder / "clip" / f"{number}.png" for number in range(12)
    ]:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place)
    (folder / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder / "test.jsonl"


@pytest.fixture(scope="module")
def model(family: Path) -> TheWorld:
    return TheWorld.from_pretrained(family / "fused", device="cpu", dtype=torch.float32)


def trained_sums(model: TheWorld, file: Path, steps: int) -> np.ndarray:
    """What training's evaluation sums over each sample: loss, tokens, right answers, answers. (n, 4)"""
    collator = ChatCollator(model.processor, BatchSampling(num_world_steps=steps))
    rows = []
    for index, sample in enumerate(JsonlDataset(file)):
        batch = collator([IndexedSample(index, sample, deterministic=True)])
        batch.pop("num_skipped")
        if "world_requests" in batch:
            compute = compute_with(model.runner.world, model.config.world_config)
            batch["world_latents"] = torch.stack(latents_of(batch.pop("world_requests"), compute))
        if "pixel_values" in batch:
            batch["pixel_values"] = collator.normalize(batch["pixel_values"])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model.model(**batch, logits_to_keep=shift(labels) != -100).logits
        rows.append(answer_sums(logits, labels)[0].numpy())
    return np.array(rows)


def test_the_likelihood_of_labels_is_the_loss_of_training(model: TheWorld, file: Path, tmp_path: Path) -> None:
    model.runner.load_parts("encoder", "transformer")
    single = [0, 1, 4, 5]  # of several turns training counts the earlier answers as well; 2 names control tokens
    results = evaluate(model, "jsonl", data=file, num_world_steps=1, max_new_tokens=3, output=tmp_path / "run")
    fused = results.answers["fused"]
    expected = trained_sums(model, file, 1)
    for index in single:
        assert fused[index].label_logprob == pytest.approx(-expected[index, 0], rel=1e-3)
        assert fused[index].label_tokens == expected[index, 1]
    score = results.content["arms"]["fused"]
    tokens = sum(answer.label_tokens for answer in fused)
    assert score["label"]["mean_logprob"] == pytest.approx(sum(a.label_logprob or 0 for a in fused) / tokens)
    assert score["label"]["perplexity"] == pytest.approx(math.exp(-score["label"]["mean_logprob"]))
    pair = results.content["paired"]["fused-minus-fused-0"]["label_logprob"]
    assert pair["interval_95"][0] <= pair["difference"] <= pair["interval_95"][1]
    assert "perplexity of the label" in results.to_markdown()
    again = evaluate(model, "jsonl", data=file, num_world_steps=1, max_new_tokens=3, output=tmp_path / "run")
    assert again.answers == results.answers
    compared = compare(tmp_path / "run")
    assert compared.content["arms"]["fused"]["label"] == score["label"]
    assert "<svg" in compared.to_html()
    assert any("labels have more than 3 tokens" in warning for warning in results.warnings)


def test_a_question_has_the_ids_of_training(model: TheWorld, file: Path) -> None:
    """Every prompt with its label equals the chat that training shows, token by token."""
    items = load_benchmark("jsonl", Request(data=str(file)))
    assert [item.id for item in items] == [f"line {number}" for number in range(1, len(RECORDS) + 1)]
    assert [item.answer for item in items] == ["left", "yes", "No.<eos>", "right", "middle", "no"]
    assert items[3].question.splitlines()[0] == "system: Be brief."
    collator = ChatCollator(model.processor, BatchSampling())
    answerer = ModelAnswerer(model)
    for item, sample in zip(items, JsonlDataset(file), strict=True):
        if "<" in str(sample.messages):
            continue  # names of control tokens
        inputs = ReplyInputs(0, enable_world=False)
        features = answerer._features([item.images()], [item.asked], inputs, [item.answer])
        chat = collator.chat(sample.messages)
        trained = collator.encode([sample], [chat], 0, 0, False, True, [False], "right")
        assert features["input_ids"].tolist() == trained["input_ids"].tolist()


def test_every_arm_takes_chats_and_rows_without_an_image(
    model: TheWorld, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theworld.evaluation.arms.MAX_FORESIGHT_TOKENS", 2)
    arms = "fused,verbal,imagined-image,zero,wrong-future"
    results = evaluate(model, "jsonl", data=file, arms=arms, num_world_steps=1, max_new_tokens=2, batch_size=4)
    rows = {name: [answer.label_logprob for answer in answers] for name, answers in results.answers.items()}
    assert len(rows) == 5
    assert {len(row) for row in rows.values()} == {len(RECORDS)}
    without = {name: row[1] for name, row in rows.items() if name != "verbal"}
    assert max(without.values()) - min(without.values()) < 1e-4  # no image, no future: arms ask the same
    assert len({row[0] for row in rows.values()}) == len(rows)


def test_the_true_future_of_a_sample_is_read(model: TheWorld, file: Path, tmp_path: Path) -> None:
    known = [RECORDS[4], RECORDS[5]]
    short = file.with_name("known.jsonl")
    short.write_text("".join(json.dumps(record) + "\n" for record in known))
    results = evaluate(model, "jsonl", data=short, arms="oracle-future,true-image", num_world_steps=1, max_new_tokens=2)
    assert results.content["questions"] == 2
    with pytest.raises(ValueError, match="line 1 has 0 true frames and this arm needs 5"):
        evaluate(model, "jsonl", data=file, arms="oracle-future", num_world_steps=1, max_new_tokens=2, batch_size=1)


def test_an_error_names_the_file_and_the_line_once(file: Path, tmp_path: Path, model: TheWorld) -> None:
    (tmp_path / "bad.png").write_text("no image")
    for record in ({"image": "bad.png"}, {"video": "bad.png"}, {"video": "bad.png", "past": 4}):
        (tmp_path / "own.jsonl").write_text(json.dumps({**record, "text": "Which?", "label": "left"}))
        with pytest.raises(ValueError, match=f"^{tmp_path}/own.jsonl line 1: '{tmp_path}/bad.png' is not"):
            evaluate(model, "jsonl", data=tmp_path / "own.jsonl", arms="no-world", max_new_tokens=1)
    with pytest.raises(ValueError, match=r"own.jsonl is no benchmark: .* as in `theworld eval jsonl own.jsonl`"):
        load_benchmark("own.jsonl", Request())


def test_exact_match_after_normalisation(file: Path) -> None:
    from theworld.evaluation.scoring import read_answer

    item, *_ = load_benchmark("jsonl", Request(data=str(file)))
    assert read_answer(item, " Left. ") == "left"
    assert read_answer(item, "on the left") == "on the left"
    assert read_answer(item, "") is None


def test_a_file_that_does_not_fit_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl line 2 has no label"):
        load_benchmark("jsonl", Request(data=str(tmp_path / "bad.jsonl")))
    with pytest.raises(ValueError, match="theworld eval jsonl FILE"):
        load_benchmark("jsonl", Request())
    with pytest.raises(ValueError, match="leave them out"):
        load_benchmark("jsonl", Request(data=str(file), tasks=("left",)))


def test_world_prompts_steer_the_rollouts_of_their_records(
    model: TheWorld, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training: the future is imagined with the prompt of the record, and the present without one."""
    prompts = ["it falls ", "", "it stays"]
    records = [{**RECORDS[0], "world_prompt": prompt} if prompt else RECORDS[0] for prompt in prompts]
    file.with_name("prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given: dict[str, Any] = {"model": model, "benchmark": "jsonl", "data": file.with_name("prompts.jsonl")}
    given |= {"num_world_steps": 1, "max_new_tokens": 1}
    world = model.runner.world
    asked: list[tuple[int, Any]] = []

    def refuse() -> None:
        raise ValueError("This world model has no text encoder")

    def imagine(images: Any, steps: int, seed: int, world_prompt: Any, *others: Any) -> torch.Tensor:
        asked.append((steps, world_prompt))
        return plain(images, steps, seed, None, *others)

    monkeypatch.setattr(world, "check_takes_prompts", refuse)
    with pytest.raises(ValueError, match="line 1: This world model has no text encoder"):
        evaluate(**given)
    assert len(evaluate(**given, arms="fused-0").answers["fused-0"]) == 3  # nothing is imagined
    monkeypatch.setattr(world, "check_takes_prompts", lambda: None)
    plain = model.runner.imagine
    monkeypatch.setattr(model.runner, "imagine", imagine)
    evaluate(**given, output=tmp_path / "run")
    assert asked[:2] == [(0, None), (1, ["it falls", "", "it stays"])]


def test_a_clip_for_a_model_of_images_names_its_row(model: TheWorld, file: Path) -> None:
    clip = {"video": "clip", "now": 8, "past": 4, "fps": 16}
    file.with_name("clip.jsonl").write_text(json.dumps({**clip, "text": "Which?", "label": "left"}) + "\n")
    row = {"id": "a", **clip, "question": "Which?", "choices": ["left", "right"], "answer": "A"}
    file.with_name("rows.jsonl").write_text(json.dumps(row) + "\n")
    for benchmark, name, where in (("jsonl", "clip.jsonl", "line 1"), ("mcq", "rows.jsonl", "a")):
        given: dict[str, Any] = {"benchmark": benchmark, "data": file.with_name(name), "max_new_tokens": 1}
        with pytest.raises(ValueError, match=f"{where}: Got a video of 5 frames, and this model reads images only"):
            evaluate(model, **given)
        evaluate(model, **given, arms="no-world")  # which shows the frame that is now
    collator = ChatCollator(model.processor, BatchSampling())
    with pytest.raises(ValueError, match=r"clip\.jsonl line 1: Got a video of 5 frames"):
        collator([IndexedSample(0, JsonlDataset(file.with_name("clip.jsonl"))[0])])


def test_the_command_names_the_file_once(file: Path, family: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["eval", "jsonl", str(file), "--data", str(file), "--model", str(family / "fused")])
    assert run.exit_code != 0
    flags = ["--model", str(family / "fused"), "--arms", "no-world", "--max-new-tokens", "2", "--device", "cpu"]
    run = CliRunner().invoke(app, ["eval", "jsonl", str(file), *flags, "--json", str(tmp_path / "r.json")])
    assert run.exit_code == 0, run.output
    assert "perplexity" in run.stdout
    lines = [json.loads(line) for line in (tmp_path / "r.predictions.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == ["left", "yes", "No.<eos>", "right", "middle", "no"]


def test_a_benchmark_of_letters_says_that_a_model_learned_words(file: Path, family: Path, tmp_path: Path) -> None:
    """What training wrote next to the model names its data; labels that are letters fit."""
    row = {"image": "0.png", "question": "Which?", "choices": ["left", "right"], "answer": "A"}
    questions = file.with_name("questions.jsonl")
    questions.write_text(json.dumps(row) + "\n")
    model = tmp_path / "model"
    shutil.copytree(family / "fused", model)
    settings = {"dataset_name": "jsonl", "train_dataset_path": str(file), "do_eval": False}

    def warnings(**changes: Any) -> list[str]:
        (model / TRAINING_CONFIG).write_text(json.dumps({**settings, **changes}))
        return evaluate(model, "mcq", data=questions, arms="no-world", max_new_tokens=1, device="cpu").warnings

    (warning,) = [text for text in warnings() if "letter" in text]
    assert f"`theworld eval jsonl {file}` with this model asks as in training" in warning
    letters = file.with_name("letters.jsonl")
    letters.write_text(json.dumps({"text": "Which?", "label": "(B)"}) + "\n")
    for fits in ({"train_dataset_path": str(letters)}, {"dataset_name": "physics"}):
        (model / TRAINING_CONFIG).write_text(json.dumps({**settings, **fits}))
        assert note_on_format(str(model), "mcq", True) is None
    (model / TRAINING_CONFIG).write_text(json.dumps({**settings, "do_eval": True, "eval_dataset_path": "held.jsonl"}))
    assert "eval jsonl held.jsonl" in (note_on_format(str(model), "mcq", True) or "")
    assert note_on_format(str(model), "jsonl", False) is None
    assert TRAINING_CONFIG == CONFIG_FILE


def test_names_of_control_tokens_do_not_end_a_run(file: Path, model: TheWorld) -> None:
    row = {"image": "0.png", "question": "What does <bos> or <image_soft_token> mean?", "answer": "A"}
    questions = file.with_name("control.jsonl")
    questions.write_text(json.dumps({**row, "choices": ["<end_of_turn>", "<start_of_image>"]}) + "\n")
    results = evaluate(model, "mcq", data=questions, arms="fused,no-world", num_world_steps=1, max_new_tokens=2)
    assert len(results.answers["fused"]) == 1
