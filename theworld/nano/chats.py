"""Chats about pictures as token ids, put together fast enough to train on: thousands a second and core.

The processor is what people use; it writes one chat in some milliseconds. Here the pieces are tokenised once and
joined. A test holds both to the same ids.

Shapes: B chats, L tokens, n pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theworld.api import IGNORED
from theworld.processing import WORLD_TOKEN, TheWorldProcessor

MODES = ("picture", "world", "both")  # what stands before the question: the picture, the world tokens, or both
ANSWER_OPENING = "<end_of_turn>\n<start_of_turn>model\n"
QUESTION_OPENING = "\n<start_of_turn>user\n"


@dataclass(frozen=True)
class Turn:
    """One question and its answer as token ids; the answer ends with its end of turn."""

    question: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class ChatBatch:
    """Right-padded chats (B, L): ids, mask, Gemma's token types (1 = picture), labels (-100 outside answers)."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> dict[str, Tensor]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()}


class ChatWriter:
    """Tokenises questions and joins them behind a picture, world tokens, or both."""

    def __init__(self, processor: TheWorldProcessor) -> None:
        self.processor = processor
        self.image_token_id = processor.tokenizer.image_token_id
        self.pad_token_id = processor.tokenizer.pad_token_id
        self._known: dict[str, np.ndarray] = {}  # the same words are asked thousands of times

    def _ids(self, text: str) -> np.ndarray:
        if text not in self._known:
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._known[text] = np.array(ids, dtype=np.int32)
        return self._known[text]

    def turn(self, question: str, answer: str) -> Turn:
        """A question and its answer."""
        return Turn(self._ids(question), self._ids(f"{answer}<end_of_turn>"))

    def prefix(self, mode: str, num_world_steps: int) -> np.ndarray:
        """Ids of all that stands before the first question."""
        picture = self.processor.full_image_sequence if mode != "world" else ""
        count = self.processor.config.world_token_count(num_world_steps)
        world = WORLD_TOKEN * count if mode != "picture" else ""
        return self._ids(f"<bos><start_of_turn>user\n{picture}{world}")

    def batch(self, chats: Sequence[Sequence[Turn]], mode: str, num_world_steps: int = 0) -> ChatBatch:
        """Chats of one or more turns each, all about one picture and with the same number of world steps."""
        prefix = self.prefix(mode, num_world_steps)
        opening, closing = self._ids(ANSWER_OPENING), self._ids(QUESTION_OPENING)
        rows, labels = [], []
        for chat in chats:
            pieces, learned = [prefix], [False]
            for number, turn in enumerate(chat):
                pieces += ([closing] if number else []) + [turn.question, opening, turn.answer]
                learned += ([False] if number else []) + [False, False, True]
            rows.append(np.concatenate(pieces))
            labels.append(np.concatenate([np.full(len(p), know) for p, know in zip(pieces, learned, strict=True)]))
        length = max(map(len, rows))
        ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        target = np.full((len(rows), length), IGNORED, dtype=np.int64)
        for row, (tokens, know) in enumerate(zip(rows, labels, strict=True)):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            target[row, : len(tokens)][know] = tokens[know]
        types = (ids == self.image_token_id).astype(np.int64)
        return ChatBatch(*(torch.from_numpy(array) for array in (ids, mask, types, target)))


def answered_rightly(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether greedy decoding gives exactly the answer, one boolean a chat of one turn.

    While each token so far is the greedy one, teacher forcing and greedy decoding see the same tokens, so one forward
    settles it.

    Args:
        logits: (B, L, V).
        labels: (B, L), -100 outside the answer.

    Returns:
        (B,) bool.
    """
    predicted, wanted = logits[:, :-1].argmax(-1), labels[:, 1:]
    return ((predicted == wanted) | (wanted == IGNORED)).all(dim=1)
