"""Boards group comparable runs, rows average seeds, ranks come from patients, and notes warn the reader."""

from __future__ import annotations

from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis.board import Board, BoardRow
from bench.analysis.leaderboard import board_of_run, build_boards, rank_metrics
from bench.analysis.ranking import bootstrap_means, percentile_interval
from bench.analysis.score_facts import digits_of, lower_is_better
from bench.analysis.task_rules import rules_of
from bench.data.pack import Manifest
from bench.errors import BadSetting, UnknownName
from bench.metrics.aggregate import summarise
from bench.stats import interval
from bench.tracking.tags import CONVENTION, data_tags
from bench.types import RunRecord
from tests.fakes import tiny_pack

PATIENTS = "abcdefgh"
TAGS = {"data": "d" * 16, "split": "s" * 12, "convention": "1", "dataset": "lgg", "synthetic": "false"}
FINE = [0.90, 0.85, 0.88, 0.79, 0.93, 0.82, 0.95, 0.76]
FAIR = [0.89, 0.87, 0.85, 0.83, 0.88, 0.88, 0.88, 0.76]  # 0.005 worse on average, with both wins and losses
POOR = [0.50, 0.44, 0.46, 0.36, 0.49, 0.37, 0.49, 0.29]  # worse by 0.40, 0.41 ... 0.47


def record(
    name: str,
    dice: float | list[float] = 0.8,
    /,
    *,
    cases: str = PATIENTS,
    columns: dict[str, list[float]] | None = None,
    settings: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
    **metrics: float,
) -> RunRecord:
    """Return a run on eight patients in two folds; its model is unique unless `settings` name another."""
    scores = dice if isinstance(dice, list) else [dice] * len(cases)
    table = {"case": list(cases), "fold": [n % 2 for n in range(len(cases))], "dice": scores, **(columns or {})}
    base = {"model.name": name, "loss.name": "bce_dice", "train.epochs": "3", "run.seed": "0", "run.name": name}
    return RunRecord(
        run_id=f"id-{name}",
        name=name,
        cases=pd.DataFrame(table),
        settings=base | (settings or {}),
        metrics={key.replace("__", "/"): value for key, value in metrics.items()},
        tags={f"bench.{k}": v for k, v in (TAGS | (tags or {})).items()},
    )


def board_of(*records: RunRecord, **options: Any) -> Board:
    (board,) = build_boards(records, **options)
    return board


def order(board: Board) -> list[str]:
    return [row.name for row in board.rows]


def ranked(board: Board) -> list[tuple[int, str]]:
    return [(row.rank, row.name) for row in board.rows]


def row_of(board: Board, name: str) -> BoardRow:
    return next(row for row in board.rows if row.name == name)


# Boards


@pytest.mark.parametrize(
    "other",
    [
        {"tags": {"data": "e" * 16}},
        {"tags": {"split": "t" * 12}},
        {"tags": {"convention": "0"}},
        {"tags": {"post_hoc": "rescored"}},
        {"cases": "abcdefgi"},
        {"cases": "abcdefg"},
    ],
)
def test_runs_that_are_not_comparable_are_on_another_board(other):
    boards = build_boards([record("one"), record("two", **other), record("three")])
    assert sorted(sorted(order(board)) for board in boards) == [["one", "three"], ["two"]]


def test_patients_are_paired_by_name_not_by_position():
    board = board_of(record("one", FINE), record("two", FINE[::-1], cases=PATIENTS[::-1]))
    assert ranked(board) == [(1, "one"), (1, "two")]
    assert [row.p for row in board.rows] == [1, 1]


def test_a_board_describes_what_its_rows_have_in_common():
    board = board_of(record("one"))
    assert (board.dataset, board.data_key, board.split_hash, board.patients) == ("lgg", "d" * 16, "s" * 12, 8)
    assert (board.task, board.primary, board.left_out) == ("segmentation", "dice", ())
    assert board.title == "lgg · data dddddddd · split ssssssssssss · 8 patients"
    assert not board.synthetic
    assert not board.post_hoc


def test_synthetic_and_rescored_boards_are_labelled_and_come_last():
    fake = {"data": "f" * 16, "dataset": "phantom", "synthetic": "true"}
    late = {"post_hoc": "rescored"}
    boards = build_boards(
        [*(record(n, tags=fake) for n in "pqr"), *(record(n, tags=late) for n in "xy"), record("real")]
    )
    assert [order(board) for board in boards] == [["real"], ["x", "y"], ["p", "q", "r"]]
    assert [(b.post_hoc, b.synthetic) for b in boards] == [(False, False), (True, False), (False, True)]
    assert "RESCORED after the test scores were seen: no fair competitors" in boards[1].title
    assert "SYNTHETIC, not patients" in boards[2].title
    assert [row.synthetic for row in (boards[0].rows[0], *boards[2].rows)] == [False, True, True, True]


