"""Statistics: against SciPy, a slow truth, hand computation, and by how often the intervals are right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import isnan, nan, sqrt

import baycomp
import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from bench import stats
from bench.stats import Interval
from tests import reference

SKEWED = np.random.default_rng(20).beta(6, 1, 60)


def ends(found: Interval) -> tuple[float, float]:
    return found.low, found.high


def covers(found: Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


# Intervals


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_is_the_bca_interval_of_the_mean(level: float) -> None:
    """Against the definition in plain loops, and SciPy's own call, each with draws of its own.

    Between sets of 4,000 resamples the ends move by 0.0012 (1 sd) at most; 0.005 is four times that.
    """
    found = ends(stats.interval(SKEWED, level=level))
    assert found == pytest.approx(reference.bca(SKEWED.tolist(), level, 4000, seed=1), abs=0.005)
    direct = scipy_stats.bootstrap((SKEWED,), np.mean, confidence_level=level, method="BCa", rng=2)
    assert found == pytest.approx(tuple(direct.confidence_interval), abs=0.005)


def test_interval_leans_towards_the_long_tail_unlike_a_symmetric_one() -> None:
    tail = [1.0] * 40 + [0.0, 0.1, 0.3]
    low, high = ends(stats.interval(tail))
    assert np.mean(tail) - low > 1.3 * (high - np.mean(tail))


def test_interval_of_the_mean_is_right_about_as_often_as_it_says() -> None:
    """400 normal samples of n = 30. A bootstrap knows neither n - 1 nor t, so a 95% interval is expected to hold
    the mean with probability P(|t29| < 1.96 sqrt(29/30)) = 0.936; 400 trials have a binomial sd of 0.012."""
    expected = 2 * scipy_stats.t(29).cdf(scipy_stats.norm.ppf(0.975) * sqrt(29 / 30)) - 1
    samples = np.random.default_rng(3).normal(0.8, 0.1, (400, 30))
    hits = np.mean([covers(stats.interval(x, resamples=499), 0.8) for x in samples])
    assert abs(hits - expected) < 3 * sqrt(expected * (1 - expected) / 400)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (nan, nan)),
        ([0.7], (nan, nan)),
        ([0.7, 0.7, 0.7], (0.7, 0.7)),
        ([0, 0], (0, 0)),
        ([0.3, 0.3, 0.1 + 0.2], (0.3, 0.3)),  # apart by rounding only
        ([0.0, 1.0], (0, 1)),
    ],
)
def test_interval_without_a_spread(values: list[float], expected: tuple[float, float]) -> None:
    assert ends(stats.interval(values)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("bad", [nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = [0.1, bad, 0.3]
    for call in (
        lambda: stats.interval(values),
        lambda: stats.summary(values),
        lambda: stats.clustered_interval(values, [0, 1, 2]),
        lambda: stats.paired(values, [0.1, 0.2, 0.3]),
        lambda: stats.paired([0.1, 0.2, 0.3], values),
        lambda: stats.holm(values),
    ):
        with pytest.raises(ValueError, match="1 of 3 values are not finite"):
            call()


def test_more_than_one_value_a_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one value a unit.*\(2, 3\)"):
        stats.interval(np.zeros((2, 3)))


def test_the_order_of_the_units_changes_nothing_and_the_seed_decides() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 25))
    clusters, order = np.arange(25) // 3, rng.permutation(25)
    for call in (
        lambda o, seed: stats.interval(a[o], seed=seed),
        lambda o, seed: stats.clustered_interval(a[o], clusters[o], seed=seed),
        lambda o, seed: stats.paired(a[o], b[o], seed=seed).interval,
        lambda o, seed: stats.summary(a[o], seed=seed).interval,
    ):
        assert ends(call(order, 4)) == pytest.approx(ends(call(np.arange(25), 4)), rel=1e-12)
        assert call(order, 4) == call(order, 4)
        assert call(order, 4) != call(order, 5)


# Clusters


def test_rows_of_one_cluster_are_one_observation() -> None:
    """Five copies of each unit add no knowledge: the interval is that of the units, not a narrower one."""
    units = np.random.default_rng(9).normal(size=20)
    rows, names = np.repeat(units, 5), np.repeat([f"unit {i}" for i in range(20)], 5)
    assert ends(stats.clustered_interval(rows, names)) == pytest.approx(ends(stats.interval(units)))
    naive = stats.interval(rows)
    assert naive.high - naive.low < 0.6 * (stats.interval(units).high - stats.interval(units).low)


def test_clustered_interval_of_unequal_clusters_is_that_of_resampled_rows() -> None:
    """Resampled the long way: draw clusters, pool their rows, average; plain percentiles, as the skew is small."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    values = rng.normal(size=40)[clusters] + 0.3 * rng.normal(size=clusters.size)
    rows = [values[clusters == c] for c in range(40)]
    means = [np.concatenate([rows[i] for i in rng.integers(0, 40, 40)]).mean() for _ in range(4000)]
    width = np.ptp(np.percentile(means, [2.5, 97.5]))
    expected = tuple(np.percentile(means, [2.5, 97.5]))
    assert ends(stats.clustered_interval(values, clusters)) == pytest.approx(expected, abs=0.08 * width)


