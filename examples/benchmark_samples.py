"""Writes a few questions about nano's scenes in the layout of every benchmark that `theworld eval` knows.

    python examples/benchmark_samples.py samples
    theworld eval physbench --data samples/physbench --arms fused,no-world --steps 4

With them an evaluation can be tried without a download, and they show the layouts that your own questions may have. The
scenes do not test the abilities that those benchmarks measure.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from theworld.datasets.blink import TASKS
from theworld.datasets.physics import FRAMES_PER_SECOND, Clip, Question, make_clip, next_questions

SCENES = 2  # of each family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets one folder per benchmark")
    folder: Path = parser.parse_args().folder
    pairs = [
        (clip, next(question for question in next_questions(clip) if question.form == "choice"))
        for family in ("drop", "contact", "tower")
        for clip in (make_clip(family, "test", index) for index in range(SCENES))
    ]
    for name, write in WRITERS.items():
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        write(path, pairs)
        print(path)


Pairs = list[tuple[Clip, Question]]


def png(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as PNG bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_frames(folder: Path, frames: np.ndarray, first: int = 0) -> list[str]:
    """Writes frames (F, H, W, 3) to numbered files and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"frame_{number:03d}.png" for number in range(first, first + len(frames))]
    for name, frame in zip(names, frames, strict=True):
        (folder / name).write_bytes(png(frame))
    return names


def video(file: Path, frames: np.ndarray) -> str:
    """Writes frames to an MP4 and returns its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(file, frames, plugin="pyav", codec="libx264", fps=FRAMES_PER_SECOND)
    return file.name


def rows_to(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def question_only(question: Question) -> str:
    """A question without its choices."""
    return question.text.partition(" (A)")[0]


def lettered(question: Question) -> dict[str, str]:
    return dict(zip("ABC", question.choices, strict=False))


def write_mcq(folder: Path, pairs: Pairs) -> None:
    """Your own rows: an image, choices, and the true future."""
    rows = []
    for number, (clip, question) in enumerate(pairs):
        names = [f"{number}/{name}" for name in write_frames(folder / str(number), clip.frames)]
        rows.append(
            {
                "id": question.id,
                "task": clip.family,
                "image": names[0],
                "prompt": question.text,
                "choices": list(question.choices),
                "answer": question.answer,
                "future_frames": names[1:],
                "fps": FRAMES_PER_SECOND,
            }
        )
    rows_to(folder / "test.jsonl", rows)


def write_blink(folder: Path, pairs: Pairs) -> None:
    """One folder per task, Parquet, up to four images per question."""
    for index, task in enumerate(TASKS):
        clip, question = pairs[index % len(pairs)]
        row = {
            "idx": f"val_{task}_1",
            "sub_task": task,
            "question": question_only(question),
            "prompt": question.text,
            "choices": list(question.choices),
            "answer": f"({question.answer})",
            "explanation": "",
            "image_1": {"bytes": png(clip.frames[0]), "path": None},
            **dict.fromkeys(("image_2", "image_3", "image_4")),
        }
        (folder / task).mkdir(exist_ok=True)
        table = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(table, folder / task / "val-00000-of-00001.parquet")


def write_sat(folder: Path, pairs: Pairs) -> None:
    rows = [
        {
            "image_bytes": [{"bytes": png(clip.frames[0]), "path": None}],
            "question": question_only(question),
            "answers": list(question.choices),
            "question_type": clip.family,
            "correct_answer": lettered(question)[question.answer],
        }
        for clip, question in pairs
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")


def write_openworldqa(folder: Path, pairs: Pairs) -> None:
    """Folders of frames; those after the anchor frame are the future."""
    rows = []
    for number, (clip, question) in enumerate(pairs):
        names = write_frames(folder / "frames" / str(number), clip.frames)
        rows.append(
            {
                "sample_id": f"WLA_C1_{clip.family}_{number:04d}",
                "video_path": f"frames/{number}",
                "anchor_frame": Path(names[0]).stem,
                "fps": FRAMES_PER_SECOND,
                "question": question_only(question),
                "options": lettered(question),
                "answer": question.answer,
            }
        )
    rows_to(folder / "test.jsonl", rows)


def write_pai_bench(folder: Path, pairs: Pairs) -> None:
    rows = [
        {
            "video_path": "videos/" + video(folder / "videos" / f"{number}.mp4", clip.frames[:1]),
            "question": f"{question_only(question)} Please answer directly with only the letter of the correct option.",
            "index2ans": lettered(question),
            "answer": question.answer,
            "category": clip.family,
        }
        for number, (clip, question) in enumerate(pairs)
    ]
    rows_to(folder / "test.jsonl", rows)


def write_futurebench(folder: Path, pairs: Pairs) -> None:
    rows = [
        {
            "id": number,
            "question_type": clip.family,
            "video_path": "/data/video_dataset/"
            + video(folder / "first_part_video" / f"{number}.mp4", clip.frames[:1]),
            "qa": {"Question": question_only(question), "Options": lettered(question), "Answer": question.answer},
        }
        for number, (clip, question) in enumerate(pairs)
    ]
    rows_to(folder / "futurebench.jsonl", rows)


def write_physbench(folder: Path, pairs: Pairs) -> None:
    """The question contains the choices."""
    rows = []
    for number, (clip, question) in enumerate(pairs):
        (folder / "image").mkdir(exist_ok=True)
        (folder / "image" / f"{number}.png").write_bytes(png(clip.frames[0]))
        choices = "\n".join(f"{letter}. {words}" for letter, words in lettered(question).items())
        rows.append(
            {
                "idx": number,
                "split": "val",
                "task_type": clip.family,
                "file_name": [f"{number}.png"],
                "question": f"<image>\n{question_only(question)}\n{choices}\n",
                "answer": question.answer,
            }
        )
    (folder / "test.json").write_text(json.dumps(rows), encoding="utf-8")


def write_physion(folder: Path, pairs: Pairs) -> None:
    rows = []
    for number, (clip, question) in enumerate(pairs):
        names = [f"{number}/{name}" for name in write_frames(folder / str(number), clip.frames[1:], first=1)]
        rows.append(
            {
                "stimulus": question.id,
                "scenario": clip.family,
                "video": video(folder / f"{number}.mp4", clip.frames[:1]),
                "label": question.answer == "A",
                "future": names,
                "fps": FRAMES_PER_SECOND,
            }
        )
    rows_to(folder / "test.jsonl", rows)


WRITERS: dict[str, Callable[[Path, Pairs], None]] = {
    "mcq": write_mcq,
    "blink": write_blink,
    "sat": write_sat,
    "openworldqa": write_openworldqa,
    "pai-bench": write_pai_bench,
    "futurebench": write_futurebench,
    "physbench": write_physbench,
    "physion": write_physion,
}

if __name__ == "__main__":
    main()