def test_no_records_give_no_boards_whatever_the_options():
    assert build_boards([]) == []
    assert build_boards([], primary="hd95", sort="flops", group_by="loss.name", pareto="flops") == []


def test_boards_use_the_tags_of_the_data():
    manifest: Manifest = tiny_pack().manifest
    tags = data_tags(manifest)
    assert tags["bench.data"] == manifest.key
    assert (tags["bench.convention"], tags["bench.synthetic"]) == (CONVENTION, str(manifest.synthetic).lower())
    run = record("one")
    board = board_of(RunRecord("id", "one", run.cases, {}, {}, tags | {"bench.split": "s"}))
    assert (board.dataset, board.data_key) == (manifest.dataset, manifest.key)


# Rows


def test_runs_that_differ_only_in_their_seed_are_one_row():
    """Run names, devices, folders and device plans do not matter; scores and costs are means."""
    unet = {"model.name": "unet"}
    runs = [
        record("second", FINE, settings=unet | {"run.seed": "1", "plan.threads": "4"}, dice=0.86),
        record("first", POOR, settings=unet | {"run.device": "cuda"}, dice=0.425, cost__parameters=4),
    ]
    (row,) = board_of(*runs).rows
    assert (row.name, row.run_id, row.runs) == ("second", "id-second", ("id-second", "id-first"))
    assert (row.seeds, row.seed, row.folds, row.patients) == (2, "0, 1", 2, 8)
    assert row.score == pytest.approx((0.86 + 0.425) / 2)
    assert row.scores == {"dice": pytest.approx(row.score)}
    assert row.low < row.score < row.high
    assert isnan(row.parameters)  # not logged by all runs


def test_a_repeated_seed_counts_once_with_its_newest_run():
    """Otherwise it would weigh more than other seeds, and the interval would be too narrow."""
    unet = {"model.name": "unet"}
    runs = [
        record("newer", FINE, settings=unet | {"dataset.folder": "/x"}),
        record("other", FAIR, settings=unet | {"run.seed": "1"}),
        record("older", POOR, settings=unet),
    ]
    (row,) = board_of(*runs).rows
    assert (row.seeds, row.runs, row.repeats) == (2, ("id-newer", "id-other"), ("id-older",))
    assert row.score == pytest.approx((0.86 + 0.855) / 2)
    (fewer,) = board_of(*runs[:2]).rows
    assert (row.score, row.low, row.high) == (fewer.score, fewer.low, fewer.high)
    assert rank_metrics(board_of(*runs))["id-older"]["rank"] == 1
    assert len(board_of(*runs, group_by="run").rows) == 3
    assert board_of_run(runs, "id-older").rows[0].runs == row.runs
    apart = board_of(*runs, record("else", FAIR, settings={"loss.name": "dice"}), group_by="loss.name")
    assert sorted(row.runs for row in apart.rows) == [("id-else",), ("id-newer", "id-other")]


def test_a_run_of_this_store_is_preferred_to_an_imported_one_of_its_seed():
    unet = {"model.name": "unet"}
    imported = record("theirs", FAIR, settings=unet, tags={"imported": "x"})
    other = record("other", POOR, settings=unet | {"run.seed": "1"}, tags={"imported": "y"})
    (row,) = board_of(imported, other, record("mine", FINE, settings=unet)).rows
    assert (set(row.runs), row.repeats, row.imported) == ({"id-mine", "id-other"}, ("id-theirs",), True)
    (own,) = board_of(imported, record("mine", FINE, settings=unet)).rows
    assert (own.runs, own.imported) == (("id-mine",), False)
    assert "Imported, not scored in this store: theirs." in board_of(imported, record("two")).notes


def test_a_note_names_the_rows_found_by_a_search():
    searched = {"run.searched": "30"}
    note = "Found by a search: {}. Unless nested, it may have used patients tested here."
    board = board_of(record("one", settings=searched), record("two"))
    assert note.format("one") in board.notes
    both = board_of(record("one", settings=searched), record("two", settings=searched))
    assert note.format("all rows") in both.notes
    assert not [note for note in board_of(record("two")).notes if "search" in note]
    seeds = {"model.name": "unet"}
    runs = record("a", settings=seeds), record("b", settings=seeds | searched | {"run.seed": "1"})
    assert [row.searched for row in board_of(*runs).rows] == [30]


