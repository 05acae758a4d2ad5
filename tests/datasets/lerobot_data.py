"""A small dataset in LeRobot's format: three episodes of 16 frames, 8 per second, whose brightness is their number.

Episodes 0 and 1 share their files, in which frame 0 of episode 1 is frame 16. The camera in front has H.264 and key
frames that are far apart, that at the wrist AV1, and a third one stores images in the data files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.media.encoding import encode, encode_video

os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 writes its settings to stderr

FPS, LENGTH, EPISODES = 8, 16, 3
TASKS = ("pick up the cube", "open the drawer")
SUBTASKS = ("reach", "grasp", "lift")
BEGINS = (0, 6, 12)  # frames of an episode at which its subtasks begin
FRONT, WRIST, STILL = (f"observation.images.{name}" for name in ("front", "wrist", "still"))
FILES = ((0, 1), (2,))  # episodes by file
TEMPLATES = (("chunk_index", "file_index"), ("episode_chunk", "episode_file"))


def pixels(number: int) -> np.ndarray:
    return np.full((64, 64, 3), 10 + 5 * number, np.uint8)


def number_of(image: Any) -> int:
    """The number of a frame in the dataset, which its brightness shows."""
    assert isinstance(image, Image.Image)
    return round((float(np.asarray(image).mean()) - 10) / 5)


def write_dataset(
    folder: Path,
    cameras: Sequence[str] = (FRONT, WRIST, STILL),
    template: tuple[str, str] = TEMPLATES[0],
    subtasks: str | None = "subtask_index",
    **info: Any,
) -> Path:
    """Writes the dataset.

    Args:
        template: the names in the templates of paths.
        subtasks: the column that has them, `subtask_index` or `language_persistent`.
        info: replaces entries of `meta/info.json`.
    """
    place = f"chunk-{{{template[0]}:03d}}/file-{{{template[1]}:03d}}"
    dtypes = {name: "image" if name == STILL else "video" for name in cameras}
    content = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": EPISODES,
        "data_path": f"data/{place}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4",
        "features": {name: {"dtype": dtype, "shape": [64, 64, 3]} for name, dtype in dtypes.items()}
        | {"depth": {"dtype": "video", "info": {"is_depth_map": True}}, "action": {"dtype": "float32", "shape": [2]}},
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(content | info))
    write(folder / "meta/tasks.parquet", {"task_index": [0, 1], "task": TASKS})
    if subtasks == "subtask_index":
        write(folder / "meta/subtasks.parquet", {"subtask_index": [0, 1, 2], "__index_level_0__": SUBTASKS})
    for file, members in enumerate(FILES):
        where = f"chunk-{file:03d}/file-000"
        write(folder / f"meta/episodes/{where}.parquet", metadata(members, file, cameras))
        write(folder / f"data/{where}.parquet", rows_of(members, STILL in cameras, subtasks), row_group_size=10)
        frames = [pixels(LENGTH * episode + frame) for episode in members for frame in range(LENGTH)]
        for camera, codec, group in ((FRONT, "libx264", "12"), (WRIST, "libsvtav1", "2")):
            if camera in cameras:
                path = folder / f"videos/{camera}/{where}.mp4"
                path.parent.mkdir(parents=True)
                options = {"g": group, "crf": "10", **({"bf": "2"} if codec == "libx264" else {"preset": "12"})}
                path.write_bytes(encode_video(frames, codec=codec, codec_options=options))
    return folder


def write(path: Path, columns: dict[str, Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, **options)


def metadata(members: Sequence[int], file: int, cameras: Sequence[str]) -> dict[str, Any]:
    count = len(members)
    columns: dict[str, Any] = {"episode_index": members, "length": [LENGTH] * count}
    for name in ("data", *(f"videos/{camera}" for camera in cameras if camera != STILL)):
        columns |= {f"{name}/chunk_index": [file] * count, f"{name}/file_index": [0] * count}
    begins = [LENGTH * number / FPS for number in range(count)]
    return columns | {f"videos/{camera}/from_timestamp": begins for camera in cameras if camera != STILL}


def rows_of(members: Sequence[int], images: bool, subtasks: str | None) -> dict[str, Any]:
    frames = [(episode, frame) for episode in members for frame in range(LENGTH)]
    columns: dict[str, Any] = {
        "episode_index": [episode for episode, _ in frames],
        "timestamp": pa.array([frame / FPS for _, frame in frames], pa.float32()),
        "task_index": [episode // 2 for episode, _ in frames],
        "action": [[0.0, 1.0]] * len(frames),
    }
    if images:
        columns[STILL] = [{"bytes": encode(Image.fromarray(pixels(LENGTH * e + f))), "path": None} for e, f in frames]
    if subtasks == "subtask_index":
        columns[subtasks] = [max(n for n, begin in enumerate(BEGINS) if frame >= begin) for _, frame in frames]
    elif subtasks is not None:
        texts = [
            {"role": "assistant", "content": text, "style": "subtask", "timestamp": begin / FPS}
            for text, begin in zip(SUBTASKS, BEGINS, strict=True)
        ]
        plan = {"role": "assistant", "content": "1. reach 2. grasp", "style": "plan", "timestamp": 0.0}
        columns[subtasks] = [[plan, *texts]] * len(frames)
    return columns