def test_clustered_interval_covers_where_the_naive_one_does_not() -> None:
    """150 samples of 20 clusters with 5 nearly equal rows each. By the same reckoning as above clusters are right
    with P(|t19| < 1.96 sqrt(19/20)) = 0.929, rows with P(|t19| < 1.96 / sqrt(5)) = 0.61; sd 0.02 and 0.04."""
    rng, clusters = np.random.default_rng(5), np.repeat(np.arange(20), 5)
    samples = [rng.normal(size=20)[clusters] + 0.05 * rng.normal(size=100) for _ in range(150)]
    honest = np.mean([covers(stats.clustered_interval(x, clusters, resamples=399), 0) for x in samples])
    naive = np.mean([covers(stats.interval(x, resamples=399), 0) for x in samples])
    assert abs(honest - 0.929) < 0.065
    assert naive < 0.75


def test_clusters_without_a_spread_and_of_another_length() -> None:
    assert isnan(stats.clustered_interval([1.0, 2.0, 3.0], ["a", "a", "a"]).low)
    assert isnan(stats.clustered_interval([], []).high)
    assert ends(stats.clustered_interval([1, 3, 2, 1, 3], [0, 0, 1, 2, 2])) == (2, 2)
    with pytest.raises(ValueError, match="3 values need one cluster each, got 2"):
        stats.clustered_interval([1, 2, 3], [0, 1])


# Any statistic of clusters

SIZES = np.random.default_rng(12).integers(1, 9, 30)
MEMBERS = np.repeat([f"unit {i}" for i in range(30)], SIZES)
VALUES = SKEWED[:30].repeat(SIZES) * np.random.default_rng(14).beta(9, 1, MEMBERS.size)


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda weight: float(np.average(values, weights=weight))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_with_the_mean_as_statistic_it_is_the_clustered_interval_of_the_mean(level: float) -> None:
    """9,999 resamples of their own: an end moves by about 0.01 of the width (1 sd); four times that is allowed."""
    known = stats.clustered_interval(VALUES, MEMBERS, level=level)
    found = stats.clustered_statistic(mean_of(VALUES), MEMBERS, level=level, resamples=9999, seed=1)
    assert ends(found) == pytest.approx(ends(known), abs=0.04 * (known.high - known.low))


def test_a_statistic_is_given_how_often_each_cluster_was_drawn() -> None:
    """Rows of one cluster weigh the same; as many clusters are drawn as there are, or one fewer (jackknife)."""
    seen: list[np.ndarray] = []

    def spy(weight: np.ndarray) -> float:
        seen.append(weight)
        return float(np.average(VALUES, weights=weight))

    stats.clustered_statistic(spy, MEMBERS, resamples=50)
    first = np.unique(MEMBERS, return_index=True)[1]
    drawn = {weight[first].sum() for weight in seen}
    assert drawn == {29, 30}
    for weight in seen:
        assert weight.shape == MEMBERS.shape
        assert np.array_equal(weight, weight[first][np.unique(MEMBERS, return_inverse=True)[1]])
    assert max(weight.max() for weight in seen) > 1


