"""Compares this package's reader of LeRobot datasets with lerobot's own, frame by frame. `make test-lerobot` runs it.

    python scripts/check_lerobot.py write FOLDER     # with lerobot's Python: writes datasets, and what lerobot reads
    python scripts/check_lerobot.py compare FOLDER   # with any Python that has this package's dependencies

The datasets have H.264 and AV1 videos, key frames at every second and at every twelfth frame, episodes of different
lengths that share files, stored images, and subtasks in the form that the data has since lerobot 0.6.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np

FPS, SIZE, AFTER = 30, (96, 128), 4
LENGTHS = (37, 12, 50, 24, 31)
VIDEO, IMAGE = "observation.images.front", "observation.images.wrist"
CODECS = {"h264": ("h264", 2), "h264-sparse": ("h264", 12), "av1": ("libsvtav1", 2), "av1-sparse": ("libsvtav1", 12)}
TASKS = ("put the cube into the box", "open the drawer")
SUBTASKS = ((0.0, "reach for it"), (0.25, "grasp it"), (0.6, "move it"))


def pixels(episode: int, frame: int, camera: str) -> np.ndarray:
    """A frame (H, W, 3) uint8 with a moving ramp and a block of noise, so that no two frames are equal."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    shift = 7 * frame + 40 * episode + 90 * (camera == IMAGE)
    image = np.stack([rows + shift, columns + 2 * shift, rows + columns - shift], axis=-1) % 256
    image[20:60, 30:90] = np.random.default_rng([episode, frame]).integers(0, 256, (40, 60, 3))
    return image.astype(np.uint8)


def write(folder: Path) -> None:
    """Writes every dataset with lerobot, and what lerobot's reader returns for each frame into `lerobot.npz`."""
    for name, (codec, group) in CODECS.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        write_dataset(folder / name, codec, group)
        add_subtasks(folder / name)
        read: dict[str, Any] = {}
        for backend in backends():
            read |= {f"{backend} {key}": value for key, value in read_dataset(folder / name, backend).items()}
        np.savez(folder / name / "lerobot.npz", **read)


def backends() -> list[str]:
    from lerobot.utils.import_utils import get_safe_default_video_backend

    return sorted({"pyav", get_safe_default_video_backend()})


def write_dataset(folder: Path, codec: str, group: int) -> None:
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    dataset = LeRobotDataset.create(
        repo_id="local/check",
        root=folder,
        fps=FPS,
        features={
            VIDEO: {"dtype": "video", "shape": (*SIZE, 3), "names": names},
            IMAGE: {"dtype": "image", "shape": (*SIZE, 3), "names": names},
            "action": {"dtype": "float32", "shape": (1,), "names": ["x"]},
        },
        rgb_encoder=RGBEncoderConfig(vcodec=codec, g=group, crf=20),
        video_files_size_in_mb=0.2,  # megabytes, so that there are several files
        data_files_size_in_mb=4,
    )
    for episode, length in enumerate(LENGTHS):
        for frame in range(length):
            images = {camera: pixels(episode, frame, camera) for camera in (VIDEO, IMAGE)}
            dataset.add_frame({**images, "action": np.zeros(1, np.float32), "task": TASKS[episode % 2]})
        dataset.save_episode()
    dataset.finalize()


def add_subtasks(folder: Path) -> None:
    """Adds the column of languages to the rows, as lerobot's annotation tools do."""
    import pyarrow as pa
    from lerobot.datasets.language import language_feature_info
    from pyarrow import parquet

    info = json.loads((folder / "meta/info.json").read_text())
    column, feature = next(iter(language_feature_info().items()))
    info["features"][column] = {**feature, "shape": list(feature["shape"])}
    (folder / "meta/info.json").write_text(json.dumps(info))
    text_type = pa.struct(
        [
            *((name, pa.string()) for name in ("role", "content", "style", "camera")),
            ("timestamp", pa.float32()),
            ("tool_calls", pa.list_(pa.string())),
        ]
    )
    texts = [
        {"role": "assistant", "content": text, "style": style, "timestamp": time}
        for time, text in SUBTASKS
        for style in ("subtask", "plan")
    ]
    for path in (folder / "data").rglob("*.parquet"):
        table = parquet.read_table(path)
        cells = pa.array([texts] * len(table), pa.list_(text_type))
        parquet.write_table(table.append_column(column, cells), path)


