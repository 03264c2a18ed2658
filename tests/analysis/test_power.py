"""Power: against closed forms, SciPy study by study, and the test that it plans for; from runs made by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from bench.analysis.power import cohort_spread, power, power_table, residuals, smallest_gap, smallest_gap_anew
from bench.errors import BadSetting
from bench.formatting import SYNTHETIC_WARNING
from bench.reports.power import said, show_power
from bench.stats import corrected_resampled
from bench.tracking import Store, open_run
from bench.types import RunRecord

NORMAL = stats.norm.ppf((np.arange(1000) + 0.5) / 1000) * 0.1  # a perfect sample, sd 0.1
SKEWED = residuals(np.random.default_rng(1).gamma(0.5, 0.1, 60), np.zeros(60))
WAVE = np.tile([1.0, 1.0, -1.0, -1.0], 6)  # 24 patients; these three are orthogonal in every 4
OTHER = np.tile([1.0, -1.0, -1.0, 1.0], 6)
THIRD = np.tile([1.0, -1.0, 1.0, -1.0], 6)
FULL = 24 / 23  # the variance of each, with n - 1


def run(
    name: str, dice: np.ndarray, *, settings: str | None = None, seed: int = 0, folds: int = 3, **tags: str
) -> RunRecord:
    """A run on patients in folds of neighbours; runs of one `settings` differ in their seeds."""
    count = len(dice)
    told = {"data": "d" * 16, "split": "s" * 12, "convention": "1", "dataset": "lgg", "synthetic": "false"} | tags
    cases = {"case": [f"p{n:02d}" for n in range(count)], "fold": np.arange(count) * folds // count, "dice": dice}
    chosen = {"model.name": settings or name, "train.epochs": "3", "run.seed": str(seed), "run.name": name}
    return RunRecord(
        f"id-{name}", name, pd.DataFrame(cases), chosen, {}, {f"bench.{k}": v for k, v in told.items()}
    )


# Simulated studies


def test_residuals_are_differences_less_their_mean() -> None:
    assert residuals([0.9, 0.7, 0.5], [0.6, 0.7, 0.5]) == pytest.approx([0.2, -0.1, -0.1])


@pytest.mark.parametrize("tests", [1, 5])
def test_no_gap_is_found_in_alpha_of_studies(tests: int) -> None:
    """Though the residuals are skewed: either model may have been the first. Three binomial sd."""
    level = 0.05 / tests
    found = power(SKEWED, 0, patients=60, tests=tests, simulations=10_000)
    assert found == pytest.approx(level, abs=3 * math.sqrt(level / 10_000))


def test_power_is_how_often_scipy_finds_the_gap() -> None:
    """Study by study, with draws and signs of its own: 2,000 studies each, so the sd of the difference is 1.5%."""
    rng = np.random.default_rng(2)
    found = [
        stats.wilcoxon(rng.choice(SKEWED, 40) * rng.choice([-1, 1], 40) + 0.02).pvalue < 0.05 / 3
        for _ in range(2000)
    ]
    assert 0.3 < np.mean(found) < 0.9
    assert power(SKEWED, 0.02, patients=40, tests=3, simulations=2000) == pytest.approx(np.mean(found), abs=0.045)


@pytest.mark.parametrize(("patients", "tests"), [(22, 1), (88, 1), (88, 10), (200, 1)])
def test_for_normal_differences_the_gap_is_that_of_a_t_test_on_pi_over_3_patients_more(
    patients: int, tests: int
) -> None:
    """Wilcoxon's asymptotic efficiency against the t-test is 3 / pi; 4,000 studies give the gap to 1%."""
    by_t = TTestPower().solve_power(nobs=patients * 3 / math.pi, alpha=0.05 / tests, power=0.8) * NORMAL.std()
    assert smallest_gap(NORMAL, patients=patients, tests=tests, simulations=4000) == pytest.approx(by_t, rel=0.04)


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95])
def test_the_smallest_gap_is_where_the_power_passes_what_was_wanted(wanted: float) -> None:
    gap = smallest_gap(SKEWED, patients=50, power=wanted)
    assert power(SKEWED, gap, patients=50) >= wanted
    assert power(SKEWED, gap - 0.0005, patients=50) < wanted


