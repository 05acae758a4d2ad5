"""The page without a browser: what is refused, what is escaped, and what a model with prompts and videos gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.serving.conftest import folder, model  # noqa: F401 - fixtures
from theworld import TheWorld
from theworld.cli import app
from theworld.demo import rendering
from theworld.demo.comparison import Asked, Compared, compare, seen, split_options
from theworld.demo.page import Page
from theworld.demo.scenes import scenes
from theworld.demo.server import server_of
from theworld.inference.futures import FutureAnswers
from theworld.media.export import save_rollout
from theworld.media.limits import MediaLimits
from theworld.serving.listening import listen, run

QUESTION = "Which bin will the ball land in?"


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def url(model: TheWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    listening = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = server_of(Page(model, "tiny"), "127.0.0.1", tmp_path, ready.set)
    thread = threading.Thread(target=run, args=(server, listening))
    thread.start()
    assert ready.wait(60)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def last(model: TheWorld, asked: Asked) -> Compared:  # noqa: F811
    return list(compare(model, asked, MediaLimits()))[-1]


def test_answers_are_those_of_the_library(model: TheWorld, image: str) -> None:  # noqa: F811
    found = last(
        model, Asked(image, QUESTION, ("left", "right"), num_world_steps=2, futures=2, seed=5, max_new_tokens=2)
    )
    assert found.present == model.ask(image, QUESTION, 2, num_world_steps=0, options=["left", "right"])
    expected = model.ask(image, QUESTION, 2, num_world_steps=2, futures=2, seed=5, options=["left", "right"])
    assert found.imagined == expected
    assert found.clips is not None
    assert expected.latents is not None
    np.testing.assert_array_equal(found.clips, model.decode(expected.latents))


def test_a_video_begins_with_its_own_frames(model: TheWorld, tmp_path: Path) -> None:  # noqa: F811
    path = save_rollout(
        np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8), tmp_path / "a.gif", 16, hold=0
    )
    video = model.config.read_video(MediaLimits().image_or_video(path.read_bytes(), lambda video: video))
    found = last(model, Asked(str(path), QUESTION, num_world_steps=1, futures=2, max_new_tokens=2))
    frames, sentence = seen(model, video)
    assert "12 frames" in sentence
    assert found.clips is not None
    assert found.labels is not None
    assert found.labels[len(frames) - 1] == "now"
    for clip in found.clips:
        np.testing.assert_array_equal(clip[: len(frames)], frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": None}, "no image yet"),
        ({"file": "/does/not/exist.png"}, "no longer on the server"),
        ({"question": "  "}, "no question yet"),
        ({"question": "x" * 2001}, "2,001 characters"),
        ({"futures": 9}, "choose 1 to 8"),
        ({"num_world_steps": 99}, "num_world_steps is 99"),
        ({"world_prompt": "the ball is pushed"}, "no text encoder"),
    ],
)
def test_what_cannot_be_asked(model: TheWorld, image: str, changes: dict, message: str) -> None:  # type: ignore[type-arg] # noqa: F811
    with pytest.raises(ValueError, match=message):
        last(
            model, Asked(**{"file": image, "question": QUESTION, "num_world_steps": 1, "max_new_tokens": 2, **changes})
        )


def test_limits_of_files(model: TheWorld, image: str) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="60 x 40 pixels"):
        list(compare(model, Asked(image, QUESTION, num_world_steps=1), MediaLimits(max_pixels=1000)))
    assert "Image, 60 × 40 pixels" in Page(model, "tiny").look(image)
    assert 'role="alert"' in Page(model, "tiny", limits=MediaLimits(max_pixels=1000)).look(image)


def test_possible_answers() -> None:
    assert split_options(" red, dark  blue ,") == ("red", "dark blue")
    assert split_options("") == ()
    for text, message in (("red", "only one"), ("red, Red", "twice"), (",".join("abcdefghijklm"), "at most 12")):
        with pytest.raises(ValueError, match=message):
            split_options(text)


def test_what_models_and_visitors_write_is_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    answers = FutureAnswers(bad, (bad, bad), {bad: 1.0}, {}, {}, 0, 2)
    asked = Asked(None, bad, world_prompt=bad, futures=2)
    html = rendering.results(Compared(asked, answers, answers, np.zeros((2, 5, 16, 16, 3), np.uint8)), 16, 0.25)
    assert "<img" not in html
    assert html.count("&lt;img") >= 4
    assert "2 of 2 futures give this answer" in html


def test_a_fault_is_one_sentence_and_is_logged(
    model: TheWorld, image: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:
    def broken(*arguments: object, **further: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(TheWorld, "ask", broken)
    ((html, _),) = Page(model, "tiny").ask(image, QUESTION, "", 1, 1, 0, "")
    assert "its log says why" in html
    assert "secret" not in html
    assert "secret" in caplog.text


def test_scenes_have_true_futures() -> None:
    for scene in scenes():
        assert len(scene.questions) >= 1
        for question in scene.questions:
            assert question.answer in question.options
            assert scene.answer_to(question.text) == question.answer
        assert scene.answer_to("What else?") is None


def test_the_prompt_is_there_where_the_world_model_takes_one(
    model: TheWorld, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    page = Page(model, "tiny")
    assert not page.takes_prompts
    monkeypatch.setattr(type(model.model.world), "check_takes_prompts", lambda self: None)
    assert page.takes_prompts


def test_no_other_host_is_asked(url: str, image: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert "connect-src 'self'" in answer.headers["content-security-policy"]
        assert client.get("/", headers={"Host": "example.org"}).status_code == 403
        config = client.get("/config").json()
        assert not config["analytics_enabled"]
        upload = next(number for number, each in enumerate(config["dependencies"]) if "upload" in str(each["targets"]))
        elsewhere = {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}
        body = {"data": [elsewhere], "fn_index": upload, "session_hash": "abc"}
        client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as lines:
            said = next(line for line in lines.iter_lines() if "process_completed" in line)
        assert "takes files, not addresses" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "has no password"),
        (["--steps", "0"], "imagines none"),
        (["--model", "no-such-model-anywhere"], "no-such-model-anywhere"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--port", "0", *arguments])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "theworld[demo]" in result.output
