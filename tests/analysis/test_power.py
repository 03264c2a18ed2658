"""Power agrees with closed forms, with single studies in SciPy, and with the test that it plans for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from bench.analysis.cohort import measure_spread, residuals
from bench.analysis.power import (
    detection_rate,
    power_table,
    simulate_studies,
    smallest_gap,
    smallest_training_gap,
)
from bench.errors import BadSetting, UnknownName
from bench.formatting import SYNTHETIC_WARNING
from bench.reports.power import print_power, study_power, summarise_power
from bench.stats import corrected_resampled_t_test
from bench.structures import structure_column
from bench.tracking import Store, open_run
from bench.types import RunRecord

NORMAL = stats.norm.ppf((np.arange(1000) + 0.5) / 1000) * 0.1  # quantiles of a normal distribution, sd 0.1
SKEWED = residuals(np.random.default_rng(1).gamma(0.5, 0.1, 60), np.zeros(60))
WAVE = np.tile([1.0, 1.0, -1.0, -1.0], 6)  # 24 patients; these three waves are orthogonal within every 4
OTHER = np.tile([1.0, -1.0, -1.0, 1.0], 6)
THIRD = np.tile([1.0, -1.0, 1.0, -1.0], 6)
SLOW = pytest.mark.slow
FULL = 24 / 23  # the sample variance of each


def run(
    name: str, dice: np.ndarray, *, settings: str | None = None, seed: int = 0, folds: int = 3, **tags: str
) -> RunRecord:
    """Return a run whose folds are consecutive patients; runs with the same `settings` differ in their seeds."""
    count = len(dice)
    facts = {"data": "d" * 16, "split": "s" * 12, "convention": "1", "dataset": "lgg", "synthetic": "false"} | tags
    cases = {"case": [f"p{n:02d}" for n in range(count)], "fold": np.arange(count) * folds // count, "dice": dice}
    parameters = {"model.name": settings or name, "train.epochs": "3", "run.seed": str(seed), "run.name": name}
    return RunRecord(
        f"id-{name}", name, pd.DataFrame(cases), parameters, {}, {f"bench.{k}": v for k, v in facts.items()}
    )


# Simulated studies


def test_residuals_are_differences_minus_their_mean() -> None:
    assert residuals([0.9, 0.7, 0.5], [0.6, 0.7, 0.5]) == pytest.approx([0.2, -0.1, -0.1])


@pytest.mark.parametrize("tests", [1, 5])
def test_a_gap_of_zero_is_detected_in_alpha_of_studies(tests: int) -> None:
    """Even with skewed residuals, as either model may be the first. Tolerance: three binomial sd."""
    level = 0.05 / tests
    rate = detection_rate(simulate_studies(SKEWED, 60, 10_000), 0, tests)
    assert rate == pytest.approx(level, abs=3 * math.sqrt(level / 10_000))


@SLOW
def test_power_is_the_rate_at_which_scipy_detects_the_gap() -> None:
    """Each study has draws and signs of its own: 2,000 studies each, so the sd of the difference is 1.5%."""
    rng = np.random.default_rng(2)
    detected = [
        stats.wilcoxon(rng.choice(SKEWED, 40) * rng.choice([-1, 1], 40) + 0.02).pvalue < 0.05 / 3
        for _ in range(2000)
    ]
    assert 0.3 < np.mean(detected) < 0.9
    assert detection_rate(simulate_studies(SKEWED, 40, 2000), 0.02, 3) == pytest.approx(
        np.mean(detected), abs=0.045
    )


@pytest.mark.parametrize(
    ("patients", "tests"),
    [(22, 1), *(pytest.param(*sizes, marks=SLOW) for sizes in ((88, 1), (88, 10), (200, 1)))],
)
def test_for_normal_differences_the_gap_follows_from_that_of_a_t_test(patients: int, tests: int) -> None:
    """Wilcoxon's asymptotic efficiency relative to the t-test is 3 / pi; 4,000 studies give the gap to 1%."""
    by_t = TTestPower().solve_power(nobs=patients * 3 / math.pi, alpha=0.05 / tests, power=0.8) * NORMAL.std()
    assert smallest_gap(NORMAL, patients=patients, tests=tests, simulations=4000) == pytest.approx(by_t, rel=0.04)


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_gap_just_reaches_the_power(power: float) -> None:
    gap = smallest_gap(SKEWED, patients=50, power=power)
    studies = simulate_studies(SKEWED, 50)
    assert detection_rate(studies, gap) >= power > detection_rate(studies, gap - 0.0005)


