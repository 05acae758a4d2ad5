"""Loading of samples: the datasets that a config can name, and the one function to replace for your own data."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from theworld.datasets.datacomp import HUB_ID, datacomp
from theworld.datasets.hub import load_split, mapped, streamed
from theworld.datasets.jsonl import JsonlDataset
from theworld.datasets.lerobot import NEXT_QUESTION, TASK_QUESTION, TOLERANCE, LeRobotSamples, split_episodes
from theworld.datasets.lerobot_files import INFO, LeRobotFiles
from theworld.datasets.physics.samples import LABELLED_FROM, TO_READ, PhysicsSamples
from theworld.datasets.samples import FieldMapping, SampleDataset, TheWorldDataset
from theworld.datasets.streams import StreamedSamples
from theworld.messages import suggest
from theworld.training.config import TrainingConfig
from theworld.training.config_keys import checked
from theworld.training.model_setup import describe, world_parts_for_latents

logger = logging.getLogger(__name__)

# training samples, and evaluation samples or None
Datasets = tuple[Dataset, Dataset | None]
LoadDatasets = Callable[[TrainingConfig], Datasets]


def load_physics(
    config: TrainingConfig,
    *,
    scenes_per_family: int = 300,
    first_scene: int = LABELLED_FROM,
    chats_per_scene: int = 4,
    what_happens: int = 3,
    now: int = 2,
    reading: int = 0,
    to_read: dict[str, int] = TO_READ,
    eval_scenes_per_family: int = 20,
) -> Datasets:
    """Simulated physics scenes, rendered when they are needed; their true futures are known."""
    questions = (chats_per_scene, what_happens, now, reading, to_read)
    train = PhysicsSamples(config.train_split, scenes_per_family, first_scene, *questions, config.seed)
    return train, PhysicsSamples(config.eval_split, eval_scenes_per_family) if config.do_eval else None


def load_jsonl(config: TrainingConfig) -> Datasets:
    """Two JSON Lines files."""
    evaluation = JsonlDataset(str(config.eval_dataset_path)) if config.do_eval else None
    return JsonlDataset(str(config.train_dataset_path), config.num_samples), evaluation


def load_datacomp(config: TrainingConfig, **options: Any) -> Datasets:
    """DataComp's captions, streamed, with their images downloaded from the web, and kept in a folder `shards`."""
    shards = options.pop("shards", None)
    rows = load_split(options.pop("repository", HUB_ID), config.train_split, streaming=True, **options)
    shuffle = config.shuffle_buffer_size if config.streaming else 0
    train = datacomp(rows, config.num_samples, config.question_template, shards, shuffle=shuffle, seed=config.seed)
    if config.streaming:
        return train, None
    if config.num_samples is None:
        raise ValueError("datacomp has more than a billion rows; set num_samples, or streaming with max_steps.")
    return TheWorldDataset(list(train), origin="datacomp image"), None


def load_hub(config: TrainingConfig, **options: Any) -> Datasets:
    """A dataset of the Hub or a folder, with the column names of the config."""
    fields = FieldMapping(config.image_key, config.text_key, config.label_key, config.question_template)
    split = load_split(config.dataset_name, config.train_split, config.streaming, **options)
    columns = split.column_names or ()
    if "episode_index" in columns and fields.images and not set(fields.images) & set(columns):
        raise is_lerobot(config.dataset_name)
    train: Dataset
    if config.streaming:
        train = streamed(split, fields, config.num_samples, config.shuffle_buffer_size, config.seed)
    else:
        train = mapped(split, fields, config.num_samples)
    if not config.do_eval:
        return train, None
    return train, mapped(load_split(config.dataset_name, config.eval_split, **options), fields)


