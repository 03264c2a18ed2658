"""Contracts of every augmentation, and the geometry, strength and seeding of the built-in ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from bench import registry
from bench.data.augment.warp import (
    EXACT_REMAP,
    _blur_weights,
    elastic_displacement,
    grid_sample,
    inverse_matrices,
    remap_slice,
    resample,
)
from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting

NAMES = list(registry.augmentation)
SETTINGS = [(name, {}) for name in NAMES] + [
    ("warp", {"flip_vertical": 0.5, "turn": 0.5, "elastic": 0.7, "elastic_sigma": 3.0, "elastic_alpha": 40.0}),
    ("intensity", {"brightness": 0.5, "contrast": 0.5, "gamma": 0.5, "noise": 0.2}),
    ("albumentations", {"transforms": ["VerticalFlip", {"Rotate": {"limit": 40, "p": 0.9}}, "GaussNoise"]}),
]
STILL = {"flip": 0, "rotate": 0, "scale": 0, "shift": 0}  # settings of a warp that changes nothing


def apply(name, images, masks, draws, **settings):
    return registry.augmentation[name].bind(settings)(images, masks, draws)


def slices(count=4, channels=3, height=24, width=40):
    """Return smooth images in [0, 1] and masks of an off-centre ellipse."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, channels, 5, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ellipse = ((y - 0.4 * height) / (0.25 * height)) ** 2 + ((x - 0.6 * width) / (0.2 * width)) ** 2 < 1
    return images, ellipse.float().expand(count, 1, height, width).clone()


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 40), (1, 33, 17)])
def test_every_augmentation_keeps_shape_type_and_range(name, settings, channels, height, width):
    images, masks = slices(3, channels, height, width)
    before = images.clone(), masks.clone()
    new_images, new_masks = apply(name, images, masks, SliceRandom(0, 0, range(3)), **settings)
    assert new_images.shape == images.shape
    assert new_masks.shape == masks.shape
    assert new_images.dtype == new_masks.dtype == torch.float32
    assert 0 <= new_images.min() <= new_images.max() <= 1
    assert set(new_masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(images, before[0]), "the input was changed in place"
    assert torch.equal(masks, before[1]), "the input was changed in place"


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_every_structure_is_changed_as_if_it_were_the_only_one(name, settings):
    images, masks = slices(3)
    several = torch.cat((masks, masks.flip(3), 1 - masks), 1)
    changed = apply(name, images, several, SliceRandom(0, 0, range(3)), **settings)
    for k in range(3):
        alone = apply(name, images, several[:, k : k + 1], SliceRandom(0, 0, range(3)), **settings)
        assert torch.equal(changed[0], alone[0])
        assert torch.equal(changed[1][:, k : k + 1], alone[1])


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_a_slice_is_changed_equally_in_any_batch(name, settings):
    images, masks = slices(4)
    numbers = [7, 2, 9, 4]
    together = apply(name, images, masks, SliceRandom(1, 2, numbers), **settings)
    again = apply(name, images, masks, SliceRandom(1, 2, numbers), **settings)
    assert torch.equal(together[0], again[0])
    for row, number in enumerate(numbers):
        one = slice(row, row + 1)
        alone = apply(name, images[one], masks[one], SliceRandom(1, 2, [number]), **settings)
        torch.testing.assert_close(alone[0], together[0][one])
        assert torch.equal(alone[1], together[1][one])


@pytest.mark.parametrize("name", NAMES)
def test_another_epoch_changes_a_slice_differently(name):
    images, masks = slices(8)
    first, second = (apply(name, images, masks, SliceRandom(1, epoch, range(8)))[0] for epoch in (1, 2))
    assert not torch.allclose(first, second)


def test_the_next_augmentation_gets_new_random_numbers():
    """Two in a row do not repeat each other."""
    images, masks = slices(8)
    draws = SliceRandom(0, 0, range(8))
    once = apply("intensity", images, masks, draws)[0]
    twice = apply("intensity", images, masks, draws)[0]
    assert not torch.allclose(once, twice)


# --- warp: geometry


@pytest.mark.parametrize(
    "settings",
    [
        {"rotate": 40, "elastic": 1.0},
        {"flip_vertical": 0.5, "turn": 0.5, "scale": 0.3},
        {"elastic": 1.0, "elastic_alpha": 60.0, "elastic_sigma": 4.0},
    ],
)
def test_image_and_mask_move_together(settings):
    images, masks = slices(6, height=64, width=48)
    moved, moved_masks = apply(
        "warp", torch.cat((images, masks), 1), masks, SliceRandom(0, 0, range(6)), **settings
    )
    assert torch.equal((moved[:, -1:] >= 0.5).float(), moved_masks)
    assert not torch.equal(moved_masks, masks)


@pytest.mark.parametrize("settings", [STILL, {"flip": 0, "affine": 0}, STILL | {"elastic": 1, "elastic_alpha": 0}])
def test_a_warp_that_does_nothing_returns_its_input_exactly(settings):
    images, masks = slices()
    new_images, new_masks = apply("warp", images, masks, SliceRandom(0, 0, range(4)), **settings)
    assert torch.equal(new_images, images)
    assert torch.equal(new_masks, masks)


@pytest.mark.parametrize(("setting", "axis"), [("flip", 3), ("flip_vertical", 2)])
def test_a_flip_equals_that_of_torch(setting, axis):
    images, masks = slices(2)
    new_images, new_masks = apply("warp", images, masks, SliceRandom(0, 0, [0, 1]), **(STILL | {setting: 1.0}))
    torch.testing.assert_close(new_images, images.flip(axis), atol=1e-5, rtol=0)
    assert torch.equal(new_masks, masks.flip(axis))


def test_turns_are_by_one_two_or_three_quarters():
    images, masks = slices(1, height=32, width=32)
    images, masks = images.expand(60, -1, -1, -1), masks.expand(60, -1, -1, -1)
    new_images, new_masks = apply("warp", images, masks, SliceRandom(0, 0, range(60)), **STILL, turn=1.0)
    seen = []
    for image, mask in zip(new_images, new_masks, strict=True):
        matches = [k for k in range(4) if torch.equal(mask, masks[0].rot90(k, (1, 2)))]
        assert len(matches) == 1
        seen += matches
        torch.testing.assert_close(image, images[0].rot90(matches[0], (1, 2)), atol=1e-5, rtol=0)
    counts = np.bincount(seen, minlength=4)
    assert counts[0] == 0
    assert (counts[1:] > 8).all()  # of 20 expected


def affine_of(degrees=0.0, size=1.0, mirror_x=False, mirror_y=False):
    return inverse_matrices(
        degrees=torch.tensor([degrees]),
        size=torch.tensor([size]),
        mirror_x=torch.tensor([mirror_x]),
        mirror_y=torch.tensor([mirror_y]),
    )


@pytest.mark.parametrize(("height", "width"), [(20, 36), (35, 21)])
def test_ninety_degrees_of_an_oblong_image_is_rot90_of_its_centre(height, width):
    """Pixels stay square: the image is rotated, not squeezed into the frame."""
    images, masks = slices(1, 2, height, width)
    turned, _ = resample(images, masks, affine_of(90.0), torch.zeros(1, 2))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = (..., slice(top, top + side), slice(left, left + side))
    torch.testing.assert_close(turned[middle], images[middle].rot90(1, (2, 3)), atol=1e-4, rtol=0)
    outside = turned.clone()
    outside[middle] = 0
    assert outside.abs().max() < 1e-4, "what comes from outside the image is background"


@pytest.mark.parametrize("seed", range(2))
def test_resampling_equals_scipy_at_the_inverse_of_the_forward_map(seed):
    """Mirror, rotate counter-clockwise, enlarge and shift, in this order, about the centre of the image."""
    rng = np.random.default_rng(seed)
    height, width = 22, 34
    images, masks = slices(1, 2, height, width)
    degrees, size, offset = rng.uniform(-180, 180), rng.uniform(0.7, 1.4), rng.uniform(-5, 5, 2)
    mirror_x, mirror_y = (bool(b) for b in rng.integers(0, 2, 2))
    bend = rng.normal(0, 1.5, (2, height, width))

    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    counter_clockwise = np.array([[cos, sin], [-sin, cos]])  # y points down
    mirror = np.diag([-1 if mirror_x else 1, -1 if mirror_y else 1])
    inverse = np.linalg.inv(size * counter_clockwise @ mirror)
    y, x = np.mgrid[:height, :width]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    points = np.stack((x, y), -1) - centre - offset
    source = points @ inverse.T + bend.transpose(1, 2, 0) + centre
    expected = [
        ndimage.map_coordinates(channel, (source[..., 1], source[..., 0]), order=1, mode="grid-constant")
        for channel in images[0].numpy()
    ]
    actual, _ = resample(
        images,
        masks,
        affine_of(degrees, size, mirror_x, mirror_y),
        torch.from_numpy(offset).float()[None],
        torch.from_numpy(bend).float()[None],
    )
    np.testing.assert_allclose(actual[0].numpy(), np.stack(expected), atol=1e-4)


def test_an_offset_moves_the_content_right_and_down():
    images, masks = slices(1)
    images[..., :4, :], images[..., -4:, :], images[..., :4], images[..., -4:] = 0, 0, 0, 0
    moved, moved_masks = resample(images, masks, affine_of(), torch.tensor([[3.0, 2.0]]))
    torch.testing.assert_close(moved, images.roll((2, 3), (2, 3)), atol=1e-5, rtol=0)
    assert torch.equal(moved_masks, masks.roll((2, 3), (2, 3)))


@pytest.mark.parametrize("size", [0.7, 1.3])
def test_size_changes_the_area_by_its_square(size):
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disk = ((y - 47.5) ** 2 + (x - 47.5) ** 2 < 25**2).float()[None, None]
    _, mask = resample(disk, disk, affine_of(size=size), torch.zeros(1, 2))
    assert (mask.sum() / disk.sum()).item() == pytest.approx(size**2, rel=0.02)


@pytest.mark.skipif(not EXACT_REMAP, reason="OpenCV 4 rounds coordinates to 1/32 pixel and is not used")
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_opencv_and_pytorch_sample_alike(channels):
    """To 1e-4 on noise in [0, 1], including the border: float32 rounds coordinates near 300 to 2e-5 pixels."""
    generator = torch.Generator().manual_seed(channels)
    height, width = 150, 260
    planes = torch.rand(3, channels, height, width, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sources = torch.stack((x, y)) + 25 * torch.randn(3, 2, height, width, generator=generator)
    quads = torch.empty(3, 2, height, width, 4)
    for plane, source, quad in zip(planes, sources, quads, strict=True):
        remap_slice(list(plane), source, quad)
    ours = quads.permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :channels]
    theirs = grid_sample(planes, sources)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (theirs == 0).float().mean() > 0.05, "some are sampled outside the image"
    different = ((ours >= 0.5) != (theirs >= 0.5)).float().mean()
    assert different < 1e-3, "a thresholded mask may differ only near one half"


@pytest.mark.parametrize("channels", [1, 4])
def test_a_hundredth_of_a_pixel_is_not_rounded_away(channels):
    """With any version of OpenCV and any number of channels."""
    ramp = torch.arange(20.0).expand(1, channels, 16, 20) / 20
    moved, _ = resample(ramp, torch.zeros(1, 1, 16, 20), affine_of(), torch.tensor([[0.01, 0.0]]))
    torch.testing.assert_close(moved[..., 1:], ramp[..., 1:] - 0.01 / 20, atol=2e-6, rtol=0)


# --- warp: amounts and probabilities

CENTRE = np.array([40.5, 31.5])  # of 82 x 64 pixels, (x, y)
SPOT = np.array([20.0, 0.0])  # from there


def spots_after(count=200, **settings):
    """Return the positions (count, 2) to which a bright spot at SPOT is moved."""
    y, x = torch.meshgrid(torch.arange(64) - CENTRE[1], torch.arange(82) - CENTRE[0], indexing="ij")
    spot = torch.exp(-((x - SPOT[0]) ** 2 + (y - SPOT[1]) ** 2) / 8).float()[None, None].expand(count, 1, -1, -1)
    moved, _ = apply("warp", spot, spot.round(), SliceRandom(0, 0, range(count)), **(STILL | settings))
    weight = moved[:, 0] / moved.sum((1, 2, 3))[:, None, None]
    return torch.stack(((weight * x).sum((1, 2)), (weight * y).sum((1, 2))), 1).numpy()


def test_rotate_is_the_largest_angle_in_both_directions():
    spots = spots_after(rotate=30)
    angles = np.degrees(np.arctan2(spots[:, 1], spots[:, 0]))
    assert np.hypot(*spots.T) == pytest.approx(20, abs=0.1)
    assert -30.1 < angles.min() < -28
    assert 28 < angles.max() < 30.1
    assert angles.std() == pytest.approx(30 / 3**0.5, rel=0.1)


def test_scale_is_the_largest_relative_change_of_size():
    spots = spots_after(scale=0.2)
    assert spots[:, 1] == pytest.approx(0, abs=0.05)
    sizes = spots[:, 0] / 20
    assert 0.79 < sizes.min() < 0.82
    assert 1.18 < sizes.max() < 1.21


def test_shift_is_a_share_of_width_and_of_height():
    moves = spots_after(shift=0.1) - SPOT
    assert 7.8 < np.abs(moves[:, 0]).max() < 8.25
    assert 6.1 < np.abs(moves[:, 1]).max() < 6.45
    assert abs(np.corrcoef(moves.T)[0, 1]) < 0.25


@pytest.mark.parametrize("setting", ["flip", "turn", "affine", "elastic"])
def test_a_probability_is_the_share_of_slices(setting):
    spots = spots_after(**({"shift": 0.1} if setting == "affine" else {}), **{setting: 0.3})
    share = (np.hypot(*(spots - SPOT).T) > 0.05).mean()
    assert share == pytest.approx(0.3, abs=0.1)  # three standard errors


def test_one_setting_does_not_change_the_numbers_of_another():
    """Without flips, every slice is still rotated by the same angle."""
    angles = [np.degrees(np.arctan2(*np.abs(spots_after(30, rotate=20, **s)).T)) for s in ({}, {"flip": 0.5})]
    np.testing.assert_allclose(angles[0], angles[1], atol=0.05)


@pytest.mark.parametrize(("alpha", "sigma"), [(100.0, 4.0), (8.0, 1.0)])
def test_elastic_deformation_matches_densely_filtered_noise(alpha, sigma):
    """The reference: noise in [-1, 1] on every pixel, the Gaussian filter of scipy, times alpha."""
    ours = elastic_displacement(SliceRandom(0, 0, range(40)), 60, 72, alpha=alpha, sigma=sigma).numpy()
    rng = np.random.default_rng(0)
    dense = np.stack(
        [
            alpha * ndimage.gaussian_filter(rng.uniform(-1, 1, (60, 72)), sigma, mode="wrap", truncate=5)
            for _ in range(80)
        ]
    ).reshape(ours.shape)
    assert ours.std() == pytest.approx(dense.std(), rel=0.05)
    assert ours.std() == pytest.approx(alpha / (12 * math.pi) ** 0.5 / sigma, rel=0.05)
    assert abs(ours.mean()) < 0.05 * ours.std()
    for lag in (1, round(2 * sigma)):
        for axis in (2, 3):
            assert correlation(ours, lag, axis) == pytest.approx(correlation(dense, lag, axis), abs=0.04)
    assert abs(np.corrcoef(ours[:, 0].ravel(), ours[:, 1].ravel())[0, 1]) < 0.1, "x and y are independent"


def test_every_slice_may_have_its_own_alpha():
    bends = [elastic_displacement(SliceRandom(0, 0, range(3)), 20, 30, alpha=a, sigma=3.0) for a in (50.0, 80.0)]
    mixed = elastic_displacement(
        SliceRandom(0, 0, range(3)), 20, 30, alpha=torch.tensor([50.0, 0.0, 80.0]).view(3, 1, 1, 1), sigma=3.0
    )
    torch.testing.assert_close(mixed, torch.stack((bends[0][0], torch.zeros_like(bends[0][0]), bends[1][2])))


@pytest.mark.parametrize("sigma", [1.0, 20.0])
def test_no_weight_is_subnormal(sigma):
    """Subnormal numbers make a matrix product on a CPU fifteen times slower."""
    weights = _blur_weights(256, sigma)
    assert weights[weights > 0].min() >= torch.finfo(torch.float32).tiny


def correlation(fields, lag, axis):
    length = fields.shape[axis]
    ahead, behind = fields.take(range(lag, length), axis), fields.take(range(length - lag), axis)
    return (ahead * behind).mean() / (fields**2).mean()


def test_elastic_is_as_strong_between_the_knots_and_at_the_border():
    fields = elastic_displacement(SliceRandom(0, 0, range(1500)), 19, 21, alpha=50.0, sigma=6.0).numpy()
    strength = fields.std((0, 1))
    expected = 50 / (12 * math.pi) ** 0.5 / 6
    np.testing.assert_allclose(strength, expected, rtol=0.08)  # four standard errors


# --- intensity

OFF = {"brightness": 0, "contrast": 0, "gamma": 0, "noise": 0}


def mid_grey(count=60):
    """Images within [0.3, 0.6]: nothing is clamped."""
    images, masks = slices(count)
    return 0.3 + 0.3 * images, masks


def test_intensity_keeps_masks_and_does_nothing_if_off():
    images, masks = mid_grey()
    assert apply("intensity", images, masks, SliceRandom(0, 0, range(60)))[1] is masks
    assert torch.equal(apply("intensity", images, masks, SliceRandom(0, 0, range(60)), **OFF)[0], images)


def assert_spread(amounts, low, high):
    """Assert that the amounts fill [low, high] and that each channel has its own."""
    amounts = amounts.flatten(2).double()
    assert (amounts.amax(2) - amounts.amin(2)).max() < 1e-3, "one amount per channel"
    amounts = amounts.mean(2)
    margin = 0.05 * (high - low)
    assert low - 1e-3 < amounts.min() < low + margin
    assert high - margin < amounts.max() < high + 1e-3
    assert abs(torch.corrcoef(amounts.T)[0, 1]) < 0.4


def test_brightness_is_a_gain():
    images, masks = mid_grey()
    changed = apply("intensity", images, masks, SliceRandom(0, 0, range(60)), **(OFF | {"brightness": 0.2}))[0]
    assert_spread(changed / images, 0.8, 1.2)


def test_a_slice_and_its_neighbours_get_the_same_intensity_change():
    images, masks = mid_grey()
    alone, together = (
        apply("intensity", seen, masks, SliceRandom(0, 0, range(60), channels=("pre", "flair", "post")))[0]
        for seen in (images, images.repeat(1, 3, 1, 1))
    )
    torch.testing.assert_close(together, alone.repeat(1, 3, 1, 1))
    assert not torch.equal(alone, images)


def test_contrast_changes_the_distance_to_the_mean():
    images, masks = mid_grey()
    changed = apply("intensity", images, masks, SliceRandom(0, 0, range(60)), **(OFF | {"contrast": 0.4}))[0]
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(changed.mean((2, 3), keepdim=True), mean)
    assert_spread((changed.std((2, 3)) / images.std((2, 3)))[..., None], 0.6, 1.4)
    ratio = ((changed - mean) / (images - mean))[(images - mean).abs() > 0.02]
    assert 0.599 < ratio.min() < ratio.max() < 1.401


def test_gamma_is_an_exponent_on_a_log_scale():
    images, masks = mid_grey()
    changed = apply("intensity", images, masks, SliceRandom(0, 0, range(60)), **(OFF | {"gamma": 0.5}))[0]
    assert_spread((changed.log() / images.log()).log(), -math.log(1.5), math.log(1.5))


def test_noise_is_normal_with_a_standard_deviation_up_to_the_amount():
    images, masks = slices(60)[0] * 0 + 0.5, slices(60)[1]
    added = apply("intensity", images, masks, SliceRandom(0, 0, range(60)), **(OFF | {"noise": 0.1}))[0] - 0.5
    deviations = added.std((2, 3))
    assert deviations.max() == pytest.approx(0.1, rel=0.1)
    assert deviations.mean() == pytest.approx(0.05, rel=0.15)
    standard = (added / deviations[..., None, None])[deviations > 0.02]
    assert standard.mean().abs() < 0.01
    assert standard.pow(4).mean().item() == pytest.approx(3, rel=0.05)


def test_gain_and_gamma_keep_a_black_background():
    images, masks = slices()
    images[..., :10] = 0
    changed = apply("intensity", images, masks, SliceRandom(0, 0, range(4)), contrast=0)[0]
    assert (changed[..., :10] == 0).all()


# --- albumentations


def test_an_albumentations_flip_changes_image_and_mask():
    images, masks = slices()
    flip = [{"HorizontalFlip": {"p": 1}}]
    new_images, new_masks = apply("albumentations", images, masks, SliceRandom(0, 0, range(4)), transforms=flip)
    assert torch.equal(new_images, images.flip(3))
    assert torch.equal(new_masks, masks.flip(3))


def test_albumentations_moves_image_and_mask_together():
    images, masks = slices(6)
    images[:, 1:2] = masks
    transforms = [{"Rotate": {"limit": 60, "p": 1, "interpolation": 0}}]
    moved, moved_masks = apply("albumentations", images, masks, SliceRandom(0, 0, range(6)), transforms=transforms)
    assert torch.equal(moved[:, 1:2], moved_masks)
    assert not torch.equal(moved_masks, masks)


@pytest.mark.parametrize("nested", [False, True])
def test_transforms_in_one_pipeline_are_independent(nested):
    """The seeding of albumentations itself would flip both ways or not at all."""
    corner = torch.zeros(200, 1, 2, 2)
    corner[..., 0, 0] = 1
    transforms = ["HorizontalFlip", "VerticalFlip"]
    if nested:
        transforms = [{"Sequential": {"transforms": transforms, "p": 1}}]
    moved, _ = apply("albumentations", corner, corner, SliceRandom(0, 0, range(200)), transforms=transforms)
    counts = moved.sum((0, 1)).flatten()
    assert (counts > 25).all()  # of 50 expected


def test_one_of_several_is_chosen_for_each_slice():
    images, masks = slices(40)
    dark, bright = ({"RandomGamma": {"gamma_limit": [g, g], "p": 1}} for g in (200, 50))
    chosen = [{"OneOf": {"transforms": [dark, bright], "p": 1}}]
    changed, _ = apply("albumentations", images, masks, SliceRandom(0, 0, range(40)), transforms=chosen)
    brighter = (changed.mean((1, 2, 3)) > images.mean((1, 2, 3))).float().mean()
    assert 0.2 < brighter < 0.8


@pytest.mark.parametrize(
    ("transforms", "sentence"),
    [
        (["HorizontlFlip"], "has no transform 'HorizontlFlip'. Did you mean 'HorizontalFlip'"),
        (["DualTransform"], "has no transform 'DualTransform'"),
        ([{"Rotate": {"limitt": 20}}], "Rotate has no setting 'limitt'.*Did you mean 'limit'"),
        (
            [{"Rotate": {"p": 2}}],
            "Rotate does not accept its settings: p: Input should be less than or equal to 1",
        ),
        ([{"Rotate": {}, "Blur": {}}], "is not an albumentations transform"),
        ([{"OneOf": {}}], "OneOf needs transforms"),
        ([{"OneOf": {"transforms": ["Blurr"]}}], "has no transform 'Blurr'"),
        ([{"Blur": {"blur_limit": object()}}], "plain values"),
        (["Normalize"], "Normalize cannot be used"),
        ([3], "transforms = 3 is refused"),
        ("HorizontalFlip", "transforms = 'HorizontalFlip' is refused"),
    ],
)
def test_bad_transforms_are_refused_before_training(transforms, sentence):
    with pytest.raises(BadSetting, match=sentence):
        registry.augmentation["albumentations"].settings({"transforms": transforms})


def test_transforms_may_be_validated_twice():
    """A configuration is completed with its defaults and validated again."""
    entry = registry.augmentation["albumentations"]
    once = entry.settings({"transforms": ["Blur", {"Rotate": {"limit": [5, 10]}}, {"VerticalFlip": None}]})
    assert entry.settings(once) == once


@pytest.mark.parametrize(
    ("transforms", "sentence"),
    [
        ([{"CenterCrop": {"height": 8, "width": 8}}], r"into float32 of shape \(8, 8, 2\)"),
        (
            [{"HueSaturationValue": {"p": 1}}],
            r"cannot apply these transforms to float32 slices of shape \(24, 40, 2\)",
        ),
    ],
)
def test_transforms_that_do_not_fit_the_slices_raise_a_helpful_error(transforms, sentence):
    images, masks = slices(2, channels=2)
    with pytest.raises(BadSetting, match=sentence):
        apply("albumentations", images, masks, SliceRandom(0, 0, [0, 1]), transforms=transforms)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("warp", {"flip": 1.1}),
        ("warp", {"rotate": -5}),
        ("intensity", {"gamma": 1.0}),
    ],
)
def test_values_outside_their_range_are_refused(name, settings):
    with pytest.raises(BadSetting, match=next(iter(settings))):
        registry.augmentation[name].settings(settings)