def test_costs_of_seeds_are_averaged():
    same = {"model.name": "unet"}
    runs = [
        record("a", settings=same, cost__epochs=10, cost__flops=3e9),
        record("b", settings=same | {"run.seed": "1"}, cost__epochs=20, cost__flops=3e9),
    ]
    (row,) = board_of(*runs).rows
    assert (row.epochs, row.flops) == (15, 3e9)


@pytest.mark.parametrize(
    "other", [{"train.lr": "0.1"}, {"loss.name": "dice"}, {"train.epochs": "4"}, {"new": "1"}]
)
def test_runs_that_differ_in_another_setting_are_separate_rows(other):
    board = board_of(
        record("a", settings={"model.name": "unet"}), record("b", settings={"model.name": "unet"} | other)
    )
    assert len(board.rows) == 2


def test_runs_without_settings_are_separate_rows():
    plain = record("a")
    bare = [RunRecord(f"id-{n}", n, plain.cases, {}, {}, plain.tags) for n in "ab"]
    assert order(board_of(*bare)) == ["a", "b"]


SEVERAL = [
    record("one", FINE, settings={"model.name": "unet"}),
    record("two", FAIR, settings={"model.name": "unet", "run.seed": "1"}),
    record("three", POOR, settings={"model.name": "unet", "loss.name": "dice"}),
    record("four", FINE, settings={"model.name": "deep", "loss.name": "dice"}),
]


def test_rows_can_be_single_runs():
    board = board_of(*SEVERAL, group_by="run")
    assert ranked(board) == [(1, "four"), (1, "one"), (3, "two"), (4, "three")]
    assert {row.seeds for row in board.rows} == {1}


def test_rows_can_be_the_values_of_a_setting():
    board = board_of(*SEVERAL, group_by="loss.name")
    assert ranked(board) == [(1, "bce_dice"), (2, "dice")]
    first, second = board.rows
    assert first.score == pytest.approx((0.86 + 0.855) / 2)
    assert second.score == pytest.approx((0.425 + 0.86) / 2)
    assert second.runs == ("id-three", "id-four")
    assert (first.model, second.model, second.loss) == ("unet", "several", "dice")


def test_a_row_can_be_named_none_and_runs_without_the_setting_are_not_grouped():
    runs = [record(n, settings={"model.encoder": e}) for n, e in [("a", "None"), ("b", "None"), ("c", "resnet18")]]
    board = board_of(*runs, record("d"), record("e"), group_by="model.encoder")
    assert sorted(order(board)) == ["c", "d", "e", "none"]


@pytest.mark.parametrize(("wrong", "suggestion"), [("loss.nam", "loss.name"), ("configuraton", "configuration")])
def test_grouping_by_an_unknown_setting_raises_with_a_suggestion(wrong, suggestion):
    with pytest.raises(UnknownName, match=rf"cannot group by '{wrong}'.* Did you mean '{suggestion}'\?"):
        build_boards(SEVERAL, group_by=wrong)


def test_a_row_shows_what_its_runs_logged():
    settings = {"model.encoder": "resnet18", "model.weights": "imagenet", "run.seed": "7"}
    costs = {"cost__parameters": 31e6, "cost__latency_p50_ms": 2.5}
    run = record("run", settings=settings, hd95=6.5, dice_median=0.9, **costs)
    (row,) = board_of(run).rows
    assert (row.model, row.encoder, row.weights, row.loss, row.seed) == (
        *("run", "resnet18", "imagenet", "bce_dice", "7"),
    )
    assert (row.parameters, row.latency_p50_ms) == (31e6, 2.5)
    assert row.scores == {"hd95": 6.5, "dice_median": 0.9}  # costs are not scores
    assert isnan(row.flops)
    flat = row.flat()
    assert (flat["hd95"], flat["score"], flat["runs"], flat["run_id"]) == (6.5, 0.8, "id-run", "id-run")
    assert "scores" not in flat


@pytest.mark.parametrize(
    ("settings", "weights"),
    [({}, "scratch"), ({"model.weights": "None"}, "scratch"), ({"model.weights": "imagenet"}, "imagenet")],
)
def test_weights_of_a_trained_run_are_scratch_or_a_name(settings, weights):
    assert board_of(record("a", settings=settings)).rows[0].weights == weights


