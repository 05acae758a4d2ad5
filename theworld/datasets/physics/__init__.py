"""Small physical scenes with questions about now and about what happens (see docs/physics.md)."""

from theworld.datasets.physics.questions import Question, balanced, next_questions, now_questions
from theworld.datasets.physics.scenes import FAMILIES, SPLITS, Clip, make_clip
from theworld.datasets.physics.simulation import IMAGE_SIZE, NUM_FRAMES

__all__ = [
    "FAMILIES",
    "IMAGE_SIZE",
    "NUM_FRAMES",
    "SPLITS",
    "Clip",
    "Question",
    "balanced",
    "make_clip",
    "next_questions",
    "now_questions",
]
