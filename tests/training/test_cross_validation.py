"""The main job without MLflow: what a run resolves, trains, chooses, scores and leaves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bench import registry
from bench.config import RunConfig
from bench.data.fingerprints import image_table
from bench.errors import BadSetting, BenchError, DataError, TrainingError, UnknownName
from bench.inference.fold_models import FoldModels
from bench.masks import Masks, above_threshold, load_masks, load_probabilities
from bench.metrics.aggregate import summarise
from bench.models.io import load_model
from bench.overrides import override
from bench.structures import Structures, call_structures
from bench.training.cross_validation import cross_validate, estimate_time
from bench.training.experiment import Experiment, resolve
from bench.training.fold import derive_seed
from bench.training.fold_records import case_table
from bench.types import Watch
from tests.fakes import TWO, MemoryRecorder, tiny_pack

pytestmark = pytest.mark.usefixtures("cache")

TINY = {
    "dataset.patients": 6,
    "dataset.size": 32,
    "dataset.slices": 6,
    "dataset.institutions": 2,
    "split.folds": 3,
    "model.base": 4,
    "model.depth": 2,
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.lr": 0.01,
    "device": "cpu",
}


def config(**changes: Any) -> RunConfig:
    return override(override(RunConfig(), TINY), {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def ran(cache: Path):
    experiment = resolve(config())
    recorder = MemoryRecorder()
    return experiment, recorder, cross_validate(experiment, recorder).results


def test_every_patient_is_tested_exactly_once(ran):
    experiment, recorder, _ = ran
    assert sorted(recorder.tables["cases"]["case"]) == sorted(experiment.pack.cases)


def test_a_run_keeps_what_its_images_are_known_by_before_any_preprocessing(ran):
    experiment, recorder, _ = ran
    changed = resolve(config(input__preprocess={"clahe": {}}))
    assert (changed.pack.images != experiment.pack.images).any()
    for pack in (experiment.pack, changed.raw):
        pd.testing.assert_frame_equal(recorder.tables["images"], image_table(pack))
    assert set(recorder.tables["images"]["case"]) == set(experiment.pack.cases)


def test_a_fold_scores_its_own_test_patients(ran):
    experiment, recorder, results = ran
    for fold, result in zip(experiment.folds, results, strict=True):
        assert {s.case for s in result.scores} == fold.test
        assert set(recorder.children[f"fold {fold.number}"].tables["cases"]["case"]) == fold.test


def test_the_parent_carries_the_mean_over_patients_with_its_interval(ran):
    _, recorder, _ = ran
    dice = recorder.tables["cases"]["dice"]
    assert recorder.last("dice") == pytest.approx(dice.mean())
    assert recorder.last("dice_low") <= recorder.last("dice") <= recorder.last("dice_high")


def test_the_logged_masks_give_the_logged_scores(ran, tmp_path):
    experiment, recorder, _ = ran
    for fold in experiment.folds:
        child = recorder.children[f"fold {fold.number}"]
        path = tmp_path / "masks.npz"
        path.write_bytes(child.paths["masks"]["masks.npz"])
        index, masks = load_masks(path)
        for row in child.tables["cases"].itertuples():
            mine = masks[(index["case"] == row.case).to_numpy()]
            truth = experiment.pack.truth(experiment.pack.rows([row.case]))
            assert 2 * (mine & truth).sum() / (mine.sum() + truth.sum()) == pytest.approx(row.dice)


def test_the_logged_probabilities_called_at_the_threshold_are_the_logged_masks(ran, tmp_path):
    experiment, recorder, _ = ran
    for fold in experiment.folds:
        child = recorder.children[f"fold {fold.number}"]
        for name, content in child.paths["masks"].items():
            (tmp_path / name).write_bytes(content)
        index, masks = load_masks(tmp_path / "masks.npz")
        kept, probabilities = load_probabilities(tmp_path / "probabilities.npz")
        pd.testing.assert_frame_equal(kept, index)
        threshold = float(child.tables["cases"]["threshold"].iloc[0])
        for case, values in probabilities.items():
            mask = masks[(index["case"] == case).to_numpy()]
            assert np.array_equal(above_threshold(values, threshold, exclusive=True), mask)


def test_the_logged_model_is_the_one_that_was_scored(ran, tmp_path):
    experiment, recorder, _ = ran
    fold = experiment.folds[0]
    child = recorder.children["fold 0"]
    for name, content in child.paths["model"].items():
        (tmp_path / name).write_bytes(content)
    model, description = load_model(tmp_path)
    assert description["split_hash"] == experiment.split_hash
    from bench.data.loader import SliceLoader
    from bench.inference.predict import Predictor, stacks

    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    for case, _, [stack] in stacks(Predictor([model], loader, 4), fold.test, (0.5,)):
        logged = child.tables["cases"].set_index("case").loc[case]
        assert (stack.tp.sum(), stack.fp.sum()) == (logged["tp"], logged["fp"])


def test_a_model_that_sees_neighbours_is_served_whole_patients_as_it_was_scored(tmp_path):
    experiment = resolve(config(input__neighbours=1, augment__modality_dropout__by="flair"))
    recorder = MemoryRecorder()
    (result,) = cross_validate(experiment, recorder, only=0).results
    assert experiment.channels == 3 * len(experiment.pack.manifest.channels)
    child = recorder.children["fold 0"]
    for name, content in child.paths["model"].items():
        (tmp_path / name).write_bytes(content)
    segmenter = FoldModels([tmp_path])
    for scored in result.scores:
        rows = experiment.pack.rows([scored.case])
        called = segmenter.predict(experiment.pack.images[rows]) >= result.thresholds[0]
        truth = experiment.pack.masks[rows].astype(bool)
        assert (called & truth).sum() == scored.counts["tp"]
        assert (called & ~truth).sum() == scored.counts["fp"]


def test_the_best_epoch_by_validation_is_reported_not_the_last(ran):
    _, recorder, results = ran
    for result in results:
        curve = dict(recorder.children[f"fold {result.fold}"].values["val/dice"])
        assert result.best_score == max(curve.values()) == curve[result.best_epoch]


def test_every_epoch_is_one_row_of_history_and_one_step_of_metrics(ran):
    experiment, recorder, results = ran
    for result in results:
        child = recorder.children[f"fold {result.fold}"]
        assert child.tables["history"]["epoch"].tolist() == [1, 2]
        assert [step for step, _ in child.values["train/loss"]] == [1, 2]
        assert result.images == 2 * 4 * (len(experiment.pack.rows(experiment.folds[result.fold].train)) // 4)


def test_pictures_of_the_best_the_median_and_the_worst_patient_are_left(ran):
    _, recorder, _ = ran
    assert {"overlays/best", "overlays/median", "overlays/worst"} <= recorder.images.keys()
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in recorder.images.values())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores_and_another_seed_others():
    def dices(seed: int) -> list[float]:
        experiment = resolve(config(seed=seed), only=0)
        return [s.values["dice"] for s in cross_validate(experiment, MemoryRecorder(), only=0).results[0].scores]

    first = dices(0)
    assert first == dices(0)
    assert first != dices(1)


@pytest.mark.slow
def test_a_deterministic_run_gives_the_same_weights_bit_by_bit():
    def weights() -> bytes:
        recorder = MemoryRecorder()
        cross_validate(resolve(config(train__deterministic=True), only=0), recorder, only=0)
        return recorder.children["fold 0"].paths["model"]["weights.safetensors"]

    try:
        assert weights() == weights()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_folds_at_once_give_what_they_give_one_after_another():
    def run(at_once: int) -> tuple[MemoryRecorder, list[Any]]:
        recorder = MemoryRecorder()
        done = cross_validate(resolve(config(folds_at_once=at_once, threads=1)), recorder)
        seconds = sum(result.seconds for result in done.results)
        assert done.costs["cost/device_seconds"] == pytest.approx(seconds / at_once), "the device is shared"
        return recorder, done.results

    (alone, one), (together, many) = run(1), run(3)
    for a, b in zip(one, many, strict=True):
        for ours, theirs in zip(a.scores, b.scores, strict=True):
            assert ours.values == pytest.approx(theirs.values, nan_ok=True)
        assert (a.fold, a.best_epoch) == (b.fold, b.best_epoch)
        name = f"fold {a.fold}"
        weights = [r.children[name].paths["model"]["weights.safetensors"] for r in (alone, together)]
        assert weights[0] == weights[1]


def test_a_run_says_how_it_was_computed(ran):
    _, recorder, _ = ran
    assert recorder.labels["plan.execution"] == "eager"
    assert recorder.labels["plan.why"] == "the device is a CPU"
    assert recorder.labels["plan.threads"] == str(torch.get_num_threads())
    for number in range(3):
        labels = recorder.children[f"fold {number}"].labels
        assert labels == {"bench.fold": str(number), "plan.steps": "eager", "plan.parts_of_a_batch": "1"}


class Ear(Watch):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


def test_a_fold_that_has_learnt_nothing_is_not_passed_over_in_silence():
    @registry.model(name="test_mute")
    def mute(channels: int) -> nn.Module:
        """Predicts no tumour, ever."""

        class Mute(nn.Conv2d):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return super().forward(images).clamp(max=0) - 50

        return Mute(channels, 1, 3, padding=1)

    ears = Ear(), Ear()
    chosen = override(RunConfig(), {k: v for k, v in TINY.items() if not k.startswith("model")})
    try:
        cross_validate(resolve(override(chosen, {"model": "test_mute"})), MemoryRecorder(), only=1, watch=ears[0])
    finally:
        del registry.model._entries["test_mute"]
    assert [s for s in ears[0].heard if s.startswith("fold 1 learnt nothing: its validation dice is 0")]
    cross_validate(resolve(config()), MemoryRecorder(), only=1, watch=ears[1])
    assert ears[1].heard == []


def test_a_run_that_outgrows_the_memory_goes_on_in_parts_says_so_and_logs_it():
    @registry.model(name="test_large")
    def large(channels: int) -> nn.Module:
        """Fits two slices while it trains."""

        class Large(nn.Conv2d):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                if self.training and len(images) > 2:
                    raise torch.OutOfMemoryError
                return super().forward(images)

        return Large(channels, 1, 3, padding=1)

    ear, recorder = Ear(), MemoryRecorder()
    plain = {"model": "test_large", "train__batch_size": 8}
    chosen = override(RunConfig(), {k: v for k, v in TINY.items() if not k.startswith("model")})
    try:
        experiment = resolve(override(chosen, {k.replace("__", "."): v for k, v in plain.items()}))
        cross_validate(experiment, recorder, only=0, watch=ear)
    finally:
        del registry.model._entries["test_large"]
    assert ear.heard == [
        "out of memory: each batch of 8 is now split into 2 parts, whose gradients are added up",
        "out of memory: each batch of 8 is now split into 4 parts, whose gradients are added up",
    ]
    assert recorder.children["fold 0"].labels["plan.parts_of_a_batch"] == "4"


# Several structures


def resolve_two(patch: pytest.MonkeyPatch, structures: Structures = TWO, **changes: Any) -> Experiment:
    """An experiment on six patients of two structures."""
    pack = tiny_pack(cases=6, slices=4, structures=structures)
    patch.setattr("bench.training.experiment.raw_pack", lambda config, **options: pack)
    return resolve(config(train__epochs=1, **changes), only=0)


@pytest.mark.parametrize("loss", ["ce_dice", "bce_dice"])
def test_a_run_of_two_structures_scores_each_and_their_mean(loss, tmp_path, monkeypatch):
    experiment, recorder = resolve_two(monkeypatch, loss=loss, evaluate__threshold="validation"), MemoryRecorder()
    [result] = cross_validate(experiment, recorder, only=0).results
    child, cases = recorder.children["fold 0"], recorder.tables["cases"].set_index("case")
    for path, contents in child.paths.items():
        for name, content in contents.items():
            (tmp_path / path).mkdir(exist_ok=True)
            (tmp_path / path / name).write_bytes(content)
    index, masks = load_masks(tmp_path / "masks/masks.npz")
    assert masks.shape == (len(index), 2, 32, 32)
    assert masks.any()
    assert not masks.all(1).any()  # exclusive
    models = FoldModels([tmp_path / "model"])
    assert models.activation == {"ce_dice": "softmax", "bce_dice": "sigmoid"}[loss]
    assert models.thresholds == result.thresholds
    for case, row in cases.iterrows():
        rows, mine = experiment.pack.rows([str(case)]), masks[(index["case"] == case).to_numpy()]
        truth, probability = experiment.pack.truth(rows), models.probabilities(experiment.pack.images[rows])
        np.testing.assert_array_equal(call_structures(probability, result.thresholds, exclusive=True), mine)
        dice = 2 * (mine & truth).sum((0, 2, 3)) / (mine.sum((0, 2, 3)) + truth.sum((0, 2, 3)))
        assert [row["dice[upper]"], row["dice[lower]"], row["dice"]] == pytest.approx([*dice, dice.mean()])
        assert (row["threshold[upper]"], row["threshold[lower]"]) == result.thresholds
    for name in ("dice", "dice[upper]", "dice[lower]"):
        assert recorder.last(name) == pytest.approx(cases[name].mean())
    assert [child.last(f"best/threshold[{name}]") for name in TWO.names] == list(result.thresholds)
    assert {"overlays/best", "overlays/worst"} <= recorder.images.keys()


def test_a_softmax_is_refused_for_structures_that_may_overlap(monkeypatch):
    overlapping = replace(TWO, exclusive=False)
    with pytest.raises(BadSetting, match=r"ce_dice is for structures that exclude each other.* upper, lower may"):
        resolve_two(monkeypatch, overlapping, loss="ce_dice")
    assert resolve_two(monkeypatch, overlapping, loss="bce_dice").structures == ("upper", "lower")


def test_a_classifier_answers_for_all_structures_together(monkeypatch):
    changes = {"model": {"name": "classifier", "encoder": "mobilenetv3_small_050"}, "loss": "bce"}
    experiment = resolve_two(monkeypatch, evaluate__primary="auroc", **changes)
    assert experiment.structures == ("any",)
    masks = torch.zeros(3, 2, 4, 4)
    masks[1, 0, 1, 1] = masks[2, 1, 2, 2] = 1
    assert experiment.task.target(masks).flatten().tolist() == [0, 1, 1]


# Seeds and choices


def test_another_seed_keeps_the_split():
    assert resolve(config(seed=0)).split_hash == resolve(config(seed=1)).split_hash


def test_validation_patients_choose_and_test_patients_do_not(monkeypatch):
    """A spy on scoring: until the weights are chosen, nobody but validation patients is predicted."""
    from bench.inference.predict import Predictor
    from bench.training.tasks import segmentation

    asked: list[frozenset[str]] = []
    real_stacks, real_counts = segmentation.stacks, Predictor.case_counts

    def spy_stacks(predictor, cases, thresholds):
        asked.append(frozenset(cases))
        return real_stacks(predictor, cases, thresholds)

    def spy_counts(predictor, cases, threshold):
        asked.append(frozenset(cases))
        return real_counts(predictor, cases, threshold)

    monkeypatch.setattr(segmentation, "stacks", spy_stacks)
    monkeypatch.setattr(Predictor, "case_counts", spy_counts)
    experiment = resolve(config(evaluate__threshold="validation"))
    cross_validate(experiment, MemoryRecorder(), only=1)
    fold = experiment.folds[1]
    assert asked == [fold.val, fold.val, fold.val, fold.test]  # two epochs, the threshold, the end


@pytest.mark.slow
def test_early_stopping_ends_a_fold(monkeypatch):
    experiment = resolve(config(train__epochs=9, train__patience=2, train__lr=1e-10))
    result = cross_validate(experiment, MemoryRecorder(), only=0).results[0]
    assert result.epochs < 9
    assert result.epochs == result.best_epoch + 2


def test_a_lower_score_can_be_the_better_one():
    experiment = resolve(config(evaluate__primary="hd95"), only=0)
    recorder = MemoryRecorder()
    result = cross_validate(experiment, recorder, only=0).results[0]
    assert result.best_score == min(v for _, v in recorder.children["fold 0"].values["val/hd95"])


def test_one_fold_alone_is_that_fold():
    experiment = resolve(config(), only=2)
    recorder = MemoryRecorder()
    cross_validate(experiment, recorder, only=2)
    assert list(recorder.children) == ["fold 2"]
    assert set(recorder.tables["cases"]["case"]) == experiment.folds[2].test


def test_a_loss_that_is_not_a_number_stops_the_run_with_names(monkeypatch):
    @registry.loss(name="test_nan")
    def nan(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Not a number for the four slices of a batch, but one for the two of the trial."""
        return logits.sum() * (math.nan if len(logits) == 4 else 1)

    try:
        with pytest.raises(TrainingError, match=r"^fold 0: .* epoch 1, step 1, on PHANTOM_\w+ slice \d"):
            cross_validate(resolve(config(loss="test_nan")), MemoryRecorder(), only=0)
    finally:
        del registry.loss._entries["test_nan"]


