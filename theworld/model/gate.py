"""The gate of a model: when an answer needs an imagined future, and when such a future is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gate:
    """Decides about one answer; `theworld gate` chooses both numbers on the validation split of a benchmark.

    Attributes:
        min_confidence: in [0, 1]; the model imagines if its answer without a future is less confident.
        max_jump: a future is used only if its first step differs from the present by at most this number (see
            `jumps`); None uses every future.
    """

    min_confidence: float = 0.9
    max_jump: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.min_confidence) or not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence of the gate is {self.min_confidence!r}; give a number from 0 to 1.")
        if self.max_jump is not None and not (_is_number(self.max_jump) and self.max_jump > 0):
            raise ValueError(f"max_jump of the gate is {self.max_jump!r}; give a number above 0, or null.")

    def is_sure(self, confidence: float | None) -> bool:
        """Whether an answer of this confidence needs no future."""
        return confidence is not None and confidence >= self.min_confidence

    def keeps(self, jump: float | None) -> bool:
        """Whether a future with this jump is used."""
        return self.max_jump is None or (jump is not None and jump <= self.max_jump)


def jumps(latents: Tensor, num_world_steps: int) -> Tensor:
    """How far each future begins from its present (n,), in units of normalised latents.

    The change of a cell from now to the first imagined frame is its root mean square over channels, and the jump is the
    median over cells, because most of an image changes little in one world step.

    Args:
        latents: (n, C, P + 1 + N, h, w), normalised.
        num_world_steps: N, 1 or more.
    """
    first = latents.shape[2] - num_world_steps
    change = latents[:, :, first].float() - latents[:, :, first - 1].float()  # (n, C, h, w)
    return change.square().mean(dim=1).sqrt().flatten(1).quantile(0.5, dim=1)


def gate_settings(gate: Gate | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The gate of a configuration as a dict, checked; None if none was chosen."""
    if gate is None or isinstance(gate, Gate):
        return None if gate is None else asdict(gate)
    if not isinstance(gate, Mapping):
        raise ValueError(f"gate is {gate!r}; give an object with min_confidence and max_jump.")
    names = [field.name for field in fields(Gate)]
    unknown = sorted(gate.keys() - set(names))
    if unknown:
        raise ValueError(f"gate has a key {unknown[0]!r}; known are {', '.join(names)}.")
    return asdict(Gate(**gate))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
