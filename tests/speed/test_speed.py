"""The arithmetic and the fairness of speed figures. No test depends on the speed of this machine."""

from __future__ import annotations

import json
import sys
from math import isfinite
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from bench import registry
from bench.analysis.pairs import wilcoxon_pairs
from bench.analysis.ranking import rank_models
from bench.device import keep_memory
from bench.errors import UnknownName
from bench.tracking import connect
from benchmarks.speed import epochs, ranking, scoring, training, warping
from benchmarks.speed.__main__ import app
from benchmarks.speed.command import DEFAULT, check_names
from benchmarks.speed.figure import SpeedFigure, dump, load, one_thread, race
from benchmarks.speed.loading import TiffSlices
from benchmarks.speed.problem import SpeedProblem, make_problem
from benchmarks.speed.table import make_table
from tests import reference

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calling itself
]

NOWHERE = scoring.ScoringPeer("Nobody", "bench_no_such_library", scoring.score_with_monai, 2.0, True, "")
WON = SpeedFigure("data", "peer", "images/s", (30.0, 10.0, 20.0), (5.0, 4.0, 9.0), gate=4.0)
LOST = SpeedFigure("data", "peer", "images/s", (19.0,), (5.0,), gate=4.0, note="slower than it should be")
COSTLY = SpeedFigure("track", "none", "s/epoch", (5.2,), (5.0,), gate=1.02, at_most=True)
CHEAP = SpeedFigure("track", "none", "s/epoch", (5.05,), (5.0,), gate=1.02, at_most=True)
ALONE = SpeedFigure("eval", "Nobody", "volumes/s", (3.0,), (), gate=2.0, note=scoring.MISSING)


@pytest.fixture(scope="module")
def small(cache: Path) -> SpeedProblem:
    return make_problem(repeats=2, quick=True)


def test_the_ratio_of_the_medians_is_checked_against_the_gate() -> None:
    assert WON.ratio == 20 / 5
    assert [f.met for f in (WON, LOST, COSTLY, CHEAP, ALONE)] == [True, False, False, True, None]
    assert ALONE.ratio is None


def test_sides_take_turns_and_the_first_turn_is_not_timed() -> None:
    turns: list[str] = []
    now = 0.0

    def side(name: str, items: int, seconds: float) -> int:
        nonlocal now
        turns.append(name)
        now += seconds * len(turns)  # every turn is slower, as on a machine that gets busier
        return items

    ours, theirs = race(lambda: side("a", 6, 0.5), lambda: side("b", 12, 2.0), repeats=2, clock=lambda: now)
    assert turns == ["a", "b"] * 3
    assert ours == pytest.approx((6 / (0.5 * 3), 6 / (0.5 * 5)))  # the third and fifth turn overall
    assert theirs == pytest.approx((12 / (2 * 4), 12 / (2 * 6)))


def test_one_thread_applies_to_the_block_only() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    with one_thread():
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_figures_survive_json_which_also_has_ratio_and_verdict() -> None:
    figures = [WON, LOST, COSTLY, CHEAP, ALONE]
    text = dump(figures, {"cpu": "abacus"})
    assert load(text) == figures
    content = json.loads(text)
    assert content["machine"] == {"cpu": "abacus"}
    assert [(f["ratio"], f["met"]) for f in content["figures"]][0::4] == [(4.0, True), (None, None)]


def test_the_table_prints_lost_and_won_figures_alike() -> None:
    screen = Console(width=200)
    with screen.capture() as shown:
        screen.print(make_table([WON, LOST, ALONE]))
    won, lost, alone = (line for line in shown.get().splitlines() if "/s" in line and "ours" not in line)
    assert all(text in won for text in ("20 (10 to 30)", "5 (4 to 9)", "4.00", ">= 4", "yes"))
    assert all(text in lost for text in ("19", "3.80", "NO", "slower than it should be"))
    assert "pip install 'medseg-bench[peers]'" in alone


