"""Recordings of robots become samples: each frame is the one of its time, and no window leaves its episode."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.datasets.lerobot_data import (
    FPS,
    FRONT,
    LENGTH,
    STILL,
    SUBTASKS,
    TASKS,
    TEMPLATES,
    WRIST,
    number_of,
    write,
    write_dataset,
)
from tests.loopback_hub import LoopbackHub, files_of
from theworld.datasets.lerobot import LeRobotSamples, parse_episodes, split_episodes
from theworld.datasets.lerobot_files import LeRobotFiles
from theworld.datasets.samples import Sample
from theworld.media.video import Video
from theworld.training.config import TrainingConfig
from theworld.training.dataset_loading import load_datasets
from theworld.training.model_setup import describe
from theworld.training.recipe import index_samples, new_collator, train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "data")


def samples_of(folder: Path, camera: str = FRONT, episodes: tuple[int, ...] = (0, 1, 2), **options: Any) -> Any:
    return LeRobotSamples(
        LeRobotFiles(str(folder), camera), episodes, **{"fps": FPS, "every": 0.5, "window": 0.5, **options}
    )


def shown(sample: Sample) -> tuple[int, list[int]]:
    """The numbers of the image's frame and of the future frames."""
    return number_of(sample.images[0]), [number_of(frame) for frame in sample.future_frames or []]


@pytest.mark.parametrize("camera", [FRONT, WRIST, STILL])
def test_every_frame_is_that_of_its_time(dataset: Path, camera: str) -> None:
    samples = samples_of(dataset, camera, num_future_frames=4, next_question=None)
    # 2 s per episode, and the last half second has no complete future
    expected = [LENGTH * episode + now for episode in range(3) for now in (0, 4, 8)]
    assert [shown(sample) for sample in samples] == [(now, [now + step for step in range(1, 5)]) for now in expected]
    order = [5, 0, 8, 1, 7, 2]
    assert [shown(samples[index])[0] for index in order] == [expected[index] for index in order]


def test_frames_have_the_rate_of_the_world_model(dataset: Path) -> None:
    twice = samples_of(dataset, num_future_frames=4, fps=16, next_question=None)
    assert shown(twice[0]) == (0, [0, 1, 1, 2])  # of two frames that are equally near, the earlier one
    half = samples_of(dataset, num_future_frames=4, fps=4, every=10)
    assert shown(half[0]) == (0, [2, 4, 6, 8])


def test_the_past_makes_a_video(dataset: Path) -> None:
    samples = samples_of(dataset, num_past_frames=4, num_future_frames=4, next_question=None, episodes=(1,))
    assert len(samples) == 2
    (video,) = samples[0].images
    assert isinstance(video, Video)
    assert [number_of(frame) for frame in video.frames] == [16, 17, 18, 19, 20]
    assert [number_of(frame) for frame in samples[0].future_frames] == [21, 22, 23, 24]


def test_questions_about_the_task_and_the_next_subtask(dataset: Path) -> None:
    samples = samples_of(dataset, episodes=(2,), num_future_frames=4)
    turns = [[message["content"] for message in samples.messages(index)] for index in range(len(samples))]
    asked = [(parts[-1]["text"], answer, number_of(samples[i].images[0])) for i, (parts, answer) in enumerate(turns)]
    doing, then = "What is the robot doing?", "What will the robot do next?"
    assert asked == [
        (doing, TASKS[1], 32),
        (doing, TASKS[1], 36),
        (then, "grasp", 36),  # which begins 2 frames later; at 32 it is beyond the window
        (doing, TASKS[1], 40),
        (then, "lift", 40),  # which begins with the last frame of the future
    ]
    assert samples[0].world_prompt == TASKS[1]
    assert samples[0].messages == samples.messages(0)
    assert [samples.scene(index) for index in range(3)] == [(2, 0), (2, 4), (2, 4)]
    other = samples_of(
        dataset, task_question=None, next_question="To {task}: then?", window=1.0, prompt_from_task=False
    )
    assert other.messages(0)[0]["content"][-1]["text"] == f"To {TASKS[0]}: then?"
    assert other.messages(0)[1]["content"] == "grasp"
    assert other[0].world_prompt is None
    assert other[0].future_frames is None


