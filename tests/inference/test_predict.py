"""Prediction is a plain forward pass on the packed grid; scoring is counting."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import registry
from bench.config import Evaluate, Input
from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.inference.predict import MeanPredictor, Predictor, padded_batch, stacks
from bench.metrics.aggregate import summarise
from bench.training.fold_records import patient_rows, slice_table
from bench.training.tasks.segmentation import (
    Segmentation,
    choose_threshold,
    choose_thresholds,
    dice_curve,
    needs_pixels,
    score_case,
)
from bench.types import SliceCounts, Stack
from tests import reference
from tests.fakes import TWO, pack_of, tiny_pack

CPU = torch.device("cpu")
PACK = tiny_pack(cases=3, slices=4)
ROWS = np.arange(12)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


def plain(model: nn.Module, loader: SliceLoader, rows=ROWS) -> torch.Tensor:
    """Logits (S, 1, h, w) of one forward pass over all rows."""
    with torch.no_grad():
        return model.eval()(loader.normalise(loader.load(rows)[0], rows))


def test_predictions_are_a_plain_forward_pass_in_evaluation_mode():
    model, loader = net().train(), SliceLoader(PACK, Input(), CPU)
    probability = Predictor([model], loader, 5).probabilities(ROWS)
    assert probability.shape == (12, 1, 32, 32)
    assert probability.dtype == np.float32
    assert probability == pytest.approx(plain(model, loader).sigmoid().numpy(), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 12, 100])
def test_predictions_do_not_depend_on_the_batch_size(batch_size):
    loader = SliceLoader(PACK, Input(), CPU)
    assert Predictor([net()], loader, batch_size).probabilities(ROWS) == pytest.approx(
        Predictor([net()], loader, 4).probabilities(ROWS), abs=1e-6
    )


def test_rows_are_predicted_in_the_order_given():
    loader, rows = SliceLoader(PACK, Input(), CPU), np.array([9, 2, 5])
    everything = Predictor([net()], loader, 4).probabilities(ROWS)
    assert Predictor([net()], loader, 2).probabilities(rows) == pytest.approx(everything[rows], abs=1e-6)


def test_a_model_of_smaller_slices_is_scored_on_the_packed_grid():
    model, loader = net(), SliceLoader(tiny_pack(cases=1, slices=4, size=48), Input(image_size=32), CPU)
    probability = Predictor([model], loader, 4).probabilities(ROWS[:4])
    logits = plain(model, loader, ROWS[:4])
    assert logits.shape == (4, 1, 32, 32)
    assert probability.shape == (4, 1, 48, 48)
    expected = F.interpolate(logits, (48, 48), mode="bilinear").sigmoid()
    assert probability == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_nothing_is_predicted_outside_the_crop_and_scores_are_on_the_packed_grid(activation):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[:, 8:24, 4:20] = np.random.default_rng(0).integers(1, 256, (2, 16, 16, 3))
    pack = pack_of(images, np.zeros((2, 32, 32), np.uint8), ["A", "A"])
    cropped = SliceLoader(pack, Input(crop="foreground", image_size=32), CPU)
    predictor = Predictor([net()], cropped, batch_size=2, activation=activation)
    probability = predictor.probabilities(np.arange(2))
    with torch.inference_mode():
        logits = net().eval()(cropped.load_normalised(np.arange(2))[0])
    inside = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear").sigmoid().numpy()
    np.testing.assert_allclose(probability[:, :, 8:24, 4:20], inside, atol=1e-6)
    probability[:, :, 8:24, 4:20] = 0
    assert not probability.any()
    assert predictor.counts(np.arange(2), 0.5).sum() == 2 * 32 * 32


def test_an_ensemble_is_the_mean_of_probabilities():
    loader, models = SliceLoader(PACK, Input(), CPU), [net(seed) for seed in range(3)]
    each = [Predictor([model], loader, 4).probabilities(ROWS) for model in models]
    assert Predictor(models, loader, 4).probabilities(ROWS) == pytest.approx(np.mean(each, axis=0), abs=1e-6)


def test_each_patient_comes_with_its_rows_and_its_truth():
    loader, model = SliceLoader(PACK, Input(), CPU), net()
    made = list(stacks(Predictor([model], loader, 3), {"P2", "P0"}, (0.4,)))
    assert [case for case, _, _ in made] == ["P0", "P2"]
    for case, rows, [stack] in made:
        assert rows.tolist() == PACK.rows([case]).tolist()
        assert np.array_equal(stack.truth, PACK.masks[rows] == 1)
        whole = Predictor([model], loader, 4).probabilities(rows)[:, 0]
        assert stack.probability == pytest.approx(whole, abs=1e-6)
        assert np.array_equal(stack.prediction, stack.probability >= 0.4)


# Counting on the device


@pytest.mark.parametrize(("size", "threshold"), [(None, 0.5), (48, 0.37)])
def test_pixels_counted_on_the_device_are_those_of_the_stack(size, threshold):
    loader, model = SliceLoader(PACK, Input(image_size=size), CPU), net()
    rows = np.array([9, 2, 5, 0, 11])
    counted = Predictor([model], loader, 2).counts(rows, threshold)
    probability = Predictor([model], loader, 2).probabilities(rows)[:, 0]
    truth = PACK.masks[rows] == 1
    for row in range(len(rows)):
        called = probability[row] >= np.float32(threshold)
        expected = [
            sum(bool(c) is wanted and bool(t) is there for c, t in zip(called.flat, truth[row].flat, strict=True))
            for wanted, there in ((True, True), (True, False), (False, True), (False, False))
        ]
        assert counted[row].tolist() == [expected]


def test_each_patient_is_tallied_apart():
    loader, model = SliceLoader(PACK, Input(), CPU), net()
    found = list(Predictor([model], loader, 3).case_counts({"P2", "P0"}, 0.4))
    expected = list(stacks(Predictor([model], loader, 3), {"P2", "P0"}, (0.4,)))
    for [counts], (_, _, [stack]) in zip(found, expected, strict=True):
        for name in ("tp", "fp", "fn", "tn"):
            assert np.array_equal(getattr(counts, name), getattr(stack, name))


def test_a_metric_says_by_its_annotation_whether_it_needs_pixels():
    content = {name for name in registry.metric if not needs_pixels(registry.metric[name].bind({}))}
    assert {"dice", "iou", "dice_positive_slices", "slice_sensitivity", "missed_slices"} <= content
    assert content.isdisjoint({"hd95", "assd", "brier", "ece"})
    assert needs_pixels(lambda stack: 0.0), "without an annotation it gets everything"


@pytest.mark.parametrize("name", [n for n in registry.metric if not needs_pixels(registry.metric[n].bind({}))])
def test_a_metric_of_counts_gives_the_same_from_counts_alone(name):
    stack, metric = random_stack(3), registry.metric[name].bind({})
    counted = SliceCounts(stack.tp, stack.fp, stack.fn, stack.tn)
    assert metric(counted) == pytest.approx(metric(stack), nan_ok=True)


def test_batches_that_do_not_fit_are_halved():
    loader, model, seen = SliceLoader(PACK, Input(), CPU), net().eval(), []

    class Fits(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return model(images)

    found = Predictor([Fits()], loader, 12).probabilities(ROWS)
    assert seen == [12, 6, 3, 3, 3, 3]
    assert found == pytest.approx(Predictor([model], loader, 3).probabilities(ROWS))


# Scoring


@pytest.mark.parametrize(
    ("rows", "most", "filled"),
    [([5], 32, [5] * 8), ([1, 2, 3], 8, [1, 2, 3, 3, 3, 3, 3, 3]), ([4, 9], 3, [4, 9, 9]), ([7, 6], 2, [7, 6])],
)
def test_a_batch_is_filled_up_to_one_of_few_sizes(rows, most, filled):
    assert padded_batch(np.array(rows), most).tolist() == filled


def test_a_whole_batch_stays_as_it_is():
    assert padded_batch(np.arange(24), 32).tolist() == list(range(24))


def test_a_case_is_counted_as_a_whole_and_slice_by_slice():
    truth = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], bool)
    probability = np.array([[[0.9, 0.2], [0.5, 0]], [[0.7, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    stack = Stack(truth, probability.astype(np.float32))
    score = score_case(
        "P1", [1, 2, 4, 7], ["tumour"], [stack], {"volume": lambda s: s.truth.sum(), "none": lambda s: nan}
    )
    assert score.case == "P1"
    assert score.values["volume"] == 3
    assert isinstance(score.values["volume"], float)
    assert isnan(score.values["none"])
    assert score.counts == {"tp": 1, "fp": 2, "fn": 2, "tn": 11}
    table = score.slices
    assert table["case"].tolist() == ["P1"] * 4
    assert table["slice"].tolist() == [1, 2, 4, 7]
    assert table[["tp", "fp", "fn", "tn"]].to_numpy().tolist() == [
        [1, 1, 1, 1],
        [0, 1, 0, 3],
        [0, 0, 1, 3],
        [0, 0, 0, 4],
    ]
    assert table["dice"].tolist() == pytest.approx([0.5, 0, 0, nan], nan_ok=True)


# Several structures


def two_stacks(*, false_positive: bool) -> list[Stack]:
    """Two slices of 2 x 2: half of the first structure is found; the second is absent, and perhaps predicted."""
    truth = np.zeros((2, 2, 2, 2), bool)  # structure, slice, row, column
    truth[0, 0, 0] = True
    probability = np.zeros(truth.shape, np.float32)
    probability[0, :, 0, 0] = 0.9
    probability[1, 1, 1, 1] = 0.9 if false_positive else 0.1
    return [Stack(*each) for each in zip(truth, probability, strict=True)]


METRICS = {name: registry.metric[name].bind({}) for name in ("dice", "false_positive_slices")}


def test_a_structure_absent_in_truth_and_prediction_is_left_out_of_the_mean():
    score = score_case("P1", [4, 5], ["a", "b"], two_stacks(false_positive=False), METRICS)
    # Of a: 1 pixel hit, 1 false, 1 missed.
    expected = {"dice": 0.5, "dice[a]": 0.5, "dice[b]": nan}
    expected |= {"false_positive_slices": 1, "false_positive_slices[a]": 1, "false_positive_slices[b]": 0}
    assert score.values == pytest.approx(expected, nan_ok=True)
    assert score.counts == {
        **{"tp": 1, "fp": 1, "fn": 1, "tn": 13},
        **{"tp[a]": 1, "fp[a]": 1, "fn[a]": 1, "tn[a]": 5},
        **{"tp[b]": 0, "fp[b]": 0, "fn[b]": 0, "tn[b]": 8},
    }
    assert score.slices["slice"].tolist() == [4, 5]
    assert score.slices[["fp", "fp[a]", "fp[b]"]].to_numpy().tolist() == [[0, 0, 0], [1, 1, 0]]
    for name, dice in (("dice", [2 / 3, 0]), ("dice[a]", [2 / 3, 0]), ("dice[b]", [nan, nan])):
        assert score.slices[name].tolist() == pytest.approx(dice, nan_ok=True)


def test_a_structure_absent_in_truth_but_predicted_scores_0():
    score = score_case("P1", [4, 5], ["a", "b"], two_stacks(false_positive=True), METRICS)
    assert [score.values[name] for name in ("dice", "dice[a]", "dice[b]")] == [0.25, 0.5, 0]
    assert score.values["false_positive_slices"] == 2
    assert score.slices["dice"].tolist() == pytest.approx([2 / 3, 0])


class Fixed:
    """A predictor whose probabilities (S, K, H, W) are known."""

    device = "cpu"

    def __init__(self, pack: Pack, probability: np.ndarray) -> None:
        self.pack, self.probability = pack, probability.astype(np.float32)

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        return self.probability[rows]


def test_the_threshold_of_a_structure_is_chosen_as_if_it_were_the_only_one():
    """Noise below 0.3 for the first and below 0.7 for the second structure, whose own pixels lie above it."""
    pack = tiny_pack(structures=TWO)
    truth = pack.truth(np.arange(20))
    noise = np.random.default_rng(0).random(truth.shape) * [[[[0.3]], [[0.7]]]]
    predictor = MeanPredictor([Fixed(pack, np.where(truth, [[[[0.35]], [[0.8]]]], noise))], pack)
    both = choose_thresholds(predictor, pack.cases)
    assert both == (0.35, 0.7)
    for k in range(2):
        alone = [dice_curve(stacked[k]) for _, _, stacked in stacks(predictor, pack.cases, (0.5, 0.5))]
        assert choose_threshold(alone) == both[k]


@pytest.mark.parametrize("exclusive", [True, False])
def test_counts_of_several_structures_are_those_of_their_stacks(exclusive):
    pack = tiny_pack(cases=2, slices=4, structures=replace(TWO, exclusive=exclusive))
    torch.manual_seed(0)
    predictor = Predictor([nn.Conv2d(3, 2, 3, padding=1)], SliceLoader(pack, Input(), CPU), 3)
    overlaps = 0
    counted = predictor.case_counts(pack.cases, 0.5)
    for found, (_, _, stacked) in zip(counted, stacks(predictor, pack.cases, (0.5, 0.5)), strict=True):
        overlaps += int((stacked[0].prediction & stacked[1].prediction).sum())
        for counts, stack in zip(found, stacked, strict=True):
            for name in ("tp", "fp", "fn", "tn"):
                assert np.array_equal(getattr(counts, name), getattr(stack, name))
    assert (overlaps == 0) == exclusive


def test_a_softmax_predicts_with_the_background_as_a_class_of_its_own():
    pack = tiny_pack(cases=1, structures=TWO)
    torch.manual_seed(0)
    model, loader = nn.Conv2d(3, 2, 1), SliceLoader(pack, Input(), CPU)
    found = Predictor([model], loader, 4, activation="softmax").probabilities(ROWS[:5])
    powers = plain(model, loader, ROWS[:5]).exp().numpy()
    np.testing.assert_allclose(found, powers / (1 + powers.sum(1, keepdims=True)), atol=1e-6)


def padded_pack() -> Pack:
    """Two patients of 32 x 32 pixels, the second of which is 24 x 20 pixels and padding."""
    pack = tiny_pack(cases=2, slices=4)
    masks = pack.masks.copy()
    masks[4:, 24:] = masks[4:, :, 20:] = 0
    sizes = {"height": [32] * 4 + [24] * 4, "width": [32] * 4 + [20] * 4}
    return replace(pack, masks=masks, index=pack.index.assign(**sizes))


def test_a_padded_patient_is_scored_on_its_own_grid_and_nothing_predicted_outside():
    pack = padded_pack()
    everywhere = MeanPredictor([Fixed(pack, np.full((8, 1, 32, 32), 0.9))], pack)
    whole, own = Segmentation(Evaluate(metrics=("dice",))).score(everywhere, pack.cases, (0.5,))
    assert sum(whole[0].counts.values()) == 4 * 32 * 32
    assert sum(own[0].counts.values()) == 4 * 24 * 20
    assert own[0].counts["tn"] == own[0].counts["fn"] == 0
    mask = own[1]["P1"]
    assert mask.shape == (4, 1, 32, 32)
    assert mask.sum() == 4 * 24 * 20
    assert mask[..., :24, :20].all()
    assert own[1].probabilities["P1"][..., 24:, :].max() == 0


def test_validation_counts_nothing_in_the_padding_either():
    pack = padded_pack()
    model = nn.Conv2d(3, 1, 1)
    nn.init.constant_(model.weight, 0)
    nn.init.constant_(model.bias, 1)  # everything is tumour
    predictor = Predictor([model], SliceLoader(pack, Input(), CPU), 4)
    true = int(pack.masks[4:].sum())
    assert Segmentation().validate(predictor, ["P1"]) == pytest.approx(2 * true / (true + 4 * 24 * 20))


# What a run of one structure logs


def test_the_tables_of_one_structure_have_plain_names_and_the_values_of_the_reference():
    """Of fixed probabilities, by every metric, as before data sets could have several structures."""
    pack, threshold = tiny_pack(cases=2, slices=3, size=12), 0.45
    probability = np.random.default_rng(0).random((6, 1, 12, 12)).round(3) * 0.5 + 0.3 * pack.truth(np.arange(6))
    fixed = MeanPredictor([Fixed(pack, probability)], pack)
    task = Segmentation(Evaluate(metrics=tuple(reference.METRICS)))
    known = {name: metric for name, metric in reference.METRICS.items() if not name.endswith("_mm")}
    scores = [score for score, _ in task.score(fixed, pack.cases, (threshold,))]
    cases, slices = pd.DataFrame(patient_rows(scores, fold=0, threshold=threshold)), slice_table(scores)
    assert list(cases.columns) == ["case", "fold", "threshold", *known, "tp", "fp", "fn", "tn"]
    assert list(slices.columns) == ["case", "slice", "tp", "fp", "fn", "tn", "dice"]
    held = probability[:, 0].astype(np.float32)
    for case, row in cases.set_index("case").iterrows():
        rows = pack.rows([str(case)])
        seen = pack.masks[rows] == 1, held[rows], np.float32(threshold)
        for name, metric in known.items():
            assert row[name] == pytest.approx(metric(*seen), abs=1e-6, nan_ok=True), name
        assert tuple(row[["tp", "fp", "fn", "tn"]]) == reference.counts(*seen)
    for number, row in slices.iterrows():
        seen = pack.masks[number] == 1, held[number], np.float32(threshold)
        assert tuple(row[["tp", "fp", "fn", "tn"]]) == reference.counts(*seen)
        assert row["dice"] == pytest.approx(reference.dice(*seen), nan_ok=True)
    assert slices["slice"].tolist() == [1, 2, 3, 1, 2, 3]
    values = summarise(cases, with_interval=False)
    assert values["dice"] == pytest.approx(reference.mean(cases["dice"]))
    assert not [name for name in values if "[" in name]


# The threshold


def random_stack(seed: int, tumour: bool = True) -> Stack:
    rng = np.random.default_rng(seed)
    truth = (rng.random((2, 6, 5)) < 0.3) & tumour
    probability = np.clip(rng.normal(0.25 + 0.4 * truth, 0.2), 0, 1)
    return Stack(truth, probability.astype(np.float32))


def chosen(cases: list[Stack]) -> float:
    return choose_threshold([dice_curve(stack) for stack in cases])


def tried(cases: list[Stack]) -> dict[float, float]:
    """Mean per-patient Dice at every hundredth, from loops over pixels."""
    scores = {}
    for threshold in [k / 100 for k in range(1, 100)]:
        dice = [reference.dice(s.truth, s.probability, np.float32(threshold)) for s in cases]
        scores[threshold] = reference.mean(d for d in dice if not isnan(d))
    return scores


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_chosen_is_the_best_of_all_tried(seed):
    """Two patients with tumour; the third, in half of the trials, has none."""
    cases = [random_stack(3 * seed), random_stack(3 * seed + 1), random_stack(3 * seed + 2, tumour=seed % 2 == 0)]
    scores = tried(cases)
    best = [t for t, score in scores.items() if score >= max(scores.values()) - 1e-12]
    assert chosen(cases) == min(best, key=lambda t: abs(t - 0.5))


def test_a_probability_at_the_threshold_counts_as_the_stack_counts_it():
    """Every probability is one of the thresholds: the two ways of comparing must agree to the bit."""
    grid = (np.arange(1, 100) / 100).astype(np.float32).reshape(1, 9, 11)
    for k in (1, 7, 29, 57, 58, 99):
        truth = grid >= np.float32(k / 100)
        assert (Stack(truth, grid, k / 100).prediction == truth).all()
        assert chosen([Stack(truth, grid)]) == k / 100


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_chosen():
    truth = np.array([[[True, False]]])
    assert chosen([Stack(truth, np.array([[[0.9, 0.1]]], np.float32))]) == 0.5
    assert chosen([Stack(truth, np.array([[[0.4, 0.1]]], np.float32))]) == 0.4
    assert chosen([Stack(truth, np.array([[[0.9, 0.7]]], np.float32))]) == 0.71


@pytest.mark.parametrize("height", [0.0, 0.3, 1.0])
def test_without_tumour_there_is_nothing_to_choose_by(height):
    empty = Stack(np.zeros((1, 2, 2), bool), np.full((1, 2, 2), height, np.float32))
    assert chosen([]) == chosen([empty]) == chosen([empty, empty]) == 0.5