def test_the_gap_shrinks_with_patients_and_grows_with_tests() -> None:
    """Four times the patients detect half the gap."""
    few, many = (smallest_gap(NORMAL, patients=n, simulations=2000) for n in (50, 200))
    assert few / many == pytest.approx(2, rel=0.06)
    gaps = [smallest_gap(NORMAL, patients=50, tests=tests) for tests in (1, 10, 45, 190)]
    assert gaps == sorted(set(gaps))


def test_the_gap_grows_with_the_spread() -> None:
    one, three = (smallest_gap(scale * SKEWED, patients=88) for scale in (1, 3))
    assert three == pytest.approx(3 * one, abs=0.002)


def test_no_gap_is_enough_where_few_patients_cannot_reach_significance() -> None:
    """For five patients that all agree, z = 15 / sqrt(55) has p = 0.043, which is not below 0.05 / 3."""
    assert smallest_gap(NORMAL, patients=5, tests=3) == math.inf
    assert smallest_gap(NORMAL, patients=5, tests=1) < 1


# After training again


@pytest.mark.parametrize("folds", [pytest.param(3, marks=SLOW), 5, pytest.param(10, marks=SLOW)])
def test_the_corrected_test_detects_the_training_gap_at_the_planned_rate(folds: int) -> None:
    """1,000 studies whose fold means have the correlation 1 / k that the test assumes; binomial sd 1.3%."""
    rng = np.random.default_rng(folds)
    gap = smallest_training_gap(0.02, folds=folds)
    shared = math.sqrt(1 / (folds - 1)) * rng.normal(size=(1000, 1))
    means = gap + 0.02 * (rng.normal(size=(1000, folds)) + shared)
    detected = [corrected_resampled_t_test(d, test_share=1 / folds).p < 0.05 for d in means]
    assert np.mean(detected) == pytest.approx(0.8, abs=3 * 0.013)


def test_the_training_gap_depends_on_spread_folds_tests_and_power() -> None:
    base = smallest_training_gap(0.01, folds=5)
    assert smallest_training_gap(0.02, folds=5) == pytest.approx(2 * base)
    assert smallest_training_gap(0.01, folds=3) > base > smallest_training_gap(0.01, folds=10)
    assert smallest_training_gap(0.01, folds=5, tests=10) > base
    assert smallest_training_gap(0.01, folds=5, power=0.9) > base
    assert smallest_training_gap(0.3, folds=3, tests=10) == math.inf


# The spread of a cohort


def test_the_spread_of_three_runs_by_hand() -> None:
    """Two seeds of a recipe differ from their mean by 0.02 OTHER, and the mean from another run by 0.1 WAVE."""
    a = [run(f"a{s}", 0.5 + 0.1 * WAVE + 0.02 * (-1) ** s * OTHER, settings="a", seed=s) for s in (0, 1)]
    cohort = measure_spread([*a, run("b", np.full(24, 0.4))])
    assert (cohort.patients, cohort.folds, cohort.training, cohort.synthetic) == (24, 3, 0, False)
    assert {frozenset(pair.names) for pair in cohort.pairs} == {frozenset(("a0", "b")), frozenset(("a1", "b"))}
    assert [pair.variance for pair in cohort.pairs] == pytest.approx([(0.01 + 0.0004) * FULL] * 2)
    assert cohort.seed_variance == pytest.approx((0.04**2) * FULL / 2)
    assert cohort.seed_share == pytest.approx(0.0016 / 0.0104)
    assert cohort.relative_spread(1) == 1
    assert cohort.relative_spread(4) == pytest.approx(math.sqrt((0.0088 + 0.0016 / 4) / 0.0104))


