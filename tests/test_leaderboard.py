"""Only what was measured alike is ranked together, and every summary is one that a hand can check."""

from __future__ import annotations

from math import inf, isnan, nan

import pandas as pd
import pytest

from bench.errors import UnknownName
from bench.leaderboard import boards, summarise
from bench.records import RunRecord

CASES = pd.DataFrame(
    {
        "case": ["a", "b", "c", "d"],
        "fold": [0, 0, 1, 1],
        "threshold": [0.5, 0.5, 0.4, 0.4],
        "dice": [0.2, 0.9, nan, 0.7],
        "hd95": [30.0, 2.0, nan, nan],
        "missed_slices": [3.0, 0.0, 1.0, 2.0],
        "ece": [nan] * 4,
        "tp": [1, 9, 0, 7],
        "fp": [4, 1, 0, 3],
        "fn": [4, 1, 0, 3],
        "tn": [91, 89, 100, 87],
    }
)


def record(
    name: str, *, dice: float = 0.8, cases: str = "abc", tags: dict[str, str] | None = None, **metrics: float
):
    """A run on patients a, b, c; the values that a board shows are given."""
    told = {"data": "d" * 16, "split": "s" * 12, "convention": "1", "dataset": "lgg", "synthetic": "false"}
    return RunRecord(
        run_id=f"id-{name}",
        name=name,
        cases=pd.DataFrame({"case": list(cases)}),
        settings={"model.name": "unet", "loss.name": "bce_dice", "run.seed": "0"},
        metrics={"dice": dice, **metrics},
        tags={f"bench.{k}": v for k, v in (told | (tags or {})).items()},
    )


def ranks(*records: RunRecord, sort: str = "dice") -> list[tuple[int, str]]:
    (board,) = boards(records, sort=sort)
    return [(row.rank, row.name) for row in board.rows]


# What patients say together


def test_means_are_over_the_patients_for_whom_a_metric_is_defined():
    values = summarise(CASES)
    assert values["patients"] == 4
    assert values["dice"] == pytest.approx(0.6)
    assert values["hd95"] == pytest.approx(16)
    assert (values["dice_undefined"], values["hd95_undefined"]) == (1, 2)
    assert isnan(values["ece"])
    assert values["ece_undefined"] == 4
    assert "missed_slices_undefined" not in values


def test_counts_of_slices_are_summed():
    assert summarise(CASES)["missed_slices"] == 6


def test_the_spread_of_dice_is_told():
    values = summarise(CASES)
    assert values["dice_median"] == pytest.approx(0.7)
    assert values["dice_p5"] == pytest.approx(0.25)  # a tenth of the way from 0.2 to 0.7
    assert values["dice_under_half"] == 1
    assert 0.2 <= values["dice_low"] < 0.6 < values["dice_high"] <= 0.9
    assert not {"dice_low", "dice_high"} & summarise(CASES, with_interval=False).keys()


def test_exactly_a_half_is_not_under_a_half():
    assert summarise(CASES.assign(dice=[0.5, 0.5, 0.49, 1.0]))["dice_under_half"] == 1


def test_pooled_scores_are_made_of_all_pixels_at_once():
    """17 pixels found, 8 false, 8 missed, 367 rightly left out, of 400."""
    values = summarise(CASES)
    assert values["dice_global"] == pytest.approx(34 / 50)
    assert values["iou_global"] == pytest.approx(17 / 33)
    assert values["precision_global"] == values["recall_global"] == pytest.approx(17 / 25)
    assert values["specificity_global"] == pytest.approx(367 / 375)
    assert values["accuracy_global"] == pytest.approx(384 / 400)
    assert values["dice_global"] != pytest.approx(values["dice"])


def test_who_was_tested_where_is_no_metric():
    assert not {"case", "fold", "threshold", "tp", "fp", "fn", "tn"} & summarise(CASES).keys()


def test_patients_without_any_defined_dice_make_no_warning():
    values = summarise(CASES.assign(dice=nan, tp=0, fp=0, fn=0))
    assert isnan(values["dice"])
    assert isnan(values["dice_global"])
    assert "dice_median" not in values
    assert "dice" not in summarise(CASES.drop(columns="dice"))


# Who may be compared


@pytest.mark.parametrize(
    "other",
    [
        {"tags": {"data": "e" * 16}},
        {"tags": {"split": "t" * 12}},
        {"tags": {"convention": "0"}},
        {"cases": "abd"},
        {"cases": "ab"},
    ],
)
def test_runs_that_were_measured_otherwise_stand_on_another_board(other):
    made = boards([record("one"), record("two", **other), record("three")])
    assert sorted([row.name for row in board.rows] for board in made) == [["one", "three"], ["two"]]


