"""What people ask, as the model's inputs: pictures and questions in, chats with placeholders out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from theworld.inference.options import RolloutOptions
from theworld.media.inputs import ImageOrVideo, LoadedImages, group_images
from theworld.media.video import Video, load_video
from theworld.model.processing import TheWorldProcessor

IGNORED = -100  # label of a token that is not learned
TURN_END = "<end_of_turn>"


class PromptBuilder:
    """Reads what one model is asked.

    Args:
        processor: of that model.
    """

    def __init__(self, processor: TheWorldProcessor) -> None:
        self.processor = processor
        tokens = processor.tokenizer.added_tokens_decoder.values()
        self.control_tokens = tuple(token.content for token in tokens if token.special)

    def normalize_inputs(
        self, image: Any, question: str | Sequence[str] | None, video: Any
    ) -> tuple[LoadedImages, list[str]]:
        """The images and videos of each question, and the questions.

        Raises:
            ValueError: if there is no question, `image` is an empty list, or they do not fit together.
        """
        if question is None:
            raise ValueError("question is missing; pass a string, or a list of strings.")
        questions = [question] if isinstance(question, str) else list(question)
        if not questions:
            raise ValueError("The list of questions is empty.")
        if isinstance(image, (list, tuple)) and not image:
            raise ValueError("image is an empty list; pass one or more images, or None to ask without an image.")
        if video is None:
            return group_images(image, question), questions
        several = not isinstance(question, str) and isinstance(video, (list, tuple, np.ndarray, Tensor))
        videos = list(video) if several else [video]
        if len(videos) != len(questions):
            raise ValueError(f"Got {len(videos)} videos for {len(questions)} questions; pass one video per question.")
        return LoadedImages([self.video(own, image)] for own in videos), questions

    def video(self, video: Any, image: Any = None) -> Video:
        """`video`, given instead of `image`, with as many frames kept as the model reads."""
        if image is not None:
            raise ValueError(
                "image and video were both given; give one, since a video's last frame is the picture of now (to ask "
                "about both, pass them as a list of pictures, the video read by load_video)."
            )
        config = self.processor.config
        return load_video(video, keep=config.num_pixel_frames(0, config.max_past_steps))

    def inputs(
        self,
        pictures: list[list[ImageOrVideo]],
        questions: Sequence[str],
        answers: Sequence[str] | None,
        rollout: RolloutOptions,
    ) -> BatchFeature:
        """Model inputs, left-padded; with answers their turns are added, and `labels` (B, L) hold their ids."""
        if answers is not None and len(answers) != len(questions):
            raise ValueError(f"{len(questions)} questions were given with {len(answers)} answers.")
        for text in (*questions, *(answers or ())):
            check_text(text, self.control_tokens)
        chats = [user_turn(len(own), text) for own, text in zip(pictures, questions, strict=True)]
        texts = [self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        if answers is not None:
            texts = [prompt + text + TURN_END for prompt, text in zip(texts, answers, strict=True)]
        steps = rollout.num_world_steps
        inputs = self.processor(
            images=pictures if any(pictures) else None,
            text=texts,
            num_world_steps=self.processor.config.num_world_steps if steps is None else steps,
            seed=rollout.seed,
            enable_world=rollout.enable_world,
            world_images=rollout.world_images,
            world_prompt=rollout.world_prompt,
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the template has written <bos>
            return_tensors="pt",
        )
        if answers is not None:
            inputs["labels"] = self.labels(inputs["input_ids"], answers)
        return inputs

    def labels(self, input_ids: Tensor, answers: Sequence[str]) -> Tensor:
        """Labels (B, L): the ids of each answer and its end of turn, which close each left-padded row."""
        labels = torch.full_like(input_ids, IGNORED)
        for row, text in enumerate(answers):
            ids = self.processor.tokenizer(text + TURN_END, add_special_tokens=False)["input_ids"]
            if input_ids[row, -len(ids) :].tolist() != ids:
                raise AssertionError(f"the answer {text!r} is tokenised otherwise behind its prompt")
            labels[row, -len(ids) :] = input_ids[row, -len(ids) :]
        return labels


def check_text(text: str, control_tokens: Iterable[str]) -> None:
    """Raises a ValueError for text that would be read as more than text.

    A tokenizer takes the name of a control token for the token, wherever it stands: a question could end its own turn,
    answer itself, or bring placeholders that nothing fills. What people and data sets write is text, so it is refused;
    prompts with control tokens of one's own are for the processor.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} has bytes in it that are no text; write it in UTF-8.") from error
    for token in control_tokens:
        if token in text:
            raise ValueError(
                f"The text has {token!r} in it, which is a control token of the language model and would be "
                "read as one; write it another way."
            )


def user_turn(num_pictures: int, question: str) -> list[dict[str, Any]]:
    """A chat of one user turn: pictures first, then the question."""
    return [{"role": "user", "content": [*[{"type": "image"}] * num_pictures, {"type": "text", "text": question}]}]
