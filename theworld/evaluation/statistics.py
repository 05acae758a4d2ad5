"""Intervals and tests for right and wrong answers, alone and in pairs.

Each is a few lines of exact arithmetic; none is worth a dependency of scipy's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z_95 = 1.959963984540054  # 97.5th percentile of the standard normal


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); holds at 0 and n, where the usual one has no width.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share.")
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_difference(
    first: Sequence[bool], second: Sequence[bool], samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of accuracy(first) - accuracy(second), resampling questions in pairs.

    A pair adds +1, -1 or 0, so a resample of n pairs is one multinomial draw of the three counts.
    """
    better, worse, n = discordant(first, second)
    shares = np.array([better, worse, n - better - worse]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=samples)
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / n, [2.5, 97.5])
    return float(low), float(high)


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided exact McNemar p: the chance of a split as uneven as this if either were as likely (McNemar 1947)."""
    n = better + worse
    tail = sum(math.comb(n, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int]:
    """(questions only the first got right, only the second, all questions)."""
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} answers are no pairs.")
    better = sum(a and not b for a, b in zip(first, second, strict=True))
    worse = sum(b and not a for a, b in zip(first, second, strict=True))
    return better, worse, len(first)


def compare(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """{"difference", "interval_95", "p_mcnemar", "n", "only_first", "only_second"} of paired answers."""
    better, worse, n = discordant(first, second)
    return {
        "difference": (better - worse) / n,
        "interval_95": list(bootstrap_difference(first, second)),
        "p_mcnemar": mcnemar_exact(better, worse),
        "n": n,
        "only_first": better,
        "only_second": worse,
    }
