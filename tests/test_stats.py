"""Statistics: against SciPy and slow reference code, by hand, and by the coverage of the intervals."""

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
from bench.stats import Interval, corrected_resampled_t_test
from tests import reference

SKEWED = np.random.default_rng(20).beta(6, 1, 60)


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


# Intervals


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_is_the_bca_interval_of_the_mean(level: float) -> None:
    """Compared with the definition in plain loops and with SciPy's function, each with its own resamples.

    Between sets of 4,000 resamples the ends vary by 0.0012 (1 sd) at most; 0.005 is four times that.
    """
    interval = ends(stats.interval(SKEWED, level=level))
    assert interval == pytest.approx(reference.bca(SKEWED.tolist(), level, 4000, seed=1), abs=0.005)
    direct = scipy_stats.bootstrap((SKEWED,), np.mean, confidence_level=level, method="BCa", rng=2)
    assert interval == pytest.approx(tuple(direct.confidence_interval), abs=0.005)


@pytest.mark.parametrize("n", [2, 9, 150])
def test_intervals_of_many_rows_equal_one_bootstrap_each(n: int) -> None:
    """Bit for bit, in more rows than are resampled at once; one row has no spread."""
    rows = np.random.default_rng(3).beta(5, 2, (stats.BLOCK + 3, n))
    rows[1] = 0.5
    found = stats.intervals_of_rows(rows, resamples=99, seed=7)
    assert found[1] == Interval(0.5, 0.5)
    for at in (0, 2, stats.BLOCK + 2):
        assert (found[at].low, found[at].high) == reference.scipy_bca(rows[at], resamples=99, seed=7)
        assert found[at] == stats.interval(rows[at], resamples=99, seed=7)
    assert all(isnan(ends.low) for ends in stats.intervals_of_rows(rows[:, :1]))


def test_interval_extends_further_towards_the_long_tail() -> None:
    tail = [1.0] * 40 + [0.0, 0.1, 0.3]
    low, high = ends(stats.interval(tail))
    assert np.mean(tail) - low > 1.3 * (high - np.mean(tail))


@pytest.mark.slow
def test_interval_covers_the_mean_about_as_often_as_its_level() -> None:
    """400 normal samples of n = 30. A bootstrap uses neither n - 1 nor t, so a 95% interval is expected to cover
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
        ([0.3, 0.3, 0.1 + 0.2], (0.3, 0.3)),  # they differ by rounding only
        ([0.0, 1.0], (0, 1)),
    ],
)
def test_interval_without_a_spread(values: list[float], expected: tuple[float, float]) -> None:
    assert ends(stats.interval(values)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("bad", [nan, np.inf])
def test_values_that_are_not_finite_raise(bad: float) -> None:
    values = [0.1, bad, 0.3]
    for call in (
        lambda: stats.interval(values),
        lambda: stats.clustered_interval(values, [0, 1, 2]),
        lambda: stats.compare_paired(values, [0.1, 0.2, 0.3]),
        lambda: stats.compare_paired([0.1, 0.2, 0.3], values),
        lambda: stats.holm(values),
    ):
        with pytest.raises(ValueError, match="1 of 3 values are not finite"):
            call()


def test_more_than_one_value_per_unit_raises() -> None:
    with pytest.raises(ValueError, match=r"one value per unit.*\(2, 3\)"):
        stats.interval(np.zeros((2, 3)))


def test_intervals_depend_on_the_seed_but_not_on_the_order_of_the_units() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 25))
    clusters, order = np.arange(25) // 3, rng.permutation(25)
    for call in (
        lambda o, seed: stats.interval(a[o], seed=seed),
        lambda o, seed: stats.clustered_interval(a[o], clusters[o], seed=seed),
        lambda o, seed: stats.compare_paired(a[o], b[o], seed=seed).interval,
    ):
        assert ends(call(order, 4)) == pytest.approx(ends(call(np.arange(25), 4)), rel=1e-12)
        assert call(order, 4) == call(order, 4)
        assert call(order, 4) != call(order, 5)


# Clusters


def test_copies_of_a_unit_do_not_narrow_the_clustered_interval() -> None:
    """Five copies of each unit add no information."""
    units = np.random.default_rng(9).normal(size=20)
    rows, names = np.repeat(units, 5), np.repeat([f"unit {i}" for i in range(20)], 5)
    assert ends(stats.clustered_interval(rows, names)) == pytest.approx(ends(stats.interval(units)))
    over_rows = stats.interval(rows)
    assert over_rows.high - over_rows.low < 0.6 * (stats.interval(units).high - stats.interval(units).low)


def test_clustered_interval_of_unequal_clusters_agrees_with_a_plain_bootstrap() -> None:
    """Draw clusters, pool their rows, average. Percentiles suffice, because the skew is small."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    values = rng.normal(size=40)[clusters] + 0.3 * rng.normal(size=clusters.size)
    rows = [values[clusters == c] for c in range(40)]
    means = [np.concatenate([rows[i] for i in rng.integers(0, 40, 40)]).mean() for _ in range(4000)]
    width = np.ptp(np.percentile(means, [2.5, 97.5]))
    expected = tuple(np.percentile(means, [2.5, 97.5]))
    assert ends(stats.clustered_interval(values, clusters)) == pytest.approx(expected, abs=0.08 * width)


