"""Calibration of the options' likelihoods: are answers given with a probability of 80 % correct in 80 % of cases?

Shapes: S training seeds, n questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theworld.evaluation.answer_parser import LETTERS
from theworld.evaluation.runner import Answer
from theworld.evaluation.scoring import likeliest
from theworld.evaluation.statistics import bootstrap_mean, percentile_interval, resampled_counts
from theworld.evaluation.tasks import HIDDEN, Item
from theworld.inference.futures import normalised

BINS = 10  # of equal width between 0 and 1


@dataclass(frozen=True)
class Predictions:
    """The most probable options of an arm; NaN where an answer does not decide between its options.

    Attributes:
        confidence: (S, n) normalised probability of the most probable option.
        right: (S, n) 1 where it is correct, otherwise 0.
        errors: (S, n) squared error of the probabilities, summed over the options (Brier 1950), 0 to 2.
    """

    confidence: np.ndarray
    right: np.ndarray
    errors: np.ndarray

    @property
    def decided(self) -> np.ndarray:
        return ~np.isnan(self.confidence)

    @property
    def bins(self) -> np.ndarray:
        """The bin (S, n) of each confidence; 1 is in the last one, and undecided answers are in the first."""
        return np.minimum((np.nan_to_num(self.confidence) * BINS).astype(int), BINS - 1)

    @property
    def gaps(self) -> np.ndarray:
        """(n, BINS): correctness minus confidence of each question in its bin, summed over training seeds."""
        gaps: np.ndarray = (np.eye(BINS)[self.bins] * np.nan_to_num(self.right - self.confidence)[..., None]).sum(
            axis=0
        )
        return gaps


def predictions(items: Sequence[Item], seeds: Sequence[Sequence[Answer]]) -> Predictions | None:
    """The probabilities of one arm; None if no answer has any, or if the true answers are not known."""
    if all(answer.logprobs is None for row in seeds for answer in row) or any(item.answer == HIDDEN for item in items):
        return None
    confidence, right, errors = (np.full((len(seeds), len(items)), np.nan) for _ in range(3))
    for seed, answers in enumerate(seeds):
        for row, (item, answer) in enumerate(zip(items, answers, strict=True)):
            if answer.logprobs is None:
                continue
            probabilities = normalised(answer.logprobs)
            names = LETTERS[: len(probabilities)] if item.choices else item.options
            truth = np.array([name == item.answer for name in names], dtype=float)
            confidence[seed, row] = probabilities.max()
            right[seed, row] = likeliest(item, answer.logprobs) == item.answer
            errors[seed, row] = np.square(probabilities - truth).sum()
    return Predictions(confidence, right, errors)


def calibration(found: Predictions) -> dict[str, Any]:
    """How well the probabilities predict that the most probable option is correct.

    Returns:
        `n` (answers with probabilities), `confidence` and `accuracy` (means), `ece` (expected calibration error over
        BINS bins of equal width, Naeini et al. 2015) and `brier` with their 95 % intervals, and `bins`: for each bin
        with answers {"low", "high", "n", "confidence", "accuracy"}.
    """
    decided, bins = found.decided, found.bins
    return {
        "n": int(decided.sum()),
        "confidence": float(found.confidence[decided].mean()),
        "accuracy": float(found.right[decided].mean()),
        "ece": calibration_error(found),
        "ece_interval_95": list(percentile_interval(resampled_errors(found))),
        "brier": float(found.errors[decided].mean()),
        "brier_interval_95": list(bootstrap_mean([_mean_of_seeds(found.errors).tolist()])),
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


def compare_calibration(first: Predictions, second: Predictions) -> dict[str, Any] | None:
    """First minus second: the differences of ECE and Brier score, with 95 % intervals from resampling questions.

    None if no question has probabilities in both.
    """
    errors = found_in_both(first.errors, second.errors)
    if not len(errors):
        return None
    return {
        "ece_difference": calibration_error(first) - calibration_error(second),
        "ece_interval_95": list(percentile_interval(resampled_errors(first) - resampled_errors(second))),
        "brier_difference": float(errors.mean()),
        "brier_interval_95": list(bootstrap_mean([errors.tolist()])),
    }


def found_in_both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The differences (m,) of the means over seeds of the questions that both have."""
    known = ~np.isnan(first).all(axis=0) & ~np.isnan(second).all(axis=0)
    return _mean_of_seeds(first[:, known]) - _mean_of_seeds(second[:, known])


def _mean_of_seeds(values: np.ndarray) -> np.ndarray:
    """(S, n) -> (m,): means over the seeds that decided; questions that none decided are left out."""
    means: np.ndarray = np.nanmean(values[:, ~np.isnan(values).all(axis=0)], axis=0)
    return means


def resampled_errors(found: Predictions) -> np.ndarray:
    """The calibration error (RESAMPLES,) of resampled questions."""
    counts = resampled_counts(found.confidence.shape[1])
    gaps, decided = (np.asarray(values, dtype=np.float32) for values in (found.gaps, found.decided.sum(axis=0)))
    return np.abs(counts @ gaps).sum(axis=1) / np.maximum(counts @ decided, 1)
