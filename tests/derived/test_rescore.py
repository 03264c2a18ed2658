"""Logged masks scored anew: what is recomputed, what is linked, what is refused, and what others would report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy.ndimage import binary_dilation, label

from bench.console import Display
from bench.derived.base import describe_change
from bench.derived.ensemble import ensemble
from bench.derived.rescore import conventions, rescore
from bench.errors import BadSetting, StoreError
from bench.inference.postprocess import Postprocess
from bench.tracking import LEAKY, PARENT, Store, connect, find_folds, find_run, read_masks, read_probabilities
from bench.tracking import read_table as table
from bench.tracking.selection import load_run_pack
from bench.tracking.tags import CONVENTION, Tag
from tests.fakes import Home, inside, make_home, train

PROBABILITY = {"brier", "ece"}


@pytest.fixture(scope="module")
def home(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A store with one tiny run of two epochs on a phantom: its masks are poor, so there is something to clean."""
    return make_home(tmp_path_factory.mktemp("rescore") / "home", template, "tiny")


@pytest.fixture(scope="module")
def store(home: Home):
    with pytest.MonkeyPatch.context() as patch:
        inside(home, patch)
        yield connect(home.uri)


@pytest.fixture(scope="module")
def made(store: Store) -> dict[str, str]:
    """The run rescored in each way, once: ids."""
    return {
        "same": rescore("tiny", uri=store.uri),
        "half": rescore("tiny", threshold=0.5, uri=store.uri),
        "high": rescore("tiny", threshold=0.55, uri=store.uri),
        "one": rescore("tiny", postprocess=Postprocess(largest=True), name="mine", uri=store.uri),
    }


def run_of(store: Store, run_id: str):
    return store.client.get_run(run_id)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["same", "half"])
def test_with_nothing_changed_the_scores_are_the_very_same(store, made, way):
    """From the logged masks, and from the logged probabilities at the threshold that the run had."""
    old, new = find_run(store, "tiny"), run_of(store, made[way])
    before, after = (table(store, r, "cases").sort_values("case", ignore_index=True) for r in (old, new))
    assert set(before.columns) - set(after.columns) == PROBABILITY | {"threshold"}
    pd.testing.assert_frame_equal(before[after.columns], after, check_exact=True)
    assert len(set(after["fold"])) == 3
    shared = {k for k in new.data.metrics if not k.startswith("system/")} & set(old.data.metrics)
    assert {"dice", "dice_low", "dice_p5", "hd95", "dice_global", "cost/parameters"} <= shared
    assert {k: new.data.metrics[k] for k in shared} == pytest.approx(
        {k: old.data.metrics[k] for k in shared}, nan_ok=True, abs=1e-12
    )
    assert not any(name.startswith(tuple(PROBABILITY)) for name in new.data.metrics)


@pytest.mark.slow
def test_a_threshold_calls_what_reaches_it(store, made):
    tiny, new = find_run(store, "tiny"), run_of(store, made["high"])
    kept, masks, cases = read_probabilities(store, tiny), read_masks(store, new), table(store, new, "cases")
    pack, before = load_run_pack(tiny, None, Display(quiet=True)), read_masks(store, tiny)
    assert sorted(masks) == sorted(kept) == sorted(cases["case"])
    assert any((masks[case] != before[case]).any() for case in masks)  # else this shows nothing
    for row in cases.itertuples():
        called, truth = kept[row.case] >= 55, pack.truth(pack.rows([row.case]))
        assert np.array_equal(masks[row.case], called)
        counted = [int(m.sum()) for m in (called & truth, called & ~truth, truth & ~called)]
        assert [row.tp, row.fp, row.fn] == counted


@pytest.mark.slow
def test_the_largest_component_is_a_part_of_the_mask(store, made):
    before, after = read_masks(store, find_run(store, "tiny")), read_masks(store, run_of(store, made["one"]))
    assert sorted(before) == sorted(after)
    assert any(label(mask)[1] > 1 for mask in before.values())  # else this shows nothing
    for case, mask in after.items():
        assert label(mask)[1] == int(before[case].any())
        assert not (mask & ~before[case]).any()