@pytest.mark.slow
def test_clustered_interval_covers_the_mean_and_an_interval_over_rows_does_not() -> None:
    """150 samples of 20 clusters with 5 nearly equal rows each. As in the test of `interval`, clusters cover with
    P(|t19| < 1.96 sqrt(19/20)) = 0.929, rows with P(|t19| < 1.96 / sqrt(5)) = 0.61; sd 0.02 and 0.04."""
    rng, clusters = np.random.default_rng(5), np.repeat(np.arange(20), 5)
    samples = [rng.normal(size=20)[clusters] + 0.05 * rng.normal(size=100) for _ in range(150)]
    over_clusters = np.mean([covers(stats.clustered_interval(x, clusters, resamples=399), 0) for x in samples])
    over_rows = np.mean([covers(stats.interval(x, resamples=399), 0) for x in samples])
    assert abs(over_clusters - 0.929) < 0.065
    assert over_rows < 0.75


def test_clustered_interval_of_degenerate_or_mismatched_clusters() -> None:
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
def test_the_interval_of_the_mean_as_a_statistic_agrees_with_clustered_interval(level: float) -> None:
    """Each has its own 9,999 resamples: an end varies by about 0.01 of the width (1 sd); 0.04 is allowed."""
    known = stats.clustered_interval(VALUES, MEMBERS, level=level)
    interval = stats.clustered_statistic_interval(mean_of(VALUES), MEMBERS, level=level, resamples=9999, seed=1)
    assert ends(interval) == pytest.approx(ends(known), abs=0.04 * (known.high - known.low))


def test_a_statistic_receives_how_often_each_cluster_was_drawn() -> None:
    """Rows of one cluster have the same weight; all 30 clusters are drawn, or 29 for the jackknife."""
    seen: list[np.ndarray] = []

    def spy(weight: np.ndarray) -> float:
        seen.append(weight)
        return float(np.average(VALUES, weights=weight))

    stats.clustered_statistic_interval(spy, MEMBERS, resamples=50)
    first = np.unique(MEMBERS, return_index=True)[1]
    drawn = {weight[first].sum() for weight in seen}
    assert drawn == {29, 30}
    for weight in seen:
        assert weight.shape == MEMBERS.shape
        assert np.array_equal(weight, weight[first][np.unique(MEMBERS, return_inverse=True)[1]])
    assert max(weight.max() for weight in seen) > 1


