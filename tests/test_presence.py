"""The presence task: slices are judged out of fold, validation chooses, classifiers have a board of their own."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from sklearn import metrics

from bench.checkpoint import load_model
from bench.classification import best_threshold, confusion, reliability
from bench.config import Evaluate, RunConfig, configure, override
from bench.errors import BadSetting, UnknownName
from bench.feed import Feed
from bench.leaderboard import Board, PresenceRow, Row, boards
from bench.recipe import Recipe, resolve
from bench.records import RunRecord
from bench.report import (
    PRESENCE,
    board_csv,
    board_json,
    board_markdown,
    board_table,
    headline,
    model_card,
    presence_pictures,
)
from bench.runner import Outcome, cross_validate, estimate_seconds
from bench.serving import Segmenter
from bench.session import execute
from bench.tasks.presence import Presence
from bench.tasks.segmentation import Segmentation
from bench.tracking import Store, read_table, records
from tests.recorder import MemoryRecorder

TINY = {
    "model": "classifier",
    "model.encoder": "mobilenetv3_small_050",
    "dataset.patients": 6,
    "dataset.size": 32,
    "dataset.slices": 6,
    "dataset.institutions": 2,
    "split.folds": 3,
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.lr": 0.01,
    "evaluate.threshold": "validation",
}


def config(**changes: Any) -> RunConfig:
    return configure(TINY, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(cache))


@dataclass
class Ran:
    recipe: Recipe
    recorder: MemoryRecorder
    outcome: Outcome

    @property
    def slices(self) -> pd.DataFrame:
        return self.recorder.tables["slices"]

    def model(self, fold: int, folder: Path) -> Path:
        """The logged model of a fold, as files."""
        for name, content in self.recorder.children[f"fold {fold}"].paths["model"].items():
            (folder / name).write_bytes(content)
        return folder


@pytest.fixture(scope="module")
def ran(cache: Path) -> Ran:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(cache))
        recipe, recorder = resolve(config()), MemoryRecorder()
        return Ran(recipe, recorder, cross_validate(recipe, recorder))


# A run


def test_every_slice_is_judged_once_out_of_fold(ran):
    index = ran.recipe.pack.index
    judged = ran.slices.merge(index, on=["case", "slice"], validate="one_to_one")
    assert len(judged) == len(ran.slices) == len(index)
    assert (judged["truth"] == judged["positive"]).all()
    for fold in ran.recipe.folds:
        child = ran.recorder.children[f"fold {fold.number}"].tables["slices"]
        assert set(child["case"]) == fold.test
        parts = ran.slices[ran.slices["case"].isin(fold.test)].reset_index(drop=True)
        pd.testing.assert_frame_equal(child, parts)


def test_the_logged_scores_are_those_of_the_logged_slices(ran):
    table, last = ran.slices, ran.recorder.last
    truth, held, called = table["truth"], table["probability"], table["called"]
    assert last("auroc") == pytest.approx(metrics.roc_auc_score(truth, held))
    assert last("average_precision") == pytest.approx(metrics.average_precision_score(truth, held))
    assert last("brier") == pytest.approx(metrics.brier_score_loss(truth, held))
    assert last("accuracy") == pytest.approx(metrics.accuracy_score(truth, called))
    assert last("sensitivity") == pytest.approx(metrics.recall_score(truth, called))
    assert last("auroc_low") <= last("auroc") <= last("auroc_high")
    assert last("missed_slices") == (truth & ~called).sum()
    assert (last("patients"), last("slices")) == (6, 36)
    assert "dice" not in ran.recorder.values
    assert ran.outcome.values["auroc"] == last("auroc")


def test_patients_are_in_the_table_of_cases_with_what_was_called_of_them(ran):
    cases = ran.recorder.tables["cases"].set_index("case")
    assert sorted(cases.index) == sorted(ran.recipe.pack.cases)
    for case, slices in ran.slices.groupby("case"):
        said = cases.loc[case]
        assert said["tp"] == (slices["truth"] & slices["called"]).sum()
        assert said["fp"] == (~slices["truth"] & slices["called"]).sum()
        assert said["sensitivity"] == pytest.approx(said["tp"] / (said["tp"] + said["fn"]))
        assert said[["tp", "fp", "fn", "tn"]].sum() == len(slices) == 6
        assert (slices["called"] == (slices["probability"] >= said["threshold"])).all()


def test_a_fold_logs_the_scores_of_its_own_slices(ran):
    for fold in ran.recipe.folds:
        child = ran.recorder.children[f"fold {fold.number}"]
        slices = child.tables["slices"]
        assert child.last("test/auroc") == pytest.approx(
            metrics.roc_auc_score(slices["truth"], slices["probability"])
        )
        assert child.last("test/patients") == len(fold.test)
        assert "test/auroc_low" not in child.values
        assert child.tables["history"]["val/auroc"].tolist() == [v for _, v in child.values["val/auroc"]]
        assert "masks" not in child.paths


def test_tables_and_pictures_of_the_calls_are_left(ran):
    tables = ran.recorder.tables
    cells = tables["confusion"].set_index("truth")
    assert cells.to_numpy().tolist() == confusion(ran.slices).to_numpy().tolist()
    assert list(cells.index) == ["tumour", "none"]
    assert tables["report"]["slices"].sum() == tables["reliability"]["slices"].sum() == 36
    assert {"discrimination", "confusion", "reliability"} <= ran.recorder.images.keys()
    for pixels in ran.recorder.images.values():
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def test_validation_patients_choose_and_test_patients_are_judged_once(monkeypatch):
    """A spy on prediction: until the weights are chosen, nobody but validation patients is predicted."""
    from bench.tasks import presence

    asked: list[str] = []
    real = presence.predict

    def spy(models: Any, feed: Feed, rows: np.ndarray, **named: Any) -> np.ndarray:
        asked.extend(feed.pack.index["case"].iloc[rows].unique())
        return real(models, feed, rows, **named)

    monkeypatch.setattr(presence, "predict", spy)
    recipe = resolve(config())
    cross_validate(recipe, MemoryRecorder(), only=1)
    fold = recipe.folds[1]
    assert asked == [*sorted(fold.val) * 3, *sorted(fold.test)]  # two epochs, the threshold, the end


def test_epoch_and_threshold_are_the_best_for_validation_slices(ran, tmp_path):
    task = ran.recipe.task
    feed = Feed(ran.recipe.pack, ran.recipe.config.input, torch.device("cpu"))
    chosen = []
    for fold, result in zip(ran.recipe.folds, ran.outcome.results, strict=True):
        model, description = load_model(ran.model(fold.number, tmp_path))
        judged = pd.concat(score.slices for score, _ in task.score([model], feed, fold.val, 0.5))
        assert set(judged["case"]) == fold.val
        expected = best_threshold(judged["truth"].to_numpy(), judged["probability"].to_numpy())
        assert result.threshold == description["threshold"] == expected
        assert result.best_score == pytest.approx(metrics.roc_auc_score(judged["truth"], judged["probability"]))
        chosen.append(expected)
    assert set(chosen) != {0.5}


def test_the_best_epoch_is_that_of_the_validation_score(ran):
    for result in ran.outcome.results:
        curve = dict(ran.recorder.children[f"fold {result.fold}"].values["val/auroc"])
        assert result.best_score == max(curve.values()) == curve[result.best_epoch]


def test_a_score_that_is_better_low_is_chosen_low():
    recorder = MemoryRecorder()
    result = cross_validate(resolve(config(evaluate__primary="brier")), recorder, only=0).results[0]
    curve = dict(recorder.children["fold 0"].values["val/brier"])
    assert result.best_score == min(curve.values()) == curve[result.best_epoch]


def test_the_logged_model_gives_the_logged_probabilities(ran, tmp_path):
    fold, pack = ran.recipe.folds[0], ran.recipe.pack
    segmenter = Segmenter([ran.model(0, tmp_path)])
    assert segmenter.presence
    for case in fold.test:
        rows = pack.rows([case])
        found = segmenter.predict(pack.images[rows])
        assert found.shape == (len(rows), 1, 1)
        logged = ran.slices[ran.slices["case"] == case]["probability"]
        assert found[:, 0, 0] == pytest.approx(logged.to_numpy(), abs=1e-5)


def test_several_models_give_the_mean_of_their_probabilities(ran, tmp_path):
    folders = [tmp_path / str(fold) for fold in range(2)]
    for fold, folder in enumerate(folders):
        folder.mkdir()
        ran.model(fold, folder)
    images = ran.recipe.pack.images[:6]
    each = [Segmenter([folder]).predict(images) for folder in folders]
    assert Segmenter(folders).predict(images) == pytest.approx(np.mean(each, axis=0), abs=1e-6)


def test_slices_may_be_resized_and_an_encoder_frozen():
    recipe = resolve(config(input__image_size=64, train__freeze_epochs=1), only=0)
    recorder = MemoryRecorder()
    cross_validate(recipe, recorder, only=0)
    assert recorder.tables["slices"]["probability"].between(0, 1).all()
    assert estimate_seconds(recipe, 0) > 0


# The task


def task(**settings: Any) -> Presence:
    return Presence(Evaluate(**({"primary": "auroc"} | settings)), "float32")


def test_the_target_is_whether_any_pixel_is_tumour():
    masks = torch.zeros(4, 1, 5, 7)
    masks[1, 0, 4, 6] = 1
    masks[2] = 1
    masks[3, 0, :2] = 1
    target = task().target(masks)
    assert target.shape == (4, 1, 1, 1)
    assert target.dtype == torch.float32
    assert target.flatten().tolist() == [0, 1, 1, 1]


def test_a_threshold_that_is_given_is_taken_and_nothing_predicted(ran):
    feed = Feed(ran.recipe.pack, ran.recipe.config.input, torch.device("cpu"))
    never = torch.nn.Module()  # has no forward
    assert task(threshold=0.3).threshold(feed, never, ran.recipe.pack.cases) == 0.3
    with pytest.raises(NotImplementedError):
        task(threshold="validation").threshold(feed, never, ran.recipe.pack.cases)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"evaluate__primary": "dice"},
            BadSetting,
            "'dice' is no score of a presence model; there are auroc, aver",
        ),
        ({"evaluate__primary": "aurc"}, BadSetting, "Did you mean 'auroc'"),
        ({"evaluate__metrics": ["dice"]}, BadSetting, "evaluate.metrics chooses among .* Leave it out"),
        ({"input__patch__size": 32}, BadSetting, "judges whole slices. Leave out input.patch"),
        (
            {"split": "leaky_slices"},
            BadSetting,
            "split=leaky_slices shows is one of segmentation. Use split=patients",
        ),
        (
            {"model": "unet", "model__base": 4, "evaluate__primary": "auroc"},
            UnknownName,
            "no metric named 'auroc'",
        ),
    ],
)
def test_what_says_nothing_of_presence_is_refused(changes, error, sentence):
    given = {k: v for k, v in TINY.items() if "model" not in changes or not k.startswith("model")}
    with pytest.raises(error, match=sentence):
        resolve(configure(given, {k.replace("__", "."): v for k, v in changes.items()}))


def test_a_classifier_without_its_suggestions_is_refused_for_its_score():
    with pytest.raises(BadSetting, match=r"evaluate\.primary = 'dice' is no score of a presence model"):
        resolve(override(RunConfig(), {"model": "classifier"}))


def test_a_classifier_suggests_its_loss_and_its_score_and_what_is_given_wins():
    suggested = configure({"model": "classifier"})
    assert (suggested.loss.name, suggested.evaluate.primary) == ("bce", "auroc")
    mine = configure({"loss": "focal", "evaluate.primary": "brier"}, {"model": "classifier", "loss.gamma": 3})
    assert (mine.loss.name, mine.loss.params, mine.evaluate.primary) == ("focal", {"gamma": 3}, "brier")
    plain = configure({"model": "unet"})
    assert (plain.loss.name, plain.evaluate.primary) == ("bce_dice", "dice")


# The board


def record(name: str, task: str | None = "presence", **values: float) -> RunRecord:
    tags = {"data": "d" * 16, "split": "s" * 12, "convention": "1", "dataset": "lgg", "synthetic": "false"}
    return RunRecord(
        run_id=f"id-{name}",
        name=name,
        cases=pd.DataFrame({"case": ["a", "b", "c"]}),
        settings={"model.name": "classifier", "model.encoder": "resnet18", "loss.name": "bce", "run.seed": "0"},
        metrics=values,
        tags={f"bench.{k}": v for k, v in (tags | ({"task": task} if task else {})).items()},
    )


SCORES = {"auroc": 0.91234, "auroc_low": 0.85, "auroc_high": 0.96, "average_precision": 0.8765, "accuracy": 0.84}
SCORES |= {"sensitivity": 0.75, "specificity": 0.92, "brier": 0.11, "ece": 0.05, "missed_slices": 4}
SCORES |= {"false_positive_slices": 3, "cost/parameters": 11e6, "cost/epochs": 12, "cost/wall_seconds": 75}
GOOD = record("good", **SCORES)
FAIR = record("fair", **(SCORES | {"auroc": 0.8, "brier": 0.05, "false_positive_slices": 1, "dice": 0.99}))
OLD = record("old", task=None, dice=0.7, hd95=5.0)  # from before there were tasks
SEGMENTED = record("new", task="segmentation", dice=0.8, hd95=9.0, auroc=0.99)


def order(board: Board) -> list[str]:
    return [row.name for row in board.rows]


def test_classifiers_are_never_ranked_with_segmenters_of_the_same_patients():
    first, second = boards([FAIR, OLD, GOOD, SEGMENTED])
    assert (first.task, order(first)) == ("segmentation", ["new", "old"])
    assert (second.task, order(second)) == ("presence", ["good", "fair"])
    assert {type(row) for row in first.rows} == {Row}
    assert {type(row) for row in second.rows} == {PresenceRow}
    assert "presence of tumour" in second.title
    assert "presence" not in first.title


@pytest.mark.parametrize(
    ("sort", "segmentation", "presence"),
    [
        (None, ["new", "old"], ["good", "fair"]),
        ("dice", ["new", "old"], ["good", "fair"]),
        ("hd95", ["old", "new"], ["good", "fair"]),
        ("auroc", ["new", "old"], ["good", "fair"]),
        ("brier", ["new", "old"], ["fair", "good"]),
        ("false_positive_slices", ["new", "old"], ["fair", "good"]),
    ],
)
def test_boards_are_sorted_by_a_column_of_theirs_else_by_their_headline(sort, segmentation, presence):
    first, second = boards([FAIR, OLD, GOOD, SEGMENTED], sort=sort)
    assert (order(first), order(second)) == (segmentation, presence)


def test_a_column_of_no_board_is_refused_with_those_of_all():
    with pytest.raises(UnknownName, match=r"there are dice, .*hd95.*auroc.*Did you mean 'auroc'"):
        boards([GOOD], sort="aurocc")


def test_a_row_of_a_classifier_shows_the_values_of_its_record():
    (board,) = boards([GOOD])
    (row,) = board.rows
    assert isinstance(row, PresenceRow)
    for name in ("auroc", "average_precision", "accuracy", "sensitivity", "specificity", "brier", "ece"):
        assert getattr(row, name) == SCORES[name]
    assert (row.low, row.high, row.missed_slices, row.false_positive_slices) == (0.85, 0.96, 4, 3)
    assert (row.model, row.encoder, row.parameters, row.patients) == ("classifier", "resnet18", 11_000_000, 3)
    (bare,) = boards([record("bare")])[0].rows
    assert isnan(bare.auroc)


def test_a_presence_board_says_the_same_in_every_format():
    made = boards([GOOD, FAIR])
    expected = [
        "1",
        "good",
        "0.912",
        "0.850–0.960",
        "0.876",
        "0.750",
        "0.920",
        "0.840",
        "4",
        "3",
        "0.110",
        "0.050",
    ]
    expected += ["12", "11.0", "1 min 15 s", "ssssssss", "id-good"]
    _, _, head, _, row, *_ = board_markdown(made).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected
    assert head.count("|") == len(PRESENCE) + 1
    console = Console(width=400, record=True, file=io.StringIO(), color_system=None)
    console.print(board_table(made[0]))
    shown = console.export_text()
    assert all(cell in shown for cell in expected)
    assert "AUROC" in shown
    assert "Dice" not in shown
    lines = list(csv.DictReader(io.StringIO(board_csv(made))))
    (stored,) = json.loads(board_json(made))
    assert stored["task"] == "presence"
    for field in PresenceRow.__annotations__:
        assert stored["rows"][0][field] == getattr(made[0].rows[0], field)
        assert lines[0][field] == str(getattr(made[0].rows[0], field))


def test_both_kinds_of_boards_share_a_file_and_leave_empty_what_they_do_not_have():
    made = boards([GOOD, SEGMENTED])
    segmented, present = csv.DictReader(io.StringIO(board_csv(made)))
    assert (segmented["task"], segmented["dice"], segmented["auroc"]) == ("segmentation", "0.8", "")
    assert (present["task"], present["dice"], present["auroc"]) == ("presence", "", "0.91234")
    text = board_markdown(made)
    assert text.count("**") == 4
    assert text.count("Dice: mean over patients") == text.count("Does a slice show tumour?") == 1
    assert [board["task"] for board in json.loads(board_json(made))] == ["segmentation", "presence"]


def test_a_score_that_is_not_defined_is_a_dash_or_null():
    made = boards([record("bare", **{"cost/epochs": 1})])
    assert board_markdown(made).splitlines()[4].count("–") >= 8
    assert json.loads(board_json(made))[0]["rows"][0]["auroc"] is None


# What is said and drawn


def test_the_headline_of_a_classifier_says_what_is_not_defined():
    values = SCORES | {"patient_sensitivity": 1.0, "patient_specificity": nan, "patient_auroc": nan}
    said = headline(values)
    assert "AUROC 0.912 (95% interval 0.850 to 0.960), average precision 0.876, sensitivity 0.750" in said
    assert "of patients: sensitivity 1.000, specificity and AUROC undefined: no negative patients" in said
    some = headline(values | {"patient_specificity": 0.5, "patient_auroc": 0.75})
    assert "specificity and AUROC 0.500 and 0.750" in some
    assert "undefined" not in some


def test_the_headline_of_a_segmentation_is_its_dice():
    said = headline({"dice": 0.81, "dice_low": 0.75, "dice_high": 0.9, "dice_median": 0.85, "missed_slices": 3.0})
    assert said.startswith("Dice 0.810 (95% interval 0.750 to 0.900), median 0.850, HD95 – px, missed slices 3")
    assert headline({"dice": nan}).startswith("Dice – (95% interval – to –)")


def test_a_model_card_says_the_headline_of_its_task():
    assert "**net**: AUROC of slices **0.912** (95% interval 0.850 to 0.960)" in model_card("net", {}, SCORES)


@pytest.mark.parametrize(
    ("truth", "case"),
    [("+-+-+--+", "aabbccdd"), ("++++++++", "aabbccdd"), ("--------", "aabbccdd"), ("+-+-+--+", "aaaaaaaa")],
)
def test_pictures_of_any_calls_are_drawn_in_rgb_without_a_warning(truth, case):
    held = np.array([0.9, 0.1, 0.8, 0.8, 0.55, 0.3, 0.3, 1.0])
    there = np.array([sign == "+" for sign in truth])
    slices = pd.DataFrame({"case": list(case), "truth": there, "probability": held, "called": held >= 0.5})
    made = presence_pictures(slices, confusion(slices), reliability(slices))
    assert list(made) == ["discrimination", "confusion", "reliability"]
    for pixels in made.values():
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)
        assert pixels.std() > 0


def test_a_perfect_and_a_useless_classifier_do_not_look_alike():
    truth = np.arange(40) % 2 == 0
    drawn = []
    for held in (truth * 0.8 + 0.1, np.tile([0.1, 0.1, 0.9, 0.9], 10)):
        slices = pd.DataFrame(
            {"case": np.arange(40) // 4, "truth": truth, "probability": held, "called": held > 0.5}
        )
        drawn.append(presence_pictures(slices, confusion(slices), reliability(slices)))
    for name in drawn[0]:
        assert not np.array_equal(drawn[0][name], drawn[1][name])


# In the store


def test_a_logged_classifier_stands_on_its_board_with_its_slices(store: Store, capsys):
    run_id = execute(config(train__epochs=1, name="mine", seed=3), uri=store.uri, quiet=True)
    (found,) = records(store)
    assert (found.run_id, found.tags["bench.task"]) == (run_id, "presence")
    (board,) = boards([found])
    assert (board.task, order(board), board.patients) == ("presence", ["mine"], 6)
    shown = capsys.readouterr().out
    assert "presence of tumour" in shown
    assert f"{found.metrics['auroc']:.3f}" in shown
    slices = read_table(store, store.client.get_run(run_id), "slices")
    assert found.metrics["auroc"] == pytest.approx(metrics.roc_auc_score(slices["truth"], slices["probability"]))
    assert slices["called"].dtype == bool
    assert isinstance(resolve(config()).task, Presence)
    assert isinstance(resolve(configure({"dataset.size": 32})).task, Segmentation)
