"""Questions in the training format: JSON Lines as `theworld train` reads them, asked exactly as training shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from theworld.datasets.jsonl import PATH_KEYS, JsonlDataset
from theworld.inference.prompting import Chat, user_turn
from theworld.media.images import load_image
from theworld.media.selection import LastFrames
from theworld.media.video import Video
from theworld.model.configuration import TheWorldConfig
from theworld.storage.files import read_json_file

LAST_FRAME = LastFrames(1)
TRAINING_CONFIG = "training_config.json"  # which training writes next to a model


def load_clip(video: Video, config: TheWorldConfig | None) -> Any:
    """A video as a model reads it: the language model sees the last frame, and the world model all.

    Args:
        config: of the model; None reads the last frame only, since the frames before it depend on the model's rate.

    Returns:
        The loaded video, or its only frame.
    """
    if config is None:
        return replace(video, selection=LAST_FRAME).load().now
    loaded = config.read_video(video)
    return loaded.now if loaded.num_frames == 1 else loaded


@dataclass(frozen=True)
class SampleMedia:
    """The images and the true future of one record, which are read when they are needed."""

    dataset: JsonlDataset
    index: int

    @property
    def record(self) -> dict[str, Any]:
        """The object of its line."""
        return self.dataset.lines[self.index][1]

    @property
    def where(self) -> str:
        """Its file and line."""
        return self.dataset.where(self.index)

    def images(self, config: TheWorldConfig | None = None) -> list[Any]:
        """Decoded images and clips; without a config the last frame of each clip."""
        images = self._sample().images
        return [load_clip(image, config) if isinstance(image, Video) else load_image(image) for image in images]

    def future(self, config: TheWorldConfig | None, limit: int | None) -> Sequence[Any]:
        """The first `limit` frames after now; with a config, those of a video at its rate."""
        future = self._sample().future_frames or ()
        if isinstance(future, Video) and (config is None or limit is None):
            future = future.load().frames
        if config is not None and limit is not None:
            future = config.read_future(future, limit)
        return [load_image(frame) for frame in future[:limit]]

    def files(self) -> list[Path]:
        """The files and folders that the record names."""
        values = [self.record[key] for key in PATH_KEYS if self.record.get(key) is not None]
        names = [name for value in values for name in (value if isinstance(value, list) else [value])]
        return [self.dataset.path.parent / name for name in names]

    def _sample(self) -> Any:
        return self.dataset[self.index]


def question_of(messages: list[dict[str, Any]]) -> tuple[str, Chat | None]:
    """What a record asks, as text, and as a chat unless it is one turn whose images come first.

    Args:
        messages: the chat without its last answer.
    """
    *_, last = messages
    texts = [part["text"] for part in last["content"] if part["type"] == "text"]
    num_images = len(last["content"]) - len(texts)
    if len(messages) == 1 and len(texts) == 1 and last == user_turn(num_images, texts[0])[0]:
        return texts[0], None
    return "\n".join(f"{turn['role']}: {text_of(turn['content'])}" for turn in messages), Chat(messages)


def text_of(content: Any) -> str:
    """The text of a turn, with [image] for each image."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] if part["type"] == "text" else "[image]" for part in content)


def note_on_format(model: str | None, benchmark: str, asks_for_letters: bool) -> str | None:
    """What to say if a benchmark asks for a letter, and the model was trained on answers in words.

    Args:
        model: its folder; None for a loaded model.
    """
    file = Path(model or "") / TRAINING_CONFIG
    if model is None or not asks_for_letters or not file.is_file():
        return None
    settings = read_json_file(file, "save the model again")
    data = settings.get("train_dataset_path")
    if settings.get("dataset_name") != "jsonl" or data is None or are_letters(labels_of(Path(str(data)))):
        return None
    held_out = settings.get("eval_dataset_path") if settings.get("do_eval") else None
    return (
        f"{model} was trained on the questions and labels of {data}, and {benchmark} asks for the letter of a choice, "
        "which it may never have seen, so low accuracies need not mean that it learned nothing. `theworld eval jsonl "
        f"{held_out or data}` with this model asks as in training."
    )


def labels_of(file: Path) -> list[str]:
    """The labels of a training file; none if it cannot be read any more."""
    try:
        dataset = JsonlDataset(file, limit=1000)
        return [dataset.messages(index)[-1]["content"] for index in range(len(dataset))]
    except ValueError:
        return []


def are_letters(labels: Iterable[str]) -> bool:
    """Whether most labels are letters of choices, such as "B" or "(B)"."""
    bare = [label.strip().strip("().:") for label in labels]
    return sum(len(label) == 1 and label in "ABCDEFGHIJ" for label in bare) > len(bare) / 2