def test_the_interval_of_a_statistic_covers_where_one_over_rows_does_not() -> None:
    """How often one of 12 units is above one of 12 others, from 4 rows each that hardly differ within a unit.

    For pairs of different units the truth is Phi(1 / sqrt(2 (1 + 0.3 ** 2))). 200 samples, binomial sd 0.016; BCa
    with so few units is known to miss somewhat more often than it says, so 0.95 is allowed to be 0.88.
    """
    truth = scipy_stats.norm.cdf(1 / sqrt(2 * (1 + 0.3**2)))
    clusters = np.repeat(np.arange(24), 4)
    above = clusters < 12
    rng, honest, naive = np.random.default_rng(0), [], []
    for _ in range(200):
        rows = above + rng.normal(size=24)[clusters] + 0.3 * rng.normal(size=96)
        wins = (rows[above][:, None] > rows[~above]).astype(float)

        def area(weight: np.ndarray, wins: np.ndarray = wins) -> float:
            return float(weight[above] @ wins @ weight[~above] / (weight[above].sum() * weight[~above].sum()))

        honest.append(covers(stats.clustered_statistic(area, clusters, resamples=199), truth))
        naive.append(covers(stats.clustered_statistic(area, np.arange(96), resamples=199), truth))
    assert 0.88 < np.mean(honest) < 0.99
    assert np.mean(naive) < 0.8


def test_a_statistic_of_fewer_than_two_clusters_has_no_interval() -> None:
    assert isnan(stats.clustered_statistic(mean_of(np.arange(3)), ["a", "a", "a"]).low)
    assert isnan(stats.clustered_statistic(lambda weight: 1.0, []).high)


def test_the_seed_decides_the_interval_of_a_statistic_and_the_order_of_rows_does_not() -> None:
    def interval(seed: int, order: np.ndarray) -> tuple[float, float]:
        return ends(stats.clustered_statistic(mean_of(VALUES[order]), MEMBERS[order], resamples=299, seed=seed))

    order, shuffled = np.arange(MEMBERS.size), np.random.default_rng(1).permutation(MEMBERS.size)
    assert interval(4, order) == interval(4, order)
    assert interval(4, order) != interval(5, order)
    assert interval(4, shuffled) == pytest.approx(interval(4, order), rel=1e-9)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (lambda weight: 0.7, (0.7, 0.7)),
        (lambda weight: float(weight.sum() / 4), (1, 1)),
        # 3 of 4 units are left whichever is taken out: nothing to correct by. Of the 256 ways to draw four, 4 give
        # one unit (1.6%), 84 give two and 24 give all (9.4%).
        (lambda weight: float((weight > 0).sum()), (2, 4)),
        (lambda weight: nan, (nan, nan)),
        (lambda weight: 1 / weight[0] if weight[0] else nan, (nan, nan)),  # not defined where 1 is not drawn
    ],
)
def test_a_statistic_without_spread_or_sometimes_undefined_makes_no_warning(
    statistic: Callable[[np.ndarray], float], expected: tuple[float, float]
) -> None:
    found = stats.clustered_statistic(statistic, np.arange(4))
    assert ends(found) == pytest.approx(expected, nan_ok=True)


# Pairs


def test_paired_by_hand() -> None:
    """Five differences, all above zero: of the 32 ways to sign the ranks one is as extreme, and its mirror."""
    found = stats.paired([2, 4, 6, 8, 10], [1, 2, 3, 4, 5])
    assert found.difference == 3
    assert found.p == pytest.approx(2 / 32)
    assert found.wins == 1
    assert found.n == 5
    assert found.interval == stats.interval([1, 2, 3, 4, 5])


def test_equal_pairs_count_as_no_win_and_carry_no_rank() -> None:
    found = stats.paired([0.5, 0.5, 0.9, 0.8, 0.7], [0.5, 0.5, 0.1, 0.2, 0.3])
    assert found.wins == pytest.approx(3 / 5)
    assert found.p == pytest.approx(2 / 8)
    assert found.n == 5


def test_wilcoxon_p_counts_the_sign_patterns_at_least_as_extreme() -> None:
    d = [0.31, -0.12, 0.58, 0.07, -0.03, 0.44, 0.26, 0.19]
    ranks = scipy_stats.rankdata(np.abs(d))
    sums = [sum(r for r, up in zip(ranks, signs, strict=True) if up) for signs in product((0, 1), repeat=len(d))]
    observed, centre = sum(r for r, x in zip(ranks, d, strict=True) if x > 0), ranks.sum() / 2
    expected = np.mean([abs(s - centre) >= abs(observed - centre) for s in sums])
    assert stats.paired(d, np.zeros(8)).p == pytest.approx(expected)


