"""Metrics: each against its slow truth, each cell of the table of conventions, and what every metric promises."""

from __future__ import annotations

import gc
from math import hypot, isfinite, isnan, nan, sqrt

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bench import registry
from bench.errors import BadSetting
from bench.metrics import overlap, surface
from bench.types import Stack
from tests import reference

SHAPE = (4, 14, 19)


def score(name: str, stack: Stack, **settings: float) -> float:
    return registry.metric[name].bind(settings)(stack)


def stack_of(truth: np.ndarray, prediction: np.ndarray) -> Stack:
    """A case of sure answers: probability 1 where predicted, 0 elsewhere."""
    return Stack(truth, prediction.astype(np.float32))


def blobs(seed: int) -> Stack:
    """Smooth random shapes that reach the border; slice 0 has no tumour, slice 1 no prediction, 2 neither."""
    rng = np.random.default_rng(seed)
    shape = (6, *SHAPE[1:])
    common = gaussian_filter(rng.standard_normal(shape), (0, 2, 2))
    noise = gaussian_filter(rng.standard_normal(shape), (0, 1, 1))
    truth = common > 0.6 * common.std()
    probability = 1 / (1 + np.exp(-4 * (common / common.std() - 0.6 + 0.7 * noise / noise.std())))
    truth[[0, 2]] = False
    probability[[1, 2]] *= 0.3
    return Stack(truth, probability.astype(np.float32), threshold=(0.5, 0.35, 0.8)[seed % 3])


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
    "false alarm": stack_of(NOTHING, square()),
    "both empty": stack_of(NOTHING, NOTHING),
    "everything": stack_of(~NOTHING, ~NOTHING),
    "one pixel": stack_of(np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool)),
    "unsure": Stack(square(), np.full(SHAPE, 0.5, np.float32)),
    "blobs": blobs(0),
}
every_metric = pytest.mark.parametrize("name", registry.metric)
every_stack = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())


# Against the slow truths


@pytest.mark.parametrize("name", reference.METRICS)
@pytest.mark.parametrize("seed", range(6))
def test_a_metric_agrees_with_its_slow_truth_on_random_blobs(name: str, seed: int) -> None:
    stack = blobs(seed)
    expected = reference.METRICS[name](stack.truth, stack.probability, stack.threshold)
    assert isfinite(expected)
    assert score(name, stack) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", reference.METRICS)
