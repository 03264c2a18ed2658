"""Metrics: agreement with slow reference code, conventions for edge cases, and the contract of every metric."""

from __future__ import annotations

import gc
from math import hypot, isfinite, isnan, nan, sqrt

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from bench import registry
from bench.errors import BadSetting
from bench.metrics import overlap, surface
from bench.training.tasks.segmentation import score_case
from bench.types import Stack
from tests import reference

SHAPE = (4, 14, 19)


def score(name: str, stack: Stack, **settings: float) -> float:
    return registry.metric[name].bind(settings)(stack)


def spaced(truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> Stack:
    """Return a stack of pixels of the size that the reference of millimetres uses."""
    return Stack(truth, probability, threshold, spacing=np.tile(reference.MM, (len(truth), 1)))


def stack_of(truth: np.ndarray, prediction: np.ndarray) -> Stack:
    """Return a stack with probability 1 where predicted and 0 elsewhere."""
    return spaced(truth, prediction.astype(np.float32))


def blobs(seed: int) -> Stack:
    """Return smooth random shapes that reach the border; slice 0 has no tumour, 1 no prediction, 2 neither."""
    rng = np.random.default_rng(seed)
    shape = (6, *SHAPE[1:])
    common = gaussian_filter(rng.standard_normal(shape), (0, 2, 2))
    noise = gaussian_filter(rng.standard_normal(shape), (0, 1, 1))
    truth = common > 0.6 * common.std()
    probability = 1 / (1 + np.exp(-4 * (common / common.std() - 0.6 + 0.7 * noise / noise.std())))
    truth[[0, 2]] = False
    probability[[1, 2]] *= 0.3
    return spaced(truth, probability.astype(np.float32), threshold=(0.5, 0.35, 0.8)[seed % 3])


def square(side: int = 5, at: tuple[int, int] = (4, 4), slices: tuple[int, ...] = (1, 2)) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for s in slices:
        mask[s, at[0] : at[0] + side, at[1] : at[1] + side] = True
    return mask


NOTHING = np.zeros(SHAPE, bool)
STACKS = {
    "perfect": stack_of(square(), square()),
    "disjoint": stack_of(square(3, (0, 0)), square(3, (9, 9))),
    "missed": stack_of(square(), NOTHING),
    "false positive": stack_of(NOTHING, square()),
    "both empty": stack_of(NOTHING, NOTHING),
    "everything": stack_of(~NOTHING, ~NOTHING),
    "one pixel": stack_of(np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool)),
    "unsure": spaced(square(), np.full(SHAPE, 0.5, np.float32)),
    "blobs": blobs(0),
}
every_metric = pytest.mark.parametrize("name", registry.metric)


@pytest.mark.parametrize("name", reference.METRICS)
def test_a_metric_agrees_with_the_slow_reference(name: str) -> None:
    for stack in (*STACKS.values(), blobs(1), blobs(2)):
        expected = reference.METRICS[name](stack.truth, stack.probability, stack.threshold)
        assert score(name, stack) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert isfinite(score(name, blobs(1)))


@pytest.mark.parametrize(("margin", "bins"), [(0, 15), (1, 1), (40, 10)])
def test_calibration_settings_agree_with_the_slow_reference(margin: int, bins: int) -> None:
    stack = blobs(1)
    case = (stack.truth, stack.probability, stack.threshold)
    assert score("brier", stack, margin=margin) == pytest.approx(reference.brier(*case, margin))
    assert score("ece", stack, margin=margin, bins=bins) == pytest.approx(reference.ece(*case, margin, bins))


# The table of conventions, by hand

