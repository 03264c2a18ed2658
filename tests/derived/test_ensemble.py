"""Ensembles: only models that have not seen a patient predict it, and a turned slice is turned back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bench.config import Input, Patch
from bench.console import Display
from bench.data.loader import SliceLoader
from bench.derived.ensemble import ensemble, fingerprint, fold_thresholds, threshold_rule
from bench.errors import BadSetting, StoreError, UnknownName
from bench.experiments.run import execute
from bench.inference.fold_models import VIEWS, FoldModels, tta_views
from bench.inference.predict import MeanPredictor, Predictor
from bench.inference.sliding_window import tiled
from bench.masks import to_hundredths
from bench.overrides import configure
from bench.tracking import (
    Store,
    connect,
    download_models,
    find_run,
    open_run,
    read_masks,
    read_probabilities,
    read_table,
)
from bench.tracking.selection import load_run_pack
from bench.training.tasks.segmentation import Segmentation
from tests.fakes import tiny_pack

pytestmark = pytest.mark.slow

Side = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]  # there, and back

BASE = {
    "dataset": {"name": "phantom", "patients": 9, "size": 32, "slices": 6, "institutions": 2},
    "split": {"name": "patients", "folds": 3, "validation": 0.4},
    "model": {"name": "unet", "base": 4, "depth": 2},
    "train": {"epochs": 8, "batch_size": 4, "lr": 0.02},  # enough for thresholds to tell patients apart
}
RUNS = {
    "small": {},
    "twin": {"searched": 30},  # the same once more
    "other": {
        "input": {"image_size": 24, "normalise": "image"},
        "evaluate": {"threshold": "validation"},
        "loss": "dice",
        "seed": 1,
    },
}
OTHERS = {"apart": {"bench.split": "another"}, "gate": {"bench.task": "presence"}, "bare": {}}  # nothing in them
ENSEMBLES = {
    "pair": (["small", "other"], "flips"),
    "same": (["small", "twin"], "none"),
    "alone": (["other"], "turns"),
}


@pytest.fixture(scope="module")
def ran(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """A store with the runs and ensembles above, and what was printed of each ensemble."""
    folder = tmp_path_factory.mktemp("ensemble")
    shutil.copytree(template, folder / "mlruns")
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        for name, changes in RUNS.items():
            execute(configure(BASE, changes, {"name": name}), uri=uri, quiet=True)
        small = find_run(connect(uri), "small")
        for name, (wanted, tta) in ENSEMBLES.items():
            with redirect_stdout(StringIO()) as said:
                given = 0.5 if name == "same" else None
                ensemble(wanted, tta=tta, threshold=given, name=None if name == "pair" else name, uri=uri)
            printed[name] = said.getvalue().splitlines()
        for name, changes in OTHERS.items():
            tags = {tag: value for tag, value in small.data.tags.items() if tag.startswith("bench.")} | changes
            with open_run(connect(uri), name, "phantom", tags) as recorder:
                recorder.settings(small.data.params | {"evaluate.threshold": "0.4"})
        yield connect(uri), printed


@pytest.fixture(scope="module")
def store(ran) -> Store:
    return ran[0]


def title_of(name: str) -> str:
    return "ensemble of small, other with flips" if name == "pair" else name


def parts_of(store: Store, part: str) -> dict[int, list[str]]:
    split = read_table(store, find_run(store, "small"), "split")
    return split[split["part"] == part].groupby("fold")["case"].agg(list).to_dict()


class Fixed:
    """A predictor whose probabilities (S, H, W) of one structure are known."""

    def __init__(self, probability: np.ndarray) -> None:
        self.probability = probability

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        return self.probability[rows, None]


class ByHand:
    """One fold's models of some runs, each asked about a patient from every side as NumPy turns it."""

    def __init__(self, store: Store, runs: list[str], fold: int, how: str, folder: Path) -> None:
        found = [find_run(store, run) for run in runs]
        self.pack = load_run_pack(found[0], None, Display(quiet=True))
        self.asked = []
        for run in found:
            segmenter = FoldModels(download_models(store, run, folder / run.info.run_id / str(fold), fold=fold))
            loader = segmenter.predictor(self.pack).loader
            self.asked += [(Asked(segmenter.models[0], side), loader) for side in SIDES[how]]

    def __call__(self, case: str) -> np.ndarray:
        rows = self.pack.rows([case])
        return np.mean([Predictor([asked], loader, 8).probabilities(rows) for asked, loader in self.asked], axis=0)


# Who predicts whom


