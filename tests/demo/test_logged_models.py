"""The demo with logged runs: which models are shown for a patient, and the command line."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.data.datasets.lgg import lgg
from bench.demo.logged_models import TEST_FOLD_NOT_RUN, LoggedModels, available_folds
from bench.demo.predictions import score
from bench.demo.scans import Patients, Scan, read_dropped_files
from bench.errors import BenchError, DataError, StoreError, UnknownName
from bench.masks import load_masks
from bench.tracking import connect, find_run, open_run
from tests.fakes import Home, inside, make_home, train
from tests.servers import free_port

pytestmark = pytest.mark.slow
CHANNELS = ("pre", "flair", "post")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, template: Path):
    made = make_home(tmp_path_factory.mktemp("demo"), template, "first")
    with pytest.MonkeyPatch.context() as patch:
        inside(made, patch)
        yield made


@pytest.fixture(scope="module")
def models(home: Home) -> LoggedModels:
    return LoggedModels(connect(home.uri), Patients(lgg(folder=home.phantom)))


def fold_masks(models: LoggedModels, fold: int, into: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the masks that the run logged for the test patients of a fold."""
    parent = find_run(models.store, "first")
    (child,) = models.store.client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`bench.fold` = '{fold}'",
    )
    return load_masks(
        Path(models.store.client.download_artifacts(child.info.run_id, "masks/masks.npz", str(into)))
    )


def test_a_patient_is_shown_with_the_mask_and_dice_that_the_run_logged(models, tmp_path):
    run = models.find("first")
    folds = set()
    for case, text in models.describe_patients(run).items():
        shown = models.patients.scan(case)
        made = models.predict(run, shown)
        fold = int(text.removeprefix("tested in fold "))
        (tmp_path / case).mkdir()
        index, masks = fold_masks(models, fold, tmp_path / case)
        assert (made.mask(made.thresholds) == masks[(index["case"] == case).to_numpy()]).all()
        assert made.models_text.startswith(f"Out of fold: the model of fold {fold},")
        assert made.logged_dice == pytest.approx(score(made.mask(made.thresholds), shown.truth).dice, nan_ok=True)
        folds.add(fold)
    assert folds == {0, 1, 2}


def test_files_are_shown_by_all_models_and_recognised_by_their_images(models, tmp_path):
    run, case = models.find("first"), models.patients.cases[0]
    known = models.patients.scan(case)
    files = [tmp_path / f"{n}.png" for n in range(1, len(known.images) + 1)]
    for file, image in zip(files, known.images, strict=True):
        cv2.imwrite(str(file), image[::-1, :, ::-1])  # upside down
    shown = read_dropped_files(files, CHANNELS)
    assert shown.fingerprints == known.fingerprints
    made = models.predict(run, shown)
    whole = models.load(run).models
    assert available_folds(whole) == [0, 1, 2]
    (threshold,) = whole.thresholds
    assert (made.mask((threshold,))[:, 0] == (whole.predict(shown.images) >= threshold)).all()
    assert "the mean of all 3 fold models" in made.models_text
    assert f"the same images as those of {case}" in " ".join(made.warnings)


def test_a_new_patient_is_shown_by_the_mean_of_all_models(models):
    run = models.find("first")
    known = models.patients.scan(models.patients.cases[0])
    new = Scan("s", "zoe", "zoe", known.images, known.truth, known.names, known.channels)  # without fingerprints
    whole = models.load(run).models
    mask = models.predict(run, new).mask(whole.thresholds)
    assert (mask[:, 0] == (whole.predict(known.images) >= 0.5)).all()


