"""The presence task: slices are judged out of fold, validation chooses, classifiers have a board of their own."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.config import Evaluate, RunConfig
from bench.data.loader import SliceLoader
from bench.errors import BadSetting, UnknownName
from bench.experiments.run import execute, print_finished
from bench.inference.fold_models import FoldModels
from bench.inference.predict import Predictor
from bench.metrics.classification import best_threshold, confusion_matrix
from bench.models.io import load_model
from bench.overrides import configure, override
from bench.tracking import Store, read_records, read_table
from bench.training.cross_validation import CrossValidationResult, cross_validate, estimate_time
from bench.training.experiment import Experiment, resolve
from bench.training.tasks.presence import Presence
from bench.training.tasks.segmentation import Segmentation
from bench.types import RunRecord
from tests.fakes import MemoryRecorder

pytestmark = pytest.mark.usefixtures("cache")

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


@dataclass
class Ran:
    experiment: Experiment
    recorder: MemoryRecorder
    outcome: CrossValidationResult

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
    experiment, recorder = resolve(config()), MemoryRecorder()
    return Ran(experiment, recorder, cross_validate(experiment, recorder))


# A run


def test_every_slice_is_judged_once_out_of_fold(ran):
    index = ran.experiment.pack.index
    judged = ran.slices.merge(index, on=["case", "slice"], validate="one_to_one")
    assert len(judged) == len(ran.slices) == len(index)
    assert (judged["truth"] == judged["positive"]).all()
    for fold in ran.experiment.folds:
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
    assert sorted(cases.index) == sorted(ran.experiment.pack.cases)
    for case, slices in ran.slices.groupby("case"):
        said = cases.loc[case]
        assert said["tp"] == (slices["truth"] & slices["called"]).sum()
        assert said["fp"] == (~slices["truth"] & slices["called"]).sum()
        assert said["sensitivity"] == pytest.approx(said["tp"] / (said["tp"] + said["fn"]))
        assert said[["tp", "fp", "fn", "tn"]].sum() == len(slices) == 6
        assert (slices["called"] == (slices["probability"] >= said["threshold"])).all()


def test_a_fold_logs_the_scores_of_its_own_slices(ran):
    for fold in ran.experiment.folds:
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
    assert cells.to_numpy().tolist() == confusion_matrix(ran.slices).to_numpy().tolist()
    assert list(cells.index) == ["tumour", "none"]
    assert tables["report"]["slices"].sum() == tables["reliability"]["slices"].sum() == 36
    assert {"discrimination", "confusion", "reliability"} <= ran.recorder.images.keys()
    for pixels in ran.recorder.images.values():
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def test_validation_patients_choose_and_test_patients_are_judged_once(monkeypatch):
    """A spy on prediction: until the weights are chosen, nobody but validation patients is predicted."""
    asked: list[str] = []
    real = Predictor.probabilities

    def spy(predictor: Predictor, rows: np.ndarray, shape: tuple[int, int] | None = None) -> np.ndarray:
        if predictor.batch_size > 1:  # not that which measures latency
            asked.extend(predictor.pack.index["case"].iloc[rows].unique())
        return real(predictor, rows, shape)

    monkeypatch.setattr(Predictor, "probabilities", spy)
    experiment = resolve(config())
    cross_validate(experiment, MemoryRecorder(), only=1)
    fold = experiment.folds[1]
    assert asked == [*sorted(fold.val) * 3, *sorted(fold.test)]  # two epochs, the threshold, the end


def test_epoch_and_threshold_are_the_best_for_validation_slices(ran, tmp_path):
    task = ran.experiment.task
    loader = SliceLoader(ran.experiment.pack, ran.experiment.config.input, torch.device("cpu"))
    chosen = []
    for fold, result in zip(ran.experiment.folds, ran.outcome.results, strict=True):
        model, description = load_model(ran.model(fold.number, tmp_path))
        judged = pd.concat(
            score.slices for score, _ in task.score(ran.experiment.predictor([model], loader), fold.val, (0.5,))
        )
        assert set(judged["case"]) == fold.val
        expected = best_threshold(judged["truth"].to_numpy(), judged["probability"].to_numpy())
        assert result.thresholds == (description["threshold"],) == (expected,)
        assert result.best_score == pytest.approx(metrics.roc_auc_score(judged["truth"], judged["probability"]))
        chosen.append(expected)
    assert set(chosen) != {0.5}


def test_the_best_epoch_is_that_of_the_validation_score(ran):
    for result in ran.outcome.results:
        curve = dict(ran.recorder.children[f"fold {result.fold}"].values["val/auroc"])
        assert result.best_score == max(curve.values()) == curve[result.best_epoch]


@pytest.mark.slow
def test_a_score_that_is_better_low_is_chosen_low():
    recorder = MemoryRecorder()
    result = cross_validate(resolve(config(evaluate__primary="brier")), recorder, only=0).results[0]
    curve = dict(recorder.children["fold 0"].values["val/brier"])
    assert result.best_score == min(curve.values()) == curve[result.best_epoch]


def test_the_logged_model_gives_the_logged_probabilities(ran, tmp_path):
    fold, pack = ran.experiment.folds[0], ran.experiment.pack
    segmenter = FoldModels([ran.model(0, tmp_path)])
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
    images = ran.experiment.pack.images[:6]
    each = [FoldModels([folder]).predict(images) for folder in folders]
    assert FoldModels(folders).predict(images) == pytest.approx(np.mean(each, axis=0), abs=1e-6)


@pytest.mark.slow
def test_slices_may_be_resized_and_an_encoder_frozen():
    experiment = resolve(config(input__image_size=64, train__freeze_epochs=1), only=0)
    recorder = MemoryRecorder()
    cross_validate(experiment, recorder, only=0)
    assert recorder.tables["slices"]["probability"].between(0, 1).all()
    assert estimate_time(experiment, 0).seconds > 0


# The task


def task(**settings: Any) -> Presence:
    return Presence(Evaluate(**({"primary": "auroc"} | settings)))


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
    loader = SliceLoader(ran.experiment.pack, ran.experiment.config.input, torch.device("cpu"))
    never = ran.experiment.predictor([torch.nn.Module()], loader)  # has no forward
    assert task(threshold=0.3).thresholds(never, ran.experiment.pack.cases) == (0.3,)
    with pytest.raises(NotImplementedError):
        task(threshold="validation").thresholds(never, ran.experiment.pack.cases)


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
            "split=leaky_slices demonstrates a leak of segmentation scores only. Use split=patients",
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

PATIENTS = "abcdefgh"
TRUTH = [False, True, False, True]  # of the four slices of everybody
SURE = [0.1, 0.9, 0.2, 0.8]
ASTRAY = [0.9, 0.1, 0.2, 0.8]
WRONG = [0.9, 0.1, 0.8, 0.2]


def record(name: str, held: list[list[float]], *, seed: str = "0", model: str = "", **values: float) -> RunRecord:
    """A classifier's run on eight patients; `held` is how probable tumour was held, slice by slice."""
    tags = {"data": "d" * 16, "split": "s" * 12, "convention": "1", "dataset": "lgg", "synthetic": "false"}
    slices = pd.DataFrame(
        {
            "case": np.repeat(list(PATIENTS), 4),
            "truth": TRUTH * 8,
            "probability": np.ravel(held),
            "called": np.ravel(held) >= 0.5,
        }
    )
    return RunRecord(
        run_id=f"id-{name}",
        name=name,
        cases=pd.DataFrame({"case": list(PATIENTS)}),
        settings={"model.name": model or name, "loss.name": "bce", "run.seed": seed},
        metrics=values,
        tags={f"bench.{k}": v for k, v in (tags | {"task": "presence"}).items()},
        slices=slices,
    )