def test_scores_are_those_of_the_logged_summary():
    cases = record("x", FINE, columns={"tp": [1] * 8, "fp": [0] * 8, "fn": [1] * 8, "tn": [2] * 8}).cases
    (row,) = board_of(record("x", FINE, **summarise(cases))).rows
    assert row.score == pytest.approx(row.scores["dice"]) == pytest.approx(0.86)
    assert row.scores["dice_global"] == pytest.approx(2 / 3)
    assert (row.low, row.high) == (row.scores["dice_low"], row.scores["dice_high"])


def test_an_earlier_logged_rank_is_not_a_score():
    (row,) = board_of(record("a", rank=7, rank_low=5, rank_high=9, rank_first=0.1, dice=0.8)).rows
    assert row.scores == {"dice": 0.8}
    assert (row.rank, row.rank_low, row.rank_high) == (1, 1, 1)


# Ranks


def test_ranks_means_and_differences_come_from_patients():
    """The logged means are ignored. FINE beats POOR in 8 of 8 patients: p is 2 / 2**8."""
    board = board_of(record("poor", POOR, dice=0.99), record("fine", FINE, dice=0.1))
    assert ranked(board) == [(1, "fine"), (2, "poor")]
    first, second = board.rows
    assert (first.score, second.score) == (pytest.approx(0.86), pytest.approx(0.425))
    assert (first.difference, second.difference) == (0, pytest.approx(-0.435))
    ends = percentile_interval(bootstrap_means([np.subtract(POOR, FINE)[None]])[0])
    assert (second.difference_low, second.difference_high) == pytest.approx((ends.low, ends.high))
    assert (first.low, first.high) == (interval(FINE).low, interval(FINE).high)
    assert (first.p, second.p) == (1, pytest.approx(2 / 2**8))
    assert (first.group, second.group) == (1, 2)
    assert (first.first, second.first) == (1, 0)
    assert [(row.rank_low, row.rank_high) for row in board.rows] == [(1, 1), (2, 2)]


def test_p_is_corrected_for_all_pairs_and_indistinguishable_rows_share_a_group():
    board = board_of(record("fine", FINE), record("fair", FAIR), record("poor", POOR))
    assert ranked(board) == [(1, "fine"), (2, "fair"), (3, "poor")]
    assert [row.group for row in board.rows] == [1, 1, 2]
    assert row_of(board, "poor").p == pytest.approx(3 * 2 / 2**8)
    assert row_of(board, "fair").p > 0.05


def test_identical_predictions_tie():
    board = board_of(record("poor", POOR), record("twin", FINE), record("fine", FINE), record("last", 0.1))
    assert ranked(board) == [(1, "fine"), (1, "twin"), (3, "poor"), (4, "last")]
    for row in board.rows[:2]:
        assert (row.p, row.group, row.difference) == (1, 1, 0)
        assert (row.difference_low, row.difference_high) == (0, 0)
        assert row.first == pytest.approx(0.5)
        assert (row.rank_low, row.rank_high) == (1, 1)


def test_a_lower_distance_ranks_first():
    hd95 = {"fine": [9.0 + n for n in range(8)], "poor": [20.0 + 2 * n for n in range(8)]}
    board = board_of(
        record("poor", FINE, columns={"hd95": hd95["poor"]}),
        record("fine", POOR, columns={"hd95": hd95["fine"]}),
        primary="hd95",
    )
    assert board.primary == "hd95"
    assert [(row.rank, row.name, row.score) for row in board.rows] == [(1, "fine", 12.5), (2, "poor", 27.0)]
    assert board.rows[1].difference == 14.5


@pytest.mark.parametrize(
    ("task", "score", "higher"),
    [
        *(
            ("segmentation", "dice", True),
            ("segmentation", "hd95", False),
            ("segmentation", "missed_slices", False),
        ),
        *(("segmentation", "of_a_plugin", True), ("presence", "auroc", True), ("presence", "brier", False)),
    ],
)
def test_each_score_has_a_better_direction(task, score, higher):
    assert rules_of(task).higher_is_better(score) is higher


def test_an_unknown_primary_score_raises_with_a_suggestion():
    with pytest.raises(UnknownName, match=r"cannot rank by 'dise'; there are dice, .*Did you mean 'dice'"):
        build_boards([record("a")], primary="dise")


