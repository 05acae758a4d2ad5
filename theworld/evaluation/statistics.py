"""Intervals, tests and power for right and wrong answers, alone, in pairs, and pooled over training seeds.

The arithmetic is scipy's and statsmodels'; what is decided here is which test answers which question:

- one arm: Wilson's interval of a share; of a mean over sub-tasks, a bootstrap inside each sub-task;
- two arms on the same questions: exact McNemar, and a bootstrap that resamples questions in pairs;
- several training seeds of an arm: a question counts once, with its share of right seeds, so that seeds do not pass for
  further questions; the test then flips the signs of the questions' differences;
- several comparisons: Holm's correction; what it does not leave significant is reported as no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
RESAMPLES = 9_999  # with the observed one, a round 10,000
BATCH = 500  # resamples drawn at once: 500 x 2,000 questions are 8 MB

NO_DIFFERENCE = "not shown"


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927); holds at 0 and n, where the usual one has no width.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share.")
    low, high = proportion_confint(successes, n, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def bootstrap_mean(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the unweighted mean over groups of each group's mean; groups resample by themselves.

    One group is the plain bootstrap of a mean. Values are right (1) or wrong (0) of one arm, or differences of two.
    """
    samples = [np.asarray(group, dtype=float) for group in groups]
    if not samples or min(map(len, samples)) == 0:
        raise ValueError("an interval needs at least one answer in each group.")
    if all((sample == sample[0]).all() for sample in samples):  # nothing varies, and scipy refuses a single value
        middle = float(np.mean([sample[0] for sample in samples]))
        return middle, middle

    def mean_of_means(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in drawn], axis=0)

    found = stats.bootstrap(
        # a group of one cannot vary; scipy wants two values of it
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


def bootstrap_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of accuracy(first) - accuracy(second), resampling questions in pairs."""
    _check_pairs(first, second)
    return bootstrap_mean([np.asarray(first, dtype=float) - np.asarray(second, dtype=float)], seed)


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided exact McNemar p: the chance of a split as uneven as this if either were as likely (McNemar 1947)."""
    if better + worse == 0:
        return 1.0
    return min(1.0, float(mcnemar([[0, better], [worse, 0]], exact=True).pvalue))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference: how often as large a mean comes about when each question's sign is a coin.

    For questions answered by several training seeds, whose differences are shares and no longer -1, 0 or 1.
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
    """(questions only the first got right, only the second, all questions)."""
    _check_pairs(first, second)
    better = sum(a and not b for a, b in zip(first, second, strict=True))
    worse = sum(b and not a for a, b in zip(first, second, strict=True))
    return better, worse, len(first)


def _check_pairs(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} answers are no pairs.")


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
    """Paired answers of several training seeds on either side, a row a seed, all to the same questions.

    Returns:
        as `compare`, with `p_sign_flip` in place of `p_mcnemar` where either side has more than one seed, the number of
        seeds, and the range of accuracies over each side's seeds. `only_first` and `only_second` count the questions on
        which the share of right seeds is higher on that side.

    Raises:
        ValueError: seeds that answered different numbers of questions.
    """
    if len(first) == 1 and len(second) == 1:
        return compare(first[0], second[0])
    lengths = {len(row) for row in (*first, *second)}
    if len(lengths) != 1:
        raise ValueError(f"the training seeds answered {sorted(lengths)} questions; compare them on the same ones.")
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
    """The p-value of a comparison, whichever test it came from."""
    return float(pair["p_sign_flip"] if "p_sign_flip" in pair else pair["p_mcnemar"])


def with_findings(pairs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons with `p_holm`, corrected over all of them, and `finding`: better, worse or no difference.

    A difference is reported when the corrected p is below 0.05 and the interval leaves out 0.
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
    """Chance that McNemar's test at 5 % shows `difference` on n questions.

    Args:
        n: questions.
        difference: true difference of the accuracies, such as 0.03 for three points.
        disagreement: share of questions on which exactly one of the two is right, at least `difference`.

    The normal approximation of Connor (1987), https://doi.org/10.2307/2531961.
    """
    _check_power(difference, disagreement)
    spread = (disagreement - difference**2) ** 0.5
    reach = abs(difference) * n**0.5 - float(stats.norm.ppf(1 - ALPHA / 2)) * disagreement**0.5
    if spread == 0:
        return float(reach > 0)
    return float(stats.norm.cdf(reach / spread))


def questions_needed(difference: float, disagreement: float, wanted: float = 0.8) -> int:
    """How many questions show `difference` with the chance `wanted`; arguments as in `power`."""
    _check_power(difference, disagreement)
    z_alpha, z_power = stats.norm.ppf([1 - ALPHA / 2, wanted])
    root = z_alpha * disagreement**0.5 + z_power * (disagreement - difference**2) ** 0.5
    return int(np.ceil((root / difference) ** 2))


def _check_power(difference: float, disagreement: float) -> None:
    if not 0 < abs(difference) <= disagreement <= 1:
        raise ValueError(
            f"a difference of {difference} with {disagreement} disagreement cannot be: arms that differ by d disagree "
            "on d of the questions or more, and on all of them at most."
        )
