"""Surface distances of a whole stack at once: equal to those of the CPU and to the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bench import registry
from bench.metrics import _surface_gpu, surface
from bench.metrics._surface_gpu import stack_distances
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
    "blobs": blobs(0),
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


def are_identical(actual: list[surface.Directed], expected: list[surface.Directed]) -> bool:
    """Return whether both have the same numbers in the same order, to the last bit."""
    return len(actual) == len(expected) and all(
        a.dtype == b.dtype == np.float64 and np.array_equal(a, b)
        for pair, other in zip(actual, expected, strict=True)
        for a, b in zip(pair, other, strict=True)
    )


def slice_by_slice(truth: Masks, prediction: Masks) -> list[surface.Directed]:
    return [surface.surface_distances(t, p) for t, p in zip(truth, prediction, strict=True)]


@every_pair
def test_stack_distances_equal_those_of_each_slice_for_any_chunk_size(truth: Masks, prediction: Masks) -> None:
    expected = slice_by_slice(truth, prediction)
    for max_pairs in (1, 100, _surface_gpu.MAX_PAIRS):
        assert are_identical(stack_distances(truth, prediction, device="cpu", max_pairs=max_pairs), expected)


@pytest.mark.parametrize("name", ["blobs", "opposite corners", "full and a pixel inside", "ragged noise"])
def test_stack_distances_agree_with_the_definition(name: str) -> None:
    truth, prediction = PAIRS[name]
    distances = stack_distances(truth, prediction, device=torch.device("cpu"))
    for t, p, (forth, back) in zip(truth, prediction, distances, strict=True):
        assert forth.tolist() == reference.directed(reference.surface(t), reference.surface(p))
        assert back.tolist() == reference.directed(reference.surface(p), reference.surface(t))


@every_pair
def test_stack_distances_use_the_spacing_of_each_slice(truth: Masks, prediction: Masks) -> None:
    spacing = np.random.default_rng(1).uniform(0.3, 3, (len(truth), 2))
    expected = map(surface.surface_distances, truth, prediction, spacing)
    actual = stack_distances(truth, prediction, spacing, device="cpu")
    for pair, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(pair), np.concatenate(other), rtol=1e-5)


@every_pair
def test_surfaces_equal_those_of_the_cpu(truth: Masks, prediction: Masks) -> None:
    surfaces = _surface_gpu.find_surfaces(torch.from_numpy(np.concatenate([truth, prediction])))
    assert surfaces.tolist() == [surface.find_surface(mask).tolist() for mask in (*truth, *prediction)]


@pytest.mark.parametrize("max_pairs", [1, 60, 200, 10_000])
def test_chunks_hold_every_slice_once_and_at_most_max_pairs(max_pairs: int) -> None:
    a, b = [3, 9, 1, 1, 20, 2], [4, 2, 2, 50, 20, 1]
    chunks = list(_surface_gpu._chunks(a, b, max_pairs))
    assert [s for chunk in chunks for s in range(len(a))[chunk]] == list(range(len(a)))
    for chunk in chunks:
        size = len(a[chunk])
        assert size == 1 or size * max(a[chunk]) * max(b[chunk]) <= max_pairs


def test_distances_are_exact_in_the_largest_supported_slice() -> None:
    side = 2896
    truth, prediction = np.zeros((2, 1, side, side), bool)
    truth[0, 0, 0] = prediction[0, -1, -1] = prediction[0, -1, -2] = True
    assert are_identical(stack_distances(truth, prediction, device="cpu"), slice_by_slice(truth, prediction))


def stack_on(device: str) -> Stack:
    """Blobs with a missed slice, a false-positive slice and an empty slice."""
    truth, prediction = blobs(1)
    truth[[0, 2]] = prediction[[1, 2]] = False
    return Stack(truth, prediction.astype(np.float32), device=device)


@pytest.mark.parametrize("name", ["hd95", "assd"])
def test_a_metric_does_not_depend_on_the_device(name: str) -> None:
    """A stack treats `cpu:0` like any other device, and every machine has it."""
    metric = registry.metric[name].bind({})
    assert metric(stack_on("cpu:0")) == metric(stack_on("cpu"))
    missed = Stack(FULL, np.zeros(SHAPE, np.float32), device="cpu:0")
    assert metric(missed) == pytest.approx(np.hypot(*SHAPE[1:]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_pair
def test_a_gpu_gives_the_same_bits(truth: Masks, prediction: Masks) -> None:
    expected = slice_by_slice(truth, prediction)
    for max_pairs in (100, _surface_gpu.MAX_PAIRS):
        assert are_identical(stack_distances(truth, prediction, device="cuda", max_pairs=max_pairs), expected)