@pytest.mark.parametrize("column", ["tp", "fold", "case", "relative_volume_difference", "dice_slices_empty1"])
def test_columns_without_a_better_direction_cannot_rank(column):
    tenths = dict.fromkeys(("relative_volume_difference", "dice_slices_empty1", "accuracy"), [0.1] * 8)
    run = record("a", columns={"tp": [1] * 8, **tenths})
    assert board_of(run, primary="accuracy").primary == "dice", "accuracy ranks only presence runs"
    with pytest.raises(UnknownName, match=f"cannot rank by '{column}'"):
        build_boards([run], primary=column)


def test_a_primary_score_may_exist_only_in_runs_that_a_filter_removes():
    assert build_boards([record("a", columns={"hd95": [1.0] * 8})], primary="hd95", where=["name=none"]) == []


# Patients for whom a score is not defined

GAP = [nan, *FAIR[1:]]
UNDEFINED = [nan] * 8
OTHERS = " What other rows got wrong there does not show."


def test_a_note_names_the_rows_combined_from_scored_runs():
    one, two = (
        record(n, FAIR, settings={"ensemble.runs": runs}) for n, runs in (("flipped", "a"), ("both", "a, b"))
    )
    board = board_of(record("plain", FINE), one, two)
    assert {row.name: row.members for row in board.rows} == {"plain": 1, "flipped": 1, "both": 2}
    assert "Combined from finished runs, whose test scores could be seen before: both." in board.notes


def test_a_patient_undefined_in_one_row_is_left_out_of_all_rows_and_named():
    board = board_of(record("fine", FINE), record("gap", GAP))
    assert board.left_out == ("a",)
    assert board.title.endswith(" · 7 of 8 patients")
    assert board.notes[-1] == "1 patient is left out of every row, as dice is undefined: a." + OTHERS
    assert row_of(board, "fine").score == pytest.approx(sum(FINE[1:]) / 7)
    assert row_of(board, "gap").score == pytest.approx(sum(FAIR[1:]) / 7)
    assert board.patients == row_of(board, "fine").patients == 8


def test_false_positives_on_healthy_patients_have_their_own_count():
    wrong = record("wrong", [0.0, *FINE[1:]], false_positive_patients=1)
    board = board_of(wrong, record("right", GAP, false_positive_patients=0))
    assert board.notes[-1].endswith("What other rows got wrong there shows only in the false-positive counts.")
    assert [row_of(board, name).scores["false_positive_patients"] for name in ("wrong", "right")] == [1, 0]
    (board,) = build_boards(
        [wrong, record("right", GAP, false_positive_patients=0)], sort="false_positive_patients"
    )
    assert order(board) == ["right", "wrong"]


def test_a_patient_undefined_for_one_seed_is_left_out_of_all_rows():
    same = {"model.name": "unet"}
    board = board_of(
        record("one", FINE, settings=same),
        record("two", GAP, settings=same | {"run.seed": "1"}),
        record("fair", FAIR),
    )
    assert board.left_out == ("a",)
    assert row_of(board, "one").score == pytest.approx((sum(FINE[1:]) + sum(FAIR[1:])) / 14)


def test_a_note_names_only_some_of_many_patients_left_out():
    board = board_of(record("fine", FINE), record("gap", [nan] * 5 + FAIR[5:]))
    assert board.notes[-1] == "5 patients are left out of every row, as dice is undefined: a, b, c ...." + OTHERS


def test_a_run_without_the_score_comes_last_and_excludes_no_patient():
    bare = record("bare")
    bare = RunRecord("id-bare", "bare", bare.cases.drop(columns="dice"), bare.settings, {}, bare.tags)
    board = board_of(record("none", UNDEFINED), record("poor", POOR), bare, record("fine", FINE))
    assert ranked(board) == [(1, "fine"), (2, "poor"), (3, "bare"), (3, "none")]
    assert board.left_out == ()
    assert row_of(board, "poor").p == pytest.approx(2 / 2**8)
    for row in board.rows[2:]:
        assert isnan(row.score)
        assert isnan(row.p)
        assert isnan(row.first)


def test_a_row_with_one_unscored_seed_comes_last_and_excludes_no_patient():
    same = {"model.name": "unet"}
    runs = [record("one", FINE, settings=same), record("two", UNDEFINED, settings=same | {"run.seed": "1"})]
    board = board_of(*runs, record("fair", FAIR))
    assert ranked(board) == [(1, "fair"), (2, "one")]
    assert (board.left_out, board.rows[0].score) == ((), pytest.approx(0.855))