@pytest.mark.parametrize(("name", "how"), [("pair", "flips"), ("alone", "turns")])
def test_test_patients_are_predicted_by_the_models_of_their_fold_and_by_no_other(store, tmp_path, name, how):
    runs, _ = ENSEMBLES[name]
    kept = read_probabilities(store, find_run(store, title_of(name)))
    tested = parts_of(store, "test")
    assert sorted(kept) == sorted(case for cases in tested.values() for case in cases)
    models = {fold: ByHand(store, runs, fold, how, tmp_path) for fold in tested}
    for fold, cases in tested.items():
        for case in cases:
            apart = {by: np.abs(kept[case] - to_hundredths(said(case)).astype(int)) for by, said in models.items()}
            assert apart[fold].max() <= 1
            assert (apart[fold] > 0).mean() < 1e-3  # rounding at the edge of a hundredth
            assert all((a > 1).any() for by, a in apart.items() if by != fold)


def test_two_equal_runs_are_the_run_itself(store):
    one, both = (find_run(store, name) for name in ("small", "same"))
    before, after, sure = read_masks(store, one), read_masks(store, both), read_probabilities(store, both)
    assert sum(mask.sum() for mask in before.values()) > 100
    assert sorted(before) == sorted(after)
    for case in before:
        assert np.isin(sure[case][before[case] != after[case]], (49, 50)).all()
    columns = ["case", "dice", "hd95", "brier", "ece", "missed_slices"]
    tables = [read_table(store, run, "cases")[columns].set_index("case").sort_index() for run in (one, both)]
    np.testing.assert_allclose(*tables, atol=1e-3)


# The threshold


def test_the_threshold_is_the_best_of_the_validation_patients(store, tmp_path):
    """Tried out one by one on the fold's own patients."""
    cases = read_table(store, find_run(store, title_of("pair")), "cases")
    used = cases.groupby("fold")["threshold"].unique()
    lost = []
    for fold in range(3):
        said = ByHand(store, ["small", "other"], fold, "flips", tmp_path)
        validation, test = (dice_curve(said, parts_of(store, part)[fold]) for part in ("val", "test"))
        (chosen,) = used[fold]
        assert validation[round(chosen * 100) - 1] == pytest.approx(validation.max(), abs=1e-3)
        lost.append(validation.max() - validation[test.argmax()])
    assert max(lost) > 0.005  # the test patients would have chosen another


def dice_curve(said: ByHand, cases: list[str]) -> np.ndarray:
    """Mean Dice of these patients at 0.01, 0.02 ... 0.99."""
    dice = np.zeros(99)
    for case in cases:
        probability, truth = said(case), said.pack.truth(said.pack.rows([case]))
        for number in range(99):
            called = probability >= np.float32((number + 1) / 100)
            dice[number] += 2 * (called & truth).sum() / (called.sum() + truth.sum()) / len(cases)
    return dice


def test_a_run_alone_keeps_its_threshold_and_several_have_one_chosen(store):
    small, twin, other, apart = (find_run(store, name) for name in ("small", "twin", "other", "apart"))
    assert find_run(store, "same").data.params["ensemble.threshold"] == "0.5"  # as it was given
    assert threshold_rule([apart]) == "0.4"
    assert threshold_rule([other]) == "validation"
    assert threshold_rule([small, twin]) == threshold_rule([small, apart]) == "validation"


def test_the_truth_of_test_patients_does_not_move_the_threshold():
    pack = tiny_pack()
    said = np.random.default_rng(1).random(pack.masks.shape, np.float32) * 0.6 + pack.masks * np.float32(0.2)

    members = pd.DataFrame({"case": pack.cases, "part": ["val", "val", "test", "train"][: len(pack.cases)]})

    def threshold(spoilt: str, rule: str = "validation") -> float:
        masks = pack.masks.copy()
        masks[pack.rows([spoilt])] = 1
        predictor = MeanPredictor([Fixed(said)], replace(pack, masks=masks))
        [chosen] = fold_thresholds(predictor, rule, members)
        return chosen

    assert threshold("P2") == threshold("P3") == 0.6  # where the noise ends
    assert threshold("P0") < 0.1  # the truth of a validation patient does
    assert threshold("P0", "0.3") == 0.3


def test_probabilities_are_averaged_before_they_are_called():
    pack = tiny_pack(cases=1)
    sides = [np.full(pack.masks.shape, p, np.float32) for p in (0.3, 0.9, 0.3)]  # the mean of calls would be 0
    heard: list[None] = []
    predictor = MeanPredictor([Fixed(side) for side in sides], pack, tick=lambda: heard.append(None))
    ((score, masks),) = Segmentation().score(predictor, ["P0"], (0.5,))
    assert masks["P0"].all()
    assert (masks.probabilities["P0"] == 50).all()
    truth = int(pack.masks.sum())
    assert score.counts == {"tp": truth, "fp": pack.masks.size - truth, "fn": 0, "tn": 0}
    assert {"brier", "ece", "hd95", "dice"} < set(score.values)
    assert len(heard) == 1