@every_stack
def test_a_metric_agrees_with_its_slow_truth_at_the_edges(name: str, stack: Stack) -> None:
    expected = reference.METRICS[name](stack.truth, stack.probability, stack.threshold)
    assert score(name, stack) == pytest.approx(expected, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize(("margin", "bins"), [(0, 15), (1, 1), (3, 4), (40, 10)])
def test_calibration_settings_do_what_the_slow_truth_does(margin: int, bins: int) -> None:
    stack = blobs(1)
    case = (stack.truth, stack.probability, stack.threshold)
    assert score("brier", stack, margin=margin) == pytest.approx(reference.brier(*case, margin))
    assert score("ece", stack, margin=margin, bins=bins) == pytest.approx(reference.ece(*case, margin, bins))


# The table of conventions, by hand

DIAGONAL = hypot(14, 19)
# Two slices of 25 tumour pixels out of 4 x 266. All 50 pixels missed: tn = 1014 of 1064.
BY_HAND = {
    "missed": dict(
        dice=0, iou=0, precision=nan, recall=0, specificity=1, accuracy=1014 / 1064, relative_volume_difference=-1,
        dice_positive_slices=0, dice_slices_empty1=0.5, slice_sensitivity=0, slice_specificity=1,
        missed_slices=2, false_positive_slices=0, hd95=DIAGONAL, assd=DIAGONAL,
    ),
    "false alarm": dict(
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
CELLS = [(case, name, value) for case, row in BY_HAND.items() for name, value in row.items()]


@pytest.mark.parametrize(("case", "name", "expected"), CELLS)
def test_the_table_of_conventions(case: str, name: str, expected: float) -> None:
    assert score(name, STACKS[case]) == pytest.approx(expected, nan_ok=True)


def test_a_false_positive_slice_lowers_the_case_but_not_its_distances() -> None:
    clean = stack_of(square(), square())
    alarmed = stack_of(square(), square(slices=(1, 2, 3)))
    assert score("dice", alarmed) == pytest.approx(2 * 50 / (2 * 50 + 25))
    assert score("dice_positive_slices", alarmed) == 1
    assert score("slice_specificity", alarmed) == 0.5
    assert score("hd95", alarmed) == score("hd95", clean) == 0


def test_a_missed_slice_enters_the_distances_with_the_diagonal() -> None:
    half_found = stack_of(square(), square(slices=(1,)))
    assert score("hd95", half_found) == pytest.approx(DIAGONAL / 2)
    assert score("assd", half_found) == pytest.approx(DIAGONAL / 2)
    assert score("missed_slices", half_found) == 1


def test_slice_dice_leaves_true_negatives_out_and_counts_false_alarms_as_zero() -> None:
    truth, prediction = square(slices=(1, 2)), square(slices=(2, 3))
    assert overlap.slice_dice(stack_of(truth, prediction)) == pytest.approx([nan, 0, 1, 0], nan_ok=True)


def test_finding_nothing_scores_zero_a_patient_and_flatters_only_where_the_name_says_so() -> None:
    """35 of 100 slices with tumour, as in LGG: the slice mean with empty = 1 gives an empty prediction 0.65."""
    truth = np.zeros((100, 6, 6), bool)
    truth[:35, 2:4, 2:4] = True
    nothing = stack_of(truth, np.zeros_like(truth))
    assert score("dice_slices_empty1", nothing) == pytest.approx(0.65)
    assert score("accuracy", nothing) == pytest.approx(1 - 35 * 4 / 3600)
    for name in ("dice", "iou", "recall", "dice_positive_slices", "slice_sensitivity"):
        assert score(name, nothing) == 0
    flattering = {name for name in registry.metric if registry.metric[name].facts.get("ranked", True) is False}
    assert flattering >= {"dice_slices_empty1", "accuracy", "specificity"}


# Distances


def test_hd95_of_two_parallel_bars_is_their_distance() -> None:
    truth, prediction = np.zeros((2, 20, 30), bool)
    truth[4, 5:25] = prediction[11, 5:25] = True
    assert surface.slice_hd95(truth, prediction) == 7
    assert surface.slice_assd(truth, prediction) == 7


def test_a_solid_square_and_its_rim_have_the_same_surface() -> None:
    solid, rim = square()[1], square()[1]
    rim[5:8, 5:8] = False
    assert surface.surface(solid).tolist() == rim.tolist()
    assert surface.slice_hd95(solid, solid ^ rim) == pytest.approx(sqrt(2))  # the four corners, one step away


def test_the_image_border_ends_a_mask() -> None:
    full = np.ones((3, 4), bool)
    assert surface.surface(full).tolist() == [[True] * 4, [True, False, False, True], [True] * 4]


def test_diagonal_neighbours_do_not_make_a_surface() -> None:
    mask = np.ones((5, 5), bool)
    mask[0, 0] = False
    assert not surface.surface(mask)[1, 1]


def test_hd95_takes_the_worse_direction_and_does_not_pool_the_two() -> None:
    """38 pixels of truth are all found; the prediction has 2 pixels more, 10 and 11 further along the row.

    Directed: truth -> prediction is 0 everywhere; of the 40 predicted pixels 38 are at 0, then 10 and 11. The 95th
    percentile of those lies at rank 37.05: 0.05 * 10 = 0.5. Pooled (MedPy): rank 73.15 of 78 values is 0.
    """
    truth, prediction = np.zeros((2, 3, 60), bool)
    truth[1, :38] = prediction[1, :38] = True
    prediction[1, 47:49] = True
    assert surface.slice_hd95(truth, prediction) == pytest.approx(0.5)
    assert surface.slice_hd95(prediction, truth) == pytest.approx(0.5)
    assert surface.slice_assd(truth, prediction) == pytest.approx(21 / 78)


def test_one_slice_follows_the_table_too() -> None:
    empty, lesion = NOTHING[0], square()[1]
    for distance in (surface.slice_hd95, surface.slice_assd):
        assert isnan(distance(empty, empty))
        assert isnan(distance(empty, lesion))
        assert distance(lesion, empty) == pytest.approx(DIAGONAL)
        assert distance(lesion, lesion) == 0


@pytest.mark.parametrize("name", ["hd95", "assd"])
def test_ragged_outlines_are_measured_like_smooth_ones(name: str) -> None:
    """With so many surface pixels that a distance transform is cheaper than trying all pairs."""
    truth, prediction = np.random.default_rng(0).random((2, 2, *SHAPE[1:])) < 0.5
    for t, p in zip(truth, prediction, strict=True):
        assert len(reference.surface(t)) * len(reference.surface(p)) > surface.PAIRS_A_PIXEL * t.size
    expected = reference.METRICS[name](truth, prediction.astype(np.float32), 0.5)
    assert score(name, stack_of(truth, prediction)) == pytest.approx(expected, rel=1e-9)


def test_the_distances_of_a_stack_are_found_once_and_go_with_it() -> None:
    before = len(surface._found)
    stack = blobs(0)
    score("hd95", stack)
    found = surface._distances(stack)
    score("assd", stack)
    assert surface._distances(stack) is found
    assert surface._distances(blobs(0)) is not found, "another stack has distances of its own"
    del stack
    gc.collect()
    assert len(surface._found) == before


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 77])
@pytest.mark.parametrize("q", [0, 50, 95, 100])
def test_the_percentile_is_numpys(count: int, q: float) -> None:
    values = np.random.default_rng(count).random(count)
    assert surface._percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12)