def test_the_spread_of_one_structure_is_that_of_its_own_dice() -> None:
    """The core of two runs differs by 0.1 WAVE, the rim by 0.3 OTHER, their mean by half of each."""
    dice = {"a": {"core": 0.5 + 0.1 * WAVE, "rim": 0.5 + 0.3 * OTHER}, "b": {"core": 0 * WAVE, "rim": 0 * WAVE}}
    runs = []
    for name, own in dice.items():
        record = run(name, (own["core"] + own["rim"]) / 2)
        columns = {structure_column("dice", structure): values for structure, values in own.items()}
        runs.append(replace(record, cases=record.cases.assign(**columns)))
    core, rim = (measure_spread(runs, structure) for structure in ("core", "rim"))
    assert core.pairs[0].variance == pytest.approx(0.01 * FULL)
    assert rim.pairs[0].variance == pytest.approx(0.09 * FULL)
    assert "core" in core.title
    assert measure_spread(runs).pairs[0].variance == pytest.approx(0.1 * FULL / 4)
    with pytest.raises(UnknownName, match="no structure 'cor'; there is core, rim"):
        measure_spread(runs, "cor")


def test_training_is_the_variance_of_folds_beyond_their_patients() -> None:
    """Fold means of 0.1, 0 and -0.1 have variance 0.01, single patients 0.16 / 23; 24 patients in 3 folds."""
    cohort = measure_spread([run("a", 0.5 + np.repeat([0.1, 0, -0.1], 8)), run("b", np.full(24, 0.3))])
    assert cohort.training == pytest.approx(0.01 / (0.16 / 23) - 3 / 24)
    others = [run(f"b{n}", 0.3 + 0.1 * wave) for n, wave in enumerate((WAVE, OTHER, THIRD, 0 * WAVE))]
    fails = run("fails", np.repeat([0.5, 0, 0.5], 8))  # in 4 of 10 pairs, so not in the median
    assert measure_spread([fails, *others]).training == 0
    even = measure_spread([run("a", 0.5 + 0.1 * WAVE), run("b", np.full(24, 0.3))])
    assert even.training == 0


def test_pairs_are_sorted_by_variance_and_the_median_is_typical() -> None:
    sizes = (0.05, 0.01, 0.2)
    cohort = measure_spread(
        [run(str(size), 0.5 + size * wave) for size, wave in zip(sizes, (WAVE, OTHER, THIRD), strict=True)]
    )
    assert [pair.variance / FULL for pair in cohort.pairs] == pytest.approx(
        [0.05**2 + 0.01**2, 0.2**2 + 0.01**2, 0.2**2 + 0.05**2]
    )
    assert cohort.pair_at(0.5) is cohort.pairs[1]
    assert (cohort.pair_at(0.1), cohort.pair_at(0.9)) == (cohort.pairs[0], cohort.pairs[2])