# What is logged


@pytest.mark.parametrize("name", ENSEMBLES)
def test_masks_and_probabilities_are_read_back_as_they_were_scored(store, name):
    run = find_run(store, title_of(name))
    masks, sure = read_masks(store, run), read_probabilities(store, run)
    cases = read_table(store, run, "cases").set_index("case")
    assert sorted(masks) == sorted(sure) == sorted(cases.index)
    for case, row in cases.iterrows():
        assert int(masks[str(case)].sum()) == row["tp"] + row["fp"]
        np.testing.assert_array_equal(masks[str(case)], sure[str(case)] >= round(row["threshold"] * 100))
    assert not cases[["brier", "ece"]].isna().any(axis=None)  # asks for probabilities


def test_it_stands_beside_its_runs_and_says_what_it_is_made_of(store):
    pair, small, other = (find_run(store, name) for name in (title_of("pair"), "small", "other"))
    shared = ("bench.data", "bench.split", "bench.convention", "bench.task", "bench.kind")
    assert [pair.data.tags[tag] for tag in shared] == [small.data.tags[tag] for tag in shared]
    params = pair.data.params
    assert params["model.encoder"] == "small + other (flips)"
    assert params["ensemble.runs"] == f"{small.info.run_id}, {other.info.run_id}"
    assert (params["ensemble.tta"], params["ensemble.threshold"]) == ("flips", "validation")
    assert (params["run.seed"], params["loss.name"]) == ("several", "several")
    assert find_run(store, "same").data.params["loss.name"] == "bce_dice"
    trials = {name: find_run(store, title_of(name)).data.params["run.searched"] for name in ENSEMBLES}
    assert trials == {"pair": "0", "same": "30", "alone": "0"}, "what was searched for a part was for the whole"
    cost = [run.data.metrics["cost/parameters"] for run in (pair, small, other)]
    assert cost[0] == cost[1] + cost[2]
    for dear in ("cost/flops", "cost/latency_p50_ms", "cost/latency_p95_ms"):  # each looks four times
        looks = [run.data.metrics[dear] for run in (pair, small, other)]
        assert looks[0] == pytest.approx(4 * (looks[1] + looks[2]))
    assert "8, out of fold" in pair.data.tags["mlflow.note.content"]


def test_it_has_a_rank_in_the_store_and_its_runs_have_theirs_beside_it(store):
    shown = ("twin", "other", title_of("pair"), "alone")  # twin has taken the place of small, which it repeats
    values = {name: find_run(store, name).data.metrics for name in shown}
    for own in values.values():
        assert own["rank"] == 1 + sum(other["dice"] > own["dice"] for other in values.values())
    assert find_run(store, "small").data.metrics["rank"] == values["twin"]["rank"]


def test_a_threshold_that_was_given_came_after_the_scores_and_has_a_board_of_its_own(store):
    same = find_run(store, "same")
    assert same.data.tags["bench.post_hoc"] == "threshold"
    assert "rank" not in same.data.metrics
    assert not any("bench.post_hoc" in find_run(store, name).data.tags for name in (title_of("pair"), "alone"))


def test_what_is_printed_compares_with_each_run_in_a_line_of_its_own(ran):
    store, printed = ran
    made, *parts = (find_run(store, name) for name in (title_of("pair"), "small", "other"))
    title, scores, *lines = printed["pair"]
    assert title == made.info.run_name
    assert scores.startswith(f"Dice {made.data.metrics['dice']:.3f}")
    dice = read_table(store, made, "cases").set_index("case")["dice"]
    for line, run in zip(lines, parts, strict=True):
        difference = dice - read_table(store, run, "cases").set_index("case")["dice"]
        assert line.startswith(
            f"against {run.info.run_name} ({run.info.run_id[:8]}): Dice {difference.mean():+.3f}"
        )


def test_the_fingerprint_knows_runs_sides_and_rule_but_no_order():
    one = fingerprint(["a", "b"], "none", "0.5")
    assert one == fingerprint(["b", "a"], "none", "0.5")
    others = [(["a", "c"], "none", "0.5"), (["a"], "none", "0.5"), (["a", "b"], "flips", "0.5")]
    others += [(["a", "b"], "none", "validation"), (["a", "b"], "none", "0.4")]
    assert len({one, *(fingerprint(*o) for o in others)}) == 6