@pytest.mark.slow
def test_the_interval_of_a_statistic_covers_and_one_over_rows_does_not() -> None:
    """The statistic is how often one of 12 units exceeds one of 12 others, with 4 nearly equal rows per unit.

    For pairs of different units the truth is Phi(1 / sqrt(2 (1 + 0.3 ** 2))). 200 samples, binomial sd 0.016. BCa
    with so few units is known to cover less often than its level, so 0.88 is accepted for 0.95.
    """
    truth = scipy_stats.norm.cdf(1 / sqrt(2 * (1 + 0.3**2)))
    clusters = np.repeat(np.arange(24), 4)
    above = clusters < 12
    rng, over_clusters, over_rows = np.random.default_rng(0), [], []
    for _ in range(200):
        rows = above + rng.normal(size=24)[clusters] + 0.3 * rng.normal(size=96)
        wins = (rows[above][:, None] > rows[~above]).astype(float)

        def area(weight: np.ndarray, wins: np.ndarray = wins) -> float:
            return float(weight[above] @ wins @ weight[~above] / (weight[above].sum() * weight[~above].sum()))

        over_clusters.append(covers(stats.clustered_statistic_interval(area, clusters, resamples=199), truth))
        over_rows.append(covers(stats.clustered_statistic_interval(area, np.arange(96), resamples=199), truth))
    assert 0.88 < np.mean(over_clusters) < 0.99
    assert np.mean(over_rows) < 0.8


def test_a_statistic_of_fewer_than_two_clusters_has_no_interval() -> None:
    assert isnan(stats.clustered_statistic_interval(mean_of(np.arange(3)), ["a", "a", "a"]).low)
    assert isnan(stats.clustered_statistic_interval(lambda weight: 1.0, []).high)


def test_the_interval_of_a_statistic_depends_on_the_seed_but_not_on_row_order() -> None:
    def interval(seed: int, order: np.ndarray) -> tuple[float, float]:
        statistic = mean_of(VALUES[order])
        return ends(stats.clustered_statistic_interval(statistic, MEMBERS[order], resamples=299, seed=seed))

    order, shuffled = np.arange(MEMBERS.size), np.random.default_rng(1).permutation(MEMBERS.size)
    assert interval(4, order) == interval(4, order)
    assert interval(4, order) != interval(5, order)
    assert interval(4, shuffled) == pytest.approx(interval(4, order), rel=1e-9)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (lambda weight: 0.7, (0.7, 0.7)),
        (lambda weight: float(weight.sum() / 4), (1, 1)),
        # 3 of 4 units are left whichever is left out: BCa has no acceleration. Of the 256 ways to draw four units,
        # 4 give one unit (1.6%), 84 give two and 24 give all (9.4%).
        (lambda weight: float((weight > 0).sum()), (2, 4)),
        (lambda weight: nan, (nan, nan)),
        (lambda weight: 1 / weight[0] if weight[0] else nan, (nan, nan)),  # undefined where unit 0 is not drawn
    ],
)
def test_a_statistic_without_spread_or_sometimes_undefined_causes_no_warning(
    statistic: Callable[[np.ndarray], float], expected: tuple[float, float]
) -> None:
    interval = stats.clustered_statistic_interval(statistic, np.arange(4))
    assert ends(interval) == pytest.approx(expected, nan_ok=True)


# Pairs


def test_a_paired_comparison_equals_its_values_by_hand() -> None:
    """Five positive differences: of the 32 ways to sign the ranks, two are as extreme."""
    comparison = stats.compare_paired([2, 4, 6, 8, 10], [1, 2, 3, 4, 5])
    assert comparison.difference == 3
    assert comparison.p == pytest.approx(2 / 32)
    assert comparison.wins == 1
    assert comparison.n == 5
    assert comparison.interval == stats.interval([1, 2, 3, 4, 5])


def test_equal_pairs_are_no_wins_and_have_no_rank() -> None:
    comparison = stats.compare_paired([0.5, 0.5, 0.9, 0.8, 0.7], [0.5, 0.5, 0.1, 0.2, 0.3])
    assert comparison.wins == pytest.approx(3 / 5)
    assert comparison.p == pytest.approx(2 / 8)
    assert comparison.n == 5


def test_the_wilcoxon_p_is_the_share_of_sign_patterns_as_extreme() -> None:
    d = [0.31, -0.12, 0.58, 0.07, -0.03, 0.44, 0.26, 0.19]
    ranks = scipy_stats.rankdata(np.abs(d))
    sums = [sum(r for r, up in zip(ranks, signs, strict=True) if up) for signs in product((0, 1), repeat=len(d))]
    observed, centre = sum(r for r, x in zip(ranks, d, strict=True) if x > 0), ranks.sum() / 2
    expected = np.mean([abs(s - centre) >= abs(observed - centre) for s in sums])
    assert stats.compare_paired(d, np.zeros(8)).p == pytest.approx(expected)


