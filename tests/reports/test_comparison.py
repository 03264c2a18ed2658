"""Comparison of two runs: numbers match hand-computed values or another library, and claims match the numbers."""

from __future__ import annotations

import json
import math
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from bench.analysis.claims import Side, claim, list_caveats
from bench.analysis.comparison import Comparison, compare_cases, rank_biserial, scale_of
from bench.analysis.strata import groups_of
from bench.data.datasets.lgg import lgg
from bench.data.datasets.phantom import write_phantom
from bench.data.pack import Pack, load_or_pack
from bench.errors import BadSetting, DataError, UnknownName
from bench.formatting import SYNTHETIC_WARNING
from bench.reports.comparison import _side, compare, draw_comparison, print_comparison
from bench.stats import FoldComparison, Interval, PairedComparison
from bench.tracking import Store, find_run, open_run
from tests.fakes import pack_of

A, B = Side("first"), Side("second")
SCORES = [0.9, 0.8, 0.7, 0.6, 0.5], [0.8, 0.82, 0.4, 0.6, 0.45]  # A - B: 0.1, -0.02, 0.3, 0, 0.05
FOLDS = [0, 0, 1, 1, 1]
DICE, HD95 = scale_of("dice"), scale_of("hd95")


def cases(scores, folds=FOLDS, metric: str = "dice", sizes=None, names=None) -> pd.DataFrame:
    """Return one row per patient; the tumour has 100 pixels, or `sizes`, and half of them are predicted."""
    sizes = np.full(len(scores), 100) if sizes is None else np.asarray(sizes)
    names = [f"TCGA_CS_{n}" for n in range(len(scores))] if names is None else names
    return pd.DataFrame({"case": names, "fold": folds, metric: scores, "tp": sizes // 2, "fn": sizes - sizes // 2})


def both(a, b, metric: str = "dice", groups=None, **table) -> Comparison:
    tables = cases(a, metric=metric, **table), cases(b, metric=metric, **table)
    return compare_cases(*tables, sides=(A, B), primary=metric, groups=groups)


# numbers


def test_patient_statistics_match_hand_computed_values():
    comparison = both(*SCORES)
    d = np.array([0.1, -0.02, 0.3, 0, 0.05])
    assert comparison.means == pytest.approx((0.7, 0.614))
    assert comparison.paired.difference == pytest.approx(0.086)
    assert (comparison.paired.wins, comparison.ties, comparison.losses) == pytest.approx((0.6, 0.2, 0.2))
    assert comparison.paired.p == pytest.approx(stats.wilcoxon(d).pvalue)
    # ranks of what differs: 0.02 is 1, 0.05 is 2, 0.1 is 3, 0.3 is 4
    assert comparison.rank_biserial == pytest.approx((2 + 3 + 4 - 1) / 10)
    # deviations from 0.086: 0.014, -0.106, 0.214, -0.086, -0.036
    assert comparison.d_z == pytest.approx(0.086 / math.sqrt(0.06592 / 4))


def test_the_interval_is_the_bca_bootstrap_of_the_mean_difference():
    rng = np.random.default_rng(3)
    a, b = rng.random(40), rng.random(40)
    comparison = both(a, b, folds=[0, 1] * 20)
    other = stats.bootstrap((a - b,), np.mean, method="BCa", n_resamples=20000, rng=5).confidence_interval
    assert comparison.paired.interval.low == pytest.approx(other.low, abs=0.006)
    assert comparison.paired.interval.high == pytest.approx(other.high, abs=0.006)


def test_fold_statistics_match_hand_computed_values():
    """Two folds leave one degree of freedom: the Cauchy distribution, with arctangent tails."""
    procedure = both(*SCORES).procedure
    one, two = 0.04, 0.35 / 3  # means of 0.1, -0.02 and of 0.3, 0, 0.05
    mean, variance = (one + two) / 2, (one - two) ** 2 / 2
    width = math.sqrt((1 / 2 + (1 / 2) / (1 / 2)) * variance)

    def above(limit: float) -> float:
        return 0.5 - math.atan((limit - mean) / width) / math.pi

    assert procedure.difference == pytest.approx(mean)
    assert procedure.p == pytest.approx(2 * (0.5 - math.atan(mean / width) / math.pi))
    assert procedure.better == pytest.approx(above(0.01))
    assert procedure.worse == pytest.approx(1 - above(-0.01))
    assert procedure.same == pytest.approx(above(-0.01) - above(0.01))


def test_a_metric_where_lower_is_better_swaps_the_winner():
    high, low = both(*SCORES), both(*SCORES, metric="brier")
    assert low.paired.difference == high.paired.difference
    assert (low.paired.wins, low.losses) == (high.losses, high.paired.wins)
    assert (low.rank_biserial, low.d_z) == (-high.rank_biserial, -high.d_z)
    assert (low.procedure.better, low.procedure.worse) == (high.procedure.worse, high.procedure.better)
    assert low.largest(1)["case"].tolist() == high.largest(-1)["case"].tolist() == ["TCGA_CS_1"]


def test_equal_scores_have_no_effect_size_and_rounding_is_no_win():
    comparison = both([0.3, 0.5, 0.7], [0.1 + 0.2, 0.5, 0.7], folds=[0, 0, 1])
    assert (comparison.paired.wins, comparison.losses, comparison.ties, comparison.paired.p) == (0, 0, 1, 1)
    assert math.isnan(comparison.rank_biserial)
    assert math.isnan(comparison.d_z)
    assert comparison.largest(1).empty
    assert comparison.largest(-1).empty


def test_rank_biserial_averages_tied_ranks():
    assert rank_biserial(np.array([0.1, 0.1, -0.1, 0.2])) == pytest.approx((2 + 2 + 4 - 2) / 10)


def test_the_order_of_the_rows_does_not_matter():
    one = cases(SCORES[0]), cases(SCORES[1])
    other = compare_cases(one[0].iloc[::-1], one[1].sample(frac=1, random_state=1), sides=(A, B))
    wanted = compare_cases(*one, sides=(A, B))
    assert other.claim == wanted.claim
    assert other.paired == wanted.paired


def test_patients_without_a_score_in_a_run_are_named_and_left_out():
    a, b = [0.9, nan, 0.7, 0.6, 0.5], [0.8, 0.82, 0.4, nan, 0.45]
    comparison = both(a, b)
    assert comparison.undefined == ("TCGA_CS_1", "TCGA_CS_3")
    assert comparison.patients["case"].tolist() == ["TCGA_CS_0", "TCGA_CS_2", "TCGA_CS_4"]
    assert comparison.paired.n == 3
    assert comparison.paired.difference == pytest.approx(0.15)
    assert comparison.procedure.difference == pytest.approx((0.1 + (0.3 + 0.05) / 2) / 2)
    assert "2 more patients are left out, as dice is undefined in at least one run." in comparison.claim


def test_patients_without_tumour_are_not_counted_as_undefined():
    scores = [nan, nan, 0.7, 0.6, 0.5], [0.0, nan, 0.4, 0.5, 0.45]
    sizes = [0, 0, 100, 100, 100]
    a, b = (cases(each, sizes=sizes).assign(fp=fp) for each, fp in zip(scores, (0, [3, 0, 9, 9, 9]), strict=True))
    comparison = compare_cases(a, b, sides=(A, B))
    assert (comparison.paired.n, comparison.undefined) == (3, ())
    assert "2 patients without tumour are left out: A predicts tumour in 0 of them, B in 1." in comparison.claim
    assert "too many other patients" not in comparison.claim


def test_one_fold_gives_no_claim_about_training():
    comparison = both(*SCORES, folds=[0] * 5)
    assert comparison.procedure.n == 1
    assert math.isnan(comparison.procedure.p)
    assert "One fold cannot show what would hold after training again." in comparison.claim


def test_the_largest_gains_and_losses_are_sorted():
    d = np.array([0.1, -0.3, 0.2, 0.4, -0.1, 0.3, 0.2, 0.6, 0, 0.5])
    comparison = both(0.3 + d, np.full(10, 0.3), folds=[0, 1] * 5)
    assert comparison.largest(1)["case"].str[-1].tolist() == list("79352")  # 2 and 6 gain alike: by name
    assert comparison.largest(-1)["case"].str[-1].tolist() == ["1", "4"]
    assert comparison.largest(1).iloc[0][["a", "b", "difference"]].tolist() == pytest.approx([0.9, 0.3, 0.6])


# strata


def test_strata_by_tumour_size_and_by_groups():
    """Of sizes 10 to 60 the thirds end at 26.7 and 43.3; a patient without a tumour is in none of them."""
    sizes = [60, 10, 0, 20, 50, 30, 40]
    a = [0.9, 0.2, 0.0, 0.4, 0.8, 0.5, 0.7]
    b = [0.8, 0.3, 0.0, 0.2, 0.8, 0.6, 0.5]
    groups = pd.DataFrame({"institution": list("XYXXXXX"), "same": "all"}, index=cases(a, folds=[0] * 7)["case"])
    comparison = both(a, b, folds=[0, 1, 0, 1, 0, 1, 0], sizes=sizes, groups=groups)
    rows = {s.name.split(",")[0]: s for s in comparison.strata}
    assert [s.kind for s in comparison.strata] == ["tumour size"] * 4 + [
        "institution"
    ] * 2  # all alike is no stratum
    assert [s.name for s in comparison.strata[1:4]] == ["small, to 27 px", "middle, to 43 px", "large"]
    assert {name: s.n for name, s in rows.items()} == {
        "no tumour": 1,
        "small": 2,
        "middle": 2,
        "large": 2,
        "X": 6,
        "Y": 1,
    }
    small, middle, large = rows["small"], rows["middle"], rows["large"]
    assert (small.a, small.b, small.difference, small.wins) == pytest.approx((0.3, 0.25, 0.05, 0.5))
    assert (middle.a, middle.b, middle.difference, middle.wins) == pytest.approx((0.6, 0.55, 0.05, 0.5))
    assert (large.a, large.b, large.difference, large.wins) == pytest.approx((0.85, 0.8, 0.05, 0.5))
    assert (small.interval.low, small.interval.high) == pytest.approx((-0.1, 0.2))  # of two, the bootstrap's ends
    assert math.isnan(rows["Y"].interval.low)
    assert rows["Y"].difference == pytest.approx(-0.1)


def test_patients_with_equal_tumour_size_are_in_one_stratum():
    comparison = both([0.5] * 6, [0.4] * 6, folds=[0, 1] * 3, sizes=[10, 10, 10, 10, 10, 90])
    assert [(s.n, s.name) for s in comparison.strata] == [(5, "small, to 10 px"), (1, "large")]


def test_missing_sequences_are_found_in_the_pixels():
    """Of six patients: complete, pre, post, both missing; one slice alike; and no FLAIR at all."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (12, 16, 16, 3), np.uint8)  # two slices a patient
    for rows, channels in (([2, 3], [0]), ([4, 5], [2]), ([6, 7], [0, 2]), ([8], [0, 2])):
        for channel in channels:
            images[rows, :, :, channel] = images[rows, :, :, 1]
    images[10:] = 0
    names = [f"P{n // 2}" for n in range(12)]
    pack = pack_of(images, np.zeros((12, 16, 16), np.uint8), names, ["CS"] * 6 + ["DU"] * 6)
    groups = groups_of(pack)
    assert groups["missing sequences"].tolist() == ["none", "pre", "post", "pre and post", "none", "none"]
    assert groups["institution"].tolist() == ["CS"] * 3 + ["DU"] * 3


# claims


def patients(difference: float, low: float, high: float, p: float, wins: float, n: int = 88) -> PairedComparison:
    return PairedComparison(difference, Interval(low, high), p, wins, n)


def folds(difference: float, p: float, same: float = 0.1) -> FoldComparison:
    return FoldComparison(difference, Interval(nan, nan), p, 0.5, same, 0.4, 5)


BETTER = patients(0.021, 0.008, 0.034, 0.002, 0.65)
OPEN = folds(0.02, 0.08)
A_BETTER, B_BETTER = "A's models are better on patients", "B's models are better on patients"
NOT_SHOWN = "it is not shown that A would also be better after training again"


def test_the_complete_claim():
    assert claim(BETTER, 0.3, OPEN, DICE) == (
        "On these 88 patients A scores 0.021 higher than B in mean dice (95% interval of A - B +0.008 to +0.034; "
        "Wilcoxon p = 0.002; A is better in 65% and B in 30% of them): A's models are better on patients like "
        "these. Over 5 folds the difference is +0.020 (p = 0.08): it is not shown that A would also be better "
        "after training again."
    )


def test_the_complete_claim_where_lower_is_better():
    text = claim(patients(-3.26, -5, -1.02, 0.0004, 0.65), 0.3, folds(-3.1, 0.01), HD95)
    assert text.startswith(
        "On these 88 patients A scores 3.3 pixels lower than B in mean hd95, where lower is better (95% interval "
        "of A - B -5.0 to -1.0; Wilcoxon p < 0.001;"
    )
    assert A_BETTER in text
    assert text.endswith("(p = 0.01): A is expected to be better after training again, too.")


@pytest.mark.parametrize(
    ("paired", "losses", "expected"),
    [
        (BETTER, 0.3, A_BETTER),
        (patients(-0.03, -0.05, -0.01, 0.01, 0.3), 0.7, B_BETTER),
        (patients(0.01, -0.01, 0.03, 0.2, 0.6), 0.4, "no difference is shown"),
        (patients(0.01, -0.01, 0.03, 0.02, 0.6), 0.4, "neither is called better"),
        (patients(0.03, 0.01, 0.05, 0.01, 0.4), 0.6, "A is better in the mean, but not in most patients"),
        (patients(0.03, 0.01, 0.05, 0.01, 0.4), 0.4, "A is better in the mean, but not in most patients"),
        (patients(-0.03, -0.05, -0.01, 0.01, 0.6), 0.4, "B is better in the mean, but not in most patients"),
        (patients(0.03, 0.01, 0.05, 0.3, 0.6), 0.4, "by rank no difference is shown"),
        (patients(0.003, -0.002, 0.008, 0.3, 0.6), 0.4, "equal in practice"),
        (
            patients(0.006, 0.003, 0.009, 0.001, 0.9),
            0.1,
            "equal in practice",
        ),  # certainly higher, but by a negligible amount
        (patients(0.006, 0.002, 0.01, 0.001, 0.9), 0.1, A_BETTER),  # the end of the interval is not negligible
        (patients(0.4, nan, nan, 1, 1, n=1), 0, "too few patients to conclude anything"),
    ],
)
def test_the_claim_about_patients(paired, losses, expected):
    text = claim(paired, losses, OPEN, DICE)
    assert expected in text
    assert [name for name in (A_BETTER, B_BETTER) if name in text] == [expected] * (
        expected in (A_BETTER, B_BETTER)
    )


@pytest.mark.parametrize(
    ("paired", "procedure", "expected"),
    [
        (BETTER, folds(0.02, 0.08), NOT_SHOWN),
        (BETTER, folds(0.02, 0.01), "A is expected to be better after training again, too"),
        (BETTER, folds(-0.02, 0.01), "patients do not confirm it"),
        (
            BETTER,
            folds(0.004, 0.01, same=0.97),
            "after training again, they would most likely differ by less than 0.01",
        ),
        (patients(0.01, -0.01, 0.03, 0.2, 0.6), folds(0.01, 0.01), "patients do not confirm it"),
        (
            patients(0.01, -0.01, 0.03, 0.2, 0.6),
            folds(0.01, 0.3),
            "it is not shown which would be better after training again",
        ),
        (BETTER, FoldComparison(0.02, Interval(nan, nan), nan, nan, nan, nan, 1), "One fold cannot show"),
    ],
)
def test_the_claim_about_training(paired, procedure, expected):
    text = claim(paired, 0.3, procedure, DICE)
    assert expected in text
    assert ("is expected" in text) == ("is expected" in expected)


def test_nothing_is_claimed_if_too_many_patients_have_no_score():
    """Precision has no value where nothing was predicted: of 61 such patients none speaks."""
    assert A_BETTER in claim(BETTER, 0.3, OPEN, DICE, undefined=4)  # 4 of 92
    text = claim(BETTER, 0.3, OPEN, DICE, undefined=5)  # 5 of 93 are more than a twentieth
    assert A_BETTER not in text
    assert "too many other patients have no score to conclude anything" in text
    assert "5 more patients are left out" in text
    assert "training" not in text


def test_a_small_number_is_not_rounded_to_zero():
    text = claim(patients(0.0003, 0.00004, 0.0006, 0.01, 0.6), 0.3, OPEN, DICE)
    assert "A scores 0.0003 higher" in text
    assert "+0.00004 to +0.0006" in text


def test_equal_scores_are_reported_as_equal():
    text = both([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], folds=[0, 1, 1]).claim
    assert "A and B score the same in mean dice" in text
    assert "equal in practice" in text


@pytest.mark.parametrize("seed", range(6))
def test_swapping_the_runs_mirrors_the_claim(seed):
    rng = np.random.default_rng(seed)
    a = rng.random(30)
    b = a + rng.normal(0.02 * seed, 0.1, 30)
    one, other = both(a, b, folds=[0, 1, 2] * 10), both(b, a, folds=[0, 1, 2] * 10)
    text, turned = (comparison.claim.split("): ")[1].split(". Over")[0] for comparison in (one, other))
    assert turned == text.translate(str.maketrans("AB", "BA"))
    assert other.paired.difference == pytest.approx(-one.paired.difference)
    assert other.rank_biserial == pytest.approx(-one.rank_biserial)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Side("", images=2100), Side("", images=1000), "A saw 2.1 times as many images"),
        (Side("", images=1000), Side("", images=1500), "B saw 1.5 times as many images"),
        (Side("", images=1000), Side("", images=1090), None),
        (Side("", images=1000), Side("", images=nan), None),
        (Side("", weights="imagenet"), B, "A started from imagenet weights and B from random ones"),
        (Side("", weights="imagenet"), Side("", weights="imagenet"), None),
        (Side("", weights="imagenet"), Side("", weights=None, derived=True), "B is derived from other runs"),
        (Side("", post_hoc=True), B, "A was changed after its test scores were seen"),
    ],
)
def test_caveats_name_other_differences_between_the_runs(a, b, expected):
    text = list_caveats(a, b)
    assert len(text) == (expected is not None)
    assert all(expected in one for one in text)
    assert ("Budgets differ" in "".join(text)) == (
        expected is not None and ("saw" in expected or "weights" in expected)
    )


# errors


def test_unsuitable_metrics_raise():
    with pytest.raises(UnknownName, match="Did you mean 'dice'"):
        both(*SCORES, metric="dicee")
    with pytest.raises(BadSetting, match="neither high nor low values"):
        both(*SCORES, metric="relative_volume_difference")
    with pytest.raises(BadSetting, match="run second has no dice per patient"):
        compare_cases(cases(SCORES[0]), cases(SCORES[1], metric="iou"), sides=(A, B))
    with pytest.raises(BadSetting, match="no patient has a dice in both"):
        both([nan, 0.5], [0.5, nan], folds=[0, 1])


def test_runs_on_different_patients_raise():
    with pytest.raises(BadSetting, match=r"1 in only one run, such as TCGA_CS_4\)\. Run all folds"):
        compare_cases(cases(SCORES[0]), cases(SCORES[1]).iloc[:4], sides=(A, B))


# the command


PHANTOM = {"patients": 6, "size": 32, "slices": 6, "institutions": 2}
NASTY = "[red]a\x1b[31m$x^$"


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """A packed phantom from the folder `phantom`."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return load_or_pack(lgg(folder=write_phantom(tmp_path / "phantom", **PHANTOM)))


def log(
    store: Store, pack: Pack, name: str, shift: float = 0.0, images: int = 100, own: bool = True, **changes: str
) -> str:
    """Log a finished run with scores from 0.3; with `own` False it is a derived run."""
    tags = {"bench.data": pack.manifest.key, "bench.split": "one", "bench.convention": "1"}
    tags |= {"bench.task": "segmentation", "bench.synthetic": "true", "bench.fingerprint": name}
    tags |= {f"bench.{key}": value for key, value in changes.items()}
    scores = 0.3 + 0.05 * np.arange(6) + shift + np.linspace(0, 0.01, 6)
    with open_run(store, name, "test", tags) as recorder:
        recorder.settings({"dataset.name": "lgg", "dataset.folder": "phantom", "train.epochs": "1"} if own else {})
        recorder.metrics({"cost/images": images})
        recorder.table("cases", cases(scores, folds=[0, 0, 1, 1, 2, 2], names=pack.cases))
    return recorder.run_id


def test_compare_prints_and_writes_two_logged_runs(store: Store, pack: Pack, tmp_path: Path, capsys):
    log(store, pack, NASTY, 0.2, images=250)
    log(store, pack, "plain")
    comparison = compare(NASTY, "plain", out=tmp_path / "new" / "out", uri=store.uri)
    print_comparison(comparison)
    out, _ = capsys.readouterr()
    assert "\x1b" not in out
    assert "A: [red]a?[31m$x^$ (" in out
    for part in ("B: plain (", "rank-biserial", "P(within 0.01)", "Exploratory", "gains", comparison.claim):
        assert part in out
    assert comparison.paired.difference == pytest.approx(0.2)
    assert "A saw 2.5 times as many images" in comparison.claim
    assert comparison.claim.endswith(SYNTHETIC_WARNING)
    # the phantom has one patient without a post sequence, and one alone in its institution
    strata = {(s.kind, s.name): s.n for s in comparison.strata}
    assert strata["missing sequences", "post"] == 1
    assert strata["missing sequences", "none"] == 5
    assert sorted(n for (kind, _), n in strata.items() if kind == "institution") == [1, 5]

    written = json.loads((tmp_path / "new" / "out" / "comparison.json").read_text())
    assert written["claim"] == comparison.claim
    assert written["paired"]["interval"]["low"] == comparison.paired.interval.low
    assert [p["case"] for p in written["patients"]] == pack.cases
    alone = next(s for s in written["strata"] if s["kind"] == "missing sequences" and s["name"] == "post")
    assert alone["interval"] == {"low": None, "high": None}
    with Image.open(tmp_path / "new" / "out" / "comparison.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_without_the_data_a_message_names_what_is_left_out(store: Store, pack: Pack, tmp_path: Path, capsys):
    log(store, pack, "one")
    log(store, pack, "two")
    (tmp_path / "phantom").rename(tmp_path / "moved")
    comparison = compare("one", "two", uri=store.uri)
    text = capsys.readouterr().err.strip().splitlines()
    assert len(text) == 1
    assert text[0].startswith(
        "missing sequences are left out, because the data set is not available: the data folder phantom"
    )
    assert {s.kind for s in comparison.strata} == {"institution"}  # known by name; all tumours have one size here
    again = compare("one", "two", data=tmp_path / "moved", uri=store.uri)
    assert {s.kind for s in again.strata} == {"institution", "missing sequences"}
    with pytest.raises(DataError, match="nowhere does not exist"):
        compare("one", "two", data=tmp_path / "nowhere", uri=store.uri)


def test_a_derived_run_uses_the_data_of_the_other_run(store: Store, pack: Pack, capsys):
    for name, own in (("made", False), ("made too", False), ("trained", True)):
        log(store, pack, name, own=own)
    comparison = compare("made", "trained", uri=store.uri)
    assert {s.kind for s in comparison.strata} == {"institution", "missing sequences"}
    assert "A is derived from other runs" in comparison.claim
    capsys.readouterr()
    compare("made", "made too", uri=store.uri)
    assert "none of these runs knows its data" in capsys.readouterr().err
    trained = find_run(store, "trained").info.run_id
    for name in ("newer", "newer too"):
        log(store, pack, name, own=False, source=trained)
    comparison = compare("newer", "newer too", uri=store.uri)  # through the run that they were made of
    assert {s.kind for s in comparison.strata} == {"institution", "missing sequences"}


def test_runs_that_cannot_be_compared_raise(store: Store, pack: Pack):
    first = log(store, pack, "first")
    log(store, pack, "second", 0.1)
    log(store, pack, "elsewhere", split="two")
    log(store, pack, "older", convention="0")
    log(store, pack, "gate", task="presence")
    for other, expected in (
        ("first", "one run"),
        (first[:8], "one run"),
        ("elsewhere", "differ in split"),
        ("older", "differ in convention"),
        ("gate", "not per patient"),
    ):
        with pytest.raises(BadSetting, match=expected):
            compare("first", other, uri=store.uri)
    with pytest.raises(UnknownName, match="no run 'third'"):
        compare("first", "third", uri=store.uri)
    with pytest.raises(BadSetting, match="has no iou per patient"):
        compare("first", "second", primary="iou", uri=store.uri)


def test_the_figure_shows_each_patient_in_the_colour_of_the_winner():
    comparison = both(*SCORES, metric="brier")
    left, right = draw_comparison(comparison).axes
    shown = {c.get_label(): np.asarray(c.get_offsets()).tolist() for c in left.collections}
    assert shown == {
        "A better: 1": [[0.82, 0.8]],
        "B better: 3": [[0.45, 0.5], [0.8, 0.9], [0.4, 0.7]],  # b and a, in the order of their differences
        "equal: 1": [[0.6, 0.6]],
    }
    bars = sorted((bar.get_x(), bar.get_height()) for some in right.containers for bar in some)
    assert [height for _, height in bars] == pytest.approx([-0.02, 0, 0.05, 0.1, 0.3])
    assert left.get_xlabel() == "B: second"
    assert left.get_ylabel() == "A: first"


# several structures


def of_structures(core, rim) -> pd.DataFrame:
    """Return one row per patient with the mean over two structures; each has 50 pixels."""
    mean = np.nanmean([core, rim], axis=0)
    columns = {"dice[core]": core, "dice[rim]": rim}
    columns |= {f"{count}[{name}]": 25 for name in ("core", "rim") for count in ("tp", "fn")}
    return cases(mean).assign(**columns)


def test_each_structure_has_its_difference_beside_the_mean():
    tables = of_structures([0.9, 0.8, 0.7, 0.6, 0.5], SCORES[0]), of_structures(SCORES[1], SCORES[0])
    comparison = compare_cases(*tables, sides=(A, B))
    core, rim = (group for group in comparison.strata if group.kind == "structure")
    assert comparison.paired.difference == pytest.approx(0.043)
    assert (core.name, core.n, core.difference, core.wins) == ("core", 5, pytest.approx(0.086), 0.6)
    assert core.interval == compare_cases(*tables, sides=(A, B), structure="core").paired.interval
    assert (rim.name, rim.a, rim.difference, rim.wins) == ("rim", pytest.approx(0.7), 0, 0)


def test_one_structure_is_compared_by_its_own_scores_and_pixels():
    tables = of_structures(SCORES[0], SCORES[0]), of_structures(SCORES[1], SCORES[0])
    comparison = compare_cases(*tables, sides=(A, B), structure="core")
    assert comparison.patients["a"].tolist() == SCORES[0]
    assert comparison.patients["tumour_pixels"].tolist() == [50] * 5
    assert "mean dice[core] (" in comparison.claim
    assert [group.kind for group in comparison.strata] == []
    with pytest.raises(UnknownName, match=r"no structure 'rin'; there is core, rim\. Did you mean 'rim'"):
        compare_cases(*tables, sides=(A, B), structure="rin")


def test_a_patient_without_one_structure_counts_for_the_other():
    rim = [0.5, np.nan, 0.5, 0.5, 0.5]
    comparison = compare_cases(of_structures(SCORES[0], rim), of_structures(SCORES[1], rim), sides=(A, B))
    assert [(g.name, g.n) for g in comparison.strata if g.kind == "structure"] == [("core", 5), ("rim", 4)]


@pytest.mark.parametrize(
    ("params", "weights"),
    [
        ({"model.weights": "None"}, ""),
        ({"model.weights": "imagenet"}, "imagenet"),
        ({"guest.weights": "scratch"}, ""),
        ({"guest.weights": "not stated"}, None),
    ],
)
def test_initial_weights_of_a_run_scored_from_files_are_those_stated(params, weights):
    data = SimpleNamespace(params=params, tags={}, metrics={})
    run = SimpleNamespace(data=data, info=SimpleNamespace(run_name="a", run_id="1"))
    assert _side(run).weights == weights