def segmented(name: str, dice: float, task: str | None = "segmentation") -> RunRecord:
    """A run without a task is from before there were any."""
    plain = record(name, [SURE] * 8)
    cases = plain.cases.assign(dice=dice, hd95=dice)
    tags = {k: v for k, v in plain.tags.items() if k != "bench.task"} | ({"bench.task": task} if task else {})
    return RunRecord(plain.run_id, name, cases, plain.settings, {"dice": dice}, tags)


PERFECT = record("perfect", [SURE] * 8)
MIXED = record("mixed", [SURE] * 5 + [ASTRAY] * 3)
BAD = record("bad", [WRONG] * 8)


def board_of(*records: RunRecord, **options: Any) -> Board:
    (board,) = build_boards(records, **options)
    return board


def order(board: Board) -> list[str]:
    return [row.name for row in board.rows]


def test_classifiers_are_never_ranked_with_segmenters_of_the_same_patients():
    old, new = segmented("old", 0.7, task=None), segmented("new", 0.8)
    first, second = build_boards([MIXED, old, PERFECT, new])
    assert (first.task, first.primary, order(first)) == ("segmentation", "dice", ["new", "old"])
    assert (second.task, second.primary, order(second)) == ("presence", "auroc", ["perfect", "mixed"])
    assert "presence of tumour" in second.title
    assert "presence" not in first.title


@pytest.mark.parametrize(
    ("primary", "expected"),
    [
        ("dice", [("dice", ["new", "old"]), ("auroc", ["perfect", "mixed"])]),
        ("hd95", [("hd95", ["old", "new"]), ("auroc", ["perfect", "mixed"])]),
        ("brier", [("dice", ["new", "old"]), ("brier", ["perfect", "mixed"])]),
    ],
)
def test_a_score_that_one_task_has_leaves_the_other_board_at_its_headline(primary, expected):
    made = build_boards([MIXED, segmented("old", 0.7), PERFECT, segmented("new", 0.8)], primary=primary)
    assert [(board.primary, order(board)) for board in made] == expected


def test_a_score_of_no_board_is_refused_with_those_of_all():
    with pytest.raises(
        UnknownName, match=r"cannot rank by 'aurocc'; there are auroc, .*ece\..*Did you mean 'auroc'"
    ):
        build_boards([PERFECT], primary="aurocc")