def load_lerobot(
    config: TrainingConfig,
    *,
    repository: str | None = None,
    revision: str | None = None,
    camera: str | None = None,
    episodes: str | list[int] | None = None,
    eval_episodes: str | list[int] | None = None,
    every: float = 1.0,
    past_seconds: float = 0.0,
    fps: float | None = None,
    window: float | None = None,
    task_question: str | None = TASK_QUESTION,
    next_question: str | None = NEXT_QUESTION,
    prompt_from_task: bool = True,
    tolerance: float = TOLERANCE,
) -> Datasets:
    """Recordings of robots in LeRobot's format, in a folder or on the Hub; their true futures are known."""
    if repository is None:
        raise ValueError("dataset_name lerobot needs a repository in dataset_options, a folder or a Hub id; set it.")
    if config.streaming:
        raise ValueError("LeRobot datasets are read by episode and cannot be streamed; set streaming to false.")
    if past_seconds < 0:
        raise ValueError(f"past_seconds is {past_seconds}; it must be at least 0.")
    described = describe(config)
    model = described.config
    prompt_from_task = prompt_from_task and config.world_prompt is None
    if prompt_from_task and model.enable_world and "transformer" in world_parts_for_latents(config, model):
        try:
            described.spec.check_prompt(TASK_QUESTION)  # any text
        except ValueError as error:
            raise ValueError(f"{str(error)[:-1]}, or set prompt_from_task in dataset_options to false.") from error
    steps = max([model.num_world_steps, *config.steps_shares])
    rate = model.world_config.fps if fps is None else fps
    num_past = round(past_seconds * rate)
    model.past_steps_of(num_past + 1)  # raises an error if the model does not read them
    files = LeRobotFiles(repository, camera, revision)
    if rate > files.fps:
        logger.warning(
            "%s has %g frames per second and samples have %g, so frames are repeated; set fps in dataset_options to "
            "show the world model each frame once",
            repository, files.fps, rate,
        )  # fmt: skip
    train, held_out = (
        (
            LeRobotSamples(
                files,
                numbers,
                every=every,
                fps=rate,
                num_future_frames=model.num_pixel_frames(steps) - 1,
                num_past_frames=num_past,
                window=window,
                task_question=task_question,
                next_question=next_question,
                prompt_from_task=prompt_from_task,
                tolerance=tolerance,
            )
            if numbers
            else None
        )
        for numbers in split_episodes(files.num_episodes, episodes, eval_episodes, config.do_eval)
    )
    assert train is not None
    return train, held_out


DATASETS: dict[str, Callable[..., Datasets]] = {
    "physics": load_physics,
    "jsonl": load_jsonl,
    "datacomp": load_datacomp,
    "lerobot": load_lerobot,
}


def load_datasets(config: TrainingConfig) -> Datasets:
    """Training and evaluation samples of a config. Replace this function for your own data.

    Returns:
        Sequences of records (see `theworld.datasets.samples.TheWorldDataset`) or of samples, or an iterable dataset
        for training; None instead of evaluation samples if there are none.

    Raises:
        ValueError: if there is no such dataset, or if it does not have one of the options.
    """
    config.check_files()
    name = config.dataset_name
    if name.endswith(".py"):
        return load_datasets_from(name)(config)
    if name in DATASETS:
        load = DATASETS[name]
    elif (Path(name) / INFO).is_file():
        raise is_lerobot(name)
    elif "/" in name or Path(name).is_dir():
        load = load_hub
    else:
        choices = f"choose {', '.join(DATASETS)}, a .jsonl or .py file, a folder, or a Hub id."
        raise ValueError(f"Unknown dataset {name!r}; {suggest(name, DATASETS, choices)}")
    check_options(name, load, config.dataset_options)
    return load(config, **config.dataset_options)


def is_lerobot(name: str) -> ValueError:
    """The error for a LeRobot dataset that is named like other datasets of the Hub."""
    return ValueError(
        f"{name} is a LeRobot dataset: set dataset_name to lerobot and repository in dataset_options to {name!r}."
    )


def check_options(name: str, load: Callable[..., Datasets], options: Mapping[str, Any]) -> None:
    """Raises a ValueError for an option that a dataset does not have, or whose value has a wrong type."""
    function = inspect.getfullargspec(load)
    known, hints = function.kwonlyargs, typing.get_type_hints(load)
    for option in options:
        if function.varkw is None and option not in known:
            raise ValueError(
                f"dataset_options has {option!r}, but {name} takes {', '.join(known) or 'no options'}; "
                f"{suggest(option, known, 'remove it.')}"
            )
        if option in known:
            checked(f"dataset_options.{option}", options[option], hints[option])


def load_datasets_from(path: str) -> LoadDatasets:
    """The function `load_datasets` of a Python file.

    Raises:
        ValueError: if it does not define the function.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(vars(module).get("load_datasets")):
        raise ValueError(
            f"{path} does not define load_datasets(config), which must return training and evaluation samples."
        )
    found: LoadDatasets = module.load_datasets
    return found


def as_samples(dataset: Any, origin: str) -> SampleDataset | StreamedSamples:
    """The samples that `load_datasets` returned; plain lists and streams of records are wrapped."""
    if isinstance(dataset, SampleDataset | StreamedSamples):
        return dataset
    if isinstance(dataset, IterableDataset):
        return StreamedSamples(dataset, origin=origin)
    return TheWorldDataset(dataset, origin=origin)
