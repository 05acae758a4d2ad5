"""Intervals and tests give the textbook's numbers; power is what simulation gives; noise is called no difference."""

import numpy as np
import pytest
from scipy import stats

from theworld.evaluation import statistics
from theworld.evaluation.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    compare,
    compare_seeds,
    holm,
    mcnemar_exact,
    power,
    questions_needed,
    sign_flip,
    wilson_interval,
    with_findings,
)

Z_95 = stats.norm.ppf(0.975)


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 10), (10, 10), (1, 3), (850, 1000)])
def test_wilson_interval_holds_the_proportions_that_the_score_test_does_not_reject(successes: int, n: int) -> None:
    # its ends solve (x/n - p)² = z²·p·(1 - p)/n
    share, z2 = successes / n, Z_95**2
    ends = np.sort(np.roots([1 + z2 / n, -(2 * share + z2 / n), share**2]))
    assert wilson_interval(successes, n) == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_an_impossible_proportion_is_an_error(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="must be between 0 and n"):
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


def test_a_mean_over_sub_tasks_is_resampled_within_each_and_weights_them_equally() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.random(400) < 0.9, rng.random(40) < 0.5]
    low, high = bootstrap_mean(groups)
    middle = np.mean([group.mean() for group in groups])
    error = 0.5 * np.sqrt(sum(group.var() / len(group) for group in groups))
    assert (low, high) == pytest.approx((middle - Z_95 * error, middle + Z_95 * error), abs=0.008)
    assert bootstrap_mean([[1.0], [0.0]]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one answer"):
        bootstrap_mean([[1.0], []])


def test_equal_answers_have_no_difference() -> None:
    pair = compare([True, False, True], [True, False, True])
    assert (pair["difference"], pair["interval_95"], pair["p_mcnemar"]) == (0.0, [0.0, 0.0], 1.0)


def test_a_comparison_counts_questions_that_only_one_answers_correctly() -> None:
    pair = compare([True, True, True, False], [True, False, False, True])
    assert (pair["only_first"], pair["only_second"], pair["n"], pair["difference"]) == (2, 1, 4, 0.25)


def test_unequal_numbers_of_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="must be equally many"):
        compare([True], [True, False])


def test_copies_of_a_seed_do_not_count_as_further_questions() -> None:
    rng = np.random.default_rng(3)
    first, second = (rng.random(200) < 0.7).tolist(), (rng.random(200) < 0.6).tolist()
    once, thrice = compare(first, second), compare_seeds([first] * 3, [second] * 3)
    assert thrice["interval_95"] == pytest.approx(once["interval_95"])  # not narrower by √3
    assert thrice["p_sign_flip"] == pytest.approx(once["p_mcnemar"], abs=0.02)
    assert thrice["difference"] == pytest.approx(once["difference"])
    assert (thrice["n"], thrice["seeds"]) == (200, [3, 3])
    assert compare_seeds([first], [second]) == once
    with pytest.raises(ValueError, match=r"numbers of questions: \[199, 200\]"):
        compare_seeds([first, first[:-1]], [second])


def test_sign_flips_of_three_questions_are_counted_out() -> None:
    # of 8 ways to set the signs, ++ + and --- reach a mean as large
    assert sign_flip([0.5, 1.0, 0.5]) == pytest.approx(2 / 8)
    assert sign_flip([0.0, 0.0]) == 1.0


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_a_difference_within_noise_is_not_shown() -> None:
    def pair(better: int, worse: int, n: int = 200) -> dict[str, object]:
        first = [True] * better + [False] * worse + [True] * (n - better - worse)
        second = [False] * better + [True] * worse + [True] * (n - better - worse)
        return compare(first, second)

    found = with_findings({"large": pair(40, 5), "small": pair(15, 12), "against": pair(2, 30), "edge": pair(24, 8)})
    assert {name: row["finding"] for name, row in found.items()} == {
        "large": "better",
        "small": statistics.NO_DIFFERENCE,
        "against": "worse",
        "edge": "better",
    }
    # the same comparison among ten is no finding any more: with ten tries one of them comes about by chance
    many = {"edge": pair(24, 8), **{f"noise {i}": pair(10, 10) for i in range(9)}}
    assert with_findings(many)["edge"]["finding"] == statistics.NO_DIFFERENCE


@pytest.mark.parametrize(("n", "difference", "disagreement"), [(300, 0.08, 0.2), (1000, 0.03, 0.15), (150, 0.1, 0.3)])
def test_power_is_the_share_of_simulated_evaluations_that_show_it(
    n: int, difference: float, disagreement: float
) -> None:
    rng = np.random.default_rng(0)
    better = (disagreement + difference) / 2
    counts = rng.multinomial(n, [better, disagreement - better, 1 - disagreement], size=1500)
    shown = np.mean([mcnemar_exact(int(b), int(w)) < 0.05 for b, w, _ in counts])
    assert power(n, difference, disagreement) == pytest.approx(shown, abs=0.06)  # exact McNemar is a little stricter


def test_the_number_of_questions_needed_has_the_requested_power() -> None:
    n = questions_needed(0.05, 0.25, wanted=0.8)
    assert power(n, 0.05, 0.25) >= 0.8 > power(n - 2, 0.05, 0.25)
    assert power(10, 1.0, 1.0) == 1.0
    for difference, disagreement in ((0.2, 0.1), (0.0, 0.1), (0.1, 1.2)):
        with pytest.raises(ValueError, match="is impossible"):
            questions_needed(difference, disagreement)