def test_without_a_patient_scored_in_all_rows_nothing_is_ranked():
    half = [FINE[:4] + [nan] * 4, [nan] * 4 + FINE[4:]]
    for board in (board_of(record("a", UNDEFINED)), board_of(record("a", half[0]), record("b", half[1]))):
        assert {row.rank for row in board.rows} == {1}
        assert all(isnan(row.score) for row in board.rows)
        assert board.left_out == tuple(PATIENTS)


# Filters, Pareto front and order

RUNS = [
    record("unet", cost__parameters=5e6, settings={"run.seed": "0", "augment.none": "True"}, dice=0.8),
    record("resunet", cost__parameters=9e6, settings={"run.seed": "10", "train.lr": "1e-3"}, dice=0.9),
    record(
        "deep",
        tags={"fingerprint": "abc"},
        settings={"loss.name": "dice", "run.seed": "9", "model.encoder": "resnet18"},
        dice=0.7,
    ),
]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["name=unet"], {"unet"}),
        (["name != unet"], {"resunet", "deep"}),
        (["id=id-deep"], {"deep"}),
        (["model=unet"], {"unet"}),
        (["model.name=unet"], {"unet"}),
        (["loss!=dice"], {"unet", "resunet"}),
        (["parameters<9e6"], {"unet"}),
        (["parameters<=9e6"], {"unet", "resunet"}),
        (["cost/parameters>5e6"], {"resunet"}),
        (["parameters>=5000000"], {"unet", "resunet"}),
        (["dice>0.75"], {"unet", "resunet"}),
        (["seed>9"], {"resunet"}),  # compared as numbers: as text, 10 would be less
        (["train.lr=0.001"], {"resunet"}),
        (["bench.fingerprint=abc"], {"deep"}),
        (["bench.dataset=lgg"], {"unet", "resunet", "deep"}),
        (["dice>0.75", "seed<5"], {"unet"}),
        (["encoder!=resnet18"], {"unet", "resunet"}),
        (["train.lr>1"], set()),
        (["train.lr!=1"], {"unet", "resunet", "deep"}),  # two runs lack it
    ],
)
def test_conditions_apply_to_names_settings_costs_scores_and_tags(conditions, kept):
    assert {row.name for board in build_boards(RUNS, where=conditions) for row in board.rows} == kept


@pytest.mark.parametrize("wrong", ["unet", "", "=unet", "model~unet", "a b=c"])
def test_a_malformed_condition_raises(wrong):
    with pytest.raises(BadSetting, match=f"'{wrong}' is not a condition. Write one such as model=unet"):
        build_boards(RUNS, where=[wrong])


@pytest.mark.parametrize("sign", ["=", "!="])
def test_a_condition_on_an_unknown_key_raises_with_a_suggestion(sign):
    with pytest.raises(UnknownName, match=r"no run has 'loss.nam'.* Did you mean 'loss\.name'"):
        build_boards(RUNS, where=["name=unet", f"loss.nam{sign}dice"])


def test_ranks_are_among_the_runs_that_a_filter_keeps():
    runs = [record("fine", FINE), record("fair", FAIR), record("poor", POOR)]
    assert ranked(board_of(*runs, where=["name!=fine"])) == [(1, "fair"), (2, "poor")]


POINTS = [
    *(("best", 0.9, 30), ("costly", 0.85, 30), ("fair", 0.8, 10), ("twin", 0.8, 10), ("worse", 0.7, 20)),
    *(("tiny", 0.3, 2), ("as costly", 0.9, 31), ("unknown", 0.95, nan), ("nothing", nan, 1)),
]


def test_the_pareto_front_holds_rows_unbeaten_in_score_and_cost():
    """Of equal points both stay; a row without a known cost or without a score is on no front."""
    board = board_of(*(record(n, d, cost__parameters=c) for n, d, c in POINTS), pareto="parameters")
    assert ranked(board) == [(2, "best"), (5, "fair"), (5, "twin"), (8, "tiny")]  # ranks among all rows


def test_the_pareto_front_of_a_score_where_lower_is_better():
    runs = [
        record(n, columns={"hd95": [float(h)] * 8}, cost__flops=c)
        for n, h, c in [("near", 2, 9), ("far", 7, 5), ("farther", 8, 5), ("cheap", 9, 1)]
    ]
    assert order(board_of(*runs, primary="hd95", pareto="flops")) == ["near", "far", "cheap"]


