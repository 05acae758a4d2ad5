"""Claims about the pipeline: every call of the source document, on tiny base models in the published layout."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import TINY_SIZE, tiny_bases, tiny_gemma_folder
from theworld import TheWorld
from theworld.model.processing import TheWorldProcessor

QUESTION = "Which bin will the ball land in?"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def build(bases: dict[str, str], **arguments) -> TheWorld:
    values = {"num_world_steps": 2, "max_world_steps": 4, "world_image_size": TINY_SIZE, **arguments}
    return TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], **values)


@pytest.fixture(scope="module")
def model(bases: dict[str, str]) -> TheWorld:
    return build(bases)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (TINY_SIZE, TINY_SIZE, 3), dtype=np.uint8)


def test_every_form_of_an_image_gives_one_answer(model: TheWorld, tmp_path: Path) -> None:
    array = pixels()
    image = Image.fromarray(array)
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None]
    forms = [image, array, tensor, tensor.float() / 255, tmp_path / "image.png", str(tmp_path / "image.png")]
    forms.append((tmp_path / "image.png").read_bytes())
    answers = {model.generate(form, QUESTION, max_new_tokens=4) for form in forms}
    assert len(answers) == 1
    assert isinstance(answers.pop(), str)


def test_the_fast_path_reaches_the_world_model(bases: dict[str, str]) -> None:
    made = build(bases, fast_path="off")
    assert made.model.world is not None
    assert (made.model.fast_path, made.model.world.fast_path) == ("off", "off")
    with pytest.raises(ValueError, match="fast_path is on, but it needs an NVIDIA GPU, and the model is on cpu"):
        build(bases, fast_path="on", device="cpu")


def test_steps_at_run_time_override_the_models_own(model: TheWorld) -> None:
    short, long = model.forward(pixels(), QUESTION, num_world_steps=0), model.forward(pixels(), QUESTION)
    per_frame = model.config.world_tokens_per_frame()
    assert long.logits.shape[1] - short.logits.shape[1] == 2 * per_frame
    with pytest.raises(ValueError, match="num_world_steps is 5; this model takes 0 to 4"):
        model.generate(pixels(), QUESTION, num_world_steps=5)


def test_forward_loads_the_parts_that_it_needs(bases: dict[str, str], tmp_path: Path) -> None:
    """The source document's `model.forward(image, text, num_world_steps=8)` on a model made with 0 steps."""
    fresh = build(bases, num_world_steps=0)
    fresh.save_pretrained(tmp_path)
    for model in (fresh, TheWorld.from_pretrained(tmp_path)):
        assert model.model.world.parts == ("encoder",)
        for labels in ("yes", None):
            assert model.forward(pixels(), QUESTION, labels, num_world_steps=1).logits.isfinite().all()
        assert model.get_trainable_parameters()[0] == sum(p.numel() for p in model.model.projector.parameters())


def test_forward_loads_parts_for_more_steps(bases: dict[str, str]) -> None:
    """As in the source document: a model of 0 steps whose call asks for more."""
    model = build(bases, num_world_steps=0)
    assert model.model.world.parts == ("encoder",)
    longer = model.forward(pixels(), QUESTION, num_world_steps=2)
    assert torch.equal(longer.logits, build(bases, num_world_steps=2).forward(pixels(), QUESTION).logits)


def test_a_batch_answers_as_single_questions_do(model: TheWorld) -> None:
    questions, images = [QUESTION, "yes"], [pixels(0), pixels(1)]
    together = model.generate(images, questions, max_new_tokens=4)
    assert together == [model.generate(p, q, max_new_tokens=4) for p, q in zip(images, questions, strict=True)]
    with pytest.raises(ValueError, match="Got 1 image entry for 2 questions"):
        model.generate(images[:1], questions)


def test_the_stream_is_the_answer(model: TheWorld) -> None:
    assert "".join(model.stream(pixels(), QUESTION, max_new_tokens=6)).strip() == model.generate(
        pixels(), QUESTION, max_new_tokens=6
    )