def test_the_logged_fingerprint_is_that_of_its_runs(store):
    other, small = (find_run(store, name).data.tags["bench.fingerprint"] for name in ("other", "small"))
    pair = find_run(store, title_of("pair"))
    assert pair.data.tags["bench.fingerprint"] == fingerprint([other, small], "flips", "validation")


@pytest.mark.parametrize(
    ("wanted", "tta", "error", "says"),
    [
        (["small"], "none", BadSetting, "one run alone is no ensemble"),
        (["small", "other", "small"], "none", BadSetting, "named twice"),
        (["small", "apart"], "none", BadSetting, "differ in split"),
        (["small", "gate"], "none", BadSetting, "is not a finished segmentation cross-validation"),
        (["small", "fold 0"], "none", BadSetting, "is not a finished segmentation cross-validation"),
        (["small", "same"], "none", BadSetting, "same was made from other runs"),
        (["small", "bare"], "none", StoreError, "holds no model of fold 0"),
        (["small"], "flip", UnknownName, "Did you mean 'flips'"),
        (["smal", "other"], "none", UnknownName, "Did you mean 'small'"),
    ],
)
def test_what_does_not_go_together_is_refused(store, wanted, tta, error, says):
    with pytest.raises(error, match=says):
        ensemble(wanted, tta=tta, uri=store.uri)


# Sides


def _turned(quarters: int) -> list[Side]:
    def back(x: np.ndarray) -> np.ndarray:
        return np.rot90(x, -quarters, (2, 3))

    return [
        (lambda x: np.rot90(x, quarters, (2, 3)), back),
        (lambda x: np.rot90(x[..., ::-1], quarters, (2, 3)), lambda x: back(x)[..., ::-1]),
    ]


def _same(change: Callable[[np.ndarray], np.ndarray]) -> Side:
    return change, change


SIDES: dict[str, list[Side]] = {
    "flips": [
        _same(change)
        for change in (
            lambda x: x,
            lambda x: x[..., ::-1],
            lambda x: x[..., ::-1, :],
            lambda x: x[..., ::-1, ::-1],
        )
    ],
    "turns": [side for quarters in range(4) for side in _turned(quarters)],
}


class Asked(nn.Module):
    """A model that sees what NumPy has turned."""

    def __init__(self, model: nn.Module, side: Side) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: Tensor) -> Tensor:
        there, back = self.side
        logits = self.model(torch.from_numpy(there(images.numpy()).copy()))
        return torch.from_numpy(back(logits.numpy()).copy())


def net(side: int) -> nn.Module:
    """Two convolutions; with a side of 1, no pixel knows of its neighbours."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, side, padding=side // 2)
    return nn.Sequential(first, nn.Tanh(), nn.Conv2d(6, 1, side, padding=side // 2)).eval()


@pytest.mark.parametrize("how", VIEWS)
@pytest.mark.parametrize("shape", [(32, 32), (32, 64)])
@torch.no_grad()
def test_a_model_that_looks_at_single_pixels_says_the_same_from_every_side(how, shape):
    images = torch.randn(2, 3, *shape)
    model = net(1)
    for side in tta_views(model, how):
        torch.testing.assert_close(side(images), model(images))


@pytest.mark.parametrize("how", SIDES)
@torch.no_grad()
def test_each_side_is_one_that_numpy_knows_and_all_are_there(how):
    images = torch.randn(2, 3, 32, 64)
    model = net(3)
    expected = torch.stack([Asked(model, side)(images) for side in SIDES[how]])
    found = torch.stack([side(images) for side in tta_views(model, how)])
    assert found.shape == expected.shape == ({"flips": 4, "turns": 8}[how], 2, 1, 32, 64)
    apart = (found[:, None] - expected).abs().amax((2, 3, 4, 5))
    assert ((apart < 1e-5).sum(0) == 1).all()  # a convolution that knows left from right and up from down
    assert ((apart < 1e-5).sum(1) == 1).all()


@pytest.mark.parametrize("how", SIDES)
@torch.no_grad()
def test_patches_are_turned_one_by_one(how):
    pack = tiny_pack(cases=1, size=48)
    rows = np.arange(3)
    loader = SliceLoader(pack, Input(patch=Patch(size=32, overlap=0.5)), torch.device("cpu"))
    model = net(3)
    images, _ = loader.load_normalised(rows)
    sides = [tiled(Asked(model, side), images, size=32, overlap=0.5).sigmoid() for side in SIDES[how]]
    found = Predictor(tta_views(model, how), loader, 2).probabilities(rows)
    np.testing.assert_allclose(found, torch.stack(sides).mean(0), atol=1e-5)
    assert np.abs(found - sides[0].numpy()).max() > 1e-3