def test_sorting_changes_the_order_but_not_the_ranks():
    """Rows without a value come last in either direction; equal values stay in the order of their ranks."""
    runs = [
        record("best", 0.9, cost__flops=7, recall=0.2),
        record("good", 0.8, cost__flops=nan, recall=0.6),
        record("fair", 0.7, cost__flops=3),
        record("poor", 0.6, cost__flops=7, recall=0.4),
    ]
    assert ranked(board_of(*runs, sort="flops")) == [(3, "fair"), (1, "best"), (4, "poor"), (2, "good")]
    assert ranked(board_of(*runs, sort="recall")) == [(2, "good"), (4, "poor"), (1, "best"), (3, "fair")]


@pytest.mark.parametrize(("primary", "expected"), [("dice", ["a", "b"]), ("hd95", ["b", "a"])])
def test_sorting_by_the_score_is_sorting_by_rank(primary, expected):
    runs = [record("a", 0.9, columns={"hd95": [9.0] * 8}), record("b", 0.8, columns={"hd95": [3.0] * 8})]
    for column in ("score", "low", "rank"):
        assert order(board_of(*runs, primary=primary, sort=column)) == expected


@pytest.mark.parametrize("lower", ["hd95", "missed_slices", "dice_under_half", "brier"])
def test_sorting_puts_the_lowest_first_where_lower_is_better(lower):
    assert order(board_of(record("a", 0.9, **{lower: 9}), record("b", 0.8, **{lower: 3}), sort=lower)) == [
        "b",
        "a",
    ]


def test_sorting_by_a_column_of_another_board_keeps_the_order():
    scored, others = record("a", hd95=3.0), [record(n, d, cases="xyz") for n, d in [("b", 0.5), ("c", 0.6)]]
    assert [order(board) for board in build_boards([scored, *others], sort="hd95")] == [["c", "b"], ["a"]]


@pytest.mark.parametrize("option", ["sort", "pareto"])
@pytest.mark.parametrize(
    ("wrong", "message"), [("flop", "Did you mean 'flops'"), ("name", "there are rank, "), ("recal", "'recall'")]
)
def test_an_unknown_column_raises(option, wrong, message):
    with pytest.raises(UnknownName, match=f"no column '{wrong}'; .*{message}"):
        build_boards([record("a"), record("b", recall=0.5)], **{option: wrong})


def test_every_suggested_column_can_be_sorted_by():
    with pytest.raises(UnknownName) as error:
        build_boards([record("a", recall=0.5)], sort="?")
    columns = str(error.value).split("there are ")[1].rstrip(".").split(", ")
    assert {"score", "p", "flops", "recall"} < set(columns)
    for column in columns:
        assert order(board_of(record("a", recall=0.5), sort=column)) == ["a"]


# Budgets and notes


@pytest.mark.parametrize(
    ("images", "settings", "budget"),
    [
        (2 * 23_760, {"input.image_size": "64"}, "24k x 64 px"),
        (2 * 23_760, {"input.image_size": "64", "input.patch": "None"}, "24k x 64 px"),
        (2 * 1_234, {"input.image_size": "None"}, "1.2k x full size"),
        (2 * 999, {"input.image_size": "256", "input.patch.size": "128"}, "1k x 128 px"),
        (2 * 987, {}, "990 x full size"),
        (2 * 7, {}, "7 x full size"),
        (2 * 1_234_567, {}, "1200k x full size"),
        (0, {}, ""),
        (nan, {}, ""),
        (None, {}, ""),
    ],
)
def test_a_budget_is_the_slices_seen_per_fold_and_their_size(images, settings, budget):
    cost = {} if images is None else {"cost__images": images}
    assert board_of(record("a", settings=settings, **cost)).rows[0].budget == budget


def test_a_derived_run_has_no_budget_and_no_weights_of_its_own():
    """Its cost includes the images of its parts, whose size is unknown."""
    run = record("a", cost__images=5000)
    derived = RunRecord("id", "a", run.cases, {"model.name": "ensemble"}, run.metrics, run.tags)
    (row,) = board_of(derived).rows
    assert (row.budget, row.weights, row.images) == ("", "", 5000)


BUDGETS = "Budgets differ between rows, which alone can make scores differ."
ONE_SEED = (
    "With one seed per row, verdicts are about these trained models; after training again, ranks may change."
)


def test_a_single_row_needs_no_note():
    assert board_of(record("a", cost__images=100)).notes == ()


