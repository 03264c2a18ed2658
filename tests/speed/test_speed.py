"""The arithmetic and the fairness of speed figures; how fast this machine is, is nobody's claim here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.device import keep_memory
from bench.errors import UnknownName
from bench.tracking import connect
from benchmarks.speed import FIGURES, SpeedFigure, SpeedProblem, check, epochs, problem, race, scoring, training, warping
from benchmarks.speed.figure import dump, load, one_thread
from benchmarks.speed.loading import Slices
from benchmarks.speed.table import table
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calling itself

NOWHERE = scoring.Peer("Nobody", "bench_no_such_library", scoring.monai, 2.0, True, "")
WON = SpeedFigure("data", "peer", "images/s", (30.0, 10.0, 20.0), (5.0, 4.0, 9.0), gate=4.0)
LOST = SpeedFigure("data", "peer", "images/s", (19.0,), (5.0,), gate=4.0, note="slower than it should be")
COSTLY = SpeedFigure("track", "none", "s/epoch", (5.2,), (5.0,), gate=1.02, at_most=True)
CHEAP = SpeedFigure("track", "none", "s/epoch", (5.05,), (5.0,), gate=1.02, at_most=True)
ALONE = SpeedFigure("eval", "Nobody", "volumes/s", (3.0,), (), gate=2.0, note=scoring.MISSING)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        yield


@pytest.fixture(scope="module")
def small(cache: None) -> SpeedProblem:
    return problem(repeats=2, quick=True)


def test_a_ratio_is_that_of_the_medians_and_is_held_against_its_gate() -> None:
    assert WON.ratio == 20 / 5
    assert [f.met for f in (WON, LOST, COSTLY, CHEAP, ALONE)] == [True, False, False, True, None]
    assert ALONE.ratio is None


def test_sides_take_turns_after_one_that_is_not_timed() -> None:
    turns: list[str] = []
    now = 0.0

    def side(name: str, things: int, seconds: float) -> int:
        nonlocal now
        turns.append(name)
        now += seconds * len(turns)  # slower with every turn, as on a machine that fills up
        return things

    fast, slow = race(lambda: side("a", 6, 0.5), lambda: side("b", 12, 2.0), repeats=2, clock=lambda: now)
    assert turns == ["a", "b"] * 3
    assert fast == pytest.approx((6 / (0.5 * 3), 6 / (0.5 * 5)))  # the third and the fifth turn of all
    assert slow == pytest.approx((12 / (2 * 4), 12 / (2 * 6)))


def test_one_thread_is_for_the_block_only() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    with one_thread():
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_figures_survive_json_and_carry_their_verdict() -> None:
    figures = [WON, LOST, COSTLY, CHEAP, ALONE]
    text = dump(figures, {"cpu": "abacus"})
    assert load(text) == figures
    said = json.loads(text)
    assert said["machine"] == {"cpu": "abacus"}
    assert [(f["ratio"], f["met"]) for f in said["figures"]][0::4] == [(4.0, True), (None, None)]


def test_the_table_prints_a_lost_figure_like_a_won_one() -> None:
    screen = Console(width=200)
    with screen.capture() as shown:
        screen.print(table([WON, LOST, ALONE]))
    won, lost, alone = (line for line in shown.get().splitlines() if "/s" in line and "ours" not in line)
    assert all(text in won for text in ("20 (10 to 30)", "5 (4 to 9)", "4.00", ">= 4", "yes"))
    assert all(text in lost for text in ("19", "3.80", "NO", "slower than it should be"))
    assert "pip install 'medseg-bench[peers]'" in alone


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_gives_finite_positive_numbers(name: str, small: SpeedProblem) -> None:
    found = FIGURES[name](small)
    assert found
    for figure in found:
        assert figure.name == name
        assert len(figure.ours) == 2
        assert len(figure.theirs) == (0 if figure.note == scoring.MISSING else 1 if name == "roof" else 2)
        assert all(isfinite(v) and v > 0 for v in figure.ours + figure.theirs)


def test_a_peer_that_is_not_installed_says_so_and_stops_nothing(small: SpeedProblem) -> None:
    (figure,) = scoring.figures(small, [NOWHERE])
    assert figure.theirs == ()
    assert figure.note == "not installed: pip install 'medseg-bench[peers]'"
    assert figure.ours


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"no speed figure 'augmnt'. Did you mean 'augment'\?"):
        check(["data", "scaling", "augmnt"])


def test_the_notebook_reads_what_the_pack_holds(small: SpeedProblem) -> None:
    row = int(np.flatnonzero(small.pack.index["positive"])[0])
    image, mask = Slices(small.source.slices)[row]
    pixels = small.pack.images[row].astype(float).transpose(2, 0, 1) / 255
    expected = (pixels - np.reshape((0.485, 0.456, 0.406), (3, 1, 1))) / np.reshape(
        (0.229, 0.224, 0.225), (3, 1, 1)
    )
    np.testing.assert_allclose(image, expected, atol=1e-5)
    np.testing.assert_array_equal(mask[0], small.pack.masks[row])


def test_albumentations_bends_as_strongly_as_the_warp() -> None:
    """Away from the border, where it repeats the outermost noise and bends more."""
    elastic = warping.peer().transforms[-1]
    maps = [elastic.get_params_dependent_on_data({"shape": (128, 128, 3)}, {})["map_x"] for _ in range(12)]
    displaced = (np.stack(maps) - np.arange(128))[:, 24:-24, 24:-24]
    assert displaced.std() == pytest.approx(0.163 * warping.ALPHA / warping.SIGMA, rel=0.1)


def volume() -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((4, 16, 20), bool)
    truth[1:3, 4:11, 5:12] = True
    return scoring.predicted(truth)


def slow_truth(module: None, truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    case = truth, prediction.astype(np.float32), 0.5
    return reference.dice(*case), reference.hd95(*case)


def test_values_are_compared_before_times() -> None:
    case = volume()
    assert scoring.shared(case)[1].any()
    scoring.agree(slow_truth, None, [case])
    with pytest.raises(AssertionError):
        scoring.agree(lambda *args: (slow_truth(*args)[0], slow_truth(*args)[1] + 1e-3), None, [case])
    with pytest.raises(AssertionError):
        scoring.agree(lambda *args: (slow_truth(*args)[0] * 1.001, slow_truth(*args)[1]), None, [case])


def test_monai_defines_dice_and_hd95_as_we_do(small: SpeedProblem) -> None:
    metrics = pytest.importorskip("monai.metrics")
    scoring.agree(scoring.monai, metrics, [volume()])
    found = scoring.monai(metrics, *scoring.shared(volume()))
    assert found == pytest.approx(slow_truth(None, *scoring.shared(volume())), rel=1e-6)


def test_medpy_measures_what_its_note_says() -> None:
    """Its Dice is ours; its HD95 takes one percentile of both directions."""
    metrics = pytest.importorskip("medpy.metric.binary")
    truth, prediction = scoring.shared(volume())
    pooled = []
    for t, p in zip(truth, prediction, strict=True):
        there, back = reference.surface(t), reference.surface(p)
        both = reference.directed(there, back) + reference.directed(back, there)
        pooled.append(reference.percentile(both, 95))
    expected = slow_truth(None, truth, prediction)[0], np.mean(pooled)
    assert scoring.medpy(metrics, truth, prediction) == pytest.approx(expected, rel=1e-9)


def test_the_command_prints_a_table_writes_json_and_logs_to_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = [
        "speed",
        "augment",
        "--quick",
        "--repeats",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--tracking-uri",
        uri,
    ]
    result = CliRunner().invoke(app, [*words, "--tracking-uri", uri], catch_exceptions=False)
    assert result.exit_code == 0
    assert "albumentations" in result.stdout
    text = (tmp_path / "out" / "speed.json").read_text()
    (figure,) = load(text)
    assert figure.name == "augment"
    assert len(figure.ours) == 1
    client = connect(uri).client
    (run,) = client.search_runs([client.get_experiment_by_name("bench speed").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["bench.kind"] == "speed"  # no leaderboard shows it
    (value,) = run.data.metrics.values()
    assert value == pytest.approx(figure.ratio)
    assert Path(client.download_artifacts(run.info.run_id, "speed/speed.json", str(tmp_path))).read_text() == text


def test_scaling_leaves_curves_and_forecasts(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = [
        "speed",
        "scaling",
        "--quick",
        "--repeats",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--tracking-uri",
        uri,
    ]
    result = CliRunner().invoke(app, [*words, "--tracking-uri", uri], catch_exceptions=False)
    assert result.exit_code == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"scaling.png", "scaling.csv", "as-measured-here.csv", "half-of-the-roof-of-an-h200.csv"}


# The peers train as notebooks do


def test_the_notebooks_epoch_shows_every_training_slice_and_validates_on_others(small: SpeedProblem) -> None:
    job = training.jobs(small)[0]
    rows, held = epochs.parts(small)
    assert set(small.pack.index["case"].iloc[rows]).isdisjoint(held)
    assert len(rows) + len(small.pack.rows(held)) == len(small.pack.index)  # two patients, twelve slices
    ours, theirs = epochs.ours(small, job), epochs.notebook(small, job, 1)
    assert ours() == theirs() == len(rows) // job.batch * job.batch


def test_a_notebooks_slice_is_the_packs_slice_resized(small: SpeedProblem) -> None:
    row = int(np.flatnonzero(small.pack.index["positive"])[0])
    side = small.pack.masks.shape[1]
    image, mask = epochs.Slices(list(small.source.slices), side, augmented=False)[row]
    plain, truth = Slices(small.source.slices)[row]
    torch.testing.assert_close(image, plain, atol=1e-4, rtol=0)
    assert torch.equal(mask, (truth > 0).float())


def test_our_step_and_the_notebooks_learn_the_same(small: SpeedProblem) -> None:
    """The first loss of both sides, from one seed and one batch, is one number."""
    job = training.jobs(small)[0]
    images, masks = training.batch_of(small, job)
    loss = registry.loss["bce_dice"].bind({})
    plain = loss(job.build(3)(images.contiguous()), masks)
    fast = loss(job.build(3).to(memory_format=torch.channels_last)(images), masks)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-5)


def test_memory_is_kept_again_after_a_side_that_gives_it_back() -> None:
    def broken() -> int:
        raise ValueError("broken")

    turn = training.within(lambda: broken, training.memory_given_back)
    with pytest.raises(ValueError, match="broken"):
        turn()
    assert keep_memory() is sys.platform.startswith("linux")
