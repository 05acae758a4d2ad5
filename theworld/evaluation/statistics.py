"""Intervals, tests and power for correct and wrong answers: single arms, paired arms, pooled training seeds.

scipy and statsmodels do the arithmetic; this module chooses the method:

- one arm: Wilson's interval of a proportion; for a mean over sub-tasks, a bootstrap within each sub-task;
- two arms on the same questions: exact McNemar, and a paired bootstrap over questions;
- several training seeds of an arm: a question counts once, with its share of correct seeds, so that seeds do not count
  as further questions; the test flips the signs of the questions' differences;
- several comparisons: Holm's correction; differences that are not significant after it are reported as not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
RESAMPLES = 9_999  # with the observed one, 10,000
BATCH = 500  # resamples at a time: 500 x 2,000 questions are 8 MB

NO_DIFFERENCE = "not shown"
K = TypeVar("K")


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), which is valid at 0 and n too.

    Raises:
        ValueError: if there are no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes ({successes}) must be between 0 and n ({n}), and n at least 1.")
    low, high = proportion_confint(successes, n, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def bootstrap_mean(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over groups of each group's mean; resamples within groups.

    One group gives the plain bootstrap of a mean. Values are correct (1) or wrong (0), or differences of two arms.
    """
    samples = [np.asarray(group, dtype=float) for group in groups]
    if not samples or min(map(len, samples)) == 0:
        raise ValueError("An interval needs at least one answer in each group.")
    if all((sample == sample[0]).all() for sample in samples):  # no variance: scipy refuses a single value
        middle = float(np.mean([sample[0] for sample in samples]))
        return middle, middle

    def mean_of_means(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in drawn], axis=0)

    found = stats.bootstrap(
        # scipy needs two values; a group of one has no variance
        [sample if len(sample) > 1 else sample.repeat(2) for sample in samples],
        mean_of_means,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=1 - ALPHA,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


@lru_cache(maxsize=1)  # all arms of a run have the same number of questions
def resampled_counts(n: int, seed: int = 0) -> np.ndarray:
    """How often each of n questions is in each of RESAMPLES resamples, (RESAMPLES, n) uint8.

    For statistics that are functions of sums over questions. Arms that use the same counts are compared in pairs.
    """
    rng = np.random.default_rng(seed)
    parts = [
        rng.multinomial(n, np.full(n, 1 / n), size=min(BATCH, RESAMPLES - start)).astype(np.uint8)
        for start in range(0, RESAMPLES, BATCH)
    ]
    return np.concatenate(parts)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of resampled values."""
    low, high = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def bootstrap_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of accuracy(first) - accuracy(second), by paired resampling of questions."""
    _check_pairs(first, second)
    return bootstrap_mean([np.asarray(first, dtype=float) - np.asarray(second, dtype=float)], seed)


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided p of the exact McNemar test (McNemar 1947), from the numbers of discordant questions."""
    if better + worse == 0:
        return 1.0
    return min(1.0, float(mcnemar([[0, better], [worse, 0]], exact=True).pvalue))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference, by randomly flipping the sign of each question's difference.

    For questions answered by several training seeds, whose differences are fractions instead of -1, 0 or 1.
    """
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return 1.0
    found = stats.permutation_test(
        (values,),
        lambda drawn, axis: drawn.mean(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values (Holm 1979), in the same order."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), alpha=ALPHA, method="holm")[1]]


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int]:
    """(questions that only the first answered correctly, only the second, all questions)."""
    _check_pairs(first, second)
    better = sum(a and not b for a, b in zip(first, second, strict=True))
    worse = sum(b and not a for a, b in zip(first, second, strict=True))
    return better, worse, len(first)


def _check_pairs(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"Paired answers must be equally many and at least one, got {len(first)} and {len(second)}.")


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


def compare_seeds(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Compares paired answers of several training seeds on either side, one row per seed.

    Returns:
        as `compare`; if either side has more than one seed, with `p_sign_flip` instead of `p_mcnemar`, the numbers of
        seeds, and each seed's accuracy. `only_first` and `only_second` then count the questions on which that side has
        the higher share of correct seeds.

    Raises:
        ValueError: if seeds answered different numbers of questions.
    """
    if len(first) == 1 and len(second) == 1:
        return compare(first[0], second[0])
    lengths = {len(row) for row in (*first, *second)}
    if len(lengths) != 1:
        raise ValueError(f"The training seeds answered different numbers of questions: {sorted(lengths)}.")
    shares = [np.asarray(rows, dtype=float).mean(axis=0) for rows in (first, second)]  # each (n,)
    differences = shares[0] - shares[1]
    return {
        "difference": float(differences.mean()),
        "interval_95": list(bootstrap_mean([differences])),
        "p_sign_flip": sign_flip(differences),
        "n": len(differences),
        "only_first": int((differences > 0).sum()),
        "only_second": int((differences < 0).sum()),
        "seeds": [len(first), len(second)],
        "seed_accuracies": [[float(np.mean(row)) for row in rows] for rows in (first, second)],
    }


def p_of(pair: dict[str, Any]) -> float:
    """The p-value of a comparison, of whichever test it has."""
    return float(pair["p_sign_flip"] if "p_sign_flip" in pair else pair["p_mcnemar"])


def with_findings(pairs: dict[K, dict[str, Any]]) -> dict[K, dict[str, Any]]:
    """The comparisons with `p_holm`, corrected over all of them, and `finding`: better, worse or not shown.

    A difference is shown if the corrected p is below 0.05 and the interval excludes 0.
    """
    corrected = holm([p_of(pair) for pair in pairs.values()])
    return {
        name: {**pair, "p_holm": p, "finding": finding(pair, p)}
        for (name, pair), p in zip(pairs.items(), corrected, strict=True)
    }


def finding(pair: dict[str, Any], p: float) -> str:
    low, high = pair["interval_95"]
    if p >= ALPHA or low <= 0 <= high:
        return NO_DIFFERENCE
    return "better" if pair["difference"] > 0 else "worse"


def power(n: int, difference: float, disagreement: float) -> float:
    """Probability that McNemar's test at 5 % shows `difference` on n questions.

    Args:
        n: questions.
        difference: true difference of the accuracies, such as 0.03 for three points.
        disagreement: share of questions that exactly one of the two answers correctly, at least `difference`.

    The normal approximation of Connor (1987), https://doi.org/10.2307/2531961.
    """
    _check_power(difference, disagreement)
    spread = (disagreement - difference**2) ** 0.5
    reach = abs(difference) * n**0.5 - float(stats.norm.ppf(1 - ALPHA / 2)) * disagreement**0.5
    if spread == 0:
        return float(reach > 0)
    return float(stats.norm.cdf(reach / spread))


def questions_needed(difference: float, disagreement: float, wanted: float = 0.8) -> int:
    """How many questions show `difference` with probability `wanted`; other arguments as in `power`."""
    _check_power(difference, disagreement)
    z_alpha, z_power = stats.norm.ppf([1 - ALPHA / 2, wanted])
    root = z_alpha * disagreement**0.5 + z_power * (disagreement - difference**2) ** 0.5
    return int(np.ceil((root / difference) ** 2))


def _check_power(difference: float, disagreement: float) -> None:
    if not 0 < abs(difference) <= disagreement <= 1:
        raise ValueError(
            f"A difference of {difference} is impossible with a disagreement of {disagreement}: arms that differ by d "
            "disagree on at least d of the questions."
        )
