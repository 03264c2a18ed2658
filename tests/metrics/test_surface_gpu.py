"""Surface distances of a stack at once say what the CPU says, and what the definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bench import registry
from bench.metrics import _surface_gpu as _brute
from bench.metrics import surface
from bench.types import Stack
from tests import reference

SHAPE = (6, 14, 19)
Masks = np.ndarray


def blobs(seed: int) -> tuple[Masks, Masks]:
    """Smooth shapes that reach the border; every slice has some of both."""
    rng = np.random.default_rng(seed)
    common, own = (gaussian_filter(rng.standard_normal(SHAPE), (0, 2, 2)) for _ in range(2))
    truth, prediction = common > common.std(), common + own / 2 > common.std()
    truth[:, 7, 9] = prediction[:, 3, 4] = True
    return truth, prediction


def pixel(y: int, x: int) -> Masks:
    mask = np.zeros(SHAPE, bool)
    mask[:, y, x] = True
    return mask


def one_large_among_small() -> tuple[Masks, Masks]:
    truth, prediction = pixel(3, 3), pixel(9, 9)
    truth[2], prediction[2] = np.random.default_rng(5).random((2, *SHAPE[1:])) < 0.5
    return truth, prediction


FULL = np.ones(SHAPE, bool)
NOISE = np.random.default_rng(0).random((2, *SHAPE)) < 0.5
PAIRS = {
    **{f"blobs {seed}": blobs(seed) for seed in range(4)},
    "the same pixel": (pixel(5, 5), pixel(5, 5)),
    "opposite corners": (pixel(0, 0), pixel(13, 18)),
    "full and full": (FULL, FULL),
    "full and a pixel inside": (FULL, pixel(6, 8)),
    "ragged noise": (NOISE[0], NOISE[1]),
    "one large slice among small ones": one_large_among_small(),
    "one slice": (NOISE[0, :1], NOISE[1, :1]),
    "no slice": (NOISE[0, :0], NOISE[1, :0]),
}
every_pair = pytest.mark.parametrize(("truth", "prediction"), PAIRS.values(), ids=PAIRS.keys())


def same(found: list[surface.Directed], expected: list[surface.Directed]) -> bool:
    """The same numbers in the same order, to the last bit."""
    return len(found) == len(expected) and all(
        a.dtype == b.dtype == np.float64 and np.array_equal(a, b)
        for pair, other in zip(found, expected, strict=True)
        for a, b in zip(pair, other, strict=True)
    )


def one_by_one(truth: Masks, prediction: Masks) -> list[surface.Directed]:
    return [surface.surface_distances(t, p) for t, p in zip(truth, prediction, strict=True)]


@every_pair
def test_all_pairs_of_a_stack_give_the_distances_of_its_slices(truth: Masks, prediction: Masks) -> None:
    assert same(_brute.stack_distances(truth, prediction, "cpu"), one_by_one(truth, prediction))


@every_pair
def test_they_agree_with_the_definition(truth: Masks, prediction: Masks) -> None:
    found = _brute.stack_distances(truth, prediction, torch.device("cpu"))
    for t, p, (there, back) in zip(truth, prediction, found, strict=True):
        assert there.tolist() == reference.directed(reference.surface(t), reference.surface(p))
        assert back.tolist() == reference.directed(reference.surface(p), reference.surface(t))


@every_pair
def test_surfaces_are_found_as_on_the_cpu(truth: Masks, prediction: Masks) -> None:
    found = _brute.surfaces(torch.from_numpy(np.concatenate([truth, prediction])))
    assert found.tolist() == [surface.surface(mask).tolist() for mask in (*truth, *prediction)]


@pytest.mark.parametrize("at_once", [1, 7, 100, 5_000])
@every_pair
def test_the_size_of_a_chunk_changes_nothing(truth: Masks, prediction: Masks, at_once: int) -> None:
    found = _brute.stack_distances(truth, prediction, "cpu", at_once=at_once)
    assert same(found, one_by_one(truth, prediction))


@pytest.mark.parametrize("at_once", [1, 60, 200, 10_000])
def test_a_chunk_holds_every_slice_once_and_no_more_pairs_than_it_may(at_once: int) -> None:
    here, there = [3, 9, 1, 1, 20, 2], [4, 2, 2, 50, 20, 1]
    chunks = list(_brute._chunks(here, there, at_once))
    assert [s for chunk in chunks for s in range(len(here))[chunk]] == list(range(len(here)))
    for chunk in chunks:
        size = len(here[chunk])
        assert size == 1 or size * max(here[chunk]) * max(there[chunk]) <= at_once


def test_the_far_corners_of_the_largest_exact_slice_are_exact() -> None:
    side = 2896
    truth, prediction = np.zeros((2, 1, side, side), bool)
    truth[0, 0, 0] = prediction[0, -1, -1] = prediction[0, -1, -2] = True
    assert same(_brute.stack_distances(truth, prediction, "cpu"), one_by_one(truth, prediction))


def case(device: str) -> Stack:
    """Blobs with a slice that was missed, a false alarm and an empty slice."""
    truth, prediction = blobs(1)
    truth[[0, 2]] = prediction[[1, 2]] = False
    return Stack(truth, prediction.astype(np.float32), device=device)


@pytest.mark.parametrize("name", ["hd95", "assd"])
def test_a_metric_is_the_same_on_another_device(name: str) -> None:
    """`cpu:0` is a device like any other to a stack, and there is one everywhere."""
    metric = registry.metric[name].bind({})
    assert metric(case("cpu:0")) == metric(case("cpu"))
    nothing_found = Stack(FULL, np.zeros(SHAPE, np.float32), device="cpu:0")
    assert metric(nothing_found) == pytest.approx(np.hypot(*SHAPE[1:]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_pair
def test_a_gpu_gives_the_same_bits(truth: Masks, prediction: Masks) -> None:
    expected = one_by_one(truth, prediction)
    for at_once in (100, _brute.AT_ONCE):
        assert same(_brute.stack_distances(truth, prediction, "cuda", at_once=at_once), expected)
