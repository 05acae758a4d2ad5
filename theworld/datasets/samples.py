"""Samples: one chat to train on, with its images and, where they are known, the frames that followed.

Datasets are sequences of samples. `TheWorldDataset` makes them from records (dicts) that users write, and
`HFDatasetWrapper` from the fields of a Hugging Face dataset; any other sequence of records is accepted as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from string import Formatter
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from theworld.media.selection import FramesAfterNow, FrameSelection, check_rate
from theworld.media.video import LAST_FRAMES, Video
from theworld.messages import suggest

Message = dict[str, Any]
ROLES = ("system", "user", "assistant")
RECORD_KEYS = (
    "image",
    "images",
    "text",
    "label",
    "messages",
    "frames",
    "future_frames",
    "fps",
    "world_latents",
    "world_prompt",
)
MOVING = ("video", "frames", "future_frames")  # keys of frames that have a rate
# names of other formats -> ours, for suggestions
ELSEWHERE = {
    **dict.fromkeys(("question", "prompt", "instruction", "input"), "text"),
    **dict.fromkeys(("answer", "caption", "output", "response", "target"), "label"),
    **dict.fromkeys(("conversation", "conversations", "chat"), "messages"),
}


@dataclass(frozen=True)
class Sample:
    """One chat; the loss is on the assistant's turns.

    Attributes:
        messages: turns in transformers' chat format; the content of a user's turn is a list of `{"type": "image"}` and
            `{"type": "text", "text": …}`, that of the other turns is text.
        images: one image or `Video` for each `{"type": "image"}`, in order; images in any form that
            `theworld.media.images` takes. A file is opened when a batch needs it.
        future_frames: what really happened after the first image, or None if it is not known: frames at the world
            model's rate, or a `Video` of `FramesAfterNow`, of which as many are read as a batch needs.
        world_latents: (C, T, h, w), used instead of imagining the future of the first image.
        world_prompt: what the imagined future shows.
        past_frames: 4·k frames before the first image. With 0 world steps its latents are then those of its moment in
            the clip, which differ from those of the image alone.
        num_world_steps: overrides the number of world steps of the batch.
        hide_images: whether only the world model sees the images.
        origin: where the sample comes from, for error messages.
    """

    messages: list[Message]
    images: tuple[Any, ...] = ()
    future_frames: Sequence[Any] | Video | None = None
    world_latents: Tensor | None = None
    world_prompt: str | None = None
    past_frames: Sequence[Any] | None = None
    num_world_steps: int | None = None
    hide_images: bool = False
    origin: str = "a sample"

    def answers(self) -> list[str]:
        return [message["content"] for message in self.messages if message["role"] == "assistant"]


class SampleDataset(Dataset):
    """A sequence of samples whose chats can be read without opening an image."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def messages(self, index: int) -> list[Message]:
        """The chat of a sample."""
        return self[index].messages

    def num_world_steps(self, index: int) -> int | None:
        """The sample's own `num_world_steps`, which must be equal for all samples of a batch."""
        return None

    def num_future_frames(self, index: int) -> int | None:
        """How many frames of its true future a sample has; None if they must be read to know."""
        return None

    def scene(self, index: int) -> Hashable:
        """Identifies the scene of a sample; samples of one scene make the same requests to the world model."""
        return index