@pytest.mark.slow
def test_the_new_run_says_where_it_comes_from_and_is_no_rival(store, made):
    old = find_run(store, "tiny")
    for way, title, chosen in (
        ("same", "tiny rescored", {"threshold": "None", "largest": "False"}),
        ("high", "tiny rescored: threshold 0.55", {"threshold": "0.55", "largest": "False"}),
        ("one", "mine", {"threshold": "None", "largest": "True", "min_size": "0", "fill_holes": "False"}),
    ):
        new = run_of(store, made[way])
        assert new.info.run_name == title
        assert new.info.status == "FINISHED"
        assert {f"rescore.{k}": v for k, v in chosen.items()}.items() <= new.data.params.items()
        assert new.data.tags["bench.source"] == old.info.run_id
        assert [d.dataset.digest for d in new.inputs.dataset_inputs] == [new.data.tags["bench.data"]]
        assert new.data.params["rescore.run"] == new.data.tags["bench.rescored"] == old.info.run_id
        assert new.data.tags["bench.post_hoc"] == "rescored"
        assert "rank" not in new.data.metrics
        for same in ("model.name", "model.encoder", "model.weights", "loss.name", "run.seed"):
            assert new.data.params.get(same) == old.data.params.get(same)
        for same in ("bench.data", "bench.split", "bench.dataset", "bench.synthetic", Tag.KIND):
            assert new.data.tags[same] == old.data.tags[same]
    prints = {run_of(store, run_id).data.tags["bench.fingerprint"] for run_id in made.values()}
    assert len(prints | {old.data.tags["bench.fingerprint"]}) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("exclusive", "names"), [("true", ("rim", "core")), ("false", ("tumour", "core"))])
def test_a_run_of_two_structures_is_rescored_and_combined_by_structure(store, exclusive, names):
    name = f"two {exclusive}"
    train(name, "--set", "dataset.structures=2", "--set", f"dataset.exclusive={exclusive}")
    old = find_run(store, name)
    same, clean, both = (
        run_of(store, run_id)
        for run_id in (
            rescore(name, uri=store.uri),
            rescore(name, postprocess=Postprocess(largest=True), uri=store.uri),
            ensemble([name], tta="flips", uri=store.uri),
        )
    )
    before, after = (table(store, run, "cases").sort_values("case", ignore_index=True) for run in (old, same))
    pd.testing.assert_frame_equal(before[after.columns], after, check_exact=True)
    masks, cleaned, kept = read_masks(store, old), read_masks(store, clean), read_probabilities(store, both)
    for case, mask in masks.items():
        assert mask.shape == (6, 2, 32, 32)
        assert not (exclusive == "true" and mask.all(1).any())
        assert kept[case].shape == mask.shape
        for k in range(2):
            assert label(cleaned[case][:, k])[1] == int(mask[:, k].any())
    for run in (old, same, clean, both):
        cases = table(store, run, "cases")
        assert run.data.metrics["dice"] == pytest.approx(cases["dice"].mean())
        for structure in names:
            assert run.data.metrics[f"dice/{structure}"] == pytest.approx(cases[f"dice[{structure}]"].mean())
    assert {f"threshold[{structure}]" for structure in names} <= set(table(store, both, "cases"))


@pytest.mark.slow
def test_a_run_of_an_older_convention_is_carried_to_the_present_one_as_a_rival(store):
    old = find_run(store, "tiny")
    store.client.set_tag(old.info.run_id, "bench.convention", "0")
    try:
        same, chosen = (run_of(store, rescore("tiny", threshold=t, uri=store.uri)) for t in (None, 0.4))
    finally:
        store.client.set_tag(old.info.run_id, "bench.convention", CONVENTION)
    assert same.data.tags["bench.convention"] == chosen.data.tags["bench.convention"] == CONVENTION
    assert "bench.post_hoc" not in same.data.tags
    assert chosen.data.tags["bench.post_hoc"] == "rescored"


@pytest.mark.slow
def test_it_prints_what_has_changed_and_what_others_would_report(store, capsys):
    run_id = rescore("tiny", postprocess=Postprocess(min_size=3, fill_holes=True), name="[red]x", uri=store.uri)
    said, cases = capsys.readouterr().out, table(store, run_of(store, run_id), "cases")
    assert said.startswith(f"[red]x\nDice {cases['dice'].mean():.3f} (95% interval")
    assert "against the run as it was: Dice" in said
    assert "mean over slices, both empty = 1" in said