def test_a_note_warns_of_different_budgets():
    rows = [record(n, cost__images=i) for n, i in [("a", 200), ("b", 200), ("c", 400)]]
    assert board_of(*rows[:2]).notes == (ONE_SEED,)
    assert board_of(*rows).notes == (BUDGETS, ONE_SEED)
    sizes = [record(n, cost__images=200, settings={"input.image_size": s}) for n, s in [("a", "64"), ("b", "32")]]
    assert board_of(*sizes).notes == (BUDGETS, ONE_SEED)


def test_a_note_warns_that_p_does_not_cover_more_seeds():
    again = record("again", FINE, settings={"model.name": "a", "run.seed": "1"})
    (note,) = board_of(record("a", FINE), again, record("b")).notes
    assert note.startswith("Whatever the number of seeds, verdicts are about these trained models")


def test_a_row_counts_the_trials_of_its_search():
    run = record("a", FINE, settings={"model.name": "a", "run.searched": "30"})
    by_name = {row.name: row.searched for row in board_of(run, record("b")).rows}
    assert by_name == {"a": 30, "b": 0}


def test_the_board_of_a_run_is_found_even_if_its_row_has_another_name():
    runs = [
        record("new", settings={"model.name": "unet"}),
        record("old", settings={"model.name": "unet", "run.seed": "1"}),
        record("other", cases="xyz"),
    ]
    assert order(board_of_run(runs, "id-old")) == ["new"]
    assert order(board_of_run(runs, "id-other")) == ["other"]


def test_rank_metrics_cover_every_run_of_a_row():
    again = record("again", FINE, settings={"model.name": "fine", "run.seed": "1"})
    board = board_of(record("fine", FINE), again, record("poor", POOR), record("none", UNDEFINED))
    metrics = rank_metrics(board)
    first = {"rank": 1, "rank_low": 1, "rank_high": 1, "rank_first": 1}
    assert metrics["id-fine"] == metrics["id-again"] == first
    assert metrics["id-poor"] == {"rank": 2, "rank_low": 2, "rank_high": 2, "rank_first": 0}
    assert metrics["id-none"]["rank"] == 3
    assert isnan(metrics["id-none"]["rank_first"])


# --- several structures


def with_structures(name: str, core: list[float], rim: list[float]) -> RunRecord:
    """Return a run whose Dice is the mean over two structures."""
    mean = [(a + b) / 2 for a, b in zip(core, rim, strict=True)]
    logged = {"dice": sum(mean) / 8, "dice__core": sum(core) / 8, "dice__rim": sum(rim) / 8}
    return record(name, mean, columns={"dice[core]": core, "dice[rim]": rim}, **logged, cost__flops=5)


TWO = [with_structures("first", FINE, POOR), with_structures("second", FAIR, FINE), record("single", 0.99)]


def test_a_row_has_the_dice_of_each_structure_beside_their_mean():
    row = board_of(*TWO[:2]).rows[0]
    assert row.name == "second"
    assert row.flat()["dice[core]"] == pytest.approx(sum(FAIR) / 8)
    assert row.flat()["dice[rim]"] == pytest.approx(sum(FINE) / 8)
    assert row.flops == 5
    assert order(board_of(*TWO[:2], sort="dice[core]")) == ["first", "second"]


def test_a_board_of_one_structure_ranks_by_it_alone_and_names_it():
    board = board_of(*TWO, structure="core")
    assert order(board) == ["first", "second"]
    assert board.rows[0].score == board.rows[0].scores["dice"] == pytest.approx(sum(FINE) / 8)
    assert board.rows[0].difference == 0
    assert board.rows[0].flops == 5
    assert "core only" in board.title
    assert (board.noun, board.structures) == ("core", ())
    assert "[" not in "".join(board.rows[0].flat())


def test_a_structure_that_no_run_has_raises():
    with pytest.raises(UnknownName, match=r"no structure 'cor'; there is core, rim\. Did you mean 'core'"):
        build_boards(TWO, structure="cor")
    with pytest.raises(UnknownName, match="every run has only one"):
        build_boards(TWO[2:], structure="core")


def test_a_column_of_a_structure_cannot_rank_but_is_read_like_its_score():
    with pytest.raises(UnknownName, match="cannot rank by"):
        build_boards(TWO, primary="dice[core]")
    assert (lower_is_better("hd95[core]"), lower_is_better("dice[core]")) == (True, False)
    assert (digits_of("hd95[core]"), digits_of("dice[core]")) == (1, 3)
