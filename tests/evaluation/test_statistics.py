"""Intervals and tests give the textbook's numbers."""

import numpy as np
import pytest

from theworld.evaluation.statistics import Z_95, bootstrap_difference, compare, mcnemar_exact, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 10), (10, 10), (1, 3), (850, 1000)])
def test_wilson_interval_holds_the_shares_that_the_normal_test_would_not_reject(successes: int, n: int) -> None:
    # its ends solve (x/n - p)² = z²·p·(1 - p)/n
    share, z2 = successes / n, Z_95**2
    ends = np.sort(np.roots([1 + z2 / n, -(2 * share + z2 / n), share**2]))
    assert wilson_interval(successes, n) == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_no_share_no_interval(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    # 2·P(X <= fewer), X binomial with p = 1/2: 2·(1 + 10)/2**10 for 1 and 9
    [(1, 9, 0.021484375), (9, 1, 0.021484375), (5, 5, 1.0), (0, 0, 1.0), (0, 6, 0.03125)],
)
def test_mcnemar_is_the_exact_binomial(better: int, worse: int, p: float) -> None:
    assert mcnemar_exact(better, worse) == pytest.approx(p, abs=1e-7)


def test_bootstrap_agrees_with_resampling_the_pairs_one_by_one() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(120) < 0.8, rng.random(120) < 0.6
    rows = rng.integers(0, 120, size=(5000, 120))
    slow = np.percentile(first[rows].mean(axis=1) - second[rows].mean(axis=1), [2.5, 97.5])
    assert bootstrap_difference(first.tolist(), second.tolist()) == pytest.approx(slow, abs=0.012)


def test_equal_answers_differ_by_nothing() -> None:
    pair = compare([True, False, True], [True, False, True])
    assert (pair["difference"], pair["interval_95"], pair["p_mcnemar"]) == (0.0, [0.0, 0.0], 1.0)


def test_a_comparison_counts_who_was_right_alone() -> None:
    pair = compare([True, True, True, False], [True, False, False, True])
    assert (pair["only_first"], pair["only_second"], pair["n"], pair["difference"]) == (2, 1, 4, 0.25)


def test_answers_of_different_questions_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        compare([True], [True, False])