def fake(store: Store, name: str, *, status: str = "FINISHED", **tags: str) -> str:
    """A run that is nothing but its tags."""
    run = store.client.create_run(store.experiment("phantom"), run_name=name, tags={Tag.KIND: PARENT} | tags)
    if status != "RUNNING":
        store.client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "tags"),
    [
        ("RUNNING", {}),
        ("FAILED", {}),
        ("FINISHED", {"bench.task": "presence"}),
        ("FINISHED", {Tag.KIND: LEAKY}),
    ],
)
def test_what_is_no_finished_honest_segmentation_is_refused(store, status, tags):
    with pytest.raises(BadSetting, match="is not a finished segmentation cross-validation"):
        rescore(fake(store, "bad", status=status, **tags), uri=store.uri)


@pytest.mark.slow
def test_a_run_made_of_others_is_refused(store, made):
    with pytest.raises(BadSetting, match="mine was made from other runs"):
        rescore("mine", uri=store.uri)


def runs(store: Store) -> int:
    return len(store.client.search_runs([store.experiment("phantom")]))


@pytest.mark.slow
def test_a_threshold_that_was_not_kept_is_refused_before_a_run_is_opened(store):
    before = runs(store)
    with pytest.raises(BadSetting, match="kept in hundredths"):
        rescore("tiny", threshold=0.375, uri=store.uri)
    assert runs(store) == before


@pytest.mark.slow
def test_a_run_without_probabilities_is_refused_another_threshold_alone(store):
    files = [
        Path(fold.info.artifact_uri.removeprefix("file://")) / "masks" / "probabilities.npz"
        for fold in find_folds(store, find_run(store, "tiny")).values()
    ]
    kept = [(file, file.read_bytes()) for file in files]
    for file in files:
        file.unlink()
    try:
        with pytest.raises(StoreError, match="has no probabilities of fold 0"):
            rescore("tiny", threshold=0.4, uri=store.uri)
        assert rescore("tiny", name="from masks", uri=store.uri)
    finally:
        for file, content in kept:
            file.write_bytes(content)


# Two patients of 100 pixels a slice. A: Dice 0.8 on one slice, a false alarm on another, one rightly empty.
# B: a tumour found whole, one missed.
SLICES = pd.DataFrame(
    {
        "case": ["A", "A", "A", "B", "B"],
        "tp": [40, 0, 0, 10, 0],
        "fp": [10, 20, 0, 0, 0],
        "fn": [10, 0, 0, 0, 30],
        "tn": [40, 80, 100, 90, 70],
    },
    index=[7, 7, 7, 8, 8],  # the rows of a part of a table
)
CASES = SLICES.groupby("case", as_index=False).sum()
DICE_A, DICE_B = 80 / 120, 20 / 50


def test_conventions_by_hand():
    found = conventions(CASES, SLICES)
    assert found.columns.tolist() == ["convention", "Dice", "used by"]
    assert found.set_index("convention")["Dice"].to_dict() == pytest.approx(
        {
            "mean over patients": (DICE_A + DICE_B) / 2,
            "median over patients": (DICE_A + DICE_B) / 2,
            "pooled over all pixels": 100 / 170,
            "mean over slices, both empty = 1": (0.8 + 0 + 1 + 1 + 0) / 5,
            "mean over slices with tumour": (0.8 + 1 + 0) / 3,
            "mean over slices with tumour or prediction": (0.8 + 0 + 1 + 0) / 4,
        }
    )


def test_the_median_is_not_the_mean_and_a_patient_without_any_pixel_has_no_dice():
    cases = pd.DataFrame({"tp": [1, 1, 0, 0], "fp": [0, 0, 1, 0], "fn": [0, 0, 0, 0]})
    found = conventions(cases, cases).set_index("convention")["Dice"]
    assert found["mean over patients"] == pytest.approx(2 / 3)
    assert found["median over patients"] == 1


def test_nothing_anywhere_is_undefined_but_where_empty_counts_one():
    empty = pd.DataFrame({"tp": [0, 0], "fp": [0, 0], "fn": [0, 0]})
    found = conventions(empty, empty).set_index("convention")["Dice"]
    assert found.pop("mean over slices, both empty = 1") == 1
    assert found.isna().all()


