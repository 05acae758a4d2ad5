"""How the rows of a batch are packed for the loss of a frozen language model; see `theworld.model.frozen_loss`.

Shapes: B rows of L tokens; a group has R rows with prefixes of up to U tokens, N tokens that follow them, and M labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from theworld.model.devices import to_device
from theworld.model.placeholders import IGNORE_INDEX

# sizes are rounded up to multiples, so that few shapes occur
PREFIX_STEP, TOKEN_STEP, LABEL_STEP, LENGTH_STEP = 8, 128, 64, 1024


def shift(labels: Tensor) -> Tensor:
    """Labels (B, L) as the token that follows each position; -100 where it is not a label."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def loss_scale(targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """What the sum over labels is multiplied by: 1 / `num_items_in_batch`, or 1 / their number."""
    count = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return 1 / count


class Row(NamedTuple):
    """What decides how a row is divided: positions in [0, L]."""

    first_world: int  # of its world tokens; L if it has none
    first_target: int  # whose next token is a label; L if there is none
    images_end: int  # after its last image token; 0 if it has none
    length: int  # tokens without padding; 0 if it is padded on the left
    targets: int  # number of labels

    @property
    def prefix(self) -> int:
        """Tokens that need neither a gradient nor logits."""
        return min(self.first_world, self.first_target, self.length)


def describe_rows(world: Tensor, targets: Tensor, images: Tensor, attention: Tensor) -> list[Row]:
    """Describes each row by masks (B, L), with one transfer from the device."""
    L = targets.shape[1]
    positions = torch.arange(L, device=targets.device)
    labelled = targets != IGNORE_INDEX

    def first(mask: Tensor) -> Tensor:
        return torch.where(mask, positions, L).amin(dim=1)

    images_end = torch.where(images, positions + 1, 0).amax(dim=1)
    lengths = attention.sum(dim=1) * (attention[:, 0] != 0)
    columns = [first(world), first(labelled), images_end, lengths, labelled.sum(dim=1)]
    return [Row(*row) for row in torch.stack(columns, dim=1).tolist()]


def groups_of(rows: Sequence[Row], group_tokens: int) -> list[range]:
    """Divides rows in order, so that the tokens after the prefixes of each group are about equal in number."""
    lengths = [row.length - row.prefix for row in rows]
    share = sum(lengths) / -(-sum(lengths) // group_tokens)
    groups, start, tokens = [], 0, 0
    for number, length in enumerate(lengths):
        if number > start and tokens + length / 2 > share:
            groups.append(range(start, number))
            start, tokens = number, 0
        tokens += length
    return [*groups, range(start, len(rows))]


class Layout(NamedTuple):
    """Where the tokens of a group are; int64 on the device.

    Attributes:
        prefix, following: (R·U,), (N,) positions of tokens in B·L; B·L at unused places.
        positions: (N,) of the following tokens in their rows.
        order, inverse: (R·U + N,) the keys of each row, prefix first, among those of all prefixes and of what follows
            them; and the inverse of this permutation.
        starts: (2, R + 2) int32, the first query and the first key of each row and of the unused places, and the end.
        blocks: (R, U) the image that a token belongs to, or -1.
        labelled, targets: (M,) positions in N, and the tokens that follow there; -100 is left out.
        of_place: (N,) which of the M labels a token has, or M.
    """

    prefix: Tensor
    following: Tensor
    positions: Tensor
    order: Tensor
    inverse: Tensor
    starts: Tensor
    blocks: Tensor
    labelled: Tensor
    targets: Tensor
    of_place: Tensor


class Plan(NamedTuple):
    """How a batch is divided.

    Attributes:
        layouts: of equal sizes, one per group.
        longest: at least the most tokens of a row after its prefix, and in all.
    """

    layouts: Sequence[Layout]
    longest: tuple[int, int]


def plan_batch(rows: Sequence[Row], targets: Tensor, blocks: Tensor, group_tokens: int) -> Plan:
    """Plans a batch with targets and image blocks (B, L)."""
    groups = groups_of(rows, group_tokens)
    lengths = [row.length - row.prefix for row in rows]
    U = up_to(max(row.prefix for row in rows), PREFIX_STEP)
    N = up_to(max(sum(lengths[number] for number in group) for group in groups), TOKEN_STEP)
    M = up_to(max(sum(rows[number].targets for number in group) for group in groups), LABEL_STEP)
    R = max(map(len, groups))
    flat_targets = nn.functional.pad(targets.flatten(), (0, 1), value=IGNORE_INDEX)
    flat_blocks = nn.functional.pad(blocks.flatten(), (0, 1), value=-1)
    layouts = []
    for group in groups:
        places = layout_of(rows, group, targets.shape[1], U, N, R)
        moved = to_device([*map(torch.from_numpy, places)], targets.device)
        prefix, following, positions, order, inverse, starts = moved
        wanted = flat_targets[following]
        has_label = wanted != IGNORE_INDEX
        of_place = torch.where(has_label, has_label.cumsum(0) - 1, M)
        labelled = torch.nonzero_static(has_label, size=M, fill_value=-1)[:, 0]
        wanted = torch.where(labelled < 0, IGNORE_INDEX, wanted[labelled])
        starts, own_blocks = starts.view(2, -1).int(), flat_blocks[prefix].view(R, U)
        keys = positions, order, inverse, starts
        layouts.append(Layout(prefix, following, *keys, own_blocks, labelled.clamp(min=0), wanted, of_place))
    longest = max(lengths), max(row.length for row in rows)
    return Plan(layouts, (up_to(longest[0], LENGTH_STEP), up_to(longest[1], LENGTH_STEP)))


def layout_of(rows: Sequence[Row], group: range, L: int, U: int, N: int, R: int) -> list[np.ndarray[Any, Any]]:
    """The fields of a group's `Layout` from `prefix` to `starts`."""
    prefix, following = np.full((R, U), len(rows) * L), np.full(N, len(rows) * L)
    positions = np.zeros(N, int)
    starts = np.empty((2, R + 2), int)
    starts[:] = [[N], [R * U + N]]
    orders: list[np.ndarray[Any, Any]] = []
    free = np.ones(R * U, bool)
    n = keys = 0
    for place, number in enumerate(group):
        row = rows[number]
        end = n + row.length - row.prefix
        starts[:, place] = n, keys
        prefix[place, : row.prefix] = number * L + np.arange(row.prefix)
        positions[n:end] = np.arange(row.prefix, row.length)
        following[n:end] = number * L + positions[n:end]
        orders += [place * U + np.arange(row.prefix), R * U + np.arange(n, end)]
        free[orders[-2]] = False
        n, keys = end, keys + row.length
    starts[:, len(group)] = n, keys
    order = np.concatenate([*orders, np.flatnonzero(free), np.arange(R * U + n, R * U + N)])  # unused ones at the end
    return [prefix.flatten(), following, positions, order, np.argsort(order), starts.flatten()]


def up_to(number: int, step: int) -> int:
    """The smallest multiple of `step`, at least one, that is not below `number`."""
    return max(step, -(-number // step) * step)