# Calibration


def test_far_background_does_not_dilute_calibration() -> None:
    """One tumour pixel at 0.5 in a black image: with margin 1 five pixels count, however large the image is."""
    for size in (9, 99):
        truth = np.zeros((2, size, size), bool)
        truth[0, 4, 4] = True
        stack = Stack(truth, (truth * 0.5).astype(np.float32))
        assert score("brier", stack, margin=1) == pytest.approx(0.25 / 5)
        assert score("ece", stack, margin=1) == pytest.approx(0.5 / 5)
        assert score("brier", stack, margin=0) == pytest.approx(0.25)


def test_ece_is_zero_when_the_probability_is_the_share_and_brier_is_not() -> None:
    truth = np.zeros((1, 4, 5), bool)
    truth[0, :, 0] = True  # a fifth of the pixels
    stack = Stack(truth, np.full((1, 4, 5), 0.2, np.float32), threshold=0.1)
    assert score("ece", stack) == pytest.approx(0, abs=1e-7)
    assert score("brier", stack) == pytest.approx(0.2 * 0.8)


@pytest.mark.parametrize("wrong", [{"margin": -1}, {"bins": 0}, {"radius": 3}])
def test_a_wrong_calibration_setting_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadSetting, match="ece"):
        registry.metric["ece"].bind(wrong)


# What every metric promises


@every_metric
def test_every_metric_says_what_it_is(name: str) -> None:
    entry = registry.metric[name]
    assert entry.summary
    assert entry.facts["higher"] in (True, False, None)
    assert isinstance(entry.facts["unit"], str)
    assert isinstance(entry.facts.get("ranked", True), bool)


@every_metric
@every_stack
def test_every_metric_gives_a_plain_number_and_never_infinity(name: str, stack: Stack) -> None:
    """An infinity would win a descending sort in the store."""
    value = score(name, stack)
    assert type(value) is float
    assert isfinite(value) or isnan(value)


@every_metric
@every_stack
def test_every_directed_metric_without_a_unit_lies_between_0_and_1(name: str, stack: Stack) -> None:
    facts, value = registry.metric[name].facts, score(name, stack)
    assert facts["higher"] is None or isnan(value) or (value >= 0 and (facts["unit"] or value <= 1))


@every_metric
@every_stack
def test_no_prediction_beats_the_perfect_one(name: str, stack: Stack) -> None:
    higher = registry.metric[name].facts["higher"]
    perfect, other = score(name, Stack(stack.truth, stack.truth.astype(np.float32))), score(name, stack)
    if higher is not None and not isnan(perfect) and not isnan(other):
        assert perfect >= other if higher else perfect <= other


@every_metric
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_blind_to_the_order_of_slices_and_to_flips(name: str, seed: int) -> None:
    stack = blobs(seed)
    for view in (np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1]):
        turned = Stack(stack.truth[view], stack.probability[view], stack.threshold)
        assert score(name, turned) == pytest.approx(score(name, stack), nan_ok=True)


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
def test_a_metric_of_masks_follows_the_threshold_of_the_stack(name: str) -> None:
    """At a threshold that nothing reaches the prediction is empty, whatever the probabilities say."""
    sure = stack_of(square(), NOTHING)
    unsure = Stack(square(), square() * np.float32(0.6), threshold=0.7)
    assert score(name, unsure) == pytest.approx(score(name, sure), nan_ok=True)


def test_every_metric_of_the_package_has_a_slow_truth() -> None:
    """A new metric brings its definition in plain loops to tests/reference.py."""
    shipped = {n for n in registry.metric if registry.metric[n].fn.__module__.startswith("bench.metrics.")}
    assert shipped == reference.METRICS.keys()