def test_the_order_of_the_patients_does_not_matter():
    assert len(boards([record("one", cases="abc"), record("two", cases="cba")])) == 1


def test_a_board_says_what_its_rows_have_in_common():
    (board,) = boards([record("one")])
    assert (board.dataset, board.data_key, board.split_hash, board.patients) == ("lgg", "d" * 16, "s" * 12, 3)
    assert board.title == "lgg · data dddddddd · split ssssssssssss · 3 patients"
    assert not board.synthetic


def test_synthetic_data_is_said_and_comes_after_patients():
    fake = {"data": "f" * 16, "dataset": "phantom", "synthetic": "true"}
    made = boards([record("p", tags=fake), record("q", tags=fake), record("real")])
    assert [board.synthetic for board in made] == [False, True]
    assert "SYNTHETIC, not patients" in made[1].title
    assert all(row.synthetic for row in made[1].rows)
    assert not made[0].rows[0].synthetic


def test_no_records_are_no_boards():
    assert boards([]) == []


# Ranking


def test_the_best_comes_first_ties_share_a_rank_and_the_undefined_come_last():
    made = ranks(
        *(record(n, dice=d) for n, d in [("e", nan), ("a", 0.7), ("b", 0.9), ("d", 0.7), ("f", nan), ("c", 0.1)])
    )
    assert made == [(1, "b"), (2, "a"), (2, "d"), (4, "c"), (5, "e"), (5, "f")]


@pytest.mark.parametrize("lower", ["hd95", "missed_slices", "under_half", "parameters", "wall_seconds"])
def test_where_less_is_better_less_comes_first(lower):
    metric = {
        "under_half": "dice_under_half",
        "parameters": "cost/parameters",
        "wall_seconds": "cost/wall_seconds",
    }
    key = metric.get(lower, lower)
    assert ranks(record("more", **{key: 9}), record("less", **{key: 3}), sort=lower) == [(1, "less"), (2, "more")]


@pytest.mark.parametrize(("higher", "key"), [("median", "dice_median"), ("p5", "dice_p5"), ("dice_global",) * 2])
def test_where_more_is_better_more_comes_first(higher, key):
    assert ranks(record("a", **{key: 0.3}), record("b", **{key: 0.9}), sort=higher) == [(1, "b"), (2, "a")]


@pytest.mark.parametrize("sort", ["dice", "hd95", "wall_seconds"])
def test_what_is_not_defined_comes_last_in_either_direction(sort):
    key = {"wall_seconds": "cost/wall_seconds"}.get(sort, sort)
    assert ranks(record("a", **{key: nan}), record("b", **{key: 5.0}), sort=sort)[0] == (1, "b")


@pytest.mark.parametrize(
    ("sort", "said"), [("dise", "Did you mean 'dice'"), ("name", "there are dice, "), ("rank", "")]
)
def test_a_column_that_cannot_be_sorted_by_is_refused(sort, said):
    with pytest.raises(UnknownName, match=f"cannot sort by '{sort}'; .*{said}"):
        boards([], sort=sort)


def test_every_column_offered_can_be_sorted_by():
    with pytest.raises(UnknownName) as refused:
        boards([], sort="?")
    columns = str(refused.value).split("there are ")[1].rstrip(".").split(", ")
    assert len(columns) > 10
    for column in columns:
        assert len(ranks(record("a"), record("b"), sort=column)) == 2


def test_a_row_shows_the_values_of_its_record():
    run = record("run", dice_low=0.7, dice_high=0.85, **{"cost/parameters": 31e6, "cost/epochs": 12, "hd95": inf})
    (board,) = boards([run])
    (row,) = board.rows
    assert (row.dice, row.low, row.high, row.parameters, row.epochs, row.hd95) == (
        0.8,
        0.7,
        0.85,
        31_000_000,
        12,
        inf,
    )
    assert (row.model, row.encoder, row.weights, row.loss, row.seed) == ("unet", "", "scratch", "bce_dice", "0")
    assert isnan(row.median)
    assert row.run_id == "id-run"


def test_scores_that_are_averaged_are_those_that_the_rows_show():
    """The names that `summarise` gives are the names that a row reads."""
    values = summarise(CASES)
    (board,) = boards([record("run", **values)])
    row = board.rows[0]
    for shown, name in [("dice", "dice"), ("median", "dice_median"), ("p5", "dice_p5"), ("low", "dice_low")]:
        assert getattr(row, shown) == values[name]
    assert (row.under_half, row.missed_slices, row.dice_global) == (1, 6, pytest.approx(0.68))