@pytest.mark.parametrize("name", DEFAULT)
def test_every_figure_has_finite_positive_values(name: str, small: SpeedProblem) -> None:
    figures = DEFAULT[name](small)
    assert figures
    for figure in figures:
        assert figure.name == name
        assert len(figure.ours) == 2
        alone = not figure.peer or figure.note == scoring.MISSING
        assert len(figure.theirs) == (0 if alone else 1 if name == "roof" else 2)
        assert all(isfinite(v) and v > 0 for v in figure.ours + figure.theirs)


def test_the_peer_of_ranking_computes_the_same_numbers() -> None:
    scores = ranking.draw_scores(3)
    p, ends = ranking.rank_one_by_one(scores, resamples=99)
    ranked = rank_models(scores, resamples=99)
    assert p.tolist() == wilcoxon_pairs(scores)[0][np.triu_indices(3, 1)].tolist()
    assert ends[:3] == pytest.approx(np.array([(row.interval.low, row.interval.high) for row in ranked]))


def test_a_missing_peer_is_noted_and_stops_nothing(small: SpeedProblem) -> None:
    (figure,) = scoring.measure(small, [NOWHERE])
    assert figure.theirs == ()
    assert figure.note == "not installed: pip install 'medseg-bench[peers]'"
    assert figure.ours


def test_an_unknown_figure_is_an_error() -> None:
    with pytest.raises(UnknownName, match=r"no speed figure named 'augmnt'. Did you mean 'augment'\?"):
        check_names(["data", "scaling", "augmnt"])


def test_the_notebook_reads_the_pixels_of_the_pack(small: SpeedProblem) -> None:
    row = int(np.flatnonzero(small.pack.index["positive"])[0])
    image, mask = TiffSlices(small.source.slices)[row]
    pixels = small.pack.images[row].astype(float).transpose(2, 0, 1) / 255
    expected = (pixels - np.reshape((0.485, 0.456, 0.406), (3, 1, 1))) / np.reshape(
        (0.229, 0.224, 0.225), (3, 1, 1)
    )
    np.testing.assert_allclose(image, expected, atol=1e-5)
    np.testing.assert_array_equal(mask[0], small.pack.masks[row])


def test_albumentations_deforms_as_strongly_as_the_warp() -> None:
    """Measured away from the border, where albumentations repeats the outermost noise and deforms more."""
    elastic = warping.albumentations_warp().transforms[-1]
    maps = [elastic.get_params_dependent_on_data({"shape": (128, 128, 3)}, {})["map_x"] for _ in range(12)]
    displaced = (np.stack(maps) - np.arange(128))[:, 24:-24, 24:-24]
    assert displaced.std() == pytest.approx(0.163 * warping.ALPHA / warping.SIGMA, rel=0.1)


def volume() -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((4, 16, 20), bool)
    truth[1:3, 4:11, 5:12] = True
    return scoring.make_volume(truth)


