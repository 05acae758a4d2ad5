"""The answers of one batch while they are written: each row has its own limits, sampling, and reader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

Ended: TypeAlias = Literal["stop", "length", "cancelled"]
LEAST_TEMPERATURE = 1e-5  # below it, quotients overflow
UNFINISHED_CHARACTER = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


@dataclass(frozen=True)
class Decoding:
    """How one answer is decoded.

    Attributes:
        max_new_tokens: its length, in tokens.
        temperature: 0 is greedy decoding.
        top_p: the nucleus that a temperature above 0 samples from.
        seed: of the samples; None draws others each time.
        stop: texts that end the answer, and are not part of it.
        top_logprobs: how many of the most probable tokens are reported at each place; None reports none, 0 the
            log-probability of the answer's tokens alone.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None

    @property
    def reads_scores(self) -> bool:
        return self.temperature > 0 or self.top_logprobs is not None


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of a token that was written, before temperature, and of the most probable ones."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass
class Row:
    """One answer.

    Attributes:
        is_cancelled: asked after each token; True ends the answer.
        send: called with each new text and the scores of its tokens, if the answer is streamed.
        ids: the tokens so far, the end of the turn included.
        ended: why the answer has ended, or None.
    """

    decoding: Decoding
    tokenizer: PreTrainedTokenizerBase
    ends: Collection[int]
    is_cancelled: Callable[[], bool] = lambda: False
    send: Callable[[str, list[TokenScore]], None] | None = None
    ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    ended: Ended | None = None
    _sent: int = 0  # characters
    _sent_scores: int = 0
    _generator: torch.Generator | None = None

    def add(self, token: int) -> None:
        """Appends a token, and sends the text that it completes."""
        self.ids.append(token)
        if token in self.ends:
            self.ended = "stop"
        elif len(self.ids) >= self.decoding.max_new_tokens:
            self.ended = "length"
        if self.is_cancelled():
            self.ended = "cancelled"
        elif self.decoding.stop and self._stop_in(self._decoded()) is not None:
            self.ended = "stop"
        if self.send is not None and self.ended != "cancelled":
            self._send_new(self.text() if self.ended else self._settled())

    def text(self) -> str:
        """The answer so far, without the text that ended it."""
        text = self._decoded()
        return text[: self._stop_in(text)].strip()

    def _decoded(self) -> str:
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return text

    def _stop_in(self, text: str) -> int | None:
        """Where the first text that ends the answer begins."""
        return min((at for stop in self.decoding.stop if (at := text.find(stop)) >= 0), default=None)

    def _settled(self) -> str:
        """The part of the text that no further token changes: not what may become a stop text, or is stripped."""
        text = self._decoded().rstrip(UNFINISHED_CHARACTER)
        keep = len(text)
        for stop in self.decoding.stop:
            longest = next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            keep = min(keep, len(text) - longest)
        return text[:keep].strip()

    def _send_new(self, text: str) -> None:
        new, scores = text[self._sent :], self.scores[self._sent_scores :]
        if self.send is not None and (new or (self.ended and scores)):
            self._sent, self._sent_scores = len(text), len(self.scores)
            self.send(new, scores)

    def draw(self, scores_V: Tensor) -> int:
        """A token sampled from the scores of all tokens, with this answer's own generator."""
        if self._generator is None:
            self._generator = torch.Generator()
            if self.decoding.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.decoding.seed)
        logits_V = scores_V.float().cpu()
        logits_V = (logits_V - logits_V.max()) / max(self.decoding.temperature, LEAST_TEMPERATURE)
        probabilities, order = logits_V.softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities
        outside = before >= self.decoding.top_p
        outside[0] = False  # the first token is always kept, also for top_p 0
        probabilities[outside] = 0.0
        return int(order[torch.multinomial(probabilities, 1, generator=self._generator)])

    def record(self, token: int, scores_V: Tensor) -> None:
        """Keeps the log-probabilities at the place of `token`."""
        logprobs = scores_V.float().log_softmax(-1)
        best = logprobs.topk(self.decoding.top_logprobs or 0)
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        decode = self.tokenizer.decode
        if token not in self.ends:
            self.scores.append(
                TokenScore(
                    decode([token]), float(logprobs[token]), tuple((decode([each]), value) for each, value in top)
                )
            )


class TokenChoice(LogitsProcessor):
    """Draws the next tokens of the rows that sample, and records log-probabilities."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = scores
        for index, row in enumerate(self.rows):
            if row.ended is not None:
                continue
            if row.decoding.temperature > 0:
                token = row.draw(scores[index])
                chosen = chosen.clone() if chosen is scores else chosen
                chosen[index] = -torch.inf
                chosen[index, token] = 0.0
            if row.decoding.top_logprobs is not None:
                row.record(int(chosen[index].argmax()), scores[index])
        return chosen


class RowEnds(StoppingCriteria):
    """Passes each new token to its row, and ends the rows whose answers have ended."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if row.ended is None:
                row.add(token)
        return torch.tensor([row.ended is not None for row in self.rows], device=input_ids.device)
