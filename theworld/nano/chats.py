"""Chats about pictures as token ids, put together fast enough to train on.

The processor is what people use; it writes one chat in some milliseconds. Here the pieces are tokenised once and
joined: chat by chat (`ChatWriter`), or a batch at a time on the accelerator (`TurnTable`). A test holds all to the same
ids.

Shapes: B chats, K turns a chat, L tokens, n pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def ids(self, text: str) -> np.ndarray:
        """Ids of a piece of a chat, int32; no special tokens but those written in it."""
        if text not in self._known:
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._known[text] = np.array(ids, dtype=np.int32)
        return self._known[text]

    def turn(self, question: str, answer: str) -> Turn:
        """A question and its answer."""
        return Turn(self.ids(question), self.ids(f"{answer}<end_of_turn>"))

    def prefix(self, mode: str, num_world_steps: int) -> np.ndarray:
        """Ids of all that stands before the first question."""
        picture = self.processor.full_image_sequence if mode != "world" else ""
        count = self.processor.config.world_token_count(num_world_steps)
        world = WORLD_TOKEN * count if mode != "picture" else ""
        return self.ids(f"<bos><start_of_turn>user\n{picture}{world}")

    def batch(self, chats: Sequence[Sequence[Turn]], mode: str, num_world_steps: int = 0) -> ChatBatch:
        """Chats of one or more turns each, all about one picture and with the same number of world steps."""
        prefix = self.prefix(mode, num_world_steps)
        opening, closing = self.ids(ANSWER_OPENING), self.ids(QUESTION_OPENING)
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


class TurnTable:
    """Every turn as a row of one array of ids, so that drawing a batch of chats is a few gathers on the accelerator.

    Each turn ends with the opening of the next question, where nothing is learned.

    Args:
        questions: for each picture and kind of question, (text, answer) pairs; every picture names the same kinds.
        device: where batches are drawn.
    """

    def __init__(
        self,
        writer: ChatWriter,
        questions: Sequence[Mapping[str, Sequence[tuple[str, str]]]],
        device: torch.device,
    ) -> None:
        self.writer, self.device = writer, device
        rows: dict[tuple[str, str], int] = {}
        self._turns: dict[str, Tensor] = {}  # kind -> (pictures, most) row of each turn, -1 where there is none
        for kind in questions[0]:
            known = [[rows.setdefault(pair, len(rows)) for pair in own[kind]] for own in questions]
            table = np.full((len(known), max(1, *map(len, known))), -1, dtype=np.int32)
            for picture, own_rows in enumerate(known):
                table[picture, : len(own_rows)] = own_rows
            self._turns[kind] = torch.from_numpy(table).to(device)
        opening, closing = writer.ids(ANSWER_OPENING), writer.ids(QUESTION_OPENING)
        turns = [(turn.question, opening, turn.answer, closing) for turn in (writer.turn(*pair) for pair in rows)]
        lengths = np.array([sum(map(len, pieces)) for pieces in turns])
        filled = np.arange(lengths.max()) < lengths[:, None]  # (turns, longest)
        ids, learned = np.zeros(filled.shape, dtype=np.int32), np.zeros(filled.shape, dtype=bool)
        ids[filled] = np.concatenate([piece for pieces in turns for piece in pieces])
        learned[filled] = np.concatenate(
            [np.full(len(piece), place == 2) for pieces in turns for place, piece in enumerate(pieces)]
        )
        self._ids = torch.from_numpy(ids).to(device)
        self._filled = torch.from_numpy(filled).to(device)
        self._learned = torch.from_numpy(learned).to(device)

    def draw(
        self,
        pictures: Tensor,
        counts: Mapping[str, int],
        mode: str,
        num_world_steps: int,
        generator: torch.Generator,
        room: int,
    ) -> ChatBatch:
        """One chat about each of `pictures` (B,): `counts` turns of each kind at most, none twice, in random order.

        Nothing here waits for the accelerator, so that the next batch is drawn while it still learns from the last.

        Args:
            room: tokens for the turns of a chat; those that no longer fit are left out, whole.
        """
        drawn = []
        for kind, count in counts.items():
            own = self._turns[kind][pictures]  # (B, most)
            keys = torch.rand(own.shape, device=self.device, generator=generator).masked_fill(own < 0, 2.0)
            drawn.append(own.gather(1, keys.argsort(1)[:, :count]))
        turns = torch.cat(drawn, dim=1)  # (B, K), -1 where a picture has too few
        order = torch.rand(turns.shape, device=self.device, generator=generator).argsort(1)
        turns = turns.gather(1, order)
        filled = self._filled[turns] & (turns >= 0)[..., None]  # (B, K, longest)
        fits = filled.sum(2).cumsum(1) <= room
        filled = (filled & fits[..., None]).flatten(1)
        prefix = torch.from_numpy(self.writer.prefix(mode, num_world_steps)).to(self.device)
        length = len(prefix) + room
        # where each id goes in its chat; what is not there goes into one column too many, which is cut off
        place = torch.where(filled, filled.cumsum(1) - 1 + len(prefix), length)
        new = self._ids[turns].flatten(1).long()
        empty = torch.full((len(pictures), length + 1), self.writer.pad_token_id, device=self.device)
        ids = empty.scatter(1, place, new)[:, :length]
        ids[:, : len(prefix)] = prefix
        targets = torch.where(self._learned[turns].flatten(1), new, IGNORED)
        labels = torch.full_like(empty, IGNORED).scatter(1, place, targets)[:, :length]
        mask = (torch.arange(length, device=self.device) < len(prefix) + filled.sum(1, keepdim=True)).long()
        return ChatBatch(ids, mask, (ids == self.writer.image_token_id).long(), labels)


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