def test_the_estimate_is_positive_and_trains_no_model_of_ours():
    assert estimate_time(resolve(config())).seconds > 0


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "unnet"}, UnknownName, "Did you mean 'unet'"),
        ({"loss__gama": 1}, BadSetting, "has no setting 'gama'"),
        ({"evaluate__primary": "dise"}, UnknownName, "Did you mean 'dice'"),
        ({"split__folds": 7}, DataError, "Set --folds to 6 or fewer"),
        ({"device": "tpu"}, BadSetting, "device"),
        ({"device": "cuda:99"}, BadSetting, "--device cpu"),
        ({"train__freeze_epochs": 1}, BadSetting, "--encoder"),
        (
            {"train__freeze_epochs": 2, "model__encoder": "resnet18", "model__base": 32, "model__depth": 4},
            BadSetting,
            "smaller",
        ),
        ({"input__channels": "t2"}, BadSetting, "pre, flair, post"),
        ({"model": "pan"}, BadSetting, "128"),
        ({"folds_at_once": 2, "train__deterministic": True}, BadSetting, "one after another"),
        ({"augment": "wrap"}, UnknownName, "Did you mean 'warp'"),
        ({"augment__modality_dropout__by": "flare"}, BadSetting, "Did you mean 'flair'"),
        ({"dataset": "lgg", "dataset__folder": "/nowhere"}, DataError, "/nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(changes, error, says):
    with pytest.raises(error, match=says) as caught:
        resolve(config(**changes))
    assert isinstance(caught.value, BenchError)


def test_no_fold_of_that_number():
    with pytest.raises(UnknownName, match="0 to 2"):
        resolve(config(), only=3)


def test_seeds_depend_on_what_they_are_for():
    assert derive_seed(0, 1) == derive_seed(0, 1)
    assert len({derive_seed(0, 1), derive_seed(1, 0), derive_seed(0, 2), derive_seed(1, 1)}) == 4


@pytest.mark.slow
def test_a_run_on_the_real_data_scores_every_patient_of_a_fold(lgg_folder):
    experiment = resolve(
        override(
            RunConfig(),
            {
                "dataset": "lgg",
                "dataset.folder": str(lgg_folder),
                "input.image_size": 32,
                "model.base": 4,
                "model.depth": 2,
                "train.epochs": 1,
                "augment": "none",
                "evaluate.metrics": ["dice", "dice_slices_empty1"],
            },
        ),
        only=0,
    )
    assert len(experiment.pack.cases) == 88
    table = case_table(experiment, cross_validate(experiment, MemoryRecorder(), only=0).results, Masks(()))
    assert set(table["case"]) == experiment.folds[0].test
    assert isinstance(summarise(table)["dice"], float)
    assert isinstance(experiment.model(0), nn.Module)
    assert pd.notna(table["dice"]).all()  # every patient of this data has a tumour