def test_more_patients_need_less_of_a_gap_and_more_tests_more() -> None:
    """Four times the patients, half the gap."""
    few, many = (smallest_gap(NORMAL, patients=n, simulations=2000) for n in (50, 200))
    assert few / many == pytest.approx(2, rel=0.06)
    gaps = [smallest_gap(NORMAL, patients=50, tests=tests) for tests in (1, 10, 45, 190)]
    assert gaps == sorted(set(gaps))


def test_the_gap_grows_with_the_spread() -> None:
    one, three = (smallest_gap(scale * SKEWED, patients=88) for scale in (1, 3))
    assert three == pytest.approx(3 * one, abs=0.002)


def test_where_ranks_of_few_patients_cannot_convince_no_gap_is_enough() -> None:
    """Five patients who all agree: z = 15 / sqrt(55), whose p is 0.043; not under 0.05 / 3."""
    assert smallest_gap(NORMAL, patients=5, tests=3) == math.inf
    assert smallest_gap(NORMAL, patients=5, tests=1) < 1


# Trained anew


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_a_gap_between_recipes_is_found_by_the_corrected_test_as_often_as_planned(folds: int) -> None:
    """1,000 studies whose folds' means are as correlated as the test takes them to be, 1 / k; binomial sd 1.3%."""
    rng = np.random.default_rng(folds)
    gap = smallest_gap_anew(0.02, folds=folds)
    shared = math.sqrt(1 / (folds - 1)) * rng.normal(size=(1000, 1))
    means = gap + 0.02 * (rng.normal(size=(1000, folds)) + shared)
    found = [corrected_resampled(d, test_share=1 / folds).p < 0.05 for d in means]
    assert np.mean(found) == pytest.approx(0.8, abs=3 * 0.013)


def test_recipes_need_more_of_a_gap_for_less_spread_folds_or_more_tests() -> None:
    base = smallest_gap_anew(0.01, folds=5)
    assert smallest_gap_anew(0.02, folds=5) == pytest.approx(2 * base)
    assert smallest_gap_anew(0.01, folds=3) > base > smallest_gap_anew(0.01, folds=10)
    assert smallest_gap_anew(0.01, folds=5, tests=10) > base
    assert smallest_gap_anew(0.01, folds=5, power=0.9) > base
    assert smallest_gap_anew(0.3, folds=3, tests=10) == math.inf


# What runs tell


def test_the_evidence_by_hand() -> None:
    """Two seeds of one recipe are 0.02 OTHER either way of their mean, and that 0.1 WAVE off another recipe."""
    a = [run(f"a{s}", 0.5 + 0.1 * WAVE + 0.02 * (-1) ** s * OTHER, settings="a", seed=s) for s in (0, 1)]
    known = cohort_spread([*a, run("b", np.full(24, 0.4))])
    assert (known.patients, known.folds, known.training, known.synthetic) == (24, 3, 0, False)
    assert {frozenset(pair.names) for pair in known.pairs} == {frozenset(("a0", "b")), frozenset(("a1", "b"))}
    assert [pair.variance for pair in known.pairs] == pytest.approx([(0.01 + 0.0004) * FULL] * 2)
    assert known.seed_variance == pytest.approx((0.04**2) * FULL / 2)
    assert known.seed_share == pytest.approx(0.0016 / 0.0104)
    assert known.shrink(1) == 1
    assert known.shrink(4) == pytest.approx(math.sqrt((0.0088 + 0.0016 / 4) / 0.0104))


def test_what_trained_folds_add_to_the_spread_of_their_means() -> None:
    """Means of 0.1, 0 and -0.1 have a variance of 0.01, and single patients one of 0.16 / 23; 3 folds of 24."""
    known = cohort_spread([run("a", 0.5 + np.repeat([0.1, 0, -0.1], 8)), run("b", np.full(24, 0.3))])
    assert known.training == pytest.approx(0.01 / (0.16 / 23) - 3 / 24)
    others = [run(f"b{n}", 0.3 + 0.1 * wave) for n, wave in enumerate((WAVE, OTHER, THIRD, 0 * WAVE))]
    assert (
        cohort_spread([run("fails", np.repeat([0.5, 0, 0.5], 8)), *others]).training == 0
    )  # it is in 4 of 10 pairs
    even = cohort_spread([run("a", 0.5 + 0.1 * WAVE), run("b", np.full(24, 0.3))])
    assert even.training == 0


