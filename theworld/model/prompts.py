"""What fast generation reads from and writes to the host: prompts without their padding, and new tokens.

Shapes: B prompts, L tokens of the padded prompts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LogitsProcessorList


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def end_of(found_BL: Tensor) -> int:
    """Slot after the last True of any row, 0 if there is none."""
    slots = found_BL.any(dim=0).nonzero()
    return int(slots[-1]) + 1 if slots.numel() else 0


class Prompts:
    """The prompts of one call without their padding, on the CPU.

    Attributes:
        ids, types: (B, L) int64, padded on the right to the longest prompt with -1; types are 1 for image tokens.
        lengths: (B,) int64.
        end_of_images, end_of_placeholders: slot after the last image token, and after the last image or world token, of
            any row; 0 if there is none.
        start_of_world: slot of the first world token of any row; the length if there is none.
    """

    def __init__(
        self, ids: Tensor, mask: Tensor | None, types: Tensor | None, placeholder_ids: tuple[int, ...]
    ) -> None:
        ids = ids.cpu()
        mask = torch.ones_like(ids) if mask is None else mask.cpu()
        types = torch.zeros_like(ids) if types is None else types.cpu()
        self.lengths = mask.bool().sum(dim=1)
        shift = ids.shape[1] - self.lengths  # padding is on the left
        index = torch.arange(ids.shape[1]) + shift[:, None]
        is_padding = index >= ids.shape[1]
        index = index.clamp(max=ids.shape[1] - 1)
        length = int(self.lengths.max())
        self.ids = ids.gather(1, index).masked_fill(is_padding, -1)[:, :length]
        self.types = types.gather(1, index).masked_fill(is_padding, -1)[:, :length]
        self.end_of_images = end_of(self.types == 1)
        self.end_of_placeholders = end_of(torch.isin(self.ids, torch.tensor(placeholder_ids)))
        world = (self.ids == placeholder_ids[-1]).any(dim=0).nonzero()
        self.start_of_world = int(world[0]) if world.numel() else length

    def shared_with(self, other: Prompts) -> int:
        """How many first slots are the same in all rows of both; at least one token of each row is not counted."""
        length = min(self.ids.shape[1], other.ids.shape[1])
        same = (self.ids[:, :length] == other.ids[:, :length]) & (self.types[:, :length] == other.types[:, :length])
        shared = same.all(dim=0).long().cumprod(dim=0).sum()
        return min(int(shared), int(self.lengths.min()) - 1)

    def padded(self, values: Tensor, start: int, length: int, fill: int) -> Tensor:
        """The slots from `start`, `length` of them, of `ids` or `types`."""
        part = values[:, start : start + length]
        part = part.masked_fill(part < 0, fill)
        return torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill)


class TokenReader:
    """Copies the tokens of a step to the host without waiting for the steps after it."""

    def __init__(self, tokens_B1: Tensor) -> None:
        self.tokens = tokens_B1
        self.on_gpu = tokens_B1.is_cuda
        self.host = torch.empty(tokens_B1.shape, dtype=tokens_B1.dtype, pin_memory=self.on_gpu)
        self.arrived = torch.cuda.Event() if self.on_gpu else None

    def fetch(self) -> None:
        """Starts the copy; the tokens may be overwritten by what is started afterwards."""
        self.host.copy_(self.tokens, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def read(self) -> Tensor:
        """The tokens (B,) of the last `fetch`."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host[:, 0].clone()


def most_probable(logits_BV: Tensor) -> Tensor:
    """The first of the largest entries (B, 1), found in parts so that a GPU works on all of them."""
    size = logits_BV.shape[1] // math.gcd(logits_BV.shape[1], 64)
    values, places = logits_BV.unflatten(1, (-1, size)).max(dim=2)
    part = values.argmax(dim=1, keepdim=True)
    return part * size + places.gather(1, part)


def choose_token(processors: LogitsProcessorList, do_sample: bool, ids: Tensor, logits: Tensor) -> Tensor:
    """The next token (B,) of each row, as transformers chooses it."""
    scores = processors(ids, logits.to(torch.float32, copy=True))
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)