def read_dataset(folder: Path, backend: str) -> dict[str, Any]:
    """For every frame of the dataset, the frames (AFTER + 1, H, W, 3) from it on, its task and its subtask."""
    from lerobot.datasets.language_render import active_at
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    times = [frame / FPS for frame in range(AFTER + 1)]
    dataset = LeRobotDataset(
        "local/check",
        root=folder,
        delta_timestamps={VIDEO: times, IMAGE: times},
        video_backend=backend,
        return_uint8=True,
    )
    items = [dataset[index] for index in range(len(dataset))]
    complete = [item for item in items if not item[f"{VIDEO}_is_pad"].any()]
    subtasks = [
        active_at(float(item["timestamp"]), persistent=item["language_persistent"], style="subtask")
        for item in complete
    ]
    frames = {camera: np.stack([in_bytes(item[camera].numpy()) for item in complete]) for camera in (VIDEO, IMAGE)}
    return {
        **{camera: rows.transpose(0, 1, 3, 4, 2) for camera, rows in frames.items()},
        "place": np.array([[int(item["episode_index"]), int(item["frame_index"])] for item in complete]),
        "task": np.array([item["task"] for item in complete]),
        "subtask": np.array([subtask["content"] for subtask in subtasks]),
    }


def in_bytes(frames: np.ndarray) -> np.ndarray:
    """Stored images come as float32 in [0, 1] from lerobot."""
    return frames if frames.dtype == np.uint8 else (frames * 255).round().astype(np.uint8)


def compare(folder: Path) -> bool:
    """Prints the largest difference for every dataset, camera and reader; True if all that must be equal are equal."""
    from theworld.datasets.lerobot import LeRobotSamples
    from theworld.datasets.lerobot_files import LeRobotFiles

    print(
        f"Python {sys.version.split()[0]}, av {av.__version__}, FFmpeg's libavcodec {av.library_versions['libavcodec']}"
    )
    passed = True
    for name in CODECS:
        stored = np.load(folder / name / "lerobot.npz")
        for camera in (VIDEO, IMAGE):
            files = LeRobotFiles(str(folder / name), camera)
            samples = LeRobotSamples(
                files, range(files.num_episodes), every=1 / FPS, fps=FPS, num_future_frames=AFTER, next_question=None
            )
            found = [samples[index] for index in range(len(samples))]
            ours = np.stack([np.stack([*sample.images, *(sample.future_frames or ())]) for sample in found])
            places = [(moment.episode.index, moment.frame) for moment in samples.moments]
            subtasks = [moment.episode.subtasks[moment.frame] for moment in samples.moments]
            for backend in sorted({key.split()[0] for key in stored}):
                theirs = stored[f"{backend} {camera}"]
                same = (
                    places == [tuple(place) for place in stored[f"{backend} place"].tolist()]
                    and [sample.answers()[0] for sample in found] == stored[f"{backend} task"].tolist()
                    and subtasks == stored[f"{backend} subtask"].tolist()
                )
                difference = int(np.abs(ours.astype(int) - theirs).max()) if same else None
                passed &= difference == 0
                print(
                    f"{name:12} {camera:26} lerobot with {backend:10} {ours.shape[0] * ours.shape[1]} frames, "
                    + (f"largest difference {difference} of 255" if same else "other moments, tasks or subtasks")
                )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "compare"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.folder)
        return 0
    return 0 if compare(arguments.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
