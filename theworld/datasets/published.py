"""Published question sets about the near future: where each set is, and its column mapping."""

from __future__ import annotations

from dataclasses import dataclass

from theworld.datasets.columns import Fields


@dataclass(frozen=True)
class KnownSet:
    """A published question set.

    Attributes:
        meaning: one line of help.
        fields: the column of each field.
        hub: its id on the Hub, if it has one.
        split: the default split.
        source: where the column names come from.
    """

    meaning: str
    fields: Fields
    hub: str | None
    split: str
    source: str


KNOWN_SETS: dict[str, KnownSet] = {
    "sat": KnownSet(
        "SAT: spatial relations and what an action changes",
        Fields(images="image_bytes", choices="answers", answer="correct_answer", task="question_type"),
        "array/SAT",
        "test",
        "the dataset's card (array/SAT)",
    ),
    "openworldqa": KnownSet(
        "OpenWorldQA: the most plausible physical outcome of everyday clips",
        Fields(
            id="sample_id",
            video="video_path",
            choices="options",
            task="sample_id",
            task_pattern=r"C\d+_[a-z_]+(?=_\d)",
            now="anchor_frame",
        ),
        "YCZhou/openworld_qa",
        "test",
        "the dataset's card (YCZhou/openworld_qa); that questions see the frames up to the anchor is our reading",
    ),
    "pai-bench": KnownSet(
        "PAI-Bench-U: understanding of robots, traffic and everyday physics, from video",
        Fields(video="video_path", choices="index2ans", strip="Please answer directly with only the letter.*"),
        "shi-labs/physical-ai-bench-understanding",
        "test",
        "a public lmms-eval task; its id and category columns are unknown, so the usual names are tried",
    ),
    "futurebench": KnownSet(
        "FutureBench: the next event of a video, one to five hops ahead",
        Fields(
            video="video_path",
            question="qa.Question",
            choices="qa.Options",
            answer="qa.Answer",
            task="question_type",
            cut="video_dataset/",
            media=("", "first_part_video"),
        ),
        None,
        "futurebench",
        "its authors' lmms-eval task (sail-sg/Video-Next-Event-Prediction)",
    ),
    "physbench": KnownSet(
        "PhysBench: properties, relations, scenes and dynamics, from images and videos",
        Fields(
            id="idx",
            images="file_name",
            task="task_type",
            only="split=val",
            strip=r"\A(?:<(?:image|video)>\s*)+|<(?:image|video)>",
            media=("", "image", "video", "image/image", "video/video"),
        ),
        "USC-GVL/PhysBench",
        "test",
        "public loaders of its test.json; task_type is from memory",
    ),
    "physion": KnownSet(
        "Physion: will the red object touch the yellow area?",
        Fields(
            id="stimulus",
            video="video",
            answer="label",
            task="scenario",
            ask="Will the red object touch the yellow area?",
            future_frames="future",
        ),
        None,
        "test",
        "from memory: Physion ships videos and a table of labels; bring them into JSON Lines with these columns",
    ),
}