class TheWorldDataset(SampleDataset):
    """Makes samples of records.

    Args:
        records: dicts or samples. A dict has `text` and `label`, or `messages` for several turns; and `image`, or
            `images` for several, or `frames`, a video that ends now (a path, a list of images, an array (F, H, W, 3) or
            a `Video`), of which Gemma sees the last frame. `future_frames` are the frames after it (a list, an array or
            a `Video`), `fps` is the rate of both, which are read at the world model's, `world_prompt` says what
            happens, and `world_latents` (C, T, h, w) are used instead of imagining.
        folder: what relative paths of images are relative to; None means the working directory.
        origin: name of the records, for error messages.

    Raises:
        ValueError: if a record is not a valid chat, when it is read; the message names the record.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any] | Sample],
        folder: str | os.PathLike[str] | None = None,
        origin: str = "record",
    ) -> None:
        self.records = records
        self.folder = None if folder is None else Path(folder)
        self.origin = origin

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return to_sample(self.records[index], f"{self.origin} {index}", self.folder)

    def messages(self, index: int) -> list[Message]:
        record = self.records[index]
        return record.messages if isinstance(record, Sample) else chat_of(record, f"{self.origin} {index}")

    def num_future_frames(self, index: int) -> int | None:
        record = self.records[index]
        if not isinstance(record, Mapping) or record.get("world_latents") is not None:  # which are used instead
            return None
        future = record.get("future_frames")
        if isinstance(future, Video) or record.get("fps") is not None:  # how many are read depends on the rate
            return None
        return 0 if future is None else len(future)


class HFDatasetWrapper(SampleDataset):
    """Makes samples of the rows of a `datasets.Dataset`.

    Args:
        dataset: a split.
        image_key: the column of the image; several columns are separated by commas, and empty cells are left out. An
            empty text means no image.
        text_key: the column of the question; may be missing with a `question_template`.
        label_key: the column of the answer.
        question_template: the question, if the dataset has none; `{name}` is replaced by the cell of that column.

    Questions and answers are texts, numbers, or class labels, of which the model learns the names.

    Raises:
        ValueError: if the dataset does not have a column; the message lists those it has. When a row is read, if it has
            no question or no answer; the message names the row.
    """

    def __init__(
        self,
        dataset: Any,
        image_key: str = "image",
        text_key: str = "text",
        label_key: str = "label",
        question_template: str | None = None,
    ) -> None:
        self.fields = FieldMapping(image_key, text_key, label_key, question_template, class_names(dataset.features))
        self.fields.check(dataset.column_names)
        self.dataset = dataset
        self._words = dataset.select_columns([name for name in dataset.column_names if name not in self.fields.images])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        with naming(f"row {index}"):
            record = self.fields.record(self.dataset[index])
        return to_sample(record, f"row {index}")

    def num_future_frames(self, index: int) -> int:
        return 0

    def messages(self, index: int) -> list[Message]:
        row = self._words[index]  # reading it does not decode an image
        with naming(f"row {index}"):
            messages = conversation(0, [(self.fields.question(row), self.fields.answer(row))])
        check_chat(messages, 0, f"row {index}")
        return messages


def class_names(features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The names of the classes of each column of class labels, of the features of a `datasets.Dataset`."""
    from datasets import ClassLabel

    return {name: kind.names for name, kind in (features or {}).items() if isinstance(kind, ClassLabel)}


@contextmanager
def naming(origin: str) -> Iterator[None]:
    """Makes errors inside begin with where they come from."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{origin}: {error}") from error


@dataclass(frozen=True)
class FieldMapping:
    """Which columns are image, question and answer; see `HFDatasetWrapper`.

    Attributes:
        classes: the names of the classes of each column of class labels.
    """

    image_key: str = "image"
    text_key: str = "text"
    label_key: str = "label"
    question_template: str | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.image_key.split(",") if name.strip())

    def check(self, columns: Sequence[str] | None) -> None:
        """Raises a ValueError if a column is missing; a stream that does not know its columns passes."""
        needed = [*(("image_key", name) for name in self.images), ("label_key", self.label_key)]
        if self.question_template is None:
            needed.append(("text_key", self.text_key))
        for key, name in needed:
            if columns is not None and name not in columns:
                raise ValueError(f"The dataset has no field {name!r} ({key}); it has {', '.join(columns)}.")

    def question(self, row: Mapping[str, Any]) -> str:
        if self.question_template is None:
            return self.text(row, self.text_key)
        fields = {key: row[key] for key in row if key not in self.images}
        for key in self.template_keys:  # numbers stay numbers, which a template may format
            if key in fields and (key in self.classes or not is_number(fields[key])):
                fields[key] = self.text(row, key)
        try:
            return self.question_template.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            raise self._not_filled(error, fields) from error

    @cached_property
    def template_keys(self) -> set[str]:
        """The columns that `question_template` shows as they are."""
        try:
            return {name for _, name, _, _ in Formatter().parse(self.question_template or "") if name}
        except ValueError as error:
            raise self._not_filled(error) from error

    def _not_filled(self, error: Exception, fields: Iterable[str] = ()) -> ValueError:
        known = f"; the fields are {', '.join(fields)}" if fields else ""
        return ValueError(f"question_template {self.question_template!r} cannot be filled in ({error}){known}.")

    def answer(self, row: Mapping[str, Any]) -> str:
        return self.text(row, self.label_key)

    def text(self, row: Mapping[str, Any], name: str) -> str:
        """The text of a cell, or the name of its class.

        Raises:
            ValueError: if the cell is empty or holds anything else.
        """
        value, classes = row[name], self.classes.get(name)
        if classes is not None and isinstance(value, Integral):
            value = classes[int(value)] if int(value) >= 0 else None  # -1: not labelled
        if value is None or value != value:
            raise ValueError(f"the column {name!r} is empty: leave such rows out with the `filter` of `datasets`.")
        if isinstance(value, str):
            return value
        if not is_number(value):
            raise ValueError(
                f"the column {name!r} has {value!r:.80}, of type {type(value).__name__}: name a column of texts, "
                "numbers or class labels, or make one with the `map` of `datasets`."
            )
        return str(value)

    def record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Turns a row into a record of `TheWorldDataset`."""
        cells = [row[name] for name in self.images if row[name] is not None]
        images = [image for cell in cells for image in (cell if isinstance(cell, list) else [cell])]
        return {"images": images, "text": self.question(row), "label": self.answer(row)}