@pytest.mark.parametrize("subtasks", ["subtask_index", "language_persistent", None])
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_form_of_the_format(tmp_path: Path, template: tuple[str, str], subtasks: str | None) -> None:
    write_dataset(tmp_path / "data", [STILL], template, subtasks)
    files = LeRobotFiles(str(tmp_path / "data"))
    assert files.camera == STILL
    by_frame = [text for text, count in zip(SUBTASKS, (6, 6, 4), strict=True) for _ in range(count)]
    for episode in files.episodes([0, 1, 2]):
        assert episode.subtasks == tuple(by_frame if subtasks else [None] * LENGTH)
    assert [sample.answers() for sample in samples_of(tmp_path / "data", STILL, every=5)] == [[TASKS[0]]] * 2 + [
        [TASKS[1]]
    ]


@pytest.mark.parametrize("camera", [WRIST, STILL])
def test_workers_and_forks_have_decoders_of_their_own(dataset: Path, camera: str) -> None:
    samples = samples_of(dataset, camera, num_future_frames=4, next_question=None)
    expected = [shown(sample) for sample in samples]  # opens files in this process

    def shown_in(sample: Sample) -> tuple[Any, int]:
        return shown(sample), samples.videos._process

    loaded = list(DataLoader(samples, batch_size=None, shuffle=False, num_workers=2, collate_fn=shown_in))
    assert [frames for frames, _ in loaded] == expected
    if camera == WRIST:
        assert os.getpid() not in {process for _, process in loaded}, "a fork shares the position in each open file"
    assert [shown(sample) for sample in pickle.loads(pickle.dumps(samples))] == expected


