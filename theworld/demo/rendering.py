"""Results of the page as HTML; jinja2 escapes everything that visitors and models wrote."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from theworld.demo.comparison import Compared
from theworld.demo.scenes import Scene
from theworld.inference.futures import FutureAnswers
from theworld.media.export import encode_rollout
from theworld.messages import counted

STYLE = files("theworld.demo").joinpath("style.css").read_text("utf-8")
SCRIPT = files("theworld.demo").joinpath("clips.js").read_text("utf-8")


@dataclass(frozen=True)
class Bar:
    """A line of a table: an answer with its share, in percent, and the share in words."""

    answer: str
    percent: float
    words: str
    is_chosen: bool


@cache
def _templates() -> jinja2.Environment:
    source = files("theworld.demo").joinpath("results.html").read_text("utf-8")
    return jinja2.Environment(
        loader=jinja2.DictLoader({"results.html": source}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(block: str, **values: Any) -> str:
    """One macro of results.html."""
    macro = getattr(_templates().get_template("results.html").module, block)
    return str(macro(**values))


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def bars(answers: FutureAnswers) -> list[Bar]:
    """The probabilities of the options, or the shares of the answers."""
    if answers.probabilities:
        several = answers.num_futures > 1
        return [
            Bar(
                option,
                100 * value,
                f"{100 * value:.1f} %" + (f" ± {100 * answers.spread[option]:.1f}" if several else ""),
                option == answers.answer,
            )
            for option, value in answers.probabilities.items()
        ]
    if answers.num_futures < 2:
        return []
    return [
        Bar(answer, 100 * share, f"{round(share * answers.num_futures)} of {answers.num_futures}", row == 0)
        for row, (answer, share) in enumerate(answers.shares.items())
    ]


def preview(frames: np.ndarray, sentence: str) -> str:
    """What the model sees, (F, H, W, 3) uint8: an image, or a video whose last frame is now."""
    if len(frames) == 1:
        step = max(1, max(frames.shape[1:3]) // 768)
        return render(
            "still", url=data_url(encode_rollout(frames[:, ::step, ::step], ".png"), "image/png"), sentence=sentence
        )
    return render("video", url=data_url(encode_rollout(frames, ".mp4"), "video/mp4"), sentence=sentence)


def results(compared: Compared, fps: float, step_seconds: float) -> str:
    """Both answers, the probabilities, and the clips; what is not there yet is announced."""
    imagined, steps, clips = compared.imagined, compared.asked.num_world_steps, []
    if imagined is not None and compared.clips is not None:
        for number, frames in enumerate(compared.clips):
            content = encode_rollout(frames, ".mp4", fps, labels=compared.labels)
            name = f"Future {number + 1}, seed {compared.asked.seed + number}"
            clips.append((name, data_url(content, "video/mp4"), imagined.answers[number]))
    agree = ""
    if imagined is not None and imagined.num_futures > 1:
        same = round(imagined.agreement * imagined.num_futures)
        agree = f"{same} of {imagined.num_futures} futures give this answer."
    return render(
        "comparison",
        present=compared.present,
        present_bars=bars(compared.present),
        imagined=imagined,
        imagined_bars=[] if imagined is None else bars(imagined),
        agree=agree,
        clips=clips,
        futures=counted(compared.asked.futures, "imagined future"),
        reach=f"{counted(steps, 'world step')}, {steps * step_seconds:g} s",
        prompt=compared.asked.world_prompt.strip(),
    )


def truth(scene: Scene, question: str) -> str:
    """What really happens in a scene, with the true answer if the question is one of its own."""
    url = data_url(scene.truth, "video/mp4")
    return render("truth", url=url, answer=scene.answer_to(question), name=scene.name)