DIAGONAL, DIAGONAL_MM = hypot(14, 19), hypot(14 * 0.8, 19 * 1.5)
# Two slices of 25 tumour pixels out of 4 x 266. All 50 pixels missed: tn = 1014 of 1064.
BY_HAND = {
    "missed": dict(
        dice=0, iou=0, precision=nan, recall=0, specificity=1, accuracy=1014 / 1064, relative_volume_difference=-1,
        dice_positive_slices=0, dice_slices_empty1=0.5, slice_sensitivity=0, slice_specificity=1,
        missed_slices=2, false_positive_slices=0, hd95=DIAGONAL, assd=DIAGONAL,
        hd95_mm=DIAGONAL_MM, assd_mm=DIAGONAL_MM,
    ),
    "false positive": dict(
        dice=0, iou=0, precision=0, recall=nan, specificity=1014 / 1064, accuracy=1014 / 1064,
        relative_volume_difference=nan, dice_positive_slices=nan, dice_slices_empty1=0.5, slice_sensitivity=nan,
        slice_specificity=0.5, missed_slices=0, false_positive_slices=2, hd95=nan, assd=nan,
    ),
    "both empty": dict(
        dice=nan, iou=nan, precision=nan, recall=nan, specificity=1, accuracy=1, relative_volume_difference=nan,
        dice_positive_slices=nan, dice_slices_empty1=1, slice_sensitivity=nan, slice_specificity=1,
        missed_slices=0, false_positive_slices=0, hd95=nan, assd=nan, brier=nan, ece=nan,
    ),
    "perfect": dict(
        dice=1, iou=1, precision=1, recall=1, specificity=1, accuracy=1, relative_volume_difference=0,
        dice_positive_slices=1, dice_slices_empty1=1, slice_sensitivity=1, slice_specificity=1,
        missed_slices=0, false_positive_slices=0, hd95=0, assd=0, brier=0, ece=0,
    ),
    "disjoint": dict(
        dice=0, iou=0, precision=0, recall=0, relative_volume_difference=0, dice_positive_slices=0,
        dice_slices_empty1=0.5, slice_sensitivity=1, slice_specificity=1, missed_slices=0, false_positive_slices=0,
    ),
    "everything": dict(dice=1, recall=1, specificity=nan, slice_specificity=nan, hd95=0, assd=0),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_edge_cases_follow_the_table_of_conventions(case: str) -> None:
    values = {name: score(name, STACKS[case]) for name in BY_HAND[case]}
    assert values == pytest.approx(BY_HAND[case], nan_ok=True)


def test_a_false_positive_slice_lowers_dice_but_not_the_distances() -> None:
    clean = stack_of(square(), square())
    with_false_positive = stack_of(square(), square(slices=(1, 2, 3)))
    assert score("dice", with_false_positive) == pytest.approx(2 * 50 / (2 * 50 + 25))
    assert score("dice_positive_slices", with_false_positive) == 1
    assert score("slice_specificity", with_false_positive) == 0.5
    assert score("hd95", with_false_positive) == score("hd95", clean) == 0


def test_a_missed_slice_counts_the_diagonal_in_the_distances() -> None:
    half_missed = stack_of(square(), square(slices=(1,)))
    assert score("hd95", half_missed) == pytest.approx(DIAGONAL / 2)
    assert score("assd", half_missed) == pytest.approx(DIAGONAL / 2)
    assert score("missed_slices", half_missed) == 1


def test_slice_dice_is_nan_for_true_negatives_and_zero_for_false_positives() -> None:
    truth, prediction = square(slices=(1, 2)), square(slices=(2, 3))
    assert overlap.slice_dice(stack_of(truth, prediction)) == pytest.approx([nan, 0, 1, 0], nan_ok=True)


def test_an_empty_prediction_scores_high_only_on_unranked_metrics() -> None:
    """35 of 100 slices have tumour, as in LGG: `dice_slices_empty1` gives an empty prediction 0.65."""
    truth = np.zeros((100, 6, 6), bool)
    truth[:35, 2:4, 2:4] = True
    empty = stack_of(truth, np.zeros_like(truth))
    assert score("dice_slices_empty1", empty) == pytest.approx(0.65)
    assert score("accuracy", empty) == pytest.approx(1 - 35 * 4 / 3600)
    for name in ("dice", "iou", "recall", "dice_positive_slices", "slice_sensitivity"):
        assert score(name, empty) == 0
    unranked = {name for name in registry.metric if registry.metric[name].facts.get("ranked", True) is False}
    assert unranked >= {"dice_slices_empty1", "accuracy", "specificity"}


# Distances


def distances(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """Return hd95 and assd of one slice (H, W)."""
    stack = stack_of(truth[None], prediction[None])
    return score("hd95", stack), score("assd", stack)


def test_a_distance_in_millimetres_uses_the_spacing_of_each_slice() -> None:
    """Slice 0 is 3 rows of 2 mm and 4 columns of 3 mm off, slice 1 the same of 1 mm; slice 2 is missed."""
    truth, prediction = np.zeros((2, 3, 8, 9), bool)
    truth[:, 1, 1] = prediction[:2, 4, 5] = True
    stack = Stack(truth, prediction.astype(np.float32), spacing=np.array([[2, 3], [1, 1], [0.5, 2]]))
    by_hand = (hypot(6, 12) + 5 + hypot(8 * 0.5, 9 * 2)) / 3
    assert score("hd95_mm", stack) == pytest.approx(by_hand)
    assert score("assd_mm", stack) == pytest.approx(by_hand)
    assert score("hd95", stack) == pytest.approx((5 + 5 + hypot(8, 9)) / 3)


@pytest.mark.parametrize("noise", [0.05, 0.5])  # compared pair by pair, and by distance transforms
def test_distances_in_millimetres_agree_with_the_way_of_medpy(noise: float) -> None:
    """MedPy erodes and transforms whole images with the spacing as `sampling`."""
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 40, 30)) < noise
    a, b = (mask & ~binary_erosion(mask) for mask in (truth, prediction))
    forth, back = (distance_transform_edt(~other, sampling=reference.MM)[own] for own, other in ((a, b), (b, a)))
    stack = stack_of(truth[None], prediction[None])
    assert score("assd_mm", stack) == pytest.approx(np.concatenate([forth, back]).mean())
    assert score("hd95_mm", stack) == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))


