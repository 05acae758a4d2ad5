"""A video as what has been seen so far: from its frames to the answer, to the rollout and to the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from tests.media.motion import TIMES, animated, film, lossless, write_frames
from tests.prompts import embeds_of, kinds_of, runs_of
from tests.tiny import TINY_SIZE, tiny_bases
from tests.world_models.tiny import tiny_frames
from theworld import TheWorld
from theworld.cli import app
from theworld.media.export import save_rollout
from theworld.media.images import to_pixels
from theworld.media.video import Video, load_video
from theworld.model.processing import TheWorldProcessor, content_seed

QUESTION = "Which bin will the ball land in?"
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}
PAST = 2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


def build(bases: dict[str, str], **arguments: Any) -> TheWorld:
    values = {"num_world_steps": 1, "max_world_steps": 3, "max_past_steps": PAST, "world_image_size": TINY_SIZE}
    values |= {"device": "cpu", **arguments}
    return TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], **values)


@pytest.fixture(scope="module")
def model(bases: dict[str, str]) -> TheWorld:
    """A model whose moments differ, as those of a trained one would."""
    built = build(bases)
    with torch.no_grad():
        built.model.projector.temporal.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return built


def clip_of(num_frames: int = 9, seed: int = 0) -> np.ndarray:
    """Smooth random frames, uint8 (F, S, S, 3)."""
    return to_pixels(tiny_frames(1, num_frames, seed))[0]


def reading(inputs: Any) -> dict[str, Any]:
    """Model inputs without what the world model was to encode."""
    return {name: value for name, value in inputs.items() if not name.startswith(("world_", "num_world"))}


# -- what is read of a video ------------------------------------------------------------------------------------------


def test_time_is_counted_from_now(model: TheWorld) -> None:
    """T = P + 1 + N; Gemma sees now, the world model the last 1 + 4·P frames, and each moment costs the same."""
    clip = clip_of(9)
    inputs = model.prepare(video=clip, question=QUESTION, num_world_steps=3)
    still = model.prepare(clip[-1], QUESTION, num_world_steps=3)
    assert torch.equal(inputs["pixel_values"], still["pixel_values"])
    np.testing.assert_array_equal(to_pixels(inputs["world_frames"])[0], clip)
    (row,) = inputs["input_ids"]
    assert kinds_of(model, row) == ".p.w."
    (world,) = runs_of(row, model.config.world_token_id)
    assert len(world) == (PAST + 1 + 3) * 16 + 2 == model.config.world_token_count(3, PAST)
    assert inputs["world_seeds"].tolist() == [content_seed(clip)] != still["world_seeds"].tolist()
    tokens = model.model.world_tokens(**{k: v for k, v in inputs.items() if k.startswith(("world", "num_world"))})
    latents = model.imagine(video=clip, num_world_steps=3)
    assert latents.shape == (1, 4, PAST + 1 + 3, 4, 4)
    torch.testing.assert_close(tokens, model.model.projector(latents, PAST))
    assert not torch.allclose(
        tokens[:, : -2 * 16], model.model.projector(latents[:, :, :-2], 0)
    ), "not as if all were now"


@pytest.mark.parametrize(("num_frames", "read"), [(5, 5), (6, 5), (8, 5), (9, 9), (12, 9), (30, 9)])
def test_the_last_frames_are_read_and_earlier_ones_change_nothing(model: TheWorld, num_frames: int, read: int) -> None:
    clip = clip_of(num_frames)
    inputs, cut = (model.prepare(video=frames, question=QUESTION) for frames in (clip, clip[-read:]))
    for name in inputs:
        assert torch.equal(inputs[name], cut[name]), name
    assert inputs["world_frames"].shape[2] == read
    np.testing.assert_array_equal(model.seen(clip), clip[-read:])


def test_a_video_of_one_frame_is_that_image_to_the_last_bit(model: TheWorld) -> None:
    image = clip_of(1)[0]
    inputs, still = model.prepare(video=[image], question=QUESTION), model.prepare(image, QUESTION)
    assert set(inputs) == set(still)
    for name in still:
        assert torch.equal(inputs[name], still[name]), name
    with torch.no_grad():
        assert torch.equal(model.model(**inputs).logits, model.model(**still).logits)
    assert torch.equal(model.imagine(video=[image]), model.imagine(image))
    second = model.prepare([image, load_video([image])], QUESTION)  # no past that would stay unread
    assert torch.equal(second["pixel_values"], model.prepare([image, image], QUESTION)["pixel_values"])


def test_rows_for_a_past_leave_images_as_they_were(bases: dict[str, str]) -> None:
    """Models with and without them give the same bits for an image."""
    image = clip_of(1)[0]
    plain, deeper = build(bases, max_past_steps=0), build(bases)
    inputs = plain.prepare(image, QUESTION)
    with torch.no_grad():
        assert torch.equal(plain.model(**inputs).logits, deeper.model(**deeper.prepare(image, QUESTION)).logits)
    assert plain.model.adapter_tensors().keys() == deeper.model.adapter_tensors().keys()
    assert plain.model.projector.temporal.shape[0] == 1 + 3


# -- what it does -----------------------------------------------------------------------------------------------------


def test_what_was_seen_is_kept_to_the_last_bit(model: TheWorld) -> None:
    clip = clip_of()
    seen = model.encode(list(clip))
    assert seen.shape[2] == PAST + 1
    assert torch.equal(model.imagine(video=clip, num_world_steps=0), seen)
    imagined = model.imagine(video=clip, num_world_steps=2)
    assert torch.equal(imagined[:, :, : PAST + 1], seen)
    assert imagined[:, :, PAST + 1 :].std() > 0.1


def test_the_order_of_the_past_matters(model: TheWorld) -> None:
    """The same now after the same images in another order: other latents, another future, other logits."""
    clip = clip_of()
    backwards = np.concatenate([clip[-2::-1], clip[-1:]])
    same_noise = [
        model.model.world_latents_of(model.prepare(video=frames, question=QUESTION)["world_frames"], 1, [0])
        for frames in (clip, backwards)
    ]
    moved = (same_noise[0] - same_noise[1]).abs().amax(dim=(0, 1, 3, 4))
    assert (
        moved > 1e-3
    ).all(), "each past moment, now, which the encoder folds with the frames before it, and the future"
    inputs = reading(model.prepare(video=clip, question=QUESTION))
    with torch.no_grad():
        logits = [model.model(**inputs, world_latents=own, num_past_steps=PAST).logits[:, -1] for own in same_noise]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_the_past_changes_the_future_and_the_answer(model: TheWorld) -> None:
    clip = clip_of()
    with torch.no_grad():
        moving = model.forward(video=clip, text=QUESTION).logits[:, -1]
        resting = model.forward(video=[clip[-1]] * 9, text=QUESTION).logits[:, -1]
    assert (moving - resting).abs().max() > 1e-3


def test_the_projector_hears_when_each_moment_is(model: TheWorld) -> None:
    """The same latents with another number of past steps give another answer."""
    inputs = reading(model.prepare(video=clip_of(), question=QUESTION))
    latents = model.imagine(video=clip_of())
    with torch.no_grad():
        logits = [
            model.model(**inputs, world_latents=latents, num_past_steps=past).logits[:, -1]
            for past in (PAST, torch.tensor([PAST]), PAST - 1)
        ]
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 1e-4


def test_a_batch_of_videos_is_its_members(model: TheWorld) -> None:
    clips, questions = [clip_of(seed=0), clip_of(12, seed=1)], [QUESTION, "yes"]
    together = model.prepare(video=clips, question=questions)
    assert together["world_frames"].shape == (2, 3, 9, TINY_SIZE, TINY_SIZE)
    with torch.no_grad():
        logits = model.model(**together).logits[:, -1]
        for row in range(2):
            alone = model.forward(video=clips[row], text=questions[row]).logits[0, -1]
            torch.testing.assert_close(logits[row], alone, **CLOSE)
    answers = [
        model.generate(video=c, question=q, max_new_tokens=4, mode="tokens")
        for c, q in zip(clips, questions, strict=True)
    ]
    assert model.generate(video=clips, question=questions, max_new_tokens=4, mode="tokens") == answers
    latents = torch.cat([model.imagine(video=clip) for clip in clips])
    given = model.generate(video=clips, question=questions, max_new_tokens=4, mode="tokens", world_latents=latents)
    assert given == answers
    assert (
        "".join(model.stream(video=clips[0], question=QUESTION, max_new_tokens=4, mode="tokens")).strip() == answers[0]
    )


def test_two_videos_in_one_question(model: TheWorld) -> None:
    videos = [load_video(clip_of(seed=0)), load_video(clip_of(seed=1))]
    inputs = model.prepare(videos, QUESTION, world_images="all")
    assert kinds_of(model, inputs["input_ids"][0]) == ".p.w.p.w."
    other = model.prepare([videos[0], load_video(clip_of(seed=2))], QUESTION, world_images="all")
    moved = (embeds_of(model, **inputs) - embeds_of(model, **other))[0].abs().amax(dim=1) > 1e-5
    worlds = runs_of(inputs["input_ids"][0], model.config.world_token_id)
    assert not moved[worlds[0]].any()
    assert moved[worlds[1]].sum() == len(worlds[1]) - 2  # boundaries are the same for every video
    assert model.imagine(videos).shape[0] == 2


def test_learning_reaches_the_rows_of_the_moments_that_were_there(bases: dict[str, str]) -> None:
    model = build(bases)
    model.forward(video=clip_of(5), text=QUESTION, labels="left", num_world_steps=1).loss.backward()
    reached = model.model.projector.temporal.grad.abs().amax(dim=1) > 0
    assert reached.tolist() == [False, True, True, True, False, False]  # -2 | -1, now, +1 | +2, +3


def test_a_model_that_reads_videos_is_saved_and_loaded(bases: dict[str, str], model: TheWorld, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "reader")
    answer = model.generate(video=clip_of(), question=QUESTION, max_new_tokens=5, mode="tokens")
    loaded = TheWorld.from_pretrained(tmp_path / "reader", device="cpu")
    assert loaded.config.max_past_steps == PAST
    assert loaded.generate(video=clip_of(), question=QUESTION, max_new_tokens=5) == answer
    plain = build(bases, max_past_steps=0)
    plain.save_checkpoint(tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"projector\.temporal is \(4, 32\) there and \(6, 32\) here"):
        loaded.load_checkpoint(tmp_path / "plain.pt")


def test_the_transformers_way(model: TheWorld, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path, dtype=torch.float32, world_parts=("encoder", "transformer")
    )
    content = [{"type": "image", "image": load_video(clip_of())}, {"type": "text", "text": QUESTION}]
    arguments = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **arguments)
    output = loaded.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(output, skip_special_tokens=True).strip()
    assert text == model.generate(video=clip_of(), question=QUESTION, max_new_tokens=5, mode="tokens")
    content[0] = {"type": "video", "video": clip_of()}
    with pytest.raises(ValueError, match="takes videos in `images`"):
        processor.apply_chat_template([{"role": "user", "content": content}], **arguments)


# -- frames mode ------------------------------------------------------------------------------------------------------


def test_the_past_is_shown_as_seen_and_the_future_as_imagined(model: TheWorld) -> None:
    clip = clip_of()
    words = "Pictures 1 to 2 show what was there before, in order of time. Picture 3 shows what is there now."
    for steps, shown, more in (
        (0, [clip[0], clip[4], clip[8]], ""),
        (1, [clip[0], clip[4], clip[8]], " Picture 4 shows what is imagined to happen next, in order of time."),
    ):
        if steps:
            frames = model.decode(model.imagine(video=clip, num_world_steps=1))[0]
            assert len(frames) == 13
            shown = [*shown, frames[12]]
        answer = model.generate(video=clip, question=QUESTION, max_new_tokens=5, num_world_steps=steps, mode="frames")
        assert answer == model.generate(shown, f"{words}{more}\n\n{QUESTION}", 5, enable_world=False)


def test_with_the_world_off_now_is_all_there_is(model: TheWorld) -> None:
    clip = clip_of()
    inputs = model.prepare(video=clip, question=QUESTION, enable_world=False)
    still = model.prepare(clip[-1], QUESTION, enable_world=False)
    assert set(inputs) == set(still)
    assert all(torch.equal(inputs[name], still[name]) for name in still)


def test_an_untrained_model_shows_frames_by_itself(bases: dict[str, str]) -> None:
    fresh = build(bases)
    assert fresh.plan(None, 0).mode == "off"
    assert fresh.plan(None, 0, num_past_steps=1).mode == "frames"
    asked: list[int] = []
    process = TheWorldProcessor.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TheWorldProcessor,
            "__call__",
            lambda self, **arguments: asked.append(len(arguments["images"][0])) or process(self, **arguments),
        )
        fresh.generate(video=clip_of(), question=QUESTION, max_new_tokens=2, num_world_steps=0)
    assert asked == [3]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"image": clip_of(1)[0], "video": clip_of()}, "image and video were both given"),
        ({"video": clip_of(3)}, "A video of 3 frames is too short to have a past"),
        ({"video": np.zeros((140_000, 1, 1, 3), np.uint8)}, "more than 131,072 frames"),
        ({"video": "nowhere.mp4"}, "no file 'nowhere.mp4'"),
        ({"video": b"not a video"}, "is not a video that can be read"),
        ({"video": torch.full((5, 3, 4, 4), -0.5)}, r"\(x \+ 1\) / 2"),
        ({"video": torch.zeros(5, 3, 4, 4, dtype=torch.int32)}, "uint8 in 0..255 or float"),
        ({"video": [clip_of()], "question": ["a", "b"]}, "Got 1 video for 2 questions"),
        ({"video": "clip.mp4", "question": ["a", "b"]}, "Got 1 video for 2 questions"),
        (
            {"video": [clip_of(5), clip_of(9)], "question": ["a", "b"]},
            "have 5 and 9 frames to read .* group your questions",
        ),
        ({"image": [clip_of(1)[0], load_video(clip_of())], "world_images": "all"}, "have 1 and 9 frames to read"),
        ({"image": [clip_of(1)[0], load_video(clip_of())]}, "Image 2 of a question is a video"),
        ({"image": load_video(clip_of(9), keep=5)}, r"5 of its 9 were kept: load it with load_video\(…, keep=9\)"),
        ({"video": clip_of(), "question": None}, "question is missing"),
    ],
)
def test_videos_that_could_not_be_read_as_a_past(model: TheWorld, call: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        model.generate(**{"question": QUESTION, **call})
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_a_model_without_a_past_reads_no_video(bases: dict[str, str]) -> None:
    plain = build(bases, max_past_steps=0)
    for call in (
        lambda: plain.generate(video=clip_of(), question=QUESTION),
        lambda: plain.imagine(video=clip_of()),
        lambda: plain.seen(clip_of()),
    ):
        with pytest.raises(ValueError, match="reads images only; give its last frame as an image"):
            call()


def test_latents_and_frames_that_contradict_the_past_are_refused(model: TheWorld) -> None:
    inputs = model.prepare(video=clip_of(), question=QUESTION)
    with pytest.raises(ValueError, match="num_past_steps does not match world_frames, which have 2 past steps"):
        model.model(**inputs, num_past_steps=1)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        model.model(**reading(inputs), world_latents=torch.zeros(2, 4, 4, 4, 4), num_past_steps=torch.tensor([1, 2]))


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: TheWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads videos, a film, its frames as images, and things that are none."""
    folder = tmp_path_factory.mktemp("videos")
    model.save_pretrained(folder / "reader")
    clip = clip_of(11)
    save_rollout(clip, folder / "clip.gif", scale=1, hold=0)
    save_rollout(clip, folder / "clip.mp4", scale=1, hold=0)
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / f"{number:02}.png")
    (folder / "broken.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:300])
    return folder


def run(folder: Path, *arguments: object) -> tuple[int, str, str]:
    words = [*map(str, arguments), "--model", str(folder / "reader"), "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout, done.stderr


def test_ask_takes_a_video_and_frames(model: TheWorld, folder: Path) -> None:
    def answer(video: Any) -> str:
        arguments = {"question": QUESTION, "max_new_tokens": 5, "num_world_steps": 1, "mode": "tokens"}
        return str(model.generate(video=video, **arguments))

    short = ("--max-new-tokens", 5, "--steps", 1)
    images = sorted(folder.glob("[0-9]*.png"))
    code, out, err = run(folder, "ask", "--frames", *images, QUESTION, *short)
    assert (code, out.strip()) == (0, answer(clip_of(11))), err
    assert "Video: the last 9 of its 11 frames are read; the last one is the present." in err
    assert "Frames are counted at 16 per second, so that these are 0.5 s." in err
    assert "reads world tokens of 2 past world steps, the present and 1 imagined world step." in err
    assert "A world step is 0.25 s." in err
    assert out.strip() != model.generate(images[-1], QUESTION, 5, num_world_steps=1, mode="tokens")
    video = folder / "clip.mp4"
    code, out, err = run(folder, "ask", QUESTION, "--video", video, *short, "--json")
    content = json.loads(out)
    assert (content["images"], content["num_past_steps"], content["video"]) == ([], 2, str(video))
    assert content["answer"] == answer(video)


@pytest.mark.parametrize("form", ["32.mov", "48.mov", "16.gif", "16.webp", "--frames"])
def test_the_same_motion_at_every_rate_is_the_same_past(model: TheWorld, form: str, folder: Path) -> None:
    """In Python, in `ask` and in `imagine`, whose seed depends on every pixel that is read."""
    rates = folder / "rates"
    if not rates.exists():
        write_frames(rates, film(TIMES["48 fps"]))
        for fps in (16, 32, 48):
            (folder / f"{fps}.mov").write_bytes(lossless(f"{fps} fps"))
        (folder / "16.gif").write_bytes(animated(16, "GIF"))
        (folder / "16.webp").write_bytes(animated(16, "WEBP"))
    words: list[Any] = ["--video", folder / form]
    video: Any = folder / form
    if form == "--frames":
        paths = [rates / f"{number}.png" for number in range(73)]
        words, video = [*paths, "--frames", "--video-fps", 48], Video(paths, fps=48)
    known = model.prepare(video=folder / "16.mov", question=QUESTION)
    assert known["world_frames"].shape[2] == 9
    for given in (video, load_video(video)):
        inputs = model.prepare(video=given, question=QUESTION)
        assert all(torch.equal(inputs[name], known[name]) for name in known)
    assert torch.equal(model.imagine(video=video), model.imagine(video=folder / "16.mov"))
    contents = []
    for options in (words, ["--video", folder / "16.mov"]):
        command = ("--steps", 1, "--json")
        code, out, err = run(
            folder,
            "ask",
            *[w for w in options if w != "--frames"],
            QUESTION,
            *command,
            *(["--frames"] if "--frames" in options else []),
            "--max-new-tokens",
            3,
        )
        assert code == 0, err
        contents.append(json.loads(out))
        assert run(folder, "imagine", *options, "-o", folder / "strip.png", *command)[0] == 0
        contents[-1]["strip"] = (folder / "strip.png").read_bytes()
    for key in ("answer", "num_past_steps", "strip"):
        assert contents[0][key] == contents[1][key], key
    assert contents[0]["seconds_per_world_step"] == 0.25


def test_a_rate_without_a_video(folder: Path) -> None:
    code, _, err = run(folder, "ask", folder / "00.png", QUESTION, "--video-fps", 30)
    assert (code, "--video-fps is the rate of a video, and there is none: add" in err) == (1, True)
    code, _, err = run(folder, "ask", QUESTION, "--video", folder / "clip.gif", "--video-fps", 0)
    assert (code, "fps is 0.0: give the frames per second of the video" in err) == (1, True)


def test_ask_shows_a_video_as_frames_or_its_last_one_alone(model: TheWorld, folder: Path) -> None:
    command = ("ask", QUESTION, "--video", folder / "clip.gif", "--max-new-tokens", 5, "--steps", 1)
    _, _, err = run(folder, *command, "--mode", "frames")
    assert "sees 2 past frames and 1 imagined frame as further images." in " ".join(err.split())
    _, out, err = run(folder, *command, "--no-world")
    assert "Video: only the last of its 11 frames is read." in err
    assert out.strip() == model.generate(load_video(folder / "clip.gif").now, QUESTION, 5, enable_world=False)


def test_imagine_shows_the_past_as_seen_and_the_future_as_imagined(
    model: TheWorld, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "future.gif"
    code, out, err = run(folder, "imagine", "--video", folder / "clip.gif", "-o", output, "--steps", 1, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert (content["frames"], content["past_frames"], content["num_world_steps"]) == (13, 8, 1)
    written = load_video(output)
    assert written.num_frames == 13
    scale = written.now.width // TINY_SIZE
    seen = np.stack([np.asarray(frame)[: TINY_SIZE * scale : scale, ::scale] for frame in written.frames])
    own = np.stack([np.asarray(frame) for frame in load_video(folder / "clip.gif").frames])[-9:]
    assert np.abs(seen[:9].astype(int) - own).mean() < 3, "as seen, not as the decoder gives it back"
    decoded = model.decode(model.imagine(video=folder / "clip.gif", num_world_steps=1))[0]
    assert np.abs(seen[9:].astype(int) - decoded[9:]).mean() < 8  # in the 256 colours of a GIF
    assert np.abs(decoded[:9].astype(int) - own).mean() > 16, "an untrained decoder would be seen"
    assert written.now.height > TINY_SIZE * scale, "a label stands below each"
    frames = sorted(folder.glob("[0-9]*.png"))
    code, out, err = run(folder, "imagine", *frames, "--frames", "-o", tmp_path / "strip.png", "--steps", 1)
    assert (code, out.strip()) == (0, str(tmp_path / "strip.png"))
    assert "the last 9 of its 11 frames are read" in err
    assert "Imagined 1 world step, 0.25 s each" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("00.png", QUESTION, "--video", "clip.gif"), "Images and --video were both given; give one"),
        ((QUESTION, "--video", "clip.gif", "--frames"), "both given"),
        ((QUESTION, "--video", "nowhere.mp4"), "There is no file"),
        ((QUESTION, "--video", "broken.mp4"), "damaged or cut short"),
        (("00.png", "01.png", QUESTION, "--frames"), "A video of 2 frames is too short to have a past"),
        (
            ("clip.mp4", QUESTION),
            "is a video and was passed as an image: pass it as the video, with --video.",
        ),
    ],
)
def test_ask_says_what_is_wrong_with_a_video_before_it_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were loaded first")

    monkeypatch.setattr(TheWorld, "from_pretrained", load)
    monkeypatch.chdir(folder)
    code, out, err = run(folder, "ask", *words)
    assert (code, out) == (1, "")
    (line,) = err.strip().splitlines()
    assert says in line
    assert line.endswith(".")


@pytest.mark.parametrize("rate", ["1e9", "0", "-3", "nan"])
def test_a_rate_that_no_video_has(folder: Path, rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for command in (["ask", QUESTION], ["imagine", "-o", "strip.png"]):
        result = CliRunner().invoke(app, [*command, "--video", "clip.gif", "--video-fps", rate])
        assert result.exit_code == 1
        said = f"--video-fps: fps is {float(rate)!r}: give the frames per second of the video, a number above 0 and up"
        assert said in " ".join(result.stderr.split())


def test_a_fresh_fusion_reads_the_five_frames_that_cosmos_was_made_for(
    bases: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    world = shutil.copytree(bases["world_name_or_path"], tmp_path / "cosmos")
    config = json.loads((world / "transformer" / "config.json").read_text())
    config["max_size"] = [17, 28, 28]  # room for the images of 224 px of a fresh fusion
    (world / "transformer" / "config.json").write_text(json.dumps(config))
    words = ["ask", QUESTION, "--video", str(folder / "clip.gif"), "--steps", "1", "--max-new-tokens", "2", "--json"]
    words += ["--model", bases["vlm_name_or_path"], "--world-model", str(world), "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert (content["mode"], content["num_past_steps"], content["num_world_steps"]) == ("frames", 1, 1)


def test_imagine_says_what_is_wrong_with_a_video(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for words, says in (
        (("00.png", "01.png"), "Got 2 images for one future; give one image, or use --frames"),
        (("00.png", "--video", "clip.gif"), "both given"),
        (("--video", "broken.mp4"), "damaged or cut short"),
    ):
        code, out, err = run(folder, "imagine", *words, "-o", tmp_path / "future.gif")
        assert (code, out) == (1, "")
        assert says in err
    assert run(folder, "imagine", "-o", tmp_path / "future.gif")[0] == 2
    assert run(folder, "ask", "--video", "clip.gif")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_nano_reads_no_video_and_says_so(folder: Path, tmp_path: Path) -> None:
    for words in (("ask", QUESTION), ("imagine", "-o", str(tmp_path / "future.gif"))):
        done = CliRunner().invoke(app, [*words, "--video", str(folder / "clip.gif")])
        assert (done.exit_code, done.stdout) == (1, "")
        assert "Got a video of 11 frames, and this model reads images only" in done.stderr


@pytest.mark.parametrize("command", ["ask", "imagine"])
def test_help_tells_of_videos(command: str) -> None:
    said = CliRunner().invoke(app, [command, "--help"]).stdout
    assert "--video" in said
    assert "--frames" in said
