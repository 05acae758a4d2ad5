"""Calibration of the options' likelihoods: are answers given with a probability of 80 % correct in 80 % of cases?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theworld.evaluation.answer_parser import LETTERS
from theworld.evaluation.runner import Answer
from theworld.evaluation.scoring import likeliest
from theworld.evaluation.statistics import BATCH, RESAMPLES, bootstrap_mean
from theworld.evaluation.tasks import HIDDEN, Item
from theworld.inference.futures import normalised

BINS = 10  # of equal width between 0 and 1


@dataclass(frozen=True)
class Predictions:
    """The most probable options of n questions; NaN where an answer does not decide between its options.

    Attributes:
        confidence: (n,) normalised probability of the most probable option.
        right: (n,) 1 where it is correct, otherwise 0.
        errors: (n,) squared error of the probabilities, summed over the options (Brier 1950), 0 to 2.
    """

    confidence: np.ndarray
    right: np.ndarray
    errors: np.ndarray

    @property
    def decided(self) -> np.ndarray:
        return ~np.isnan(self.confidence)

    @property
    def bins(self) -> np.ndarray:
        """The bin (n,) of each confidence; 1 is in the last one, and undecided answers are in the first."""
        return np.minimum((np.nan_to_num(self.confidence) * BINS).astype(int), BINS - 1)

    @property
    def gaps(self) -> np.ndarray:
        """(n, BINS): correctness minus confidence in the question's bin, and 0 in the others."""
        return np.eye(BINS)[self.bins] * np.nan_to_num(self.right - self.confidence)[:, None]


def predictions(items: Sequence[Item], answers: Sequence[Answer]) -> Predictions | None:
    """The probabilities of one arm's answers; None if no answer has any, or if the true answers are not known."""
    if all(answer.logprobs is None for answer in answers) or any(item.answer == HIDDEN for item in items):
        return None
    confidence, right, errors = (np.full(len(items), np.nan) for _ in range(3))
    for row, (item, answer) in enumerate(zip(items, answers, strict=True)):
        if answer.logprobs is None:
            continue
        probabilities = normalised(answer.logprobs)
        names = LETTERS[: len(probabilities)] if item.choices else item.options
        truth = np.array([name == item.answer for name in names], dtype=float)
        confidence[row], right[row] = probabilities.max(), likeliest(item, answer.logprobs) == item.answer
        errors[row] = np.square(probabilities - truth).sum()
    return Predictions(confidence, right, errors)


def calibration(found: Predictions) -> dict[str, Any]:
    """How well the probabilities predict that the most probable option is correct.

    Returns:
        `n` (answers with probabilities), `confidence` and `accuracy` (means), `ece` (expected calibration error over
        BINS bins of equal width, Naeini et al. 2015) and `brier` with their 95 % intervals, and `bins`: for each bin
        with answers {"low", "high", "n", "confidence", "accuracy"}.
    """
    decided, bins = found.decided, found.bins
    errors = found.errors[decided]
    return {
        "n": int(decided.sum()),
        "confidence": float(found.confidence[decided].mean()),
        "accuracy": float(found.right[decided].mean()),
        "ece": calibration_error(found),
        "ece_interval_95": list(interval(resampled_errors(found))),
        "brier": float(errors.mean()),
        "brier_interval_95": list(bootstrap_mean([errors])),
        "bins": [
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "n": int(inside.sum()),
                "confidence": float(found.confidence[inside].mean()),
                "accuracy": float(found.right[inside].mean()),
            }
            for number in range(BINS)
            if (inside := decided & (bins == number)).any()
        ],
    }


def calibration_error(found: Predictions) -> float:
    """The mean over answers of the distance between their bin's accuracy and its mean confidence."""
    return float(np.abs(found.gaps.sum(axis=0)).sum() / found.decided.sum())


def compare_calibration(first: Predictions, second: Predictions) -> dict[str, Any]:
    """First minus second: the differences of ECE and Brier score, with 95 % intervals from resampling questions."""
    both = first.decided & second.decided
    errors = (first.errors - second.errors)[both]
    return {
        "ece_difference": calibration_error(first) - calibration_error(second),
        "ece_interval_95": list(interval(resampled_errors(first) - resampled_errors(second))),
        "brier_difference": float(errors.mean()) if len(errors) else 0.0,
        "brier_interval_95": list(bootstrap_mean([errors])) if len(errors) else [0.0, 0.0],
    }


def resampled_errors(found: Predictions, seed: int = 0) -> np.ndarray:
    """The calibration error (RESAMPLES,) of resampled questions; equal seeds resample the same questions."""
    rng, n = np.random.default_rng(seed), len(found.confidence)
    errors = []
    for start in range(0, RESAMPLES, BATCH):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(BATCH, RESAMPLES - start))  # (resamples, n)
        errors.append(np.abs(counts @ found.gaps).sum(axis=1) / np.maximum(counts @ found.decided, 1))
    return np.concatenate(errors)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