def test_without_a_spacing_there_are_no_distances_in_millimetres() -> None:
    stack = Stack(square(), square().astype(np.float32))
    assert isnan(score("hd95_mm", stack))
    metrics = {name: registry.metric[name].bind({}) for name in ("hd95", "hd95_mm", "assd_mm")}
    assert set(score_case("P1", [1, 2, 3, 4], ("tumour",), [stack], metrics).values) == {"hd95"}
    perfect = score_case("P1", [1, 2, 3, 4], ("tumour",), [stack_of(square(), square())], metrics)
    assert perfect.values == dict.fromkeys(metrics, 0)


def test_the_distance_of_two_parallel_bars_is_their_offset() -> None:
    truth, prediction = np.zeros((2, 20, 30), bool)
    truth[4, 5:25] = prediction[11, 5:25] = True
    assert distances(truth, prediction) == (7, 7)


def test_a_solid_square_and_its_rim_have_the_same_surface() -> None:
    solid, rim = square()[1], square()[1]
    rim[5:8, 5:8] = False
    assert surface.find_surface(solid).tolist() == rim.tolist()
    assert distances(solid, solid ^ rim)[0] == pytest.approx(sqrt(2))  # the four corners, one diagonal step away


def test_pixels_at_the_image_border_belong_to_the_surface() -> None:
    full = np.ones((3, 4), bool)
    assert surface.find_surface(full).tolist() == [[True] * 4, [True, False, False, True], [True] * 4]


def test_a_diagonal_background_neighbour_does_not_make_a_surface_pixel() -> None:
    mask = np.ones((5, 5), bool)
    mask[0, 0] = False
    assert not surface.find_surface(mask)[1, 1]


def test_hd95_is_the_larger_directed_percentile_not_the_pooled_one() -> None:
    """All 38 pixels of truth are predicted; the prediction has 2 more, 10 and 11 pixels further along the row.

    Directed: from the truth every distance is 0; of the 40 predicted pixels 38 are at 0, then 10 and 11. Their
    95th percentile lies at rank 37.05: 0.05 * 10 = 0.5. Pooled (MedPy): rank 73.15 of 78 values is 0.
    """
    truth, prediction = np.zeros((2, 3, 60), bool)
    truth[1, :38] = prediction[1, :38] = True
    prediction[1, 47:49] = True
    assert distances(truth, prediction) == pytest.approx((0.5, 21 / 78))
    assert distances(prediction, truth) == pytest.approx((0.5, 21 / 78))


@pytest.mark.parametrize("name", ["hd95", "assd"])
def test_ragged_outlines_agree_with_the_slow_reference(name: str) -> None:
    """Their many surface pixels make a distance transform cheaper than comparing all pairs."""
    truth, prediction = np.random.default_rng(0).random((2, 2, *SHAPE[1:])) < 0.5
    for t, p in zip(truth, prediction, strict=True):
        assert len(reference.surface(t)) * len(reference.surface(p)) > surface.PAIRS_PER_PIXEL * t.size
    expected = reference.METRICS[name](truth, prediction.astype(np.float32), 0.5)
    assert score(name, stack_of(truth, prediction)) == pytest.approx(expected, rel=1e-9)


def test_the_distances_of_a_stack_are_computed_once_and_freed_with_it() -> None:
    before = len(surface._cache)
    stack = blobs(0)
    score("hd95", stack)
    pixels = np.ones((len(stack.truth), 2))
    computed = surface._stack_distances(stack, pixels)
    score("assd", stack)
    assert surface._stack_distances(stack, pixels.copy()) is computed
    assert surface._stack_distances(stack, 2 * pixels) is not computed, "each spacing has its own distances"
    assert surface._stack_distances(blobs(0), pixels) is not computed, "another stack has its own distances"
    del stack
    gc.collect()
    assert len(surface._cache) == before