def test_identical_samples_have_p_one_and_no_wins() -> None:
    comparison = stats.compare_paired(SKEWED, SKEWED.copy())
    assert (comparison.difference, comparison.p, comparison.wins, comparison.n) == (0, 1, 0, 60)
    assert ends(comparison.interval) == (0, 0)
    rounded = SKEWED + 0.1 - 0.1  # equal except for rounding
    assert (rounded != SKEWED).any()
    assert stats.compare_paired(SKEWED, rounded) == comparison


def test_swapping_the_samples_mirrors_the_comparison() -> None:
    a, b = np.random.default_rng(10).beta(6, 1, (2, 40))
    ab, ba = stats.compare_paired(a, b), stats.compare_paired(b, a)
    assert ba.difference == pytest.approx(-ab.difference)
    assert ba.p == pytest.approx(ab.p)
    assert ba.wins == pytest.approx(1 - ab.wins)
    assert (-ba.interval.high, -ba.interval.low) == pytest.approx(ends(ab.interval), abs=0.01)


@pytest.mark.slow
def test_samples_of_one_distribution_rarely_differ_significantly() -> None:
    """Of 300 comparisons about 5% have p < 0.05; the limit is three binomial sd (0.0126) above."""
    rng = np.random.default_rng(11)
    pairs = [rng.beta(6, 1, (2, 30)) for _ in range(300)]
    significant = np.mean([stats.compare_paired(a, b, resamples=9).p < 0.05 for a, b in pairs])
    assert 0 < significant < 0.05 + 3 * 0.0126


def test_samples_of_unequal_length_raise_and_empty_samples_have_p_one() -> None:
    with pytest.raises(ValueError, match="same units, got 2 and 3"):
        stats.compare_paired([1, 2], [1, 2, 3])
    empty = stats.compare_paired([], [])
    assert (empty.p, empty.n) == (1, 0)
    assert isnan(empty.difference)
    assert isnan(empty.wins)


# Several tests


def test_holm_equals_its_values_by_hand() -> None:
    """0.01 * 3, then 0.03 * 2, then 0.04 * 1, raised to the previous value."""
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.7, 0.6]) == pytest.approx([1, 1])
    assert stats.holm([0.2]) == pytest.approx([0.2])
    assert stats.holm([]) == []


def test_holm_agrees_with_statsmodels() -> None:
    for p in np.random.default_rng(13).beta(0.3, 2, (3, 12)).round(3):  # some are equal or zero
        assert stats.holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_raises_for_values_that_are_not_p_values() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.holm([0.5, 1.2])


# Comparisons of training procedures over folds


def test_the_corrected_t_test_equals_its_values_by_hand() -> None:
    """Variance 0.00025, times 1/5 + 1/4 gives t = 2 sqrt(2) with 4 degrees of freedom.

    Then 1 - p is sin(u) (1 + cos(u)^2 / 2) with tan(u) = t / 2: sqrt(2/3) * 7/6. The 97.5% quantile of t with 4
    degrees of freedom is 2.776445.
    """
    comparison = corrected_resampled_t_test([0.02, 0.04, 0.03, 0.05, 0.01], test_share=1 / 5)
    deviation = sqrt(0.00025 * (1 / 5 + 1 / 4))
    assert (comparison.difference, comparison.n) == (pytest.approx(0.03), 5)
    assert comparison.p == pytest.approx(1 - sqrt(2 / 3) * 7 / 6)
    half = 2.776445 * deviation
    assert ends(comparison.interval) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-7)


@pytest.mark.parametrize(("folds", "repeats", "rope"), [(5, 1, 0.01), (10, 1, 0.02), (5, 4, 0.005)])
def test_the_corrected_t_test_agrees_with_baycomp(folds: int, repeats: int, rope: float) -> None:
    """baycomp returns the probabilities that its first, neither or its second argument is better."""
    a, b = np.random.default_rng(folds).normal(0.8, 0.03, (2, folds * repeats)) + np.array([[0.015], [0]])
    comparison = corrected_resampled_t_test(a - b, test_share=1 / folds, rope=rope)
    assert comparison.better > comparison.worse
    expected = baycomp.two_on_single(a, b, rope=rope, runs=repeats)
    assert (comparison.better, comparison.same, comparison.worse) == pytest.approx(expected)
    swapped = corrected_resampled_t_test(b - a, test_share=1 / folds, rope=rope)
    assert (swapped.worse, swapped.same, swapped.better) == pytest.approx(expected)
    without_rope = baycomp.two_on_single(a, b, runs=repeats)
    assert comparison.p == pytest.approx(2 * min(without_rope))