def test_scores_are_over_all_slices():
    board = board_of(MIXED, PERFECT)
    for row, run in zip(board.rows, (PERFECT, MIXED), strict=True):
        assert row.score == pytest.approx(metrics.roc_auc_score(run.slices["truth"], run.slices["probability"]))
    assert (board.rows[0].score, board.patients, board.left_out) == (1, 8, ())


def test_identical_classifiers_tie():
    """All draws of patients agree as well: nothing is between them."""
    twin = record("twin", [SURE] * 5 + [ASTRAY] * 3)
    board = board_of(MIXED, twin)
    for row in board.rows:
        assert (row.rank, row.group, row.p, row.difference) == (1, 1, 1, 0)
        assert (row.difference_low, row.difference_high) == (0, 0)
        assert row.first == pytest.approx(0.5)


def test_a_clearly_better_classifier_leads_in_every_draw():
    """All draws agree, so there is no error to divide by: what is left are eight patients for the same one."""
    first, second = board_of(BAD, PERFECT).rows
    assert (first.name, first.score, first.first) == ("perfect", 1, 1)
    assert (second.rank, second.score, second.first, second.group) == (2, 0, 0, 2)
    assert (second.difference, second.difference_low, second.difference_high) == (-1, -1, -1)
    assert second.p == 2 / 2**8


def test_a_lower_brier_score_ranks_first():
    """0.025 = (0.01 + 0.01 + 0.04 + 0.04) / 4; led astray, two slices of a patient cost 0.81 each."""
    first, second = board_of(MIXED, PERFECT, primary="brier").rows
    assert (first.name, first.score) == ("perfect", pytest.approx(0.025))
    assert (second.name, second.score) == ("mixed", pytest.approx((5 * 0.025 + 3 * 0.425) / 8))
    assert second.difference == pytest.approx(0.15)
    assert second.difference_low >= 0


def test_draws_are_of_whole_patients():
    """Patients of one classifier are all alike, so whoever is drawn it has the same score."""
    alike, unlike = board_of(record("alike", [[0.9, 0.8, 0.2, 0.7]] * 8), MIXED).rows[::-1]
    assert alike.name == "alike"
    assert alike.low == alike.high == alike.score == 0.5
    assert unlike.low < unlike.score < unlike.high


def test_the_interval_that_a_single_run_has_logged_is_shown():
    (row,) = board_of(record("mixed", [SURE] * 5 + [ASTRAY] * 3, auroc_low=0.7, auroc_high=0.97)).rows
    assert (row.low, row.high) == (0.7, 0.97)


def test_seeds_of_a_classifier_are_one_row():
    runs = [record("b", [SURE] * 8, seed="1", model="net", auroc_low=0.9), record("a", [WRONG] * 8, model="net")]
    (row,) = board_of(*runs).rows
    assert (row.name, row.seeds, row.score) == ("b", 2, 0.5)
    assert (row.low, row.high) == (0, 1)  # the one or the other may be drawn twice


SILENT = record("silent", [[0.1] * 4] * 8)
SHY = record("shy", [SURE, *[[0.1] * 4] * 7])  # calls slices of one patient, whom a third of the draws miss


def test_a_classifier_without_the_score_comes_last_and_takes_nobody_along():
    board = board_of(SILENT, MIXED, PERFECT, primary="precision")
    assert [(row.rank, row.name) for row in board.rows] == [(1, "perfect"), (2, "mixed"), (3, "silent")]
    assert isnan(board.rows[2].score)
    assert board.rows[1].score == pytest.approx((5 * 2 + 3) / (8 * 2))
    only = board_of(SILENT, primary="precision")
    assert (only.rows[0].rank, isnan(only.rows[0].score)) == (1, True)


def test_draws_of_patients_for_whom_a_score_is_not_defined_do_not_count():
    first, second = board_of(SHY, BAD, primary="precision").rows
    assert (first.name, first.score, first.first) == ("shy", 1, 1)
    assert (second.score, second.difference_low, second.difference_high) == (0, -1, -1)


# In the store


@pytest.mark.slow
def test_a_logged_classifier_stands_on_its_board_with_its_slices(store: Store, capsys):
    finished = execute(config(train__epochs=1, name="mine", seed=3), uri=store.uri, quiet=True)
    print_finished(finished)
    (found,) = read_records(store)
    assert (found.run_id, found.tags["bench.task"]) == (finished.run_id, "presence")
    (board,) = build_boards([found])
    assert (board.task, order(board), board.patients) == ("presence", ["mine"], 6)
    shown = capsys.readouterr().out
    assert "presence of tumour" in shown
    assert f"{found.metrics['auroc']:.3f}" in shown
    slices = read_table(store, store.client.get_run(finished.run_id), "slices")
    assert found.metrics["auroc"] == pytest.approx(metrics.roc_auc_score(slices["truth"], slices["probability"]))
    assert slices["called"].dtype == bool
    assert isinstance(resolve(config()).task, Presence)
    assert isinstance(resolve(configure({"dataset.size": 32})).task, Segmentation)
