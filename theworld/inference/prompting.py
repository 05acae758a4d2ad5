"""Prompts: images and questions in, chats with placeholders and, for training, labels out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase

from theworld.inference.options import RolloutOptions
from theworld.media.images import is_array
from theworld.media.inputs import ImageOrVideo, LoadedImages, group_images
from theworld.media.video import Video
from theworld.messages import counted
from theworld.model.placeholders import IGNORE_INDEX
from theworld.model.processing import TheWorldProcessor, texts_of

TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"
ANSWER_OPENING = f"{TURN}model\n"


@dataclass(frozen=True)
class Chat:
    """A question with turns before it, in the form of training samples; with an answer it is a complete chat.

    Attributes:
        messages: turns in transformers' chat format, of which the last is the user's; its content and that of the
            other turns of the user is a list of parts.
    """

    messages: Sequence[Mapping[str, Any]]

    def changed(self, change: Callable[[str], str]) -> Chat:
        """This chat with `change` applied to the last text of the user."""
        before, last = self.messages[:-1], self.messages[-1]
        parts = list(last["content"])
        place = max((at for at, part in enumerate(parts) if part["type"] == "text"), default=len(parts))
        parts[place : place + 1] = [
            {"type": "text", "text": change(parts[place]["text"] if place < len(parts) else "")}
        ]
        return Chat([*before, {**last, "content": parts}])

    def with_images(self, count: int) -> Chat:
        """This chat with `count` more images after all others."""
        before, last = self.messages[:-1], self.messages[-1]
        parts = list(last["content"])
        place = max((at + 1 for at, part in enumerate(parts) if part["type"] == "image"), default=0)
        return Chat([*before, {**last, "content": [*parts[:place], *[{"type": "image"}] * count, *parts[place:]]}])

    def encoded(self, as_words: Callable[[str], str]) -> list[dict[str, Any]]:
        """Its turns with all texts passed through `as_words`."""
        return [{**turn, "content": _encoded(turn["content"], as_words)} for turn in self.messages]


def _encoded(content: str | Sequence[Mapping[str, Any]], as_words: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return as_words(content)
    return [{**part, "text": as_words(part["text"])} if part["type"] == "text" else dict(part) for part in content]


Question: TypeAlias = str | Chat


class PromptBuilder:
    """Builds the inputs of the model that `processor` belongs to."""

    def __init__(self, processor: TheWorldProcessor) -> None:
        self.processor = processor
        self.turns = Turns(processor.tokenizer)

    def normalize_inputs(
        self, image: Any, question: str | Sequence[Question] | None, video: Any
    ) -> tuple[LoadedImages, list[Any]]:
        """The images and videos of each question, and the questions."""
        questions = self.questions(image, question)
        if isinstance(image, (list, tuple)) and not image:
            raise ValueError("image is an empty list; pass one or more images, or None to ask without an image.")
        if video is None:
            asked_as = question if isinstance(question, str) else questions
            return group_images(image, asked_as, self.processor.config.read_video), questions
        several = not isinstance(question, str) and isinstance(video, (list, tuple, np.ndarray, Tensor))
        videos = list(video) if several else [video]
        if len(videos) != len(questions):
            given, asked = counted(len(videos), "video"), counted(len(questions), "question")
            raise ValueError(f"Got {given} for {asked}; pass one video per question.")
        return LoadedImages([self.video(each, image)] for each in videos), questions

    def questions(self, image: Any, question: Any) -> list[Any]:
        """The questions of a call as a list."""
        if question is None:
            raise ValueError("question is missing; pass a string, or a list of strings.")
        if isinstance(question, list) and any(isinstance(each, Chat) for each in question):
            return question  # of an evaluation, which has checked them
        if swapped(image, question):
            raise ValueError(f"image is {image!r:.100} and question is an image; pass the image first.")
        questions = texts_of("question", question)
        if not questions:
            raise ValueError("The list of questions is empty.")
        if not all(text.strip() for text in questions):
            raise ValueError("question is an empty text; ask something about the image.")
        return questions

    def video(self, video: Any, image: Any = None) -> Video:
        """Loads the argument `video` of a call, as the world model reads it."""
        if image is not None:
            raise ValueError(
                "image and video were both given; pass one of them, since the last frame of a video is the current "
                "image. To ask about both, pass a list as image, with the video read by load_video."
            )
        return self.processor.config.read_video(video if isinstance(video, Video) else Video(video))

    def now(self, image: Any, video: Any) -> list[ImageOrVideo]:
        """What a future is imagined from: an image, a list of them, or a video."""
        read = self.processor.config.read_video
        return group_images(image, "", read)[0] if video is None else [self.video(video, image)]

    def inputs(
        self,
        images: list[list[ImageOrVideo]],
        questions: Sequence[Question],
        answers: str | Sequence[str] | None,
        rollout: RolloutOptions,
        ids_only: bool = False,
    ) -> BatchFeature:
        """Model inputs, left-padded. With answers, their turns follow, and `labels` (B, L) hold their ids.

        Names of control tokens in questions and answers are encoded as words. `ids_only` is that of the processor.
        """
        answers = None if answers is None else texts_of("answer", answers)
        if answers is not None and len(answers) != len(questions):
            given, asked = counted(len(answers), "answer"), counted(len(questions), "question")
            raise ValueError(f"Got {given} for {asked}; pass one answer per question.")
        as_words = self.processor.as_words
        chats = [
            each.encoded(as_words) if isinstance(each, Chat) else user_turn(len(row), as_words(each))
            for row, each in zip(images, questions, strict=True)
        ]
        steps = rollout.num_world_steps
        inputs = self.processor(
            images=images if any(images) else None,
            text=[self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
            num_world_steps=self.processor.config.num_world_steps if steps is None else steps,
            seed=rollout.seed,
            enable_world=rollout.enable_world,
            world_images=rollout.world_images,
            world_prompt=rollout.world_prompt,
            ids_only=ids_only,
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the chat template has added <bos>
            return_tensors="pt",
        )
        if answers is not None:
            self.append_answers(inputs, answers)
        return inputs

    def append_answers(self, inputs: BatchFeature, answers: Sequence[str]) -> None:
        """Appends each answer and the end of its turn to its row, and adds `labels`.

        Answers are tokenised apart from their prompts, as in generation: a tokenizer may merge the newline that ends a
        prompt with one that begins an answer.
        """
        tokenizer = self.processor.tokenizer
        added = [
            torch.tensor(tokenizer(text + TURN_END, add_special_tokens=False)["input_ids"], dtype=torch.int64)
            for text in map(self.processor.as_words, answers)
        ]
        present, shape = inputs["attention_mask"].bool(), inputs["input_ids"].shape
        padding = {"input_ids": tokenizer.pad_token_id}
        for name in [name for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == shape]:
            rows = []
            for row, mask, ids in zip(inputs[name], present, added, strict=True):
                new = ids if name == "input_ids" else torch.full_like(ids, int(name == "attention_mask"))
                rows.append(torch.cat([row[mask], new]))
            inputs[name] = pad_sequence(rows, batch_first=True, padding_value=padding.get(name, 0), padding_side="left")
        inputs["labels"] = self.turns.labels(inputs["input_ids"])


class Turns:
    """Finds the turns of Gemma's chat template in token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.answer_opening = tokenizer(ANSWER_OPENING, add_special_tokens=False)["input_ids"]
        self.start, self.end = tokenizer.convert_tokens_to_ids([TURN, TURN_END])

    def count(self, ids: Sequence[int]) -> int:
        """Number of turns that begin in the ids of a chat."""
        return list(ids).count(self.start)

    def answers(self, ids: Sequence[int]) -> list[slice]:
        """Where the answers of a chat are: their text and the end of the turn, without the opening."""
        ids, length = list(ids), len(self.answer_opening)
        firsts = [at + length for at, token in enumerate(ids) if token == self.start]
        firsts = [first for first in firsts if ids[first - length : first] == self.answer_opening]
        return [slice(first, ids.index(self.end, first) + 1) for first in firsts]

    def labels(self, input_ids: Tensor) -> Tensor:
        """Labels (B, L): the ids of each answer and of the end of its turn, IGNORE_INDEX elsewhere."""
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, ids in enumerate(input_ids.tolist()):
            for answer in self.answers(ids):
                labels[row, answer] = input_ids[row, answer]
        return labels


def swapped(image: Any, question: Any) -> bool:
    """Whether a question was passed as the image, and an image as the question."""
    first, second = (v[0] if isinstance(v, list | tuple) and v else v for v in (image, question))
    if not isinstance(first, str) or os.path.isfile(os.path.expanduser(first)):
        return False
    if isinstance(second, str):
        return os.path.isfile(os.path.expanduser(second))
    return isinstance(second, Image.Image | os.PathLike) or is_array(second)


def user_turn(num_images: int, question: str) -> list[dict[str, Any]]:
    """A chat of one user turn: images first, then the question."""
    return [{"role": "user", "content": [*[{"type": "image"}] * num_images, {"type": "text", "text": question}]}]


def checked_labels(labels: Tensor, input_ids: Tensor) -> Tensor:
    """Label ids (B, L) on the device of `input_ids`; a ValueError if there is not one per token."""
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, and the prompt {tuple(input_ids.shape)}; pass "
            "the answers as text, or one label per token of prepare(image, text)['input_ids']."
        )
    return labels.to(input_ids.device)