def reference_scores(module: None, truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    case = truth, prediction.astype(np.float32), 0.5
    return reference.dice(*case), reference.hd95(*case)


def test_peers_with_other_values_are_refused() -> None:
    case = volume()
    assert scoring.select_marked_slices(case)[1].any()
    scoring.check_agreement(reference_scores, None, [case])
    overlap, distance = reference_scores(None, *scoring.select_marked_slices(case))
    for scores in ((overlap, distance + 1e-3), (overlap * 1.001, distance)):
        with pytest.raises(AssertionError):
            scoring.check_agreement(lambda *_, scores=scores: scores, None, [case])


def test_monai_defines_dice_and_hd95_as_we_do(small: SpeedProblem) -> None:
    metrics = pytest.importorskip("monai.metrics")
    scoring.check_agreement(scoring.score_with_monai, metrics, [volume()])
    scores = scoring.score_with_monai(metrics, *scoring.select_marked_slices(volume()))
    assert scores == pytest.approx(reference_scores(None, *scoring.select_marked_slices(volume())), rel=1e-6)


def test_medpy_differs_from_us_as_its_note_says() -> None:
    """Its Dice equals ours; its HD95 is one percentile of both directions pooled."""
    metrics = pytest.importorskip("medpy.metric.binary")
    truth, prediction = scoring.select_marked_slices(volume())
    pooled = []
    for t, p in zip(truth, prediction, strict=True):
        true, predicted = reference.surface(t), reference.surface(p)
        both = reference.directed(true, predicted) + reference.directed(predicted, true)
        pooled.append(reference.percentile(both, 95))
    expected = reference_scores(None, truth, prediction)[0], np.mean(pooled)
    assert scoring.score_with_medpy(metrics, truth, prediction) == pytest.approx(expected, rel=1e-9)


def run_quick(figure: str, out: Path, uri: str) -> Result:
    options = ["--quick", "--repeats", "1", "--out", str(out), "--tracking-uri", uri]
    result = CliRunner().invoke(app, [figure, *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def test_the_command_prints_a_table_writes_json_and_logs_to_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    result = run_quick("augment", tmp_path / "out", uri)
    assert "albumentations" in result.stdout
    text = (tmp_path / "out" / "speed.json").read_text()
    (figure,) = load(text)
    assert figure.name == "augment"
    assert len(figure.ours) == 1
    client = connect(uri).client
    (run,) = client.search_runs([client.get_experiment_by_name("bench speed").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["bench.kind"] == "speed"  # so that no leaderboard shows it
    (value,) = run.data.metrics.values()
    assert value == pytest.approx(figure.ratio)
    assert Path(client.download_artifacts(run.info.run_id, "speed/speed.json", str(tmp_path))).read_text() == text


def test_the_scaling_command_writes_a_table_and_a_plot(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_quick("scaling", tmp_path / "out", uri)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scaling.png", "scaling.csv"}


def test_both_epochs_train_on_the_same_slices_and_validate_on_others(small: SpeedProblem) -> None:
    job = training.training_jobs(small)[0]
    rows, validation = epochs.split_rows(small)
    assert set(small.pack.index["case"].iloc[rows]).isdisjoint(validation)
    assert len(rows) + len(small.pack.rows(validation)) == len(small.pack.index)  # two patients, twelve slices
    ours, theirs = epochs.build_our_epoch(small, job), epochs.build_notebook_epoch(small, job, 1)
    assert ours() == theirs() == len(rows) // job.batch * job.batch


def test_a_notebooks_slice_equals_the_resized_slice_of_the_pack(small: SpeedProblem) -> None:
    row = int(np.flatnonzero(small.pack.index["positive"])[0])
    side = small.pack.masks.shape[1]
    image, mask = epochs.ResizedTiffSlices(list(small.source.slices), side, augmented=False)[row]
    original, truth = TiffSlices(small.source.slices)[row]
    torch.testing.assert_close(image, original, atol=1e-4, rtol=0)
    assert torch.equal(mask, (truth > 0).float())


def test_our_step_and_the_notebooks_start_from_the_same_loss(small: SpeedProblem) -> None:
    """Both sides compute the same first loss from one seed and one batch."""
    job = training.training_jobs(small)[0]
    images, masks = training.load_batch(small, job)
    loss = registry.loss["bce_dice"].bind({})
    notebook = loss(job.build(3)(images.contiguous()), masks)
    ours = loss(job.build(3).to(memory_format=torch.channels_last)(images), masks)
    assert ours.item() == pytest.approx(notebook.item(), rel=1e-5)


def test_memory_is_kept_again_after_a_side_that_returns_it() -> None:
    def broken() -> int:
        raise ValueError("broken")

    turn = training.build_inside(lambda: broken, training.memory_returned)
    with pytest.raises(ValueError, match="broken"):
        turn()
    assert keep_memory() is sys.platform.startswith("linux")