def masks_of_slices() -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction, bool (N, 100), with the counts of `SLICES`."""
    truth, prediction = np.zeros((2, len(SLICES), 100), bool)
    for row, (tp, fp, fn) in enumerate(SLICES[["tp", "fp", "fn"]].to_numpy()):
        truth[row, : tp + fn] = True
        prediction[row, fn : fn + tp] = True
        prediction[row, tp + fn : tp + fn + fp] = True
    return truth, prediction


def said_to_use(word: str) -> list[float]:
    found = conventions(CASES, SLICES)
    return found.loc[found["used by"].str.contains(word), "Dice"].tolist()


def test_segmentation_models_pytorch_averages_as_we_say():
    from segmentation_models_pytorch.metrics import f1_score, get_stats

    truth, prediction = (torch.from_numpy(m)[:, None] for m in masks_of_slices())
    stats = get_stats(prediction.long(), truth.long(), mode="binary")
    pooled, each = (float(f1_score(*stats, reduction=r)) for r in ("micro", "micro-imagewise"))
    assert said_to_use("'micro'") == pytest.approx([pooled])
    assert said_to_use("'micro-imagewise'") == pytest.approx([each])


def test_monai_averages_as_we_say():
    metrics = pytest.importorskip("monai.metrics", reason="pip install 'medseg-bench[peers]'")
    truth, prediction = (torch.from_numpy(m).reshape(-1, 1, 10, 10).float() for m in masks_of_slices())
    metric = metrics.DiceMetric()
    metric(prediction, truth)
    assert said_to_use("MONAI") == pytest.approx([float(metric.aggregate())])


@pytest.mark.slow
def test_real_tumours_under_each_convention(lgg_folder):
    """The values of 110 patients; a folder with some of them is near. An empty prediction, and one too large."""
    files = {p.name: p for p in lgg_folder.rglob("*_mask.tif")}  # by name, as a folder may hold them twice
    rows: dict[str, list[tuple[str, int, int, int]]] = {"empty": [], "dilated": []}
    for name, path in files.items():
        truth = tifffile.imread(path) > 0
        size, case = int(truth.sum()), name[:12]
        rows["empty"].append((case, 0, 0, size))
        rows["dilated"].append((case, size, int(binary_dilation(truth).sum()) - size if size else 0, 0))
    found = {}
    for name, counted in rows.items():
        slices = pd.DataFrame(counted, columns=["case", "tp", "fp", "fn"])
        cases = slices.groupby("case", as_index=False).sum()
        found[name] = conventions(cases, slices).set_index("convention")["Dice"]
        with_tumour = (slices["tp"] + slices["fn"] > 0).mean()
    assert found["empty"]["mean over slices, both empty = 1"] == pytest.approx(1 - with_tumour)
    assert found["empty"]["mean over slices, both empty = 1"] == pytest.approx(0.651, abs=0.02)
    assert (found["empty"].drop("mean over slices, both empty = 1") == 0).all()
    for name, value in (
        ("mean over slices, both empty = 1", 0.975),
        ("mean over patients", 0.941),
        ("pooled over all pixels", 0.950),
    ):
        assert found["dilated"][name] == pytest.approx(value, abs=0.005)


def test_a_comparison_is_of_the_same_patients_whatever_their_order():
    """A: 2/3 to 1, B: 1 to 0.5, C: 0 to 0.8, and D is undefined before."""
    before = pd.DataFrame({"case": list("ABCD"), "tp": [1, 2, 0, 0], "fp": [1, 0, 1, 0], "fn": 0})
    after = pd.DataFrame({"case": list("DCBA"), "tp": [1, 2, 1, 1], "fp": [8, 1, 2, 0], "fn": 0})
    after = after.assign(missed_slices=1, false_positive_slices=3)
    said = describe_change(after, before.assign(missed_slices=2), "before")
    assert said.startswith(f"against before: Dice {(1 / 3 - 0.5 + 0.8) / 3:+.3f} (95% interval ")
    assert "better in 67% of 3 patients" in said
    assert said.endswith("; missed slices 8 to 4")  # the other was not measured before


def test_nothing_changed_is_a_difference_of_nothing():
    cases = pd.DataFrame({"case": list("AB"), "tp": [1, 3], "fp": [1, 2], "fn": [0, 5]})
    assert describe_change(cases, cases, "itself") == (
        "against itself: Dice +0.000 (95% interval +0.000 to +0.000), better in 0% of 2 patients, Wilcoxon p = 1"
    )
