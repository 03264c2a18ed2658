"""Contracts of every preprocessing step, and each built-in step against a slow reference or by hand."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from scipy import ndimage

from bench import registry
from bench.errors import BadSetting

needs_itk = pytest.mark.skipif(importlib.util.find_spec("SimpleITK") is None, reason="pip install '.[n4]'")
NAMES = [pytest.param(name, marks=needs_itk) if name == "n4" else name for name in registry.preprocessing]


def apply(name, image, **settings):
    return registry.preprocessing[name].bind(settings)(image)


def scan(height=48, width=64, channels=3, seed=0):
    """A noisy ellipse of tissue on a dark background, uint8 (H, W, C); each channel is another scan."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = ((y / height - 0.5) / 0.4) ** 2 + ((x / width - 0.5) / 0.35) ** 2 < 1
    levels = rng.uniform(80, 160, channels)
    return (inside[..., None] * levels + rng.uniform(0, 30, (height, width, channels))).astype(np.uint8)


# Contracts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width", "channels"), [(48, 64, 3), (33, 17, 1)])
def test_every_step_keeps_shape_and_type_and_its_input(name, height, width, channels):
    image = scan(height, width, channels)
    before = image.copy()
    changed = apply(name, image)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(image, before), "the input was changed in place"
    assert np.array_equal(apply(name, image), changed), "the same input gave another result"


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_slice_is_accepted(name):
    image = scan()
    image.flags.writeable = False
    assert apply(name, image).shape == image.shape


@pytest.mark.parametrize("name", NAMES)
def test_every_channel_is_processed_separately(name):
    image = scan(40, 56, 3)
    together = apply(name, image)
    for channel in range(3):
        alone = apply(name, image[..., channel : channel + 1])
        assert np.array_equal(alone[..., 0], together[..., channel])


@pytest.mark.parametrize("name", NAMES)
def test_every_step_changes_tissue(name):
    assert not np.array_equal(apply(name, scan()), scan())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 117])
def test_a_constant_slice_stays_constant(name, level):
    """Its level is kept too, except by histogram equalisation, which has no contrast to work with."""
    image = np.full((40, 56, 2), level, np.uint8)
    changed = apply(name, image)
    assert np.ptp(changed) == 0
    assert name == "clahe" or np.array_equal(changed, image)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("median", {"size": 4}, "size = 4 is refused: a window is centred on a pixel, so its side must be odd"),
        ("clahe", {"tiles": 0}, "tiles = 0 is refused"),
        ("n4", {"shrink": 0}, "shrink = 0 is refused"),
        ("median", {"sise": 3}, "has no setting 'sise'; it has size. Did you mean 'size'?"),
    ],
)
def test_a_wrong_setting_raises_a_helpful_error(name, settings, sentence):
    with pytest.raises(BadSetting, match=sentence):
        registry.preprocessing[name].settings(settings)


# Median


@pytest.mark.parametrize("size", [3, 9])
def test_the_median_equals_that_of_scipy(size):
    image = np.random.default_rng(1).integers(0, 256, (31, 45, 2), np.uint8)
    expected = ndimage.median_filter(image, size, mode="nearest", axes=(0, 1))
    assert np.array_equal(apply("median", image, size=size), expected)


def test_the_median_removes_single_pixels_and_keeps_an_edge():
    image = np.zeros((20, 20, 1), np.uint8)
    image[:, 10:] = 100
    speckled = image.copy()
    speckled[4, 4], speckled[12, 15] = 255, 0
    assert np.array_equal(apply("median", speckled), image)


# CLAHE