def test_few_files_stay_open(dataset: Path) -> None:
    samples = samples_of(dataset, WRIST, num_future_frames=1)
    samples.videos.limit = 1
    for index in (0, len(samples) - 1, 0):
        _ = samples[index]
        assert [video.name for video in samples.videos._open.values()] == [
            repr(str(samples.moments[index].episode.file))
        ]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the dataset with other entries in `meta/info.json`."""

    def make(**info: Any) -> Path:
        shutil.copytree(dataset, tmp_path / "copy")
        path = tmp_path / "copy" / "meta" / "info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | info))
        return tmp_path / "copy"

    return make


def test_an_empty_info_is_reported_with_a_remedy(copy: Callable[..., Path]) -> None:
    folder = copy()
    (folder / "meta" / "info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"info\.json has no codebase_version: download or copy the dataset again"):
        samples_of(folder)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"codebase_version": "v2.1"}, "of version v2.1, not v3: convert it with lerobot (python -m lerobot."),
        ({"codebase_version": "v4.0"}, "of version v4.0, not v3: save it in v3, the version that is read."),
        ({"fps": None}, "info.json has no valid fps"),
        ({"features": {"action": {"dtype": "float32"}}}, "has no camera: choose one with images."),
        ({"video_path": "{chunk}.mp4"}, "the video_path '{chunk}.mp4', which cannot be filled in ('chunk')"),
        ({"data_path": "{file_index}"}, "has no file 0: download"),
    ],
)
def test_what_info_says_is_checked(copy: Callable[..., Path], info: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        samples_of(copy(**info))
    assert "\n" not in str(error.value)


def test_the_camera_is_chosen(dataset: Path) -> None:
    with pytest.raises(ValueError, match=f"has the cameras {FRONT}, {WRIST}, {STILL}: choose one of them"):
        LeRobotFiles(str(dataset))
    with pytest.raises(ValueError, match=f"has no camera 'observation.image.front'; did you mean '{FRONT}'"):
        LeRobotFiles(str(dataset), "observation.image.front")
    with pytest.raises(ValueError, match=f"has no camera 'depth'; it has {FRONT}"):
        LeRobotFiles(str(dataset), "depth")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("meta/info.json", "has no meta/info.json, so it is not a LeRobot dataset"),
        ("meta/tasks.parquet", "has no file meta/tasks.parquet: download or copy it again"),
        ("meta/episodes", "has no files in meta/episodes"),
        ("meta/episodes/chunk-001", "says nothing about episode 2 of 3"),
        ("data/chunk-001/file-000.parquet", "has no file data/chunk-001/file-000.parquet"),
        (f"videos/{FRONT}/chunk-001/file-000.mp4", "/chunk-001/file-000.mp4: download or copy it again"),
    ],
)
def test_a_missing_file_is_named(copy: Callable[..., Path], name: str, words: str) -> None:
    path = copy() / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=words):
        samples_of(path.parents[len(Path(name).parents) - 1])


def test_damaged_files_are_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    video = folder / f"videos/{FRONT}/chunk-000/file-000.mp4"
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"copy episode 0 at 0.00 s: '.*file-000.mp4' is damaged or cut short"):
        samples_of(folder)[0]
    shutil.copyfile(folder / f"videos/{FRONT}/chunk-001/file-000.mp4", video)  # which has one episode
    with pytest.raises(ValueError, match=r"episode 1 at 0.00 s: .*has no frame at 2.0000 s \(the nearest is at 1.8750"):
        samples_of(folder, episodes=(1,))[0]
    video.write_bytes(b"words" * 20)
    with pytest.raises(ValueError, match="is not a video that can be read"):
        samples_of(folder)[0]
    data = folder / "data/chunk-000/file-000.parquet"
    data.write_bytes(data.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"file-000.parquet cannot be read"):
        samples_of(folder)
    write(data, {"episode_index": [0], "timestamp": [0.0]})
    with pytest.raises(ValueError, match=r"file-000.parquet has no column 'task_index'"):
        samples_of(folder)
    write(data, {"episode_index": [0, 1], "timestamp": [0.0, 0.0], "task_index": [0, 0]})
    with pytest.raises(ValueError, match=r"file-000.parquet has 1 rows of episode 0, and meta/episodes says 16"):
        samples_of(folder)


def test_texts_must_exist(copy: Callable[..., Path]) -> None:
    folder = copy()
    write(folder / "meta/tasks.parquet", {"task_index": [0], "task": TASKS[:1]})
    with pytest.raises(ValueError, match=r"tasks.parquet has no task_index 1"):
        samples_of(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"episodes": [3]}, "has the episodes 0 to 2, and no 3."),
        ({"every": 0}, "every is 0; it must be above 0."),
        ({"window": -1.0}, "window is -1.0"),
        ({"num_future_frames": 16}, "has the 2 s of past and future frames of a sample"),
        ({"window": None}, "set window to a number of seconds, or next_question to null"),
        ({"task_question": None, "next_question": None}, "There is nothing to ask about the 12 moments"),
    ],
)
def test_samples_that_cannot_be(dataset: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        samples_of(dataset, **options)


# ------------------------------------------------------------------------------------------------- episodes and config


def test_episodes_are_chosen() -> None:
    assert parse_episodes("0:3", 5) == parse_episodes([2, 1, 0], 5) == parse_episodes(":2, 2", 5) == [0, 1, 2]
    assert parse_episodes("3:", 5) == [3, 4]
    for wrong in ("", "a", "1-2", "0:1:2", [-1]):
        with pytest.raises(ValueError, match="write it as"):
            parse_episodes(wrong, 5)
    for beyond in ("5", "0:6", "3:3", [7]):
        with pytest.raises(ValueError, match="the dataset has the episodes 0 to 4: choose of these"):
            parse_episodes(beyond, 5)


def test_no_episode_is_in_training_and_evaluation() -> None:
    assert split_episodes(20, None, None, False) == (list(range(20)), [])
    assert split_episodes(20, None, None, True) == (list(range(18)), [18, 19])
    assert split_episodes(5, None, None, True) == ([0, 1, 2, 3], [4])
    assert split_episodes(5, "0:3", None, True) == ([0, 1, 2], [3, 4])
    assert split_episodes(5, None, "1", True) == ([0, 2, 3, 4], [1])
    assert split_episodes(5, "0", "4", True) == ([0], [4])
    assert split_episodes(5, None, "4", False) == ([0, 1, 2, 3], [])
    with pytest.raises(ValueError, match="both have episode 2"):
        split_episodes(5, "0:3", "2:", True)
    with pytest.raises(ValueError, match="Of the 1 episode none is left for training"):
        split_episodes(1, None, None, True)
    with pytest.raises(ValueError, match="Of the 5 episodes none is left for evaluation"):
        split_episodes(5, "0:5", None, True)


def nano(dataset: Path, tmp_path: Path, options: dict[str, Any], **changes: Any) -> TrainingConfig:
    values = {
        "model_name": "nano",
        "dataset_name": "lerobot",
        "dataset_options": {"repository": str(dataset), "camera": FRONT, "every": 0.5, **options},
        "true_futures": 1.0,
        "num_world_steps": 2,
        "max_steps": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_workers": 0,
        "mixed_precision": "fp32",
        "warmup_steps": 0,
        "log_to_tensorboard": False,
        "output_dir": str(tmp_path / "run"),
    }
    return TrainingConfig.from_dict({**values, **changes})


def test_the_true_future_reaches_the_world_model(dataset: Path, tmp_path: Path) -> None:
    config = nano(dataset, tmp_path, {"fps": 8, "prompt_from_task": False}, do_eval=True)
    collator = new_collator(config, describe(config))
    training, evaluation = index_samples(config, load_datasets, collator)
    assert evaluation is not None
    assert {training.sample(index).origin.split(" at ")[0] for index in range(len(training))} == {
        f"{dataset} episode 0",
        f"{dataset} episode 1",
    }
    assert f"{dataset} episode 2" in evaluation.sample(0).origin
    (request,) = collator([training[0]])["world_requests"]
    assert [number_of(Image.fromarray(pixels.numpy())) for pixels in request.pixels] == list(range(9))  # two steps


@pytest.mark.slow
def test_nano_trains_on_true_futures(dataset: Path, tmp_path: Path) -> None:
    assert (train(nano(dataset, tmp_path, {"fps": 8})) / "model.safetensors").is_file()


def test_frames_of_slow_recordings_are_repeated_with_a_warning(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training, held_out = load_datasets(nano(dataset, tmp_path, {"episodes": "2"}, world_prompt="a robot arm"))
    assert held_out is None
    assert "8 frames per second and samples have 16, so frames are repeated" in caplog.text
    assert shown(training[0]) == (32, [32, 33, 33, 34, 34, 35, 35, 36])
    assert training[0].world_prompt is None  # that of the config is used


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"repository": None}, {}, "needs a repository in dataset_options"),
        ({}, {"streaming": True}, "cannot be streamed; set streaming to false"),
        ({"evry": 1}, {}, "dataset_options has 'evry', but lerobot takes .*; did you mean 'every'"),
        ({"every": "1"}, {}, "dataset_options.every is '1'; give a number."),
        ({"past_seconds": -1}, {}, "past_seconds is -1; it must be at least 0."),
        ({"past_seconds": 0.5}, {}, "this model reads images only"),
        ({}, {"true_futures": 0.5}, "omit the prompt, .*, or set prompt_from_task in dataset_options to false"),
        ({"repository": "no/such/folder"}, {}, "There is no folder no/such/folder"),
        ({"episodes": "0:4"}, {}, "the dataset has the episodes 0 to 2"),
    ],
)
def test_options_are_checked(
    dataset: Path, tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        load_datasets(nano(dataset, tmp_path, options, **changes))


def test_a_folder_of_this_format_is_recognised(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a LeRobot dataset: set dataset_name to lerobot"):
        load_datasets(nano(dataset, tmp_path, {}, dataset_name=str(dataset)))
    rows = tmp_path / "rows"  # what `datasets` sees of one on the Hub
    rows.mkdir()
    shutil.copyfile(dataset / "data/chunk-000/file-000.parquet", rows / "train.parquet")
    config = nano(dataset, tmp_path, {}, dataset_name=str(rows))
    config.dataset_options = {}
    with pytest.raises(ValueError, match="rows is a LeRobot dataset: set dataset_name to lerobot"):
        load_datasets(config)
    config.image_key, config.text_key, config.label_key = STILL, "task_index", "task_index"
    assert len(load_datasets(config)[0]) == 32  # type: ignore[arg-type]


def test_only_the_files_of_the_chosen_episodes_are_downloaded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHub({"datasets/owner/robot": files_of(dataset)}) as hub:
        hub.use(monkeypatch, tmp_path)
        files = LeRobotFiles("owner/robot", WRIST)
        assert all(name.startswith("datasets/owner/robot/meta/") for name in hub.fetched)
        hub.fetched.clear()
        samples = LeRobotSamples(files, [2], fps=FPS, window=0.5)
        where = "chunk-001/file-000"
        assert sorted(hub.fetched) == [
            f"datasets/owner/robot/data/{where}.parquet",
            f"datasets/owner/robot/videos/{WRIST}/{where}.mp4",
        ]
        assert shown(samples[0]) == (32, [])
        with pytest.raises(ValueError, match="The Hub has no repository datasets/owner/none"):
            LeRobotFiles("owner/none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert LeRobotFiles("owner/robot", WRIST).num_episodes == 3