def test_only_comparable_runs_of_trained_models_count() -> None:
    """The board of real data with most folds and patients counts, with the newest run per seed."""
    a, b = run("a", 0.5 + 0.1 * WAVE, settings="a"), run("b", 0.5 + 0.1 * OTHER)
    again = run("again", 0.5 + 0.1 * WAVE + 0.01 * THIRD, settings="a")
    smaller = [run(f"else{n}", 0.5 + 0.3 * WAVE * n, split="t" * 12) for n in range(2)]
    phantoms = [run(f"phantoms{n}", 0.5 + 0.3 * WAVE * n, data="e" * 16, synthetic="true") for n in range(9)]
    classifier, derived = run("gate", THIRD, task="presence"), run("derived", 0.5 + 0.1 * THIRD)
    derived = RunRecord(derived.run_id, derived.name, derived.cases, {"model.name": "cascade"}, {}, derived.tags)
    c, single_fold = (
        run("c", 0.5 + 0.1 * THIRD),
        [run(f"single_fold{n}", 0.5 + 0.3 * WAVE[1:] * n, folds=1) for n in range(9)],
    )
    without_dice = RunRecord("iou", "iou", b.cases.drop(columns="dice").assign(iou=0.5), {"x": "y"}, {}, b.tags)
    cohort = measure_spread([a, b, again, c, *smaller, *phantoms, *single_fold, without_dice, classifier, derived])
    expected = {frozenset(names) for names in (("a", "b"), ("a", "c"), ("b", "c"))}
    assert {frozenset(pair.names) for pair in cohort.pairs} == expected
    assert cohort.seed_variance is None
    assert measure_spread(phantoms).synthetic
    with pytest.raises(BadSetting, match="have a single fold"):
        measure_spread([*single_fold, *phantoms])