def test_pairs_rise_in_spread_and_the_middle_one_is_typical() -> None:
    sizes = (0.05, 0.01, 0.2)
    known = cohort_spread(
        [run(str(size), 0.5 + size * wave) for size, wave in zip(sizes, (WAVE, OTHER, THIRD), strict=True)]
    )
    assert [pair.variance / FULL for pair in known.pairs] == pytest.approx(
        [0.05**2 + 0.01**2, 0.2**2 + 0.01**2, 0.2**2 + 0.05**2]
    )
    assert known.at(0.5) is known.pairs[1]
    assert (known.at(0.1), known.at(0.9)) == (known.pairs[0], known.pairs[2])


def test_only_comparable_runs_of_trained_models_count() -> None:
    """The board of real data with most patients, not a fold alone; of equal seeds the newest run."""
    a, b = run("a", 0.5 + 0.1 * WAVE, settings="a"), run("b", 0.5 + 0.1 * OTHER)
    again = run("again", 0.5 + 0.1 * WAVE + 0.01 * THIRD, settings="a")
    others = [run(f"else{n}", 0.5 + 0.3 * WAVE * n, split="t" * 12) for n in range(2)]
    drawn = [run(f"drawn{n}", 0.5 + 0.3 * WAVE * n, data="e" * 16, synthetic="true") for n in range(9)]
    classifier, made = run("gate", THIRD, task="presence"), run("made", 0.5 + 0.1 * THIRD)
    made = RunRecord(made.run_id, made.name, made.cases, {"model.name": "cascade"}, {}, made.tags)
    c, lone = run("c", 0.5 + 0.1 * THIRD), [run(f"lone{n}", 0.5 + 0.3 * WAVE[1:] * n, folds=1) for n in range(9)]
    unlike = RunRecord("iou", "iou", b.cases.drop(columns="dice").assign(iou=0.5), {"x": "y"}, {}, b.tags)
    known = cohort_spread([a, b, again, c, *others, *drawn, *lone, unlike, classifier, made])
    expected = {frozenset(names) for names in (("a", "b"), ("a", "c"), ("b", "c"))}
    assert {frozenset(pair.names) for pair in known.pairs} == expected
    assert known.seed_variance is None
    assert cohort_spread(drawn).synthetic
    with pytest.raises(BadSetting, match="are of one fold alone"):
        cohort_spread([*lone, *drawn])


