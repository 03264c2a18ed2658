"""Masks of another tool stand on the board of the suite's own runs; nothing is assumed about their training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from bench.analysis.leaderboard import build_boards
from bench.derived.ensemble import ensemble
from bench.derived.guest import read_about, score_files
from bench.derived.rescore import rescore
from bench.errors import BadSetting, DataError
from bench.inference.postprocess import Postprocess
from bench.masks import to_hundredths
from bench.reports.comparison import compare
from bench.tracking import (
    Store,
    Tag,
    connect,
    find_folds,
    find_run,
    read_config,
    read_masks,
    read_probabilities,
    read_records,
)
from bench.tracking import read_table as table
from tests.fakes import Home, inside, make_home

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(tmp_path_factory.mktemp("guest") / "home", template, "tiny")


@pytest.fixture(scope="module")
def store(home: Home):
    with pytest.MonkeyPatch.context() as patch:
        inside(home, patch)
        yield connect(home.uri)


ABOUT = "model: theirs\nepochs: 7\nimages: 900\ndevice: a big one\nseed: 3\n"


@pytest.fixture(scope="module")
def scored(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The masks of the tiny run, as another tool would have saved them: a TIFF for each patient, by fold."""
    own, folder = find_run(store, "tiny"), tmp_path_factory.mktemp("theirs")
    for number, fold in find_folds(store, own).items():
        sub = folder / f"fold_{number}"
        sub.mkdir()
        for case, mask in read_masks(store, fold).items():
            tifffile.imwrite(sub / f"{case}.tif", mask[:, 0].astype(np.uint8) * 255, photometric="minisblack")
    about = folder / "about.yaml"
    about.write_text(ABOUT)
    return score_files(read_config(own), folder, name="guest", by_fold=True, about=about, uri=store.uri)


def test_the_same_masks_have_the_same_scores_on_the_same_board(store, scored):
    own, guest = find_run(store, "tiny"), store.client.get_run(scored)
    before, after = (table(store, run, "cases").sort_values("case", ignore_index=True) for run in (own, guest))
    assert set(before.columns) - set(after.columns) == {"brier", "ece", "threshold"}
    pd.testing.assert_frame_equal(before[after.columns], after, check_exact=True)
    (board,) = build_boards(read_records(store))
    assert {row.name for row in board.rows} == {"tiny", "guest"}


def test_the_board_says_what_the_author_states_and_that_training_was_not_seen(store, scored):
    (board,) = build_boards(read_records(store))
    (row,) = (row for row in board.rows if row.name == "guest")
    assert (row.model, row.weights, row.hardware, row.seed) == ("theirs", "not stated", "a big one", "3")
    assert (row.images, row.epochs, row.guest) == (900, 7, True)
    assert "Scored from files, training not seen: guest." in board.notes
    assert "training not seen" in store.client.get_run(scored).data.tags["mlflow.note.content"]


def test_a_guest_is_compared_and_rescored_but_has_no_models(store, scored, capsys):
    comparison = compare("guest", "tiny", uri=store.uri)
    assert (comparison.paired.difference, comparison.a.weights) == (0, None)  # not stated
    cleaned = store.client.get_run(rescore("guest", postprocess=Postprocess(largest=True), uri=store.uri))
    assert cleaned.data.tags[Tag.RESCORED] == scored
    with pytest.raises(BadSetting, match="run guest was scored from files and has no models"):
        ensemble(["tiny", "guest"], tta="flips", uri=store.uri)


@pytest.fixture(scope="module")
def soft(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, np.ndarray]]:
    """A guest with probabilities: half of them the other way round than the masks of the tiny run."""
    folder, kept = tmp_path_factory.mktemp("soft"), {}
    own = find_run(store, "tiny")
    for number, (case, mask) in enumerate(sorted(read_masks(store, own).items())):
        called = mask if number % 2 else ~mask
        kept[case] = np.where(called, 0.75, 0.25).astype(np.float32)
        tifffile.imwrite(folder / f"{case}.tif", called[:, 0].astype(np.uint8), photometric="minisblack")
        np.savez(folder / f"{case}.npz", probabilities=kept[case].swapaxes(0, 1))
    return score_files(read_config(own), folder, name="soft", probabilities=True, uri=store.uri), kept


@pytest.mark.parametrize("names", [["tiny", "soft"], ["soft", "tiny", "guest"]])
def test_an_ensemble_takes_the_mean_of_models_and_logged_predictions(store, scored, soft, names):
    own = find_run(store, "tiny")
    parts = {
        "tiny": read_probabilities(store, own),
        "soft": {case: 100 * probability for case, probability in soft[1].items()},
        "guest": {case: 100 * mask.astype(int) for case, mask in read_masks(store, own).items()},
    }
    run = store.client.get_run(ensemble(names, uri=store.uri))
    for case, mask in read_masks(store, run).items():
        mean = np.mean([parts[name][case] for name in names], axis=0)
        sure = np.abs(mean - 50) > 1  # what is logged is rounded to hundredths
        assert sure.mean() > 0.5
        assert np.array_equal(mask[sure], mean[sure] > 50)
    assert set(table(store, run, "cases")["threshold"]) == {0.5}
    assert Tag.POST_HOC not in run.data.tags


def test_probabilities_are_scored_and_kept(store, soft):
    run = store.client.get_run(soft[0])
    assert table(store, run, "cases")["ece"].notna().all()
    (*_, fold) = find_folds(store, run).values()
    for case, logged in read_probabilities(store, fold).items():
        assert np.array_equal(logged, to_hundredths(soft[1][case]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("modell: unet", "modell: Extra inputs"), ("epochs: -1", "epochs: Input should be greater")],
)
def test_what_the_author_may_not_state_is_named(text, reason, tmp_path: Path):
    path = tmp_path / "about.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"about\.yaml cannot be used") as caught:
        read_about(path)
    assert reason in str(caught.value)
    assert "It may state model, encoder, loss" in str(caught.value)


def test_what_the_author_states_is_read_as_all_settings_are(tmp_path: Path):
    path = tmp_path / "about.yaml"
    path.write_text("version: 2.5\nnote: off\nimages: 1e5\n")
    stated = read_about(path)
    assert (stated.version, stated.note, stated.images) == ("2.5", "off", 1e5)
    path.write_text("a: &a [x]\nnote: [*a, &b [*b]]\n")
    with pytest.raises(DataError, match=r"about\.yaml is not YAML: its aliases repeat values without end"):
        read_about(path)