def test_patients_without_a_score_are_left_out() -> None:
    b = np.where(np.arange(24) < 2, np.nan, 0.3)
    cohort = measure_spread([run("a", 0.5 + 0.1 * WAVE), run("b", b)])
    assert cohort.patients == 22
    assert len(cohort.pairs[0].residuals) == 22
    assert cohort.pairs[0].residuals.sum() == pytest.approx(0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_two_settings_raise(count: int) -> None:
    runs = [run(f"a{seed}", 0.5 + 0.1 * WAVE, settings="a", seed=seed) for seed in range(count)]
    with pytest.raises(BadSetting, match=f"no two of the {count} runs fit. Make two, such as `bench run"):
        measure_spread(runs)


# The table


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(3)
    base = np.clip(rng.normal(0.8, 0.1, 60), 0, 1)
    runs = [
        run(f"m{m} s{s}", base + rng.normal(0, 0.03 * (m + 1), 60), settings=f"m{m}", seed=s)
        for m in range(3)
        for s in (0, 1)
    ]
    return measure_spread(runs)


def test_the_table_holds_the_smallest_gaps(cohort) -> None:
    table = power_table(cohort, models=(2, 5), seeds=(1, 4))
    assert table[["models", "seeds"]].to_numpy().tolist() == [[2, 1], [2, 4], [5, 1], [5, 4]]
    assert list(table.columns[2:]) == [
        "22 patients",
        "50 patients",
        "60 patients",
        "110 patients",
        "from",
        "to",
        "after training again",
    ]
    typical = cohort.pair_at(0.5).residuals
    first, averaged, five, _ = table.to_dict("records")
    assert first["22 patients"] == smallest_gap(typical, patients=22)
    assert five["60 patients"] == smallest_gap(typical, patients=60, tests=10)
    assert first["from"] == smallest_gap(cohort.pair_at(0.1).residuals, patients=60)
    assert first["to"] == smallest_gap(cohort.pair_at(0.9).residuals, patients=60)
    assert first["from"] < first["60 patients"] < first["to"]
    assert averaged["60 patients"] == pytest.approx(cohort.relative_spread(4) * first["60 patients"])
    scaled = smallest_gap(
        cohort.relative_spread(4) * typical, patients=60
    )  # scale the residuals instead of the gap
    assert averaged["60 patients"] == pytest.approx(scaled, abs=0.001)
    fold = math.sqrt(cohort.pair_at(0.5).variance * (3 / 60 + cohort.training))
    assert first["after training again"] == pytest.approx(smallest_training_gap(fold, folds=3))
    assert averaged["after training again"] == pytest.approx(
        cohort.relative_spread(4) * first["after training again"]
    )
    assert first["after training again"] > first["60 patients"]


def test_the_table_uses_the_patients_folds_and_power_of_the_study(cohort) -> None:
    table = power_table(cohort, patients=88, folds=5, seeds=(1,), models=(2,), power=0.9)
    assert [c for c in table if "patients" in c] == [f"{n} patients" for n in (22, 50, 60, 88, 110)]
    (row,) = table.to_dict("records")
    assert row["88 patients"] == smallest_gap(cohort.pair_at(0.5).residuals, patients=88, power=0.9)
    fold = math.sqrt(cohort.pair_at(0.5).variance * (5 / 88 + cohort.training))
    assert row["after training again"] == pytest.approx(smallest_training_gap(fold, folds=5, power=0.9))


def test_without_repeated_seeds_the_table_has_one_seed() -> None:
    cohort = measure_spread([run("a", 0.5 + 0.1 * WAVE), run("b", 0.5 + 0.1 * OTHER)])
    assert power_table(cohort, seeds=(1, 2, 5), models=(2,))["seeds"].tolist() == [1]


@pytest.mark.parametrize(
    ("study", "problem"),
    [
        ({"folds": 1}, "--folds 2"),
        ({"patients": 2}, "2 patients cannot fill 3 folds"),
        ({"seeds": (0, 1)}, "--seeds 1"),
        ({"models": (1,)}, "--models 2"),
        ({"power": 1.0}, "--power between"),
        ({"power": 0.05}, "--power between"),
    ],
)
def test_an_impossible_study_raises(cohort, study, problem: str) -> None:
    with pytest.raises(BadSetting, match=problem):
        power_table(cohort, **study)


# Output


def test_the_summary_names_gaps_pairs_and_seeds(cohort) -> None:
    table = power_table(cohort, patients=88, folds=5, models=(2, 10), seeds=(1, 3))
    two, ten = (
        summarise_power(cohort, table, patients=88, folds=5, seeds=s, models=m, power=0.8)
        for s, m in ((1, 2), (3, 10))
    )
    row = table[(table["models"] == 2) & (table["seeds"] == 1)].iloc[0]
    assert two[0] == (
        f"With 88 patients and 5 folds, one seed, two models must differ by {row['88 patients']:.3f} Dice to be "
        "distinguished in 4 of 5 studies; smaller differences are missed more often."
    )
    assert (
        f"the median of 12 pairs. Pairs that vary less from patient to patient need {row['from']:.3f}," in two[1]
    )
    assert f"pairs that vary more need {row['to']:.3f}." in two[1]
    assert two[2].endswith(f"the difference must be {row['after training again']:.3f}.")
    assert f"Seeds cause {cohort.seed_share:.0%} of the variance" in two[3]
    assert cohort.title in two[4]
    row = table[(table["models"] == 10) & (table["seeds"] == 3)].iloc[0]
    assert f"5 folds, 3 seeds, any two of 10 models must differ by {row['88 patients']:.3f} Dice" in ten[0]


def log(store: Store, record: RunRecord) -> None:
    with open_run(store, record.name, "test", record.tags) as recorder:
        recorder.settings(record.settings)
        recorder.table("cases", record.cases)


@pytest.mark.slow
def test_power_is_estimated_from_the_runs_in_a_store(store: Store, capsys) -> None:
    with pytest.raises(BadSetting, match="no two of the 0 runs fit"):
        study_power(store.uri)
    rng = np.random.default_rng(4)
    runs = [run(name, 0.8 + rng.normal(0, 0.3, 12), synthetic="true") for name in ("[red]a", "b")]
    for record in runs:
        log(store, record)
    study = study_power(store.uri, seeds=3, models=3, power=0.9)
    table = study.table
    print_power(study)
    assert table.equals(power_table(measure_spread(runs), models=(2, 3, 5, 10, 20), power=0.9))
    out = capsys.readouterr().out
    gap = table.loc[table["models"] == 3, "12 patients"].item()
    assert f"With 12 patients and 3 folds, one seed, any two of 3 models must differ by {gap:.3f} Dice" in out
    assert "9 of 10 studies" in out
    assert "[red]a and b" in out or "b and [red]a" in out
    assert "the difference must be more than 1." in out
    assert "> 1" in out
    assert "no settings were run with two seeds. Run one of them again with another --seed." in out
    assert SYNTHETIC_WARNING in out