def test_patients_without_a_score_are_left_out() -> None:
    b = np.where(np.arange(24) < 2, np.nan, 0.3)
    known = cohort_spread([run("a", 0.5 + 0.1 * WAVE), run("b", b)])
    assert known.patients == 22
    assert len(known.pairs[0].residuals) == 22
    assert known.pairs[0].residuals.sum() == pytest.approx(0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_two_settings_are_refused(count: int) -> None:
    runs = [run(f"a{seed}", 0.5 + 0.1 * WAVE, settings="a", seed=seed) for seed in range(count)]
    with pytest.raises(BadSetting, match=f"of {count} no two are. Make two, such as `bench run"):
        cohort_spread(runs)


# The table


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(3)
    base = np.clip(rng.normal(0.8, 0.1, 60), 0, 1)
    runs = [
        run(f"m{m} s{s}", base + rng.normal(0, 0.03 * (m + 1), 60), settings=f"m{m}", seed=s)
        for m in range(3)
        for s in (0, 1)
    ]
    return cohort_spread(runs)


def test_a_table_of_gaps(known) -> None:
    table = power_table(known, models=(2, 5), seeds=(1, 4))
    assert table[["models", "seeds"]].to_numpy().tolist() == [[2, 1], [2, 4], [5, 1], [5, 4]]
    assert list(table.columns[2:]) == [
        "22 patients",
        "50 patients",
        "60 patients",
        "110 patients",
        "from",
        "to",
        "trained anew",
    ]
    typical = known.at(0.5).residuals
    first, averaged, five, _ = table.to_dict("records")
    assert first["22 patients"] == smallest_gap(typical, patients=22)
    assert five["60 patients"] == smallest_gap(typical, patients=60, tests=10)
    assert first["from"] == smallest_gap(known.at(0.1).residuals, patients=60)
    assert first["to"] == smallest_gap(known.at(0.9).residuals, patients=60)
    assert first["from"] < first["60 patients"] < first["to"]
    assert averaged["60 patients"] == pytest.approx(known.shrink(4) * first["60 patients"])
    shrunk = smallest_gap(known.shrink(4) * typical, patients=60)  # the same, the long way
    assert averaged["60 patients"] == pytest.approx(shrunk, abs=0.001)
    fold = math.sqrt(known.at(0.5).variance * (3 / 60 + known.training))
    assert first["trained anew"] == pytest.approx(smallest_gap_anew(fold, folds=3))
    assert averaged["trained anew"] == pytest.approx(known.shrink(4) * first["trained anew"])
    assert first["trained anew"] > first["60 patients"]


def test_patients_folds_and_power_are_the_study_s_own(known) -> None:
    table = power_table(known, patients=88, folds=5, seeds=(1,), models=(2,), power=0.9)
    assert [c for c in table if "patients" in c] == [f"{n} patients" for n in (22, 50, 60, 88, 110)]
    (row,) = table.to_dict("records")
    assert row["88 patients"] == smallest_gap(known.at(0.5).residuals, patients=88, power=0.9)
    fold = math.sqrt(known.at(0.5).variance * (5 / 88 + known.training))
    assert row["trained anew"] == pytest.approx(smallest_gap_anew(fold, folds=5, power=0.9))


def test_more_seeds_are_promised_nothing_where_none_were_run() -> None:
    known = cohort_spread([run("a", 0.5 + 0.1 * WAVE), run("b", 0.5 + 0.1 * OTHER)])
    assert power_table(known, seeds=(1, 2, 5), models=(2,))["seeds"].tolist() == [1]


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
def test_a_study_that_cannot_be_is_refused(known, study, problem: str) -> None:
    with pytest.raises(BadSetting, match=problem):
        power_table(known, **study)


# What is printed


def test_the_sentences(known) -> None:
    table = power_table(known, patients=88, folds=5, models=(2, 10), seeds=(1, 3))
    two, ten = (
        said(known, table, patients=88, folds=5, seeds=s, models=m, power=0.8) for s, m in ((1, 2), (3, 10))
    )
    row = table[(table["models"] == 2) & (table["seeds"] == 1)].iloc[0]
    assert two[0] == (
        f"With 88 patients and 5 folds, one seed, two models must be {row['88 patients']:.3f} Dice apart to be "
        "told from chance in 4 of 5 studies; smaller gaps are missed more often."
    )
    assert f"the middle one of 12; it takes {row['from']:.3f} where" in two[1]
    assert f"{row['to']:.3f} where they differ more" in two[1]
    assert two[2].endswith(f"it takes {row['trained anew']:.3f}.")
    assert f"{known.seed_share:.0%} is of seeds" in two[3]
    assert known.title in two[4]
    row = table[(table["models"] == 10) & (table["seeds"] == 3)].iloc[0]
    assert f"5 folds, 3 seeds, any two of 10 models must be {row['88 patients']:.3f} Dice apart" in ten[0]


def log(store: Store, made: RunRecord) -> None:
    with open_run(store, made.name, "test", made.tags) as recorder:
        recorder.settings(made.settings)
        recorder.table("cases", made.cases)


def test_a_store_is_asked_and_answers(store: Store, capsys) -> None:
    with pytest.raises(BadSetting, match="of 0 no two are"):
        show_power(store.uri)
    rng = np.random.default_rng(4)
    runs = [run(name, 0.8 + rng.normal(0, 0.3, 12), synthetic="true") for name in ("[red]a", "b")]
    for made in runs:
        log(store, made)
    table = show_power(store.uri, seeds=3, models=3, power=0.9)
    assert table.equals(power_table(cohort_spread(runs), models=(2, 3, 5, 10, 20), power=0.9))
    out = capsys.readouterr().out
    gap = table.loc[table["models"] == 3, "12 patients"].item()
    assert f"With 12 patients and 3 folds, one seed, any two of 3 models must be {gap:.3f} Dice apart" in out
    assert "9 of 10 studies" in out
    assert "[red]a and b" in out or "b and [red]a" in out
    assert "it takes more than 1." in out
    assert "> 1" in out
    assert "no settings were run with two. Run one of them again with another --seed." in out
    assert SYNTHETIC_WARNING in out
