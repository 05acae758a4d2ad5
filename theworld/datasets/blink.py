"""BLINK (https://arxiv.org/abs/2404.12390): fourteen visual tasks as multiple choice, up to four images per question.

The questions use the dataset's own prompts. `val` has labels; those of `test` are hidden, and its server scores
submission files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from theworld.datasets.columns import Fields
from theworld.datasets.multiple_choice import ChoiceQuestion, load_questions

HUB = "BLINK-Benchmark/BLINK"
SPLITS = ("val", "test")
FIELDS = Fields(id="idx", images="image_1", task="sub_task", prompt="prompt", choices="choices", answer="answer")
UNREAD = "(Z)"  # what the official code writes for an answer without a choice

TASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)


def load_blink(source: str = HUB, split: str = "val", tasks: Sequence[str] = ()) -> list[ChoiceQuestion]:
    """Reads the questions of BLINK, task by task.

    Args:
        source: the Hub id, a folder with one folder per task (like the Hub repository), or a file of your own.
        tasks: some of TASKS; empty for all.

    Raises:
        ValueError: if the split or a task is unknown, or if the questions cannot be read.
    """
    if split not in SPLITS:
        raise ValueError(f"BLINK has no split {split!r}: choose {' or '.join(SPLITS)}.")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"BLINK has no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
    wanted = list(tasks) or list(TASKS)
    if Path(source).expanduser().is_file():
        return [question for question in load_questions(source, FIELDS) if question.task in wanted]
    return [question for task in wanted for question in load_questions(source, FIELDS, split, task)]


def submission(predictions: Mapping[str, str | None]) -> dict[str, str]:
    """The submission that the evaluation server takes: idx -> "(A)", with UNREAD for answers without a choice.

    Args:
        predictions: idx -> letter, or None.
    """
    return {idx: UNREAD if letter is None else f"({letter})" for idx, letter in predictions.items()}