def test_identical_samples_tie() -> None:
    found = stats.paired(SKEWED, SKEWED.copy())
    assert (found.difference, found.p, found.wins, found.n) == (0, 1, 0, 60)
    assert ends(found.interval) == (0, 0)
    reordered = SKEWED + 0.1 - 0.1  # the same but for rounding
    assert (reordered != SKEWED).any()
    assert stats.paired(SKEWED, reordered) == found


def test_swapping_the_pair_mirrors_everything() -> None:
    a, b = np.random.default_rng(10).beta(6, 1, (2, 40))
    ab, ba = stats.paired(a, b), stats.paired(b, a)
    assert ba.difference == pytest.approx(-ab.difference)
    assert ba.p == pytest.approx(ab.p)
    assert ba.wins == pytest.approx(1 - ab.wins)
    assert (-ba.interval.high, -ba.interval.low) == pytest.approx(ends(ab.interval), abs=0.01)


def test_two_equal_procedures_differ_in_few_comparisons() -> None:
    """300 comparisons of equals: about 5% have p < 0.05; three binomial sd (0.0126) above that is the limit."""
    rng = np.random.default_rng(11)
    pairs = [rng.beta(6, 1, (2, 30)) for _ in range(300)]
    found = np.mean([stats.paired(a, b, resamples=9).p < 0.05 for a, b in pairs])
    assert 0 < found < 0.05 + 3 * 0.0126


def test_pairs_of_unequal_length_are_refused_and_no_pairs_decide_nothing() -> None:
    with pytest.raises(ValueError, match="same units, got 2 and 3"):
        stats.paired([1, 2], [1, 2, 3])
    nobody = stats.paired([], [])
    assert (nobody.p, nobody.n) == (1, 0)
    assert isnan(nobody.difference)
    assert isnan(nobody.wins)


# Several tests


def test_holm_by_hand() -> None:
    """0.01 * 3, then 0.03 * 2, then 0.04 * 1, which may not fall below the one before."""
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.7, 0.6]) == pytest.approx([1, 1])
    assert stats.holm([0.2]) == pytest.approx([0.2])
    assert stats.holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    for p in np.random.default_rng(13).beta(0.3, 2, (20, 12)).round(3):  # some are equal, or zero
        assert stats.holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.holm([0.5, 1.2])


# Summaries


def test_summary_by_hand() -> None:
    values = np.arange(21) / 20  # its percentiles are its members
    found = stats.summary(values[::-1])
    assert (found.n, found.mean, found.median) == (21, pytest.approx(0.5), pytest.approx(0.5))
    assert (found.p5, found.p95) == (pytest.approx(0.05), pytest.approx(0.95))
    assert found.sd == pytest.approx(sqrt(sum((v - 0.5) ** 2 for v in values) / 20))
    assert found.interval == stats.interval(values)


def test_summary_of_one_unit_and_of_none() -> None:
    one = stats.summary([0.4])
    assert (one.n, one.mean, one.median, one.p5, one.p95) == (1, 0.4, 0.4, 0.4, 0.4)
    assert isnan(one.sd)
    assert isnan(one.interval.low)
    none = stats.summary([])
    assert none.n == 0
    assert all(isnan(v) for v in (none.mean, none.median, none.p5, none.p95, none.sd, none.interval.high))


# Procedures


def test_corrected_resampled_by_hand() -> None:
    """Variance 0.00025, times 1/5 + 1/4 gives t = 2 sqrt(2) with 4 degrees of freedom.

    Then 1 - p is sin(u) (1 + cos(u)^2 / 2) with tan(u) = t / 2: sqrt(2/3) * 7/6. That t has its 97.5% point at
    2.776445.
    """
    found = stats.corrected_resampled([0.02, 0.04, 0.03, 0.05, 0.01], test_share=1 / 5)
    deviation = sqrt(0.00025 * (1 / 5 + 1 / 4))
    assert (found.difference, found.n) == (pytest.approx(0.03), 5)
    assert found.p == pytest.approx(1 - sqrt(2 / 3) * 7 / 6)
    half = 2.776445 * deviation
    assert ends(found.interval) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-7)


