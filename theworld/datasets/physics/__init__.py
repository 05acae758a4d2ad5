"""Small physical scenes with questions about now and about what happens (see docs/physics.md)."""

from theworld.datasets.physics.questions import Question, balanced, next_questions, now_questions, things
from theworld.datasets.physics.scenes import FAMILIES, SPLITS, Clip, make_clip, make_wild_frames
from theworld.datasets.physics.simulation import FRAMES_PER_SECOND, IMAGE_SIZE, NUM_FRAMES

__all__ = [
    "FAMILIES",
    "FRAMES_PER_SECOND",
    "IMAGE_SIZE",
    "NUM_FRAMES",
    "SPLITS",
    "Clip",
    "Question",
    "balanced",
    "make_clip",
    "make_wild_frames",
    "next_questions",
    "now_questions",
    "things",
]