def test_a_renamed_patient_is_shown_by_the_fold_that_tested_it(models, home, tmp_path):
    run, case = models.find("first"), models.patients.cases[0]
    folder = next(path for path in home.phantom.rglob(f"{case}*") if path.is_dir())
    shutil.copytree(folder, tmp_path / "subject1")
    other = LoggedModels(models.store, Patients(lgg(folder=tmp_path)))
    assert other.describe_patients(run) == {"subject1": models.describe_patients(run)[case]}
    ours = models.predict(run, models.patients.scan(case))
    theirs = other.predict(run, other.patients.scan("subject1"))
    assert (theirs.models_text, theirs.logged_dice) == (ours.models_text, None)
    assert (theirs.levels == ours.levels).all()
    assert theirs.warnings == (
        *ours.warnings,
        f"These are the same images as those of {case}, who took part in this run under that name.",
    )


def test_models_are_loaded_once_and_a_scan_is_predicted_once(models):
    run, shown = models.find("first"), models.patients.scan(models.patients.cases[0])
    assert models.load(run) is models.load(run)
    assert models.predict(run, shown) is models.predict(run, models.patients.scan(shown.case))


def test_a_run_of_one_fold_refuses_the_patients_it_was_trained_on(home, models):
    train("single", "--fold", 0)
    run = models.find("single")
    texts = models.describe_patients(run)
    assert sorted(texts.values()).count(TEST_FOLD_NOT_RUN) == 4
    trained_on = next(case for case, text in texts.items() if text == TEST_FOLD_NOT_RUN)
    with pytest.raises(DataError, match="was not run: the model of fold 0 was trained"):
        models.predict(run, models.patients.scan(trained_on))


def test_a_scan_with_other_channels_than_the_run_is_refused(models):
    shown = models.patients.scan(models.patients.cases[0])
    other = Scan("o", "o", None, shown.images, None, shown.names, ("t1", "t2", "flair"))
    with pytest.raises(
        DataError, match="was trained on the channels pre, flair, post; this scan has t1, t2, flair"
    ):
        models.predict(models.find("first"), other)


def test_only_finished_segmentation_runs_are_offered(models):
    run, client = models.find("first"), models.store.client
    offered = [r.run_id for r in models.list_runs()]
    client.log_text(run, "case,slice,truth,probability,called\n", "slices.csv")  # as every classifier logs it
    client.set_tag(run, "bench.task", "presence")
    try:
        assert run not in [r.run_id for r in models.list_runs()]
        with pytest.raises(UnknownName, match="is not a finished segmentation run with models"):
            models.find("first")
        client.set_tag(run, "bench.task", "segmentation")
        assert [r.run_id for r in models.list_runs()] == offered
    finally:
        client.delete_tag(run, "bench.task")


def test_a_run_without_models_is_not_offered(home, models):
    """A cascade is made of the masks of other runs: a parent run with tables, without folds."""
    tags = {"bench.kind": "cv", "bench.task": "segmentation"}
    with open_run(models.store, "cascade", "phantom", tags, say=print) as recorder:
        recorder.table("cases", pd.DataFrame({"case": ["ann"], "dice": [0.5]}))
    assert "cascade" not in [r.name for r in models.list_runs()]
    assert "is not a finished segmentation run with models" in refused("cascade", "--port", free_port())


def test_a_fold_stands_for_its_run(models):
    assert models.find(find_run(models.store, "fold 0").info.run_id) in {r.run_id for r in models.list_runs()}


def test_an_unknown_patient_is_refused(models):
    with pytest.raises(DataError, match="no patient nobody"):
        models.patients.scan("nobody")


def refused(*words: object) -> str:
    with pytest.raises(BenchError) as error:
        CliRunner().invoke(app, [str(w) for w in ("demo", *words)], catch_exceptions=False)
    return str(error.value)


def test_a_store_without_runs_is_refused(store):
    assert "no finished segmentation run" in refused("--port", free_port())
    with pytest.raises(StoreError):
        LoggedModels(store, None).list_runs()


def test_without_gradio_the_error_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # so that they are restored
    assert "pip install 'medseg-bench[demo]'" in refused("--port", free_port())


def test_a_busy_port_is_refused():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert "Give another --port" in refused("--port", busy.getsockname()[1])


def test_an_unknown_run_is_refused(home):
    assert "no run 'frist'" in refused("frist", "--port", free_port())