@pytest.mark.parametrize(("folds", "repeats", "rope"), [(5, 1, 0.01), (10, 1, 0.02), (5, 4, 0.005)])
def test_corrected_resampled_is_the_correlated_t_test_of_baycomp(folds: int, repeats: int, rope: float) -> None:
    """baycomp says how likely its first, neither and its second is the better one."""
    a, b = np.random.default_rng(folds).normal(0.8, 0.03, (2, folds * repeats)) + np.array([[0.015], [0]])
    found = stats.corrected_resampled(a - b, test_share=1 / folds, rope=rope)
    assert found.better > found.worse
    expected = baycomp.two_on_single(a, b, rope=rope, runs=repeats)
    assert (found.better, found.same, found.worse) == pytest.approx(expected)
    swapped = stats.corrected_resampled(b - a, test_share=1 / folds, rope=rope)
    assert (swapped.worse, swapped.same, swapped.better) == pytest.approx(expected)
    sure = baycomp.two_on_single(a, b, runs=repeats)  # without a rope
    assert found.p == pytest.approx(2 * min(sure))


@pytest.mark.parametrize(
    ("each", "p", "shares"),
    [(0.02, 0, (1, 0, 0)), (-0.02, 0, (0, 0, 1)), (0.005, 0, (0, 1, 0)), (0.01, 0, (0, 1, 0)), (0, 1, (0, 1, 0))],
)
def test_folds_that_all_agree(each: float, p: float, shares: tuple[int, int, int]) -> None:
    found = stats.corrected_resampled([each] * 5, test_share=0.2)
    assert ends(found.interval) == pytest.approx((each, each))
    assert (found.p, (found.better, found.same, found.worse)) == (p, shares)


def test_one_fold_says_nothing_of_a_procedure_and_shares_are_checked() -> None:
    one = stats.corrected_resampled([0.02], test_share=0.2)
    assert (one.difference, one.n) == (0.02, 1)
    assert all(isnan(v) for v in (one.p, one.better, one.same, one.worse, one.interval.low))
    assert isnan(stats.corrected_resampled([], test_share=0.2).difference)
    for share in (0, 1, 5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            stats.corrected_resampled([0.1, 0.2], test_share=share)


def folds_of_equals(
    rng: np.random.Generator, folds: int, repeats: int, *, anew: bool, luck: float = 0
) -> np.ndarray:
    """Two procedures that are equally good, (repeats, folds) differences of their test errors on 60 cases.

    Each learns the slope of one of two equally good predictors by least squares; `luck` is what training adds.
    The folds of each repeat are drawn anew, or are the same.
    """
    x = rng.normal(size=(2, 60))
    y = x.sum(0) + rng.normal(size=60)
    order, differences = np.arange(60), np.empty((repeats, folds))
    for repeat in range(repeats):
        order = rng.permutation(order) if anew else order
        for fold, test in enumerate(np.array_split(order, folds)):
            tested = np.isin(np.arange(60), test)
            products, squares = (x * y)[:, ~tested].sum(1), (x**2)[:, ~tested].sum(1)
            slopes = products / squares + luck * rng.normal(size=2)
            errors = ((y[tested] - slopes[:, None] * x[:, tested]) ** 2).mean(1)
            differences[repeat, fold] = errors[0] - errors[1]
    return differences


def test_equal_procedures_differ_rarely_though_their_training_sets_overlap() -> None:
    """5 times 5 folds, 500 studies: a t-test that takes the 25 for independent is wrong in two of five studies."""
    rng = np.random.default_rng(21)
    studies = [folds_of_equals(rng, 5, 5, anew=True).ravel() for _ in range(500)]
    corrected = np.mean([stats.corrected_resampled(d, test_share=1 / 5).p < 0.05 for d in studies])
    assert 0.01 < corrected < 0.05 + 2 * 0.0097
    assert np.mean([scipy_stats.ttest_1samp(d, 0).pvalue < 0.05 for d in studies]) > 0.3


def test_seeds_on_the_same_folds_are_averaged_first() -> None:
    """3 folds, 5 seeds: with the 15 for repeats it is wrong too often, with the folds' means it is not."""
    rng = np.random.default_rng(22)
    studies = [folds_of_equals(rng, 3, 5, anew=False, luck=0.1) for _ in range(500)]
    means = np.mean([stats.corrected_resampled(d.mean(0), test_share=1 / 3).p < 0.05 for d in studies])
    assert means < 0.05
    assert np.mean([stats.corrected_resampled(d.ravel(), test_share=1 / 3).p < 0.05 for d in studies]) > 0.08
