"""Trainable parts of the model: an allow-list of parts, which of them are trainable, and which have changed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DIGESTED = 1024  # numbers of each tensor that a fingerprint reads

# A part is identified by the names of its parameters. The first match wins: LoRA precedes the language model around it.
PARTS: dict[str, tuple[str, ...]] = {
    "projector": ("projector.",),
    "lora": (".lora_A.", ".lora_B."),
    "vision": ("vlm.model.vision_tower.", "vlm.model.multi_modal_projector."),
    "language": ("vlm.model.language_model.", "vlm.lm_head."),
    "vae_encoder": ("world.vae.encoder.", "world.vae.quant_conv."),
    "vae_decoder": ("world.vae.decoder.", "world.vae.post_quant_conv."),
    "world_transformer": ("world.transformer.",),
}
BETWEEN_BASES = ("projector", "lora")  # parts that neither base model has
TRAINABLE_PARTS = ("projector", "lora", "vision", "language", "vae_encoder")


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part: their number, and how many of them are trainable."""

    part: str
    total: int
    trainable: int


def part_of(name: str, parts: Mapping[str, Sequence[str]] = PARTS) -> str:
    """The part that a parameter belongs to, by its full name."""
    for part, patterns in parts.items():
        if any(name.startswith(pattern) or (pattern.startswith(".") and pattern in name) for pattern in patterns):
            return part
    raise AssertionError(f"Parameter {name} belongs to no part; add it to PARTS.")


def parameters_of(model: nn.Module, parts: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Named parameters of the given parts; tied ones once."""
    wanted = set(parts)
    for name, parameter in model.named_parameters():
        if part_of(name) in wanted:
            yield name, parameter


def train_only(model: nn.Module, parts: Iterable[str]) -> None:
    """Makes exactly these parts trainable and freezes all others."""
    wanted = tuple(parts)
    present = {part_of(name) for name, _ in model.named_parameters()}
    for part in wanted:
        if part not in TRAINABLE_PARTS:
            raise ValueError(f"{part!r} is not a trainable part; choose one of {', '.join(TRAINABLE_PARTS)}.")
        if part not in present:
            raise ValueError(f"This model has no part {part!r}; its parts are {', '.join(sorted(present))}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)


def trained_parts(model: nn.Module) -> tuple[str, ...]:
    """Parts with at least one trainable parameter, in the order of PARTS."""
    trainable = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return tuple(part for part in PARTS if part in trainable)


def count_parameters(model: nn.Module) -> list[PartCount]:
    """One row per part that the model has; works on the meta device."""
    totals, trainable = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        totals[part_of(name)] += parameter.numel()
        trainable[part_of(name)] += parameter.numel() * parameter.requires_grad
    return [PartCount(part, totals[part], trainable[part]) for part in PARTS if part in totals]


def fingerprints(model: nn.Module, parts: Iterable[str]) -> dict[str, str]:
    """A digest of each part's weights, from the first numbers of each tensor, that does not depend on their dtype."""
    digests = {}
    for part in parts:
        digest = hashlib.blake2b(digest_size=16)
        for _, parameter in parameters_of(model, [part]):
            if not parameter.is_meta and type(parameter.data) is Tensor:  # neither offloaded nor a shard
                sample = parameter.detach().flatten()[:DIGESTED].to(torch.bfloat16)
                digest.update(sample.view(torch.int16).cpu().numpy().tobytes())
        digests[part] = digest.hexdigest()
    return digests


def checksum(tensor: Tensor) -> int:
    """Sum of a tensor's bits as 64-bit integers: one pass over memory; a change of one weight changes it."""
    flat = tensor.detach().flatten()
    per_word = 8 // flat.element_size()
    if flat.numel() % per_word or flat.storage_offset() % per_word:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % per_word))
    return int(flat.view(torch.int64).sum())


class PartChecksums:
    """Checksums of the weights that a model was loaded with, which show the parts that have changed since."""

    def __init__(self, model: nn.Module) -> None:
        self._sums = {part: self._sums_of(model, part) for part in TRAINABLE_PARTS}
        self._fingerprints = fingerprints(model, TRAINABLE_PARTS)

    @staticmethod
    def _sums_of(model: nn.Module, part: str) -> dict[tuple[torch.dtype, int], int]:
        """Sum of the checksums of a part's parameters, by dtype and number of values."""
        sums = Counter[tuple[torch.dtype, int]]()
        for _, parameter in parameters_of(model, [part]):
            if not parameter.is_meta and type(parameter.data) is Tensor:  # neither offloaded nor a shard
                sums[parameter.dtype, parameter.numel()] += checksum(parameter)
        return dict(sums)

    def changed(self, model: nn.Module) -> set[str]:
        """Parts whose weights differ from those that the model was loaded with.

        After a change of dtype, sums cannot be compared, and the fingerprints decide. Parts that are sharded are left
        out, because their complete weights are not here.
        """
        changed, now = set(), fingerprints(model, TRAINABLE_PARTS)
        for part, before in self._sums.items():
            sums = self._sums_of(model, part)
            sizes, sizes_before = {size for _, size in sums}, {size for _, size in before}
            if sums.keys() == before.keys():
                same = sums == before
            elif 0 in sizes or sizes < sizes_before:
                same = True  # sharded
            else:
                same = sizes == sizes_before and now[part] == self._fingerprints[part]
            if not same:
                changed.add(part)
        return changed


@contextmanager
def cast(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the floating-point parameters of `module` have another dtype; afterwards they are as before."""
    before = [(parameter, parameter.data) for parameter in module.parameters() if parameter.is_floating_point()]
    try:
        for parameter, data in before:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
