"""How one call uses the world model: which mode, how many world steps, which parts of it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theworld.model.configuration import TheWorldConfig

MODES = ("tokens", "frames")  # how the future reaches the language model: as world tokens, or as further images
UNTRAINED_STEPS = 4  # world steps that an untrained model imagines unless the caller sets a number
NO_WORLD_MODEL = "This model has no world model, because it was trained with enable_world=False, so it cannot imagine."
UNTRAINED = "The projector of this model is untrained, so world tokens would be noise to the language model."


@dataclass(frozen=True)
class CallPlan:
    """How one call uses the world model.

    Attributes:
        mode: `tokens` (the language model reads world tokens), `frames` (it sees imagined frames as further images) or
            `off` (the world model is not used).
        num_world_steps: future latent frames to imagine; 0 in mode `off`.
        parts: parts of the world model that the call needs in memory.
        reason: why it is not the usual mode, or None.
    """

    mode: str
    num_world_steps: int
    parts: tuple[str, ...]
    reason: str | None = None


def plan_call(
    config: TheWorldConfig,
    mode: str | None = None,
    num_world_steps: int | None = None,
    *,
    num_past_steps: int = 0,
    enable_world: bool | None = None,
) -> CallPlan:
    """Decides how a call uses the world model.

    A trained projector makes world tokens. An untrained one cannot, so the call shows imagined frames instead, of
    `UNTRAINED_STEPS` world steps unless the caller or the config sets a number.

    Args:
        mode: one of MODES, or None to choose by whether the projector is trained.
        num_world_steps: the caller's number; None means the model's own.
        num_past_steps: past latent frames of a video.
        enable_world: False means that the call does not use the world model.
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}.")
    if num_world_steps is not None:
        config.check_world_steps(num_world_steps)
    if not config.enable_world or enable_world is False:
        return CallPlan("off", 0, ())
    trained = bool(config.reads_world_tokens)
    reason = None if trained else UNTRAINED
    if mode is None:
        mode = "tokens" if trained else "frames"
    if num_world_steps is None:
        num_world_steps = config.num_world_steps if trained or mode == "tokens" else steps_to_imagine(config)
    if mode == "frames" and not num_world_steps and not num_past_steps:
        return CallPlan("off", 0, (), reason)
    return CallPlan(mode, num_world_steps, world_parts_for(num_world_steps, mode), reason)


def steps_to_imagine(config: TheWorldConfig, num_world_steps: int | None = None) -> int:
    """World steps of a rollout: the caller's number, the model's own, or UNTRAINED_STEPS if its own is 0."""
    if num_world_steps is not None:
        return config.check_world_steps(num_world_steps)
    return config.num_world_steps or min(UNTRAINED_STEPS, config.max_world_steps)


def world_parts_for(num_world_steps: int, mode: str = "tokens") -> tuple[str, ...]:
    """The parts of the world model that a call loads; mode `frames` also decodes what was imagined."""
    if num_world_steps == 0:
        return ("encoder",)
    return ("encoder", "transformer", "decoder") if mode == "frames" else ("encoder", "transformer")


def check_call(seed: Any, enable_world: Any) -> None:
    """Raises a ValueError if `seed` is not an integer, or `enable_world` is neither a bool nor None."""
    check_integer("seed", seed)
    if enable_world is not None and not isinstance(enable_world, bool):
        raise ValueError(f"enable_world is {enable_world!r}; pass True, False or None.")


def check_integer(name: str, value: Any) -> int:
    """Returns `value` as an int, or raises a ValueError if it is not an integer."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; it must be an integer.") from None


def check_seed(seed: Any) -> int:
    """Returns `seed` as an int, or raises a ValueError for one that the generators of NumPy and torch do not take."""
    value = check_integer("seed", seed)
    if not 0 <= value < 2**32:
        raise ValueError(f"seed is {value}; it must be between 0 and {2**32 - 1}.")
    return value
