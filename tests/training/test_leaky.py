"""The leaky split shows the leak, is scored like any other, says what it is, and is never ranked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench import registry
from bench.analysis.leaderboard import build_boards
from bench.config import Input, RunConfig
from bench.data.datasets.phantom import write_phantom
from bench.data.loader import SliceLoader
from bench.data.pack import Pack, load_or_pack, one_case_per_slice
from bench.data.splits import leaky_slices, patients, split_table
from bench.errors import BadSetting, DataError, LeakageError
from bench.experiments.run import dry_run, execute, print_finished
from bench.masks import load_masks
from bench.metrics.aggregate import summarise
from bench.models.io import load_model
from bench.overrides import override
from bench.tracking import LEAKY, Store, find_run, open_run, read_records, read_table
from bench.tracking.participants import read_participants
from bench.tracking.tags import Tag
from bench.training.cross_validation import CrossValidationResult, cross_validate
from bench.training.experiment import Experiment, raw_pack, resolve
from bench.types import Fold, Watch
from tests.fakes import MemoryRecorder, tiny_pack

pytestmark = pytest.mark.usefixtures("cache")

CPU = torch.device("cpu")
TINY = {
    "dataset.patients": 6,
    "dataset.size": 32,
    "dataset.slices": 6,
    "dataset.institutions": 2,
    "split": "leaky_slices",
    "split.folds": 3,
    "model.base": 4,
    "model.depth": 2,
    "train.epochs": 3,
    "train.batch_size": 4,
    "train.lr": 0.01,
}


def config(**changes: Any) -> RunConfig:
    return override(RunConfig(), TINY, {k.replace("__", "."): v for k, v in changes.items()})


class Ear(Watch):
    """Remembers what is said of each fold's test."""

    def __init__(self) -> None:
        self.heard: dict[int, dict[str, float]] = {}

    def scored(self, number: int, values: Any) -> None:
        self.heard[number] = dict(values)


Ran = tuple[Experiment, MemoryRecorder, CrossValidationResult, Ear]


@pytest.fixture(scope="module")
def ran(cache: Path) -> Ran:
    experiment, recorder, ear = resolve(config()), MemoryRecorder(), Ear()
    return experiment, recorder, cross_validate(experiment, recorder, watch=ear), ear


@pytest.fixture(scope="module")
def pack(cache: Path) -> Pack:
    """The phantom of the runs as it is: a patient is a patient."""
    return load_or_pack(registry.dataset["phantom"].bind(config().dataset.params)())


