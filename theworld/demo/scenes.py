"""The examples of the page: simulated scenes with questions about what happens next, and with what does happen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from theworld.datasets.physics import FRAMES_PER_SECOND, make_clip, next_questions
from theworld.media.export import encode_rollout

if TYPE_CHECKING:
    import numpy as np

# The test scenes of `make run` (examples/inference.py says how they were chosen), those that need the future first.
SCENES = (("tower", 15), ("contact", 20), ("contact", 11), ("drop", 0), ("drop", 8), ("tower", 17))
NAMES = {"tower": "Tower", "contact": "Ball and box", "drop": "Ball and bins"}


@dataclass(frozen=True)
class SceneQuestion:
    """A question about what happens next, its possible answers, and the true one."""

    text: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Scene:
    """One example.

    Attributes:
        name: for people.
        frames: (F, H, W, 3) uint8, what happens; the model sees the first one only.
        questions: in the wordings that nano knows.
    """

    name: str
    frames: np.ndarray
    questions: tuple[SceneQuestion, ...]

    @property
    def image(self) -> bytes:
        """A PNG of the first frame, in its own size."""
        return encode_rollout(self.frames[:1], ".png", scale=1)

    @property
    def truth(self) -> bytes:
        """An MP4 of what happens, in real time."""
        return encode_rollout(self.frames, ".mp4", FRAMES_PER_SECOND)

    def answer_to(self, question: str) -> str | None:
        """The true answer to one of the scene's questions; None to any other."""
        return next((known.answer for known in self.questions if known.text == question.strip()), None)


@cache
def scenes() -> tuple[Scene, ...]:
    """All examples, simulated once."""
    return tuple(_scene(family, index) for family, index in SCENES)


def _scene(family: str, index: int) -> Scene:
    clip = make_clip(family, "test", index)
    questions = next_questions(clip)
    options = {question.topic: question.choices for question in questions if question.form == "choice"}
    return Scene(
        f"{NAMES[family]} {index}",
        clip.frames,
        tuple(
            SceneQuestion(question.text, options[question.topic], question.answer)
            for question in questions
            if question.form == "free" and question.topic in options
        ),
    )