# --- modality dropout


def test_a_missing_sequence_is_replaced_and_the_others_are_kept():
    images, masks = slices(400, height=4, width=4)
    new_images, new_masks = apply(
        "modality_dropout", images, masks, SliceRandom(0, 0, range(400)), probability=0.3, by=1
    )
    stays, gone = ((new_images == other).all((2, 3)) for other in (images, images[:, 1:2]))
    assert (stays | gone).all()
    assert stays[:, 1].all()
    # Independently: 0.3 of the slices lose the first, as many the last, 0.09 both; within four deviations.
    assert gone[:, 0].float().mean().item() == pytest.approx(0.3, abs=0.092)
    assert gone[:, 2].float().mean().item() == pytest.approx(0.3, abs=0.092)
    assert (gone[:, 0] & gone[:, 2]).float().mean().item() == pytest.approx(0.09, abs=0.057)
    assert torch.equal(new_masks, masks)


def test_a_slice_and_its_neighbours_lose_the_same_sequences():
    images, masks = slices(200, channels=6, height=4, width=4)
    draws = SliceRandom(0, 0, range(200), channels=("pre", "post", "flair"))
    after = apply("modality_dropout", images, masks, draws, probability=0.5, by="flair")[0].unflatten(1, (2, 3))
    before = images.unflatten(1, (2, 3))
    gone = (after == before[:, :, 2:]).all((3, 4))[:, :, :2]
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert 0 < gone.sum() < gone.numel()
    assert torch.equal(after[:, :, 2], before[:, :, 2])


def test_a_channel_may_be_given_by_name_or_number():
    images, masks = slices()
    named, numbered = (
        apply(
            "modality_dropout",
            images,
            masks,
            SliceRandom(0, 0, range(4), channels=("pre", "flair", "post")),
            by=by,
        )
        for by in ("flair", 1)
    )
    assert torch.equal(named[0], numbered[0])
    assert not torch.equal(named[0], images)


@pytest.mark.parametrize("by", [3, "flare", "1"])
def test_an_unknown_channel_raises_a_helpful_error(by):
    draws = SliceRandom(0, 0, range(4), channels=("pre", "flair", "post"))
    with pytest.raises(BadSetting, match=f"no channel by = {by} among pre, flair, post"):
        apply("modality_dropout", *slices(), draws, by=by)