def equalised(channel, clip, tiles):
    """The algorithm of Zuiderveld pixel by pixel; the excess is distributed as OpenCV documents it."""
    height, width = channel.shape[0] // tiles, channel.shape[1] // tiles
    area = height * width
    limit = max(int(clip * area / 256), 1)
    tables = np.empty((tiles, tiles, 256))
    for row in range(tiles):
        for column in range(tiles):
            tile = channel[row * height : (row + 1) * height, column * width : (column + 1) * width]
            counts = np.bincount(tile.ravel(), minlength=256)
            excess = int((counts - limit).clip(0).sum())
            counts = counts.clip(max=limit) + excess // 256
            rest = excess % 256
            if rest:
                counts[:: max(256 // rest, 1)][:rest] += 1
            tables[row, column] = np.rint(counts.cumsum() * 255 / area).clip(0, 255)
    made = np.empty(channel.shape)
    for y, x in np.ndindex(*channel.shape):
        v, u = y / height - 0.5, x / width - 0.5
        top, left = int(np.floor(v)), int(np.floor(u))
        down, across = v - top, u - left
        rows, columns = np.clip([top, top + 1], 0, tiles - 1), np.clip([left, left + 1], 0, tiles - 1)
        near = tables[np.ix_(rows, columns)][..., channel[y, x]]
        made[y, x] = np.array([1 - down, down]) @ near @ np.array([1 - across, across])
    return made


@pytest.mark.parametrize(("clip", "tiles"), [(3.0, 8), (40.0, 2)])
def test_clahe_equals_the_algorithm_of_zuiderveld(clip, tiles):
    image = scan(48, 64, 1)
    changed = apply("clahe", image, clip=clip, tiles=tiles)[..., 0]
    assert np.abs(changed - equalised(image[..., 0], clip, tiles)).max() <= 1


def test_clahe_of_one_tile_without_a_limit_is_equalisation():
    """By hand: 64 pixels each of 10, 20, 30 and 40 map to the ends of their quarters of 255."""
    image = np.repeat(np.array([10, 20, 30, 40], np.uint8), 64).reshape(16, 16, 1)
    changed = apply("clahe", image, clip=256, tiles=1)
    assert np.unique(changed).tolist() == [64, 128, 191, 255]


def test_a_larger_limit_of_clahe_gives_more_contrast():
    image = (100 + scan(64, 64, 1).astype(float) / 8).astype(np.uint8)
    spreads = [apply("clahe", image, clip=clip, tiles=2).std() for clip in (1, 2, 4, 8)]
    assert spreads == sorted(spreads)
    assert spreads[0] < spreads[-1]


# Sharpening


def test_sharpening_by_hand():
    """The Laplacian of a single pixel 10 above the rest is -40 there and 10 at its four neighbours."""
    image = np.full((5, 5, 1), 100, np.uint8)
    image[2, 2] = 110
    cross = [[0, 0, 0, 0, 0], [0, 0, -10, 0, 0], [0, -10, 50, -10, 0], [0, 0, -10, 0, 0], [0, 0, 0, 0, 0]]
    assert np.array_equal(apply("sharpen", image)[..., 0], 100 + np.array(cross))
    assert apply("sharpen", image, amount=0.25)[2, 2, 0] == 120
    assert apply("sharpen", image, amount=10)[2, 1:3, 0].tolist() == [0, 255], "clipped to 0..255"


def test_sharpening_subtracts_the_laplacian():
    amount = 2.5
    image = scan(33, 21, 2)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)[..., None]
    expected = image - amount * ndimage.convolve(image.astype(float), kernel, mode="mirror")
    changed = apply("sharpen", image, amount=amount)
    assert np.abs(changed - expected.clip(0, 255)).max() <= 0.5 + 1e-4


# Bilateral


def test_the_bilateral_filter_is_the_mean_weighted_by_distance_and_similarity():
    diameter, sigma_intensity, sigma_space = 7, 60.0, 1.5
    image = scan(24, 30, 1)
    radius = diameter // 2
    padded = np.pad(image[..., 0].astype(float), radius, mode="reflect")
    total, weights = np.zeros((24, 30)), np.zeros((24, 30))
    for dy, dx in np.ndindex(diameter, diameter):
        squared = (dy - radius) ** 2 + (dx - radius) ** 2
        if squared <= radius**2:
            near = padded[dy : dy + 24, dx : dx + 30]
            distance = (near - image[..., 0]) ** 2 / sigma_intensity**2 + squared / sigma_space**2
            total, weights = total + near * np.exp(-distance / 2), weights + np.exp(-distance / 2)
    settings = {"diameter": diameter, "sigma_intensity": sigma_intensity, "sigma_space": sigma_space}
    assert np.abs(apply("bilateral", image, **settings)[..., 0] - total / weights).max() < 0.51, "and rounded"


# N4


def shaded(height=96, width=96, strength=0.15):
    """Two tissues in rings on a black background, without and with a shading from left to right."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(y, x)
    even = np.select([radius < 0.3, radius < 0.6, radius < 0.85], [110.0, 80.0, 110.0])
    even += (even > 0) * np.random.default_rng(0).normal(0, 2, even.shape)
    return even, even * (1 + strength * x)


@needs_itk
def test_n4_removes_a_shading():
    even, uneven = shaded()
    image = np.rint(uneven).clip(0, 255).astype(np.uint8)[..., None]
    corrected = apply("n4", image)[..., 0].astype(float)
    tissue = even > 50
    for one in (even > 95, tissue & (even < 95)):  # pixels of one tissue each
        noise, before, after = (v[one].std() / v[one].mean() for v in (even, uneven, corrected))
        assert after < 1.2 * noise < before / 1.5
    assert corrected[tissue].mean() == pytest.approx(image[..., 0][tissue].mean(), abs=1)


@needs_itk
def test_n4_keeps_slices_with_little_tissue_or_contrast():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 6, (64, 80, 1), np.uint8)
    specks = noise.copy()
    specks[rng.integers(0, 64, 60), rng.integers(0, 80, 60)] = 200
    dot = np.zeros((64, 80, 1), np.uint8)
    dot[30:35, 30:35] = 180
    for image in (noise, specks, dot):
        assert np.array_equal(apply("n4", image), image)


def test_n4_without_simpleitk_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(BadSetting, match=r"needs SimpleITK: pip install 'medseg-bench\[n4\]', or leave n4 out"):
        apply("n4", scan())