@pytest.mark.parametrize(
    ("each", "p", "shares"),
    [(0.02, 0, (1, 0, 0)), (-0.02, 0, (0, 0, 1)), (0.005, 0, (0, 1, 0)), (0.01, 0, (0, 1, 0)), (0, 1, (0, 1, 0))],
)
def test_equal_differences_give_certain_probabilities(each: float, p: float, shares: tuple[int, int, int]) -> None:
    comparison = corrected_resampled_t_test([each] * 5, test_share=0.2)
    assert ends(comparison.interval) == pytest.approx((each, each))
    assert (comparison.p, (comparison.better, comparison.same, comparison.worse)) == (p, shares)


def test_the_corrected_t_test_of_one_fold_is_nan_and_a_wrong_share_raises() -> None:
    one = corrected_resampled_t_test([0.02], test_share=0.2)
    assert (one.difference, one.n) == (0.02, 1)
    assert all(isnan(v) for v in (one.p, one.better, one.same, one.worse, one.interval.low))
    assert isnan(corrected_resampled_t_test([], test_share=0.2).difference)
    for share in (0, 1, 5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            corrected_resampled_t_test([0.1, 0.2], test_share=share)


def simulate_differences(
    rng: np.random.Generator, folds: int, repeats: int, *, redraw: bool, noise: float = 0
) -> np.ndarray:
    """Return (repeats, folds) differences of the test errors of two equally good procedures on 60 cases.

    Each fits the slope of one of two equally good predictors by least squares; `noise` is the standard deviation
    that training adds to a slope. With `redraw`, the folds of each repeat are drawn again.
    """
    x = rng.normal(size=(2, 60))
    y = x.sum(0) + rng.normal(size=60)
    order, differences = np.arange(60), np.empty((repeats, folds))
    for repeat in range(repeats):
        order = rng.permutation(order) if redraw else order
        for fold, test in enumerate(np.array_split(order, folds)):
            tested = np.isin(np.arange(60), test)
            products, squares = (x * y)[:, ~tested].sum(1), (x**2)[:, ~tested].sum(1)
            slopes = products / squares + noise * rng.normal(size=2)
            errors = ((y[tested] - slopes[:, None] * x[:, tested]) ** 2).mean(1)
            differences[repeat, fold] = errors[0] - errors[1]
    return differences


@pytest.mark.slow
def test_equal_procedures_rarely_differ_although_their_training_sets_overlap() -> None:
    """500 studies of 5 times 5 folds: a t-test that assumes independence is wrong in two of five studies."""
    rng = np.random.default_rng(21)
    studies = [simulate_differences(rng, 5, 5, redraw=True).ravel() for _ in range(500)]
    corrected = np.mean([corrected_resampled_t_test(d, test_share=1 / 5).p < 0.05 for d in studies])
    assert 0.01 < corrected < 0.05 + 2 * 0.0097
    assert np.mean([scipy_stats.ttest_1samp(d, 0).pvalue < 0.05 for d in studies]) > 0.3


@pytest.mark.slow
def test_the_means_of_folds_over_seeds_keep_the_error_rate_and_single_seeds_do_not() -> None:
    """3 folds with 5 seeds: passing all 15 differences as repeats is wrong too often."""
    rng = np.random.default_rng(22)
    studies = [simulate_differences(rng, 3, 5, redraw=False, noise=0.1) for _ in range(500)]
    means = np.mean([corrected_resampled_t_test(d.mean(0), test_share=1 / 3).p < 0.05 for d in studies])
    assert means < 0.05
    assert np.mean([corrected_resampled_t_test(d.ravel(), test_share=1 / 3).p < 0.05 for d in studies]) > 0.08
