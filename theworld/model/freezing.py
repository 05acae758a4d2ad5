"""Trainable parts of the model: an allow-list of parts, which of them are trainable, and which have changed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theworld.quantization import is_quantised, num_weights

DIGESTED = 1024  # numbers of each tensor that a fingerprint reads
COLUMNS = 4096  # of the table of words whose row and column sums are a checksum
JOINED = 2**20  # values of the tensors that one checksum reads together, since most tensors are small

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


def parameters_by_part(model: nn.Module) -> dict[str, list[tuple[str, Tensor]]]:
    """Named parameters of each part that the model has; tied ones once."""
    found: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(part_of(name), []).append((name, parameter))
    return found


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


def train_new_parts(model: nn.Module, further: Iterable[str]) -> None:
    """Makes the projector and the LoRA trainable, if the model has them, and `further` parts; freezes all others."""
    present = {part_of(name) for name, _ in model.named_parameters()}
    train_only(model, [*(part for part in ("projector", "lora") if part in present), *further])


def trained_parts(model: nn.Module) -> tuple[str, ...]:
    """Parts with at least one trainable parameter, in the order of PARTS."""
    trainable = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return tuple(part for part in PARTS if part in trainable)


def count_parameters(model: nn.Module) -> list[PartCount]:
    """One row per part that the model has; works on the meta device."""
    totals, trainable = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        totals[part_of(name)] += num_weights(parameter)
        trainable[part_of(name)] += parameter.numel() * parameter.requires_grad
    return [PartCount(part, totals[part], trainable[part]) for part in PARTS if part in totals]


def fingerprints(model: nn.Module, parts: Iterable[str]) -> dict[str, str]:
    """A digest of each part's weights, from the first numbers of each tensor, that does not depend on their dtype."""
    digests, by_part = {}, parameters_by_part(model)
    for part in parts:
        digest = hashlib.blake2b(digest_size=16)
        for _, parameter in by_part.get(part, ()):
            if is_quantised(parameter):
                digest.update(type(parameter).__name__.encode())
            elif is_here(parameter):
                sample = parameter.detach().flatten()[:DIGESTED].to(torch.bfloat16)
                digest.update(sample.view(torch.int16).cpu().numpy().tobytes())
        digests[part] = digest.hexdigest()
    return digests


def is_here(parameter: Tensor) -> bool:
    """Whether a parameter is complete and in memory: neither offloaded nor a shard."""
    return not parameter.is_meta and type(parameter.data) is Tensor


def checksum(flat: Tensor) -> int:
    """Sum of the bits of (n,) values as 64-bit words, weighted by their places; a change of one value changes it."""
    per_word = 8 // flat.element_size()
    if flat.numel() % per_word or flat.storage_offset() % per_word:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % per_word))
    words = flat.view(torch.int64)
    rows = max(1, words.numel() // COLUMNS)
    square = words[: rows * COLUMNS]
    rest = words[square.numel() :]
    square = square.view(rows, square.numel() // rows)
    total = 0
    for number, sums in enumerate((square.sum(0), square.sum(1), rest), start=1):
        total += number * int((sums * torch.arange(1, sums.numel() + 1, device=sums.device)).sum())
    return total


class PartChecksums:
    """Checksums of the weights that a model was loaded with, which show the parts that have changed since."""

    def __init__(self, model: nn.Module) -> None:
        self._sums = {part: PartSums.of(weights) for part, weights in weights_by_part(model).items()}

    def changed(self, model: nn.Module) -> set[str]:
        """Parts whose weights differ from those that the model was loaded with.

        After a change of dtype, the weights are compared as they are in bfloat16. Parts that are sharded are left out,
        because their complete weights are not here, and so are parts of the world model that were loaded later.
        """
        changed = set()
        for part, weights in weights_by_part(model).items():
            sums, before = PartSums.of(weights), self._sums.get(part)
            if before is None or sums == before:
                continue
            sharded = 0 in sums.sizes or sums.sizes < before.sizes
            converted = sums.dtypes != before.dtypes and sums.sizes == before.sizes and sums.rounded == before.rounded
            if not (sharded or converted):
                changed.add(part)
        return changed


def weights_by_part(model: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters of each part that the model has, and an empty list for a missing one that can be trained.

    Quantised ones are left out: they cannot be trained, and bitsandbytes reorders them on some CPUs.
    """
    by_part = parameters_by_part(model)
    parts = [part for part in PARTS if part in by_part or part in TRAINABLE_PARTS]
    return {part: [weight for _, weight in by_part.get(part, ()) if not is_quantised(weight)] for part in parts}


@dataclass(frozen=True)
class PartSums:
    """What is compared of the weights of a part: their sizes and dtypes, and checksums as they are and in bfloat16."""

    sizes: frozenset[int]
    dtypes: frozenset[torch.dtype]
    exact: int
    rounded: int

    @classmethod
    def of(cls, weights: Iterable[Tensor]) -> PartSums:
        here = [weight.detach() for weight in weights if is_here(weight)]
        exact = rounded = 0
        for place, joined in enumerate(join_small(here), start=1):
            own = checksum(joined)
            exact += place * own
            rounded += place * (own if joined.dtype == torch.bfloat16 else checksum(joined.to(torch.bfloat16)))
        sizes, dtypes = frozenset(weight.numel() for weight in here), frozenset(weight.dtype for weight in here)
        return cls(sizes, dtypes, exact, rounded)


def join_small(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """The values of tensors in order, as (n,) tensors of one dtype and device; up to JOINED values are joined."""
    joined: list[Tensor] = []
    for weight in weights:
        flat = weight.flatten()
        fits = joined and sum(one.numel() for one in joined) + flat.numel() <= JOINED
        if joined and not (fits and (flat.dtype, flat.device) == (joined[0].dtype, joined[0].device)):
            yield torch.cat(joined) if len(joined) > 1 else joined[0]
            joined = []
        joined.append(flat)
    if joined:
        yield torch.cat(joined) if len(joined) > 1 else joined[0]


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
