"""The files of a LeRobot dataset (format v3): metadata, rows of frames, and which video holds which episode.

    meta/info.json                       version, frame rate, features, templates of the paths of data and videos
    meta/tasks.parquet, subtasks.parquet texts of the columns task_index and subtask_index
    meta/episodes/**.parquet             where each episode is: data file, and video file and time by camera
    data/**.parquet                      one row per frame; images of cameras that have no videos
    videos/**.mp4                        many episodes one after the other in a file

Subtasks are in the column `subtask_index`, or, since lerobot 0.6, in the column `language_persistent`. Format:
https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from theworld.media.images import load_image
from theworld.messages import suggest
from theworld.storage.files import read_json_file
from theworld.storage.hub import check_name, download

INFO, TASKS, SUBTASKS, EPISODES = "meta/info.json", "meta/tasks.parquet", "meta/subtasks.parquet", "meta/episodes"
CONVERTER = "python -m lerobot.scripts.convert_dataset_v21_to_v30"
T = TypeVar("T")

LANGUAGE = "language_persistent"  # of every row: all texts of the episode, with the time at which each begins


@dataclass(frozen=True)
class Episode:
    """One recording of a robot; F frames.

    Attributes:
        index: its number in the dataset.
        times: (F,) float64, seconds since its beginning.
        tasks: what the robot does, by frame.
        subtasks: the part of the task that it does, by frame; None where there is none.
        file: the video of the camera, or the data file with its images.
        start: where the episode begins: seconds in the video, or the row in the data file.
    """

    index: int
    times: np.ndarray
    tasks: tuple[str, ...]
    subtasks: tuple[str | None, ...]
    file: Path
    start: float


class LeRobotFiles:
    """A LeRobot dataset in a folder or on the Hub, seen by one camera.

    Metadata is read, or downloaded, when it is opened, and the rest with `episodes`.

    Args:
        repository: a folder or a Hub id.
        camera: a feature of the type video or image; may be None if there is only one.
        revision: branch, tag or commit on the Hub.

    Attributes:
        fps: frames per second.
        num_episodes: of the complete dataset.
        has_videos: whether the camera's frames are in videos, and not in the data files.

    Raises:
        ValueError: if it is not a dataset of this format, a file is missing, or the camera is not known.
    """

    def __init__(self, repository: str, camera: str | None = None, revision: str | None = None) -> None:
        self.repository = os.path.expanduser(repository)
        check_name(self.repository)
        self.revision = revision
        self.folder = self._find([INFO, TASKS, SUBTASKS, f"{EPISODES}/*"], "its metadata")
        self.info = self._read_info()
        self.fps = float(self.info["fps"])
        self.camera = self._choose_camera(camera)
        self.has_videos = self.info["features"][self.camera]["dtype"] == "video"
        self._where = self._read_episodes()
        self.num_episodes = len(self._where)

    def _find(self, patterns: Sequence[str], what: str) -> Path:
        if Path(self.repository).is_dir():
            return Path(self.repository)
        folder = download(self.repository, patterns, what, self.revision, repo_type="dataset")
        self.revision = folder.name  # the commit, so that all files belong to one
        return folder

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"The LeRobot dataset {self.repository} has no file {name}: download or copy it again.")
        return path

    def _read_info(self) -> Mapping[str, Any]:
        if not (self.folder / INFO).is_file():
            raise ValueError(f"{self.repository} has no {INFO}, so it is not a LeRobot dataset: check the name.")
        info = read_json_file(self.folder / INFO, "download or copy the dataset again")
        if "codebase_version" not in info:
            raise ValueError(f"{self.folder / INFO} has no codebase_version: download or copy the dataset again.")
        version = str(info["codebase_version"])
        if not version.startswith(("v3.", "3.")):
            old = version.startswith(("v1.", "v2.", "1.", "2."))
            convert = f"convert it with lerobot ({CONVERTER})." if old else "save it in v3, the version that is read."
            raise ValueError(f"{self.repository} is a LeRobot dataset of version {version}, not v3: {convert}")
        for key, kind in (("fps", int | float), ("features", dict), ("data_path", str)):
            if not isinstance(info.get(key), kind):
                raise ValueError(f"{self.folder / INFO} has no valid {key}: download or copy the dataset again.")
        return info

    def _choose_camera(self, camera: str | None) -> str:
        cameras = [name for name, feature in self.info["features"].items() if is_camera(feature)]
        if not cameras:
            raise ValueError(f"The LeRobot dataset {self.repository} has no camera: choose one with images.")
        if camera is None and len(cameras) > 1:
            raise ValueError(f"{self.repository} has the cameras {', '.join(cameras)}: choose one of them as camera.")
        if camera is not None and camera not in cameras:
            others = f"it has {', '.join(cameras)}."
            raise ValueError(f"{self.repository} has no camera {camera!r}; {suggest(camera, cameras, others)}")
        return camera or cameras[0]

    def _read_episodes(self) -> dict[int, dict[str, Any]]:
        """The rows of the metadata of episodes, by their index."""
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        if self.has_videos:
            columns += [f"videos/{self.camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        paths = sorted((self.folder / EPISODES).rglob("*.parquet"))
        if not paths:
            raise ValueError(f"The LeRobot dataset {self.repository} has no files in {EPISODES}: download it again.")
        rows = {row["episode_index"]: row for path in paths for row in read_table(path, columns).to_pylist()}
        total = self.info.get("total_episodes", len(rows))
        missing = next((number for number in range(total) if number not in rows), None)
        if missing is not None:
            raise ValueError(
                f"{self.folder / EPISODES} says nothing about episode {missing} of {total}: download or copy the "
                "dataset again."
            )
        return rows

    def _path(self, kind: str, row: Mapping[str, Any], prefix: str) -> str:
        """The path of a file, whose template has one of two sets of names."""
        template = self.info.get(kind)
        chunk, file = row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"]
        names = {"chunk_index": chunk, "episode_chunk": chunk, "file_index": file, "episode_file": file}
        names |= {"episode_index": row["episode_index"], "video_key": self.camera}
        try:
            return str(template).format(**names)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{self.folder / INFO} has the {kind} {template!r}, which cannot be filled in ({error}): its names are "
                f"{', '.join(names)}."
            ) from error

    def episodes(self, numbers: Sequence[int]) -> list[Episode]:
        """These episodes; their files are downloaded if necessary.

        Raises:
            ValueError: if there is no such episode, or a file is missing or does not hold what the metadata says.
        """
        data, videos = {}, {}
        for number in numbers:
            if number not in self._where:
                raise ValueError(f"{self.repository} has the episodes 0 to {self.num_episodes - 1}, and no {number}.")
            row = self._where[number]
            data[number] = self._path("data_path", row, "data")
            if self.has_videos:
                videos[number] = self._path("video_path", row, f"videos/{self.camera}")
        self._find(sorted({*data.values(), *videos.values()}), "its episodes")
        tasks = read_names(self._file(TASKS), "task")
        subtasks = read_names(self.folder / SUBTASKS, "subtask") if (self.folder / SUBTASKS).is_file() else {}
        by_file = defaultdict(list)
        for number in numbers:
            by_file[data[number]].append(number)
        found = {}
        for name, members in by_file.items():
            for number, start, rows in self._rows(self._file(name), members):
                where = self._where[number]
                file, begin = self._file(name), float(start)
                if self.has_videos:
                    file = self._file(videos[number])
                    begin = where[f"videos/{self.camera}/from_timestamp"]
                times = rows.column("timestamp").to_numpy().astype(np.float64)
                texts = self._texts(rows, "task_index", tasks, TASKS)
                found[number] = Episode(number, times, texts, self._subtasks(rows, times, subtasks), file, begin)
        return [found[number] for number in numbers]

    def _rows(self, path: Path, numbers: Sequence[int]) -> list[tuple[int, int, Any]]:
        """(episode, its first row in the file, its rows) for each of some episodes of a data file."""
        table = read_table(path, ["episode_index", "timestamp", "task_index"], ["subtask_index", LANGUAGE])
        indices = table.column("episode_index").to_numpy()
        found = []
        for number in numbers:
            (rows,) = np.nonzero(indices == number)
            length = self._where[number]["length"]
            if len(rows) != length or not length or rows[-1] - rows[0] != length - 1:
                raise ValueError(
                    f"{path} has {len(rows)} rows of episode {number}, and {EPISODES} says {length}: download or copy "
                    "the dataset again."
                )
            found.append((number, int(rows[0]), table.slice(rows[0], length)))
        return found

    def _texts(self, rows: Any, column: str, names: Mapping[int, T], file: str) -> tuple[T, ...]:
        indices = rows.column(column).to_pylist()
        unknown = next((index for index in indices if index not in names), None)
        if unknown is not None:
            raise ValueError(f"{self.folder / file} has no {column} {unknown}: download or copy the dataset again.")
        return tuple(names[index] for index in indices)

    def _subtasks(self, rows: Any, times: np.ndarray, names: Mapping[int, str]) -> tuple[str | None, ...]:
        """The subtask of each frame, in one of the two forms that datasets have."""
        if "subtask_index" in rows.column_names and names:
            return self._texts(rows, "subtask_index", {-1: None, **names}, SUBTASKS)
        if LANGUAGE not in rows.column_names:
            return (None,) * len(times)
        texts = [text for text in rows.column(LANGUAGE)[0].as_py() or [] if text.get("style") == "subtask"]
        texts.sort(key=lambda text: text["timestamp"])
        begins = np.array([text["timestamp"] for text in texts], dtype=np.float64)
        active = np.searchsorted(begins, times, side="right") - 1
        return tuple(texts[number]["content"] if number >= 0 else None for number in active)


def images_at(path: Path, column: str, rows: Sequence[int]) -> list[Image.Image]:
    """The images in these rows of a data file, RGB.

    Raises:
        ValueError: if the file cannot be read, or a row has no image that can be.
    """
    ends = _row_groups(path)
    images = []
    for row in rows:
        group = int(np.searchsorted(ends, row, side="right"))
        cells = _images_of_group(path, column, group)
        cell = cells[row - (ends[group] - len(cells))].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else None
        try:
            if not content:
                raise ValueError("the cell holds no image")
            images.append(load_image(content))
        except ValueError as error:
            raise ValueError(f"{path} row {row}, column {column}: {error}") from error
    return images


@lru_cache(maxsize=16)
def _row_groups(path: Path) -> np.ndarray:
    """The row after the last one of each row group."""
    with reading(path):
        metadata = parquet.read_metadata(path)
    return np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])


@lru_cache(maxsize=2)  # a row group holds the images of one episode or more
def _images_of_group(path: Path, column: str, group: int) -> Any:
    with reading(path), parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Any:
    """Some columns of a parquet file, as a `pyarrow.Table`.

    Raises:
        ValueError: if it cannot be read, or lacks one of `columns`.
    """
    with reading(path), parquet.ParquetFile(path) as file:
        known = file.schema_arrow.names
        missing = [name for name in columns if name not in known]
        if not missing:
            return file.read([*columns, *(name for name in optional if name in known)])
    raise ValueError(f"{path} has no column {missing[0]!r}: download or copy the dataset again.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns errors of pyarrow into one sentence."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} cannot be read ({reason}): download or copy the dataset again.") from error


def read_names(path: Path, kind: str) -> dict[int, str]:
    """The texts of tasks or subtasks by their index; pandas stores the texts as the index of its table."""
    with reading(path):
        known = parquet.read_schema(path).names
    column = next((name for name in (kind, "__index_level_0__") if name in known), kind)
    table = read_table(path, [f"{kind}_index", column])
    return dict(zip(table.column(f"{kind}_index").to_pylist(), table.column(column).to_pylist(), strict=True))


def is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether a feature holds images in colour; depth maps are marked."""
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return feature.get("dtype") in ("video", "image") and not (
        info.get("is_depth_map") or info.get("video.is_depth_map")
    )