def counted(masks: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Pixels, counted from scratch."""
    pairs = {"tp": masks & truth, "fp": masks & ~truth, "fn": ~masks & truth, "tn": ~masks & ~truth}
    return {name: int(pixels.sum()) for name, pixels in pairs.items()}


def logged_masks(child: MemoryRecorder, folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    path = folder / "masks.npz"
    path.write_bytes(child.paths["masks"]["masks.npz"])
    return load_masks(path)


# The split


def test_no_other_split_leaks():
    assert [name for name in registry.split if registry.split[name].facts.get("leaky")] == ["leaky_slices"]
    assert "LEAKY" in registry.split["leaky_slices"].summary


def test_a_pack_by_slice_has_the_same_slices_under_names_of_their_own():
    whole = tiny_pack(cases=3, slices=4)
    alone = one_case_per_slice(whole)
    assert alone.cases == [f"P{case}#{number}" for case in range(3) for number in range(1, 5)]
    assert alone.index["patient"].tolist() == whole.index["case"].tolist()
    assert alone.images is whole.images
    assert alone.masks is whole.masks
    assert alone.manifest == whole.manifest
    assert "patient" not in whole.index
    assert alone.rows(["P1#3"]).tolist() == [6]
    assert alone.profile() == whole.profile()


def test_slices_of_one_patient_are_on_two_sides(ran):
    experiment = ran[0]
    patient = experiment.pack.index.set_index("case")["patient"]
    assert experiment.leaky
    for fold in experiment.folds:
        sides = [set(patient[sorted(part)]) for part in (fold.train, fold.val, fold.test)]
        assert len(sides[0] & sides[2]) >= 5  # of six patients
    assert sorted(s for fold in experiment.folds for s in fold.test) == sorted(experiment.pack.cases)


def test_the_split_of_patients_keeps_them_together():
    assert not resolve(config(split="patients", split__folds=3)).leaky


@pytest.mark.parametrize("cases", [1, 2])
def test_even_few_patients_have_slices_enough(cases):
    """The split itself sees slices, of which a single patient has many; too few are refused as patients are."""
    index = one_case_per_slice(tiny_pack(cases=cases, slices=6)).index
    folds = leaky_slices(index, folds=3)
    assert sorted(s for fold in folds for s in fold.test) == sorted(index["case"])
    with pytest.raises(DataError, match="cannot be split into 13 folds"):
        leaky_slices(index, folds=13)


def test_the_table_of_the_split_names_real_patients(ran):
    experiment, recorder, *_ = ran
    table = recorder.tables["split"]
    assert set(table["case"]) == set(recorder.tables["images"]["case"]) == set(experiment.pack.index["patient"])
    assert len(table) == 3 * 36
    assert (table["slices"] == 1).all()
    tested = table[table["part"] == "test"]
    assert tested["case"].value_counts().tolist() == [6] * 6
    assert tested["positive"].sum() == experiment.pack.index["positive"].sum()


def test_the_table_of_another_split_is_as_it_was():
    whole = tiny_pack(cases=4, slices=3)
    table = split_table(whole.index, patients(whole.index, folds=2))
    assert set(table["case"]) == set(whole.cases)
    assert (table["slices"] == 3).all()


# What a slice is to a model


@pytest.mark.parametrize("normalise", ["patient", "image", "imagenet"])
def test_grey_levels_are_normalised_as_without_the_leak(normalise):
    """Slices that get brighter one by one: by patient they keep their differences, alone they would lose them."""
    plain = tiny_pack(cases=3, slices=4)
    images = plain.images // 2 + (np.arange(12) * 10).astype(np.uint8)[:, None, None, None]
    bins = [[np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)] for image in images]
    whole = Pack(plain.folder, plain.manifest, images, plain.masks, np.array(bins, np.uint32), plain.index)
    rows = np.arange(12)
    alone, together = (
        SliceLoader(p, Input(normalise=normalise), CPU).load_normalised(rows)[0]
        for p in (one_case_per_slice(whole), whole)
    )
    assert torch.equal(alone, together)
    by_itself = SliceLoader(whole, Input(normalise="image"), CPU).load_normalised(rows)[0]
    assert torch.allclose(alone, by_itself) == (normalise == "image")


# A run


def test_every_real_patient_is_scored_once_from_the_logged_masks(ran, pack, tmp_path):
    experiment, recorder, *_ = ran
    found = [logged_masks(recorder.children[f"fold {fold.number}"], tmp_path) for fold in experiment.folds]
    names, masks = pd.concat([index for index, _ in found]), np.concatenate([mask for _, mask in found])
    cases = recorder.tables["cases"]
    assert sorted(cases["case"]) == sorted(pack.cases)
    for row in cases.to_dict("records"):
        of_patient = [name.rsplit("#", 1)[0] == row["case"] for name in names["case"]]
        order = np.argsort(names["slice"][of_patient].to_numpy())
        truth = pack.truth(pack.rows([row["case"]]))
        pixels = counted(masks[of_patient][order], truth)
        assert {name: row[name] for name in pixels} == pixels
        below = 2 * pixels["tp"] + pixels["fp"] + pixels["fn"]
        assert row["dice"] == pytest.approx(2 * pixels["tp"] / below)
    assert 0 < masks.mean() < 0.9  # or the order of the slices would not matter


def test_the_headline_is_the_mean_over_real_patients_with_their_interval(ran):
    _, recorder, outcome, _ = ran
    cases = recorder.tables["cases"]
    assert recorder.last("patients") == len(cases) == 6
    assert recorder.last("dice") == outcome.values["dice"] == pytest.approx(cases["dice"].mean())
    assert outcome.values == pytest.approx(summarise(cases), nan_ok=True)
    assert recorder.last("missed_slices") == cases["missed_slices"].sum()


def test_a_fold_too_is_scored_by_patients(ran, pack, tmp_path):
    """Of the slices that it tests: a Dice of single slices would go by the name of another number."""
    experiment, recorder, _, ear = ran
    for fold in experiment.folds:
        child = recorder.children[f"fold {fold.number}"]
        names, masks = logged_masks(child, tmp_path)
        dices = []
        for patient, rows in pack.index.groupby("case"):
            tested = [f"{patient}#{number}" in fold.test for number in rows["slice"]]
            truth = pack.truth(rows.index[tested].to_numpy())
            mask = [masks[names["case"] == f"{patient}#{n}"] for n in rows["slice"][tested]]
            pixels = counted(np.concatenate([*mask, np.zeros((0, 1, 32, 32), bool)]), truth)
            below = 2 * pixels["tp"] + pixels["fp"] + pixels["fn"]
            dices.append(2 * pixels["tp"] / below if below else np.nan)
        assert child.last("test/dice") == ear.heard[fold.number]["dice"] == pytest.approx(np.nanmean(dices))
        assert child.last("test/patients") == child.tables["cases"]["case"].nunique() <= 6
        assert set(child.tables["cases"]["case"]) <= set(pack.cases)


def test_metrics_that_need_a_probability_are_left_out_and_masks_are_no_picture(ran):
    _, recorder, *_ = ran
    columns = set(recorder.tables["cases"].columns)
    assert {"dice", "hd95", "missed_slices", "tp"} <= columns
    assert not {"brier", "ece"} & columns
    assert not recorder.images


def test_one_fold_alone_scores_the_slices_that_it_tests():
    experiment, recorder = resolve(config(train__epochs=1), only=1), MemoryRecorder()
    cross_validate(experiment, recorder, only=1)
    tested = recorder.tables["cases"]
    pixels = tested[["tp", "fp", "fn", "tn"]].sum(axis=1)
    assert pixels.sum() == len(experiment.folds[1].test) * 32 * 32
    assert tested["case"].is_unique


def test_the_logged_model_is_one_of_patients(ran, tmp_path):
    _, recorder, *_ = ran
    for name, content in recorder.children["fold 0"].paths["model"].items():
        (tmp_path / name).write_bytes(content)
    _, description = load_model(tmp_path)
    assert description["config"]["split"]["name"] == "leaky_slices"
    assert description["split_hash"] != resolve(config(split="patients", split__folds=3)).split_hash


# In the store


@pytest.mark.slow
def test_a_leaky_run_is_logged_marked_and_on_no_board(store: Store, pack, capsys):
    finished = execute(config(name="leaky", train__epochs=1), uri=store.uri)
    print_finished(finished)
    said = capsys.readouterr()
    assert "leaky: LEAKY, on no leaderboard\nDice 0." in said.out
    assert "LEAKY SPLIT" in said.out
    assert "LEAKY SPLIT" in said.err
    assert "6 patients, 36 slices" in said.err
    run = find_run(store, "leaky")
    assert (run.info.run_id, run.info.status, run.data.tags[Tag.KIND]) == (finished.run_id, "FINISHED", LEAKY)
    assert "LEAKY" in run.data.tags["mlflow.note.content"]
    assert '"patients": 6' in run.inputs.dataset_inputs[0].dataset.profile
    cases = read_table(store, run, "cases")
    assert set(cases["case"]) == read_participants(store, run).names == set(pack.cases)
    same = {tag: run.data.tags[tag] for tag in ("bench.data", "bench.split", "bench.convention", "bench.dataset")}
    assert read_records(store) == read_records(store, tags=same) == []
    with open_run(store, "honest", "phantom", same) as honest:  # as if its split had been the same
        honest.table("cases", cases)
    found = read_records(store)
    assert [[row.run_id for row in board.rows] for board in build_boards(found)] == [[honest.run_id]]
    assert run.data.metrics["dice"] == pytest.approx(cases["dice"].mean())


def test_a_plan_says_that_it_leaks(capsys):
    dry_run(config())
    assert "LEAKY SPLIT" in capsys.readouterr().err


# The canary


def copied_dice(pack: Pack, truth_of: pd.Series, folds: list[Fold]) -> float:
    """Mean per-patient Dice of copying, for each test slice, the mask of the most similar training slice.

    It learns nothing: what it scores is leakage. `truth_of` is the patient of each row.
    """
    flair = pack.images[..., 1].reshape(len(pack.images), -1).astype(np.float32)
    flair /= np.linalg.norm(flair, axis=1, keepdims=True).clip(1)
    copied = np.zeros(pack.masks.shape, bool)
    for fold in folds:
        train, test = pack.rows(fold.train), pack.rows(fold.test)
        copied[test] = pack.masks[train[(flair[test] @ flair[train].T).argmax(1)]]
    scores = []
    for rows in pack.index.groupby(truth_of).indices.values():
        pixels = counted(copied[rows], pack.masks[rows].astype(bool))
        scores.append(2 * pixels["tp"] / max(2 * pixels["tp"] + pixels["fp"] + pixels["fn"], 1))
    return float(np.mean(scores))


@pytest.mark.slow
def test_copying_the_nearest_training_slice_pays_only_where_slices_leak():
    pack = load_or_pack(registry.dataset["phantom"].bind({"slices": 16, "size": 32})())
    alone, whose = one_case_per_slice(pack), pack.index["case"]
    for seed in range(2):
        leaky = copied_dice(alone, whose, leaky_slices(alone.index, seed=seed))
        honest = copied_dice(pack, whose, patients(pack.index, seed=seed))
        assert leaky > honest + 0.3


# One image under two names


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """A phantom in which slice 4 of the last patient is a copy of slice 3 of the first."""
    folder = write_phantom(tmp_path / "data", patients=6, size=32, slices=6, institutions=2)
    first, *_, last = sorted(path for path in folder.iterdir() if path.is_dir())
    shutil.copy(first / f"{first.name}_3.tif", last / f"{last.name}_4.tif")
    return folder


def on_disk(folder: Path, split: str) -> RunConfig:
    settings = {key: value for key, value in TINY.items() if not key.startswith(("dataset", "split"))}
    return override(RunConfig(), settings, {"dataset": "lgg", "dataset.folder": str(folder), "split": split})


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A split scheme of these folds, each (train, val, test) by the places of patients in order."""

    def scheme(*folds: tuple[list[int], list[int], list[int]]) -> str:
        def given(index: pd.DataFrame) -> list[Fold]:
            names = [*sorted(index["case"].unique()), "stranger"]
            sides = ([frozenset(names[i] for i in side) for side in fold] for fold in folds)
            return [Fold(number, *side) for number, side in enumerate(sides)]

        monkeypatch.setitem(registry.split._entries, "given", registry.Entry("split", "given", given))
        return "given"

    return scheme


@pytest.mark.parametrize("fold", [([0, 1], [2], [5]), ([1], [0, 2], [5, 3]), ([1, 5], [0], [2])])
def test_an_image_of_two_patients_is_refused_where_they_play_two_parts(doubled, parts, fold):
    config = on_disk(doubled, parts(fold))
    first, *_, last = raw_pack(config).cases
    with pytest.raises(LeakageError, match="fold 0 has one image on two sides") as refused:
        resolve(config)
    assert f"slice 3 of {first} (" in str(refused.value)
    assert f"slice 4 of {last} (" in str(refused.value)


@pytest.mark.parametrize("fold", [([0, 5], [2], [3]), ([1], [2], [0, 5]), ([0, 1], [2], [3])])
def test_it_is_not_where_they_play_one_or_one_plays_none(doubled, parts, fold):
    assert resolve(on_disk(doubled, parts(fold))).folds


def test_the_split_that_shows_the_leak_takes_it_as_it_is(doubled):
    assert resolve(on_disk(doubled, "leaky_slices")).leaky


# Split schemes of one's own


def test_a_split_of_patients_that_are_not_there_is_refused(doubled, parts):
    with pytest.raises(BadSetting, match=r"fold 0 has 1 patient.* not in the data, such as stranger"):
        resolve(on_disk(doubled, parts(([0, 6], [1], [2]))))


def test_a_split_that_tests_a_patient_twice_is_refused(doubled, parts):
    with pytest.raises(BadSetting, match="is tested in fold 0 and in fold 1"):
        resolve(on_disk(doubled, parts(([0], [1], [2, 3]), ([0], [1], [3, 4]))))