def test_an_error_while_streaming_is_raised_in_the_reader(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(model.stream(pixels(), QUESTION))


def test_closing_the_stream_stops_the_generation(model: TheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Ctrl-C would wait for the rest of the answer."""
    written = []
    generate = model.model.generate

    def counting(**arguments: Any) -> torch.Tensor:
        ids = generate(**arguments, min_new_tokens=400)
        written.append(ids.shape[1] - arguments["input_ids"].shape[1])
        return ids

    monkeypatch.setattr(model.model, "generate", counting)
    pieces = model.stream(pixels(), QUESTION, max_new_tokens=400, temperature=1.0)
    next(pieces)
    pieces.close()
    assert 0 < written[0] < 400


@pytest.mark.parametrize(
    "token",
    [
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        "<world_soft_token>",
        "<end_of_turn>",
        "<bos>",
        "<eos>",
    ],
)
def test_the_name_of_a_control_token_is_encoded_as_words(model: TheWorld, token: str) -> None:
    """Prompt and answer have the ids of the words, and no more control tokens than without the name."""
    tokenizer = model.processor.tokenizer
    index = tokenizer.convert_tokens_to_ids(token)
    words = tokenizer(f" is {token} it?", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for image in (pixels(), None):
        plain = model.prepare(image, "Where is it?", num_world_steps=0)["input_ids"][0].tolist()
        ids = model.prepare(image, f"Where is {token} it?", num_world_steps=0)["input_ids"][0].tolist()
        assert ids.count(index) == plain.count(index)
        assert any(ids[at : at + len(words)] == words for at in range(len(ids)))
        model.generate(image, f"Where is {token} it?", 2, num_world_steps=0)
    inputs = model.prepare(pixels(), QUESTION, f"left{token}", num_world_steps=0)
    learned = inputs["labels"][0][inputs["labels"][0] != -100].tolist()
    answer = tokenizer(f"left{token}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert learned == [*answer, model.prompts.turns.end]


def test_invalid_text_is_refused(model: TheWorld) -> None:
    with pytest.raises(ValueError, match="is not valid UTF-8 text"):
        model.generate(pixels(), "Where is \udcff it?")


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0])
def test_an_invalid_temperature_is_refused(model: TheWorld, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature is"):
        model.generate(pixels(), QUESTION, temperature=temperature, num_world_steps=0)


def test_several_images_in_one_question(model: TheWorld) -> None:
    inputs = model.prepare([pixels(0), pixels(1)], QUESTION)
    assert inputs["pixel_values"].shape[0] == 2
    assert inputs["world_frames"].shape[0] == 1, "world_images='first' imagines the first image only"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda latents: latents.numpy(), r"have the type ndarray; pass a tensor \((1|n), 4, T, (4, 4|h, w)\)\."),
        (
            lambda latents: latents[:, :3],
            r"have (the )?shape \(1, 3, 3, 4, 4\); they must be \((1|n), 4, T, (4, 4|h, w)\)",
        ),
        (lambda latents: latents[0], r"have (the )?shape \(4, 3, 4, 4\)"),
        (lambda latents: latents.int(), r"are torch\.int32; they must be floats"),
    ],
)
def test_latents_that_are_none_are_refused(model: TheWorld, change: Callable[[Any], Any], words: str) -> None:
    latents = change(model.imagine(pixels(), 2))
    for mode in ("tokens", "frames"):
        with pytest.raises(ValueError, match=f"^world_latents {words}"):
            model.generate(pixels(), QUESTION, 5, world_latents=latents, mode=mode)
    with pytest.raises(ValueError, match=f"^world_latents {words}"):
        model.model.world_tokens(world_latents=latents)
    with pytest.raises(ValueError, match=f"^latents {words}"):
        model.decode(latents)


def test_latents_of_another_grid_or_number_of_images_are_refused(model: TheWorld) -> None:
    """Mode `frames` would show them, or only the first."""
    latents = model.imagine(pixels(), 2)
    for wrong in (latents[..., :2], latents.repeat(2, 1, 1, 1, 1)):
        with pytest.raises(
            ValueError, match=r"world_latents have the shape .* must be \(1, 4, T, 4, 4\), as `imagine`"
        ):
            model.generate(pixels(), QUESTION, 5, world_latents=wrong, mode="frames")


def test_imagined_latents_can_be_given_back(model: TheWorld) -> None:
    latents = model.imagine(pixels(), 2)
    assert latents.shape == (1, 4, 3, 4, 4)
    assert model.generate(pixels(), QUESTION, 5, world_latents=latents) == model.generate(pixels(), QUESTION, 5)
    assert not torch.equal(latents, model.imagine(pixels(), 2, seed=1))
    assert torch.equal(latents, model.imagine([pixels(1), pixels()], 2)[1:]) or torch.allclose(
        latents, model.imagine([pixels(1), pixels()], 2)[1:], atol=1e-5
    )
    frames = model.decode(latents)
    assert frames.shape == (1, 9, TINY_SIZE, TINY_SIZE, 3)
    assert frames.dtype == np.uint8


def test_labels_as_text_cover_exactly_the_answer(model: TheWorld) -> None:
    inputs = model.prepare([pixels(0), pixels(1)], [QUESTION, "yes"], ["left", "the right one"])
    learned = [row[row != -100] for row in inputs["labels"]]
    assert [model.processor.tokenizer.decode(ids) for ids in learned] == [
        "left<end_of_turn>",
        "the right one<end_of_turn>",
    ]
    with pytest.raises(ValueError, match="labels have shape"):
        model.forward(pixels(), QUESTION, labels=torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("switches", "parts"),
    [
        ({}, {"projector"}),
        ({"freeze_gemma_vision": False}, {"projector", "vision"}),
        ({"freeze_gemma_language": False}, {"projector", "language"}),
        ({"freeze_cosmos_vae": False}, {"projector", "vae_encoder"}),
    ],
)
def test_freeze_switches(bases: dict[str, str], switches: dict[str, bool], parts: set[str]) -> None:
    model = build(bases, **switches)
    assert {row.part for row in model.parameter_table() if row.trainable} == parts
    trainable, total, percent = model.get_trainable_parameters()
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total == sum(p.numel() for p in model.parameters())
    assert percent == pytest.approx(100 * trainable / total)


def test_save_and_load_checkpoint(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(bases)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.forward(pixels(), QUESTION, labels="left").loss.backward()
    optimizer.step()
    model.save_checkpoint(tmp_path / "my_checkpoint.pt", optimizer=optimizer, epoch=5)
    saved = {name: tensor.clone() for name, tensor in model.model.adapter_tensors().items()}
    model.forward(pixels(), QUESTION, labels="left").loss.backward()
    optimizer.step()
    info = model.load_checkpoint(tmp_path / "my_checkpoint.pt", optimizer=optimizer)
    assert info == {"epoch": 5, "step": None}
    for name, tensor in model.model.adapter_tensors().items():
        assert torch.equal(tensor, saved[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["my_checkpoint.pt"], "no unfinished file remains"


def steps_of(model: TheWorld, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    """Losses of training steps, each with another image."""
    losses = []
    for number in numbers:
        loss = model.forward(pixels(number), QUESTION, labels="left", num_world_steps=0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def optimizer_of(model: TheWorld) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.parametrize("arguments", [{"lora": 2}, {"projector": "resampler", "resampler_tokens": 3}])
def test_a_run_resumes_exactly_where_it_was_saved(
    bases: dict[str, str], tmp_path: Path, arguments: dict[str, object]
) -> None:
    model = build(bases, **arguments)
    optimizer = optimizer_of(model)
    steps_of(model, optimizer, range(2))
    model.save_checkpoint(tmp_path / "run.pt", optimizer, epoch=3, step=2)
    expected = steps_of(model, optimizer, range(2, 4))
    trained = {name: tensor.clone() for name, tensor in model.model.adapter_tensors().items()}
    with torch.no_grad():
        for tensor in model.model.adapter_tensors().values():
            tensor.normal_()
    again = optimizer_of(model)
    assert model.load_checkpoint(tmp_path / "run.pt", again) == {"epoch": 3, "step": 2}
    assert steps_of(model, again, range(2, 4)) == expected, "to the last bit"
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.model.adapter_tensors().items())

    # other memory addresses of the weights change the last bits of a sum
    fresh = build(bases, **arguments)
    optimizer = optimizer_of(fresh)
    fresh.load_checkpoint(tmp_path / "run.pt", optimizer)
    assert steps_of(fresh, optimizer, range(2, 4)) == pytest.approx(expected, abs=1e-5)
    fresh.load_checkpoint(tmp_path / "run.pt")
    assert steps_of(fresh, optimizer_of(fresh), range(2, 4))[1] != pytest.approx(expected[1], abs=1e-4), "state matters"


def test_a_checkpoint_of_another_base_is_refused(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(bases)
    optimizer = optimizer_of(model)
    steps_of(model, optimizer, range(1))
    model.save_checkpoint(tmp_path / "run.pt", optimizer)
    others = {
        "wider": tiny_gemma_folder(tmp_path / "wider", hidden_size=48),
        "same shape": tiny_gemma_folder(tmp_path / "same", seed=1),
    }
    messages = {
        "wider": r"projector\..* there and .* here",
        "same shape": "was saved with other base models: its frozen part",
    }
    for kind, folder in others.items():
        other = build({**bases, "vlm_name_or_path": str(folder)})
        before = {name: tensor.clone() for name, tensor in other.model.adapter_tensors().items()}
        with pytest.raises(ValueError, match=messages[kind]):
            other.load_checkpoint(tmp_path / "run.pt", optimizer_of(other))
        for name, tensor in other.model.adapter_tensors().items():
            assert torch.equal(tensor, before[name]), f"{name} changed although the checkpoint was refused"
    with_lora = build(bases, lora=2)
    with pytest.raises(ValueError, match=r"42 tensors missing \(vlm\.model\.language_model"):
        with_lora.load_checkpoint(tmp_path / "run.pt")
    half = build(bases).to(torch.bfloat16)
    half.load_checkpoint(tmp_path / "run.pt")  # the same base in another type is the same base


def test_another_optimiser_changes_nothing(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(bases)
    steps_of(model, optimizer := optimizer_of(model), range(1))
    model.save_checkpoint(tmp_path / "run.pt", optimizer)
    other = build(bases)
    before = {name: tensor.clone() for name, tensor in other.model.adapter_tensors().items()}
    with pytest.raises(ValueError, match=r"run\.pt has the state of another optimiser"):
        other.load_checkpoint(tmp_path / "run.pt", torch.optim.AdamW([other.model.projector.row]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.adapter_tensors().items())
    model.save_checkpoint(tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="has no optimiser state"):
        other.load_checkpoint(tmp_path / "bare.pt", optimizer_of(other))
    torch.save({"model": [1], "bases": {}, "optimizer": None, "epoch": 0, "step": 0}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="was not written by save_checkpoint"):
        other.load_checkpoint(tmp_path / "odd.pt")


def test_a_pickle_with_code_is_refused(model: TheWorld, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"model": Attack()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="contains more than tensors"):
        model.load_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "bad.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        model.load_checkpoint(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        model.load_checkpoint(tmp_path / "none.pt")


def test_from_pretrained_with_a_checkpoint_name(bases: dict[str, str], tmp_path: Path) -> None:
    model = build(bases)
    model.save_pretrained(tmp_path / "checkpoint-1000")
    folder = tmp_path / "checkpoint-1000"
    torch.save(dict(model.model.adapter_tensors()), folder / "pytorch_model.bin")
    for name in ("checkpoint-1000", "checkpoint-1000/pytorch_model.bin"):
        loaded = TheWorld.from_pretrained(tmp_path, checkpoint_name=name)
        assert loaded.generate(pixels(), QUESTION, 4) == model.generate(pixels(), QUESTION, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_model_that_was_saved_is_still_untrained(
    bases: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    """The loaded model gives the same answer and the same warning."""
    model = build(bases, dtype=dtype)
    before = model.generate(pixels(), QUESTION, 4)
    model.save_pretrained(tmp_path / "fresh")
    caplog.clear()
    loaded = TheWorld.from_pretrained(tmp_path / "fresh", dtype=dtype)
    assert loaded.generate(pixels(), QUESTION, 4) == before
    assert "untrained" in caplog.text
    assert not loaded.projector_is_trained
    loaded.train()
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=1.0)
    loaded.forward(pixels(), QUESTION, labels="left", num_world_steps=1).loss.backward()
    optimizer.step()
    loaded.save_pretrained(tmp_path / "learned")
    assert TheWorld.from_pretrained(tmp_path / "learned").projector_is_trained


def test_wrong_lists_of_questions(model: TheWorld) -> None:
    with pytest.raises(ValueError, match="The list of questions is empty"):
        model.generate([], [])
    with pytest.raises(ValueError, match="stream answers one question"):
        next(model.stream([pixels(), pixels()], [QUESTION, QUESTION]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (3, " has the type int"),
        (b"x", " has the type bytes"),
        (["Hi", 3], r"\[1\] has the type int"),
        ([b"x"], r"\[0\] has the type bytes"),
        ({"a": 1}, " has the type dict"),
    ],
)
def test_text_of_another_type_is_one_sentence(model: TheWorld, wrong: Any, says: str) -> None:
    image = pixels()
    calls = {
        "question": [
            lambda: model.generate(image, wrong),
            lambda: model.stream(image, wrong),
            lambda: model.prepare(image, wrong),
            lambda: model.forward(image, wrong),
        ],
        "answer": [lambda: model.prepare(image, QUESTION, wrong)],
        "labels": [lambda: model.forward(image, QUESTION, labels=wrong)],
        "world_prompt": [
            lambda: model.imagine(image, 1, world_prompt=wrong),
            lambda: model.generate(image, QUESTION, world_prompt=wrong),
        ],
        "text": [lambda: model.processor(images=image, text=wrong)],
    }
    for name, attempts in calls.items():
        for attempt in attempts:
            with pytest.raises(ValueError, match=f"^{name}{says}; pass a string, or a list of strings.$"):
                attempt()


def test_a_question_in_the_place_of_the_image_gets_a_hint(model: TheWorld, tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(path := tmp_path / "scene.png")
    for image in (Image.fromarray(pixels()), pixels(), torch.zeros(3, 8, 8), path, str(path), [path]):
        for call in (model.generate, model.stream, model.prepare, model.forward):
            with pytest.raises(ValueError, match=r"image is .*What.* and question is an image; pass the image first"):
                call(["What?"] if isinstance(image, list) else "What?", image)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="There is no file 'scene'"):
        model.generate("scene", "What?")


@pytest.mark.parametrize(
    "turn",
    [3, {"role": "user"}]
    + [
        {"role": "user", "content": content} for content in (3, b"x", None, ["a"], [{"text": "a"}], [{"type": "sound"}])
    ],
)
def test_a_chat_with_other_content_is_one_sentence(model: TheWorld, turn: Any) -> None:
    """transformers would leave such content out of the prompt, or fail with a traceback."""
    for chats in ([turn], [[turn]]):
        with pytest.raises(ValueError, match=r"A chat has the turn .*; each turn is {'role': …, 'content': …}"):
            model.processor.apply_chat_template(chats)


def test_a_clip_is_any_form_of_frames(model: TheWorld) -> None:
    frames = [pixels(seed) for seed in range(5)]
    expected = model.encode(frames)
    assert expected.shape[2] == 2
    for clip in (tuple(frames), np.stack(frames)):
        assert torch.equal(model.encode(clip), expected)  # type: ignore[arg-type]
    for wrong in (3, None, {"a": 1}):
        with pytest.raises(ValueError, match="Expected an image, got"):
            model.encode(wrong)  # type: ignore[arg-type]


def test_an_untrained_projector_is_reported_once(bases: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    model = build(bases)
    for _ in range(2):
        model.generate(pixels(), QUESTION, 2, mode="tokens")
    assert sum("untrained" in record.message for record in caplog.records) == 1
    model.generate(pixels(), QUESTION, 2, enable_world=False)


def test_without_training_the_future_is_shown_as_images(bases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One image per world step, its last frame, after the current image; the prompt introduces them."""
    model = build(bases)
    asked: dict[str, Any] = {}
    process = TheWorldProcessor.__call__

    def spy(self: TheWorldProcessor, **arguments: Any) -> Any:
        asked.update(arguments)
        return process(self, **arguments)

    monkeypatch.setattr(TheWorldProcessor, "__call__", spy)
    answer = model.generate(pixels(), QUESTION, 4, num_world_steps=2, seed=3)
    frames = model.decode(model.imagine(pixels(), 2, seed=3))[0]
    (shown,), (prompt,) = asked["images"], asked["text"]
    assert len(shown) == 3
    for image, expected in zip(shown, (pixels(), frames[4], frames[8]), strict=True):
        assert np.array_equal(np.asarray(image), expected)
    question = (
        "Picture 1 shows what is there now. Pictures 2 to 3 show what is imagined to happen next, in order of time."
        f"\n\n{QUESTION}"
    )
    assert question in prompt
    assert asked["enable_world"] is False
    assert answer == model.generate(
        [pixels(), frames[4], frames[8]], question, 4, enable_world=False
    ), "the frames are ordinary images to Gemma"
    assert answer == model.generate(pixels(), QUESTION, 4, mode="frames", seed=3, num_world_steps=2)
    batch = model.generate([pixels(), pixels(1)], [QUESTION, QUESTION], 4, num_world_steps=2, seed=3)
    assert batch[0] == answer
    latents = model.imagine(pixels(), 2, seed=3)
    assert answer == "".join(model.stream(pixels(), QUESTION, 4, mode="frames", world_latents=latents)).strip()
    model.generate(pixels(), QUESTION, 4, num_world_steps=0)
    assert [len(own) for own in asked["images"]] == [1], "nothing imagined: the image alone"
    assert asked["enable_world"] is False


def test_a_gif_is_read_as_its_first_frame(model: TheWorld) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(0)).save(file, "PNG")
    assert model.imagine(file.getvalue(), 0).shape == (1, 4, 1, 4, 4)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"torch_dtype": torch.float16}, "takes no 'torch_dtype'; did you mean 'dtype'"),
        ({"cosmos_model": "x"}, "takes no 'cosmos_model'; did you mean 'cosmos_model_name'"),
        ({"low_cpu_mem_usage": True}, "takes no 'low_cpu_mem_usage'"),
        ({"dtype": "bf17"}, "dtype is 'bf17'; choose one of bfloat16"),
        ({"dtype": torch.int8}, "dtype is torch.int8; choose one of"),
        ({"device": "gpu"}, "device gpu is not a device; use cpu, cuda"),
        ({"device": "cuda:99"}, "torch can use [0-9]+ GPUs on this machine"),
    ],
)
def test_a_wrong_keyword_fails_before_anything_is_downloaded(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TheWorld("someone/gemma", **wrong)  # type: ignore[arg-type]


def test_a_wrong_keyword_of_from_pretrained_gets_a_suggestion() -> None:
    for name, close in {"devcie": "device", "revison": "revision", "torch_dtype": "dtype"}.items():
        with pytest.raises(ValueError, match=f"TheWorld.from_pretrained takes no '{name}'; did you mean '{close}'"):
            TheWorld.from_pretrained("someone/model", **{name: "cpu"})  # type: ignore[arg-type]
    for name in ("lora", "max_world_steps"):  # silently ignoring it would give another model than was asked for
        with pytest.raises(ValueError, match=f"nano is already configured, so {name} cannot be changed any more"):
            TheWorld.from_pretrained("nano", **{name: 4})


def test_a_dtype_can_be_given_by_name(bases: dict[str, str]) -> None:
    assert build(bases, dtype="bf16").model.dtype == torch.bfloat16