@pytest.mark.parametrize("count", [1, 2, 20, 21])
def test_the_percentile_equals_that_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    for q in (0, 50, 95, 100):
        assert surface._percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12)


# Calibration


def test_distant_background_does_not_affect_calibration() -> None:
    """One tumour pixel at 0.5: with margin 1 five pixels count, whatever the size of the image."""
    for size in (9, 99):
        truth = np.zeros((2, size, size), bool)
        truth[0, 4, 4] = True
        stack = Stack(truth, (truth * 0.5).astype(np.float32))
        assert score("brier", stack, margin=1) == pytest.approx(0.25 / 5)
        assert score("ece", stack, margin=1) == pytest.approx(0.5 / 5)
        assert score("brier", stack, margin=0) == pytest.approx(0.25)


def test_ece_is_zero_if_the_probability_equals_the_share_of_tumour() -> None:
    truth = np.zeros((1, 4, 5), bool)
    truth[0, :, 0] = True  # a fifth of the pixels
    stack = Stack(truth, np.full((1, 4, 5), 0.2, np.float32), threshold=0.1)
    assert score("ece", stack) == pytest.approx(0, abs=1e-7)
    assert score("brier", stack) == pytest.approx(0.2 * 0.8)


@pytest.mark.parametrize("wrong", [{"margin": -1}, {"bins": 0}, {"radius": 3}])
def test_a_wrong_calibration_setting_raises(wrong: dict[str, int]) -> None:
    with pytest.raises(BadSetting, match="ece"):
        registry.metric["ece"].bind(wrong)


# The contract of every metric


@every_metric
def test_every_metric_has_a_summary_and_facts(name: str) -> None:
    entry = registry.metric[name]
    assert entry.summary
    assert entry.facts["higher"] in (True, False, None)
    assert isinstance(entry.facts["unit"], str)
    assert isinstance(entry.facts.get("ranked", True), bool)


@every_metric
def test_every_metric_returns_a_finite_float_or_nan_within_its_range(name: str) -> None:
    """An infinity would win a descending sort in the store. Only a metric with a unit may exceed 1."""
    facts = registry.metric[name].facts
    for stack in STACKS.values():
        value = score(name, stack)
        assert type(value) is float
        assert isfinite(value) or isnan(value)
        assert facts["higher"] is None or isnan(value) or (value >= 0 and (facts["unit"] or value <= 1))


@every_metric
def test_no_prediction_scores_better_than_the_perfect_one(name: str) -> None:
    higher = registry.metric[name].facts["higher"]
    for stack in STACKS.values():
        perfect, other = score(name, stack_of(stack.truth, stack.truth)), score(name, stack)
        if higher is not None and not isnan(perfect) and not isnan(other):
            assert perfect >= other if higher else perfect <= other


@every_metric
def test_no_metric_depends_on_the_order_of_slices_or_on_flips(name: str) -> None:
    stack = blobs(1)
    for view in (np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1]):
        flipped = spaced(stack.truth[view], stack.probability[view], stack.threshold)
        assert score(name, flipped) == pytest.approx(score(name, stack), nan_ok=True)


@every_metric
def test_no_metric_changes_the_stack(name: str) -> None:
    stack = blobs(0)
    arrays = {k: v for k, v in vars(stack).items() if isinstance(v, np.ndarray)}
    before = {k: v.copy() for k, v in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    score(name, stack)
    assert vars(stack).keys() == {*arrays, "threshold", "device"}
    assert all(np.array_equal(before[k], getattr(stack, k)) for k in before)


@pytest.mark.parametrize("name", sorted(reference.METRICS.keys() - {"brier", "ece"}))
def test_a_metric_of_masks_uses_the_threshold_of_the_stack(name: str) -> None:
    """If no probability reaches the threshold, the prediction is empty."""
    empty = stack_of(square(), NOTHING)
    below_threshold = spaced(square(), square() * np.float32(0.6), threshold=0.7)
    assert score(name, below_threshold) == pytest.approx(score(name, empty), nan_ok=True)


def test_every_builtin_metric_has_a_slow_reference() -> None:
    """A new metric needs its definition in plain loops in tests/reference.py."""
    builtin = {n for n in registry.metric if registry.metric[n].fn.__module__.startswith("bench.metrics.")}
    assert builtin == reference.METRICS.keys()