def is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def conversation(num_images: int, turns: Sequence[tuple[str, str]]) -> list[Message]:
    """A chat of (question, answer) turns, with all images before the first question."""
    messages: list[Message] = []
    for number, (question, answer) in enumerate(turns):
        images = [{"type": "image"}] * (num_images if number == 0 else 0)
        messages.append({"role": "user", "content": [*images, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    return messages


def to_sample(record: Mapping[str, Any] | Sample, origin: str, folder: Path | None = None) -> Sample:
    """Turns a record of `TheWorldDataset` into a sample.

    Raises:
        ValueError: if the record has unknown keys, lacks a question or an answer, if its turns are not a valid chat, or
            if the number of images differs from that in its messages.
    """
    if isinstance(record, Sample):
        return record
    if not isinstance(record, Mapping):
        raise ValueError(f"{origin} has type {type(record).__name__}: pass a dict with image, text and label.")
    images = images_of(record, origin, folder)
    messages = chat_of(record, origin, len(images))
    return Sample(
        messages=messages,
        images=images,
        future_frames=future_of(record, folder),
        world_latents=record.get("world_latents"),
        world_prompt=record.get("world_prompt"),
        origin=origin,
    )


def chat_of(
    record: Mapping[str, Any], origin: str, num_images: int | None = None, more_keys: Sequence[str] = ()
) -> list[Message]:
    """The chat of a record, read without opening an image.

    Args:
        num_images: how many images the record has; None counts them.
        more_keys: keys that the record may have in addition to RECORD_KEYS.
    """
    known = (*RECORD_KEYS, *more_keys)
    unknown = [key for key in record if key not in known]
    if unknown:
        ours = ELSEWHERE.get(unknown[0], unknown[0])
        hint = suggest(ours, known, f"the known keys are {', '.join(known)}.")
        raise ValueError(f"{origin} has an unknown key {unknown[0]!r}; {hint}")
    for key, kind, wanted in (("world_prompt", str, "a text"), ("world_latents", Tensor, "a tensor (C, T, h, w)")):
        value = record.get(key)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{origin} has a {key} of type {type(value).__name__}: pass {wanted}.")
    check_fps(record, origin)
    check_unicode(record.get("world_prompt") or "", origin)
    count = len(images_of(record, origin, None)) if num_images is None else num_images
    if "messages" in record:
        if "text" in record or "label" in record:
            raise ValueError(f"{origin} has both messages and text or label: give one of them.")
        if not isinstance(record["messages"], list) or not all(isinstance(m, Mapping) for m in record["messages"]):
            raise ValueError(f"{origin} has messages that are not a list of turns: use transformers' chat format.")
        messages = [plain_message(message, origin) for message in record["messages"]]
    else:
        for key in ("text", "label"):
            value = record.get(key)
            if value is None:
                raise ValueError(f"{origin} has no {key}: give text and label, or messages.")
            if not isinstance(value, str):
                raise ValueError(
                    f"{origin}: {key} is {value!r:.80}, of type {type(value).__name__}, and must be a text: write it "
                    "as one, in quotes."
                )
        messages = conversation(count, [(record["text"], record["label"])])
    check_chat(messages, count, origin)
    return messages


def images_of(record: Mapping[str, Any], origin: str, folder: Path | None) -> tuple[Any, ...]:
    """The images of a record, with absolute paths."""
    given = [key for key in ("image", "images", "frames") if record.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"{origin} has {' and '.join(given)}: give one of them.")
    if given == ["frames"]:
        return (video_of(record["frames"], record, folder),)
    images = [record["image"]] if given == ["image"] else record["images"] if given else ()
    return tuple(inside(image, folder) for image in images)


def future_of(record: Mapping[str, Any], folder: Path | None) -> Video | None:
    """The true future of a record, or None."""
    future = record.get("future_frames")
    if isinstance(future, Video):
        return future
    return None if future is None or not len(future) else video_of(future, record, folder, FramesAfterNow())


def video_of(
    frames: Any, record: Mapping[str, Any], folder: Path | None, selection: FrameSelection = LAST_FRAMES
) -> Video:
    """Frames of a record as a video with the record's rate."""
    if isinstance(frames, Video):
        return frames
    source = [inside(frame, folder) for frame in frames] if isinstance(frames, list) else inside(frames, folder)
    return Video(source, selection, fps=record.get("fps"))


def check_fps(record: Mapping[str, Any], origin: str) -> None:
    """Raises a ValueError if the rate of a record is no positive number, or if it has no frames that it belongs to."""
    fps = record.get("fps")
    try:
        check_rate(fps)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    if fps is None:
        return
    frames = [record[key] for key in MOVING if record.get(key) is not None]
    if not frames:
        raise ValueError(
            f"{origin} has fps, the rate of {', '.join(MOVING)}, and none of these: add one, or remove fps."
        )
    if any(isinstance(video, Video) for video in frames):
        raise ValueError(f"{origin} has fps and a Video, which has its own: create it as Video(source, fps=…).")


def inside(source: Any, folder: Path | None) -> Any:
    """Makes a relative path one inside `folder`; returns anything else unchanged."""
    return str(folder / source) if folder is not None and isinstance(source, str) else source


def plain_message(message: Mapping[str, Any], origin: str) -> Message:
    """Brings a turn into the form that samples have: a list of parts for the user, text for the other roles."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"{origin} has a turn with the role {role!r}; the roles are {', '.join(ROLES)}.")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(
        isinstance(part, Mapping)
        and (part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str)))
        for part in parts
    ):
        raise ValueError(f"{origin} has a turn of the {role} that is neither text nor a list of image and text parts.")
    for part in parts:
        read = ("type", "text") if part["type"] == "text" else ("type",)
        extra = next((key for key, value in part.items() if value is not None and key not in read), None)
        if extra is not None:
            raise ValueError(
                f"{origin} has {extra!r} in a part of its messages of type {part['type']!r}, where it is not read: "
                "list images under images, in the order of their parts, and remove other keys."
            )
    if role == "user":
        return {"role": role, "content": [part if part["type"] == "text" else {"type": "image"} for part in parts]}
    if any(part["type"] == "image" for part in parts):
        raise ValueError(f"{origin} has an image in a turn of the {role}: move it to a turn of the user.")
    return {"role": role, "content": "".join(part["text"] for part in parts)}


def check_unicode(text: str, origin: str) -> None:
    """Raises a ValueError for half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{origin} has {text!r:.80}, which is no valid Unicode ({error.reason}): fix it.") from error


def check_chat(messages: Sequence[Message], num_images: int, origin: str) -> None:
    """Raises a ValueError unless roles alternate, an answer comes last, images have places, and texts are Unicode."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"{origin} has turns of {', '.join(roles) or 'no role'}: user and assistant must alternate, and the "
            "assistant must come last."
        )
    if not all(message["content"].strip() for message in messages if message["role"] == "assistant"):
        raise ValueError(f"{origin} has an empty answer: fill it in, or remove the record.")
    texts = [message["content"] for message in messages if message["role"] != "user"]
    users = [message for message in messages if message["role"] == "user"]
    texts += [part["text"] for message in users for part in message["content"] if part["type"] == "text"]
    for text in texts:
        check_unicode(text, origin)
    in_messages = sum(part["type"] == "image" for message in users for part in message["content"])
    if in_messages != num_images:
        raise ValueError(
            f"{origin} has {num_images} image{'s' * (num_images != 1)}, and its messages have {in_messages} of them."
        )
