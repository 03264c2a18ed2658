"""The loader: normalisation, channels, neighbours, resizing, and the fast paths against the plain one."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.config import Input
from bench.data.crop import foreground_boxes
from bench.data.loader import SliceLoader, neighbour_rows, read_ahead
from bench.data.normalise import compute_intensity_stats
from bench.data.pack import one_case_per_slice
from bench.errors import BadSetting
from bench.inference.sliding_window import logits_of
from bench.structures import Structures, join_bits
from tests.fakes import pack_of, tiny_pack

CPU = torch.device("cpu")
PACK = tiny_pack()
ROWS = np.arange(len(PACK.index))


def load_input(pack=PACK, rows=ROWS, **settings) -> np.ndarray:
    """Normalised input of these rows: float32 (B, C, H, W)."""
    loader = SliceLoader(pack, Input(**settings), CPU)
    return loader.normalise(loader.load(rows)[0], rows).numpy()


def reference(pixels: np.ndarray) -> np.ndarray:
    """Clip to the 0.5 and 99.5 percentile, scale to [0, 1], z-score; all pixels of one channel at once."""
    low, high = np.percentile(pixels, (0.5, 99.5), method="inverted_cdf")
    scaled = np.clip((pixels.astype(float) - low) / (high - low), 0, 1)
    return (scaled - scaled.mean()) / scaled.std()


def test_patient_mode_is_a_percentile_clip_and_z_score_of_the_whole_patient():
    images = load_input()
    for case in PACK.cases:
        rows = PACK.rows([case])
        for channel in range(3):
            expected = reference(np.asarray(PACK.images[rows][..., channel]))
            assert images[rows, channel] == pytest.approx(expected, abs=1e-4)


def test_image_mode_normalises_every_slice_separately():
    images = load_input(normalise="image")
    for row in ROWS[::3]:
        for channel in range(3):
            assert images[row, channel] == pytest.approx(reference(PACK.images[row, ..., channel]), abs=1e-4)


def test_imagenet_mode_uses_the_published_constants():
    images = load_input(normalise="imagenet")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (PACK.images / 255 - mean) / std
    assert images == pytest.approx(np.moveaxis(expected, -1, 1), abs=1e-5)


def test_imagenet_mode_needs_three_channels():
    with pytest.raises(BadSetting, match=r"imagenet needs 3 channels, not 1. Use patient or image"):
        load_input(tiny_pack(channels=1), normalise="imagenet")


def test_all_slices_of_a_patient_share_statistics_and_patients_do_not():
    stats = compute_intensity_stats(PACK.histograms, PACK.index["case"].tolist(), "patient")
    for values in (stats.low, stats.high, stats.mean, stats.std):
        assert values.shape == (len(ROWS), 3)
        for case in PACK.cases:
            assert (values[PACK.rows([case])] == values[PACK.rows([case])[0]]).all()
    assert len({tuple(row) for row in stats.mean}) == len(PACK.cases)


def test_the_gain_of_the_scanner_changes_nothing():
    """Half of the patients at twice the gain; 254 / 2 is the brightest that both can hold."""
    images = PACK.images // 2
    loud = images.copy()
    loud[::2] = images[::2] * 2
    cases = [f"P{row}" for row in ROWS]
    plain, gained = (load_input(pack_of(i, PACK.masks, cases)) for i in (images, loud))
    assert gained == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("normalise", ["patient", "image", "imagenet"])
@pytest.mark.parametrize("grey", [0, 255])
def test_a_blank_channel_gives_finite_numbers(normalise, grey):
    images = PACK.images.copy()
    images[..., 2] = grey
    blank = pack_of(images, PACK.masks, PACK.index["case"].tolist())
    assert np.isfinite(load_input(blank, normalise=normalise)).all()
    if normalise != "imagenet":
        assert (load_input(blank, normalise=normalise)[:, 2] == 0).all()


def test_loaded_images_keep_a_zero_background_and_masks_are_unchanged():
    pixels = PACK.images.copy()
    pixels[:, :4] = 0
    dark = pack_of(pixels, PACK.masks, PACK.index["case"].tolist())
    images, masks = SliceLoader(dark, Input(), CPU).load(ROWS)
    assert (images[:, :, :4] == 0).all()
    assert images.max() == 1
    assert torch.equal(masks[:, 0], torch.from_numpy(PACK.masks).float())


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("count", [2, 9, 17])
def test_masks_of_several_structures_have_a_plane_each(count, resident):
    structures = Structures(tuple(f"s{k}" for k in range(count)), ((),) * count)
    truth = np.random.default_rng(0).random((4, count, 32, 32)) < 0.4
    pack = pack_of(PACK.images[:4], join_bits(truth, structures), ["P0"] * 4, structures=structures)
    loader, rows = SliceLoader(pack, Input(), CPU, resident=resident), np.array([2, 0, 3])
    for _, masks in (loader.load(rows), loader.load_normalised(rows)):
        assert masks.dtype == torch.float32
        np.testing.assert_array_equal(masks, truth[rows])


def test_rows_may_be_in_any_order():
    rows = np.array([7, 0, 12])
    assert np.array_equal(load_input(rows=rows), load_input()[rows])


@pytest.mark.parametrize(
    ("wanted", "positions"), [("all", [0, 1, 2]), ("flair", [1]), (("post", "pre"), [2, 0]), (("flair",), [1])]
)
def test_channels_are_selected_by_name_in_the_given_order(wanted, positions):
    assert np.array_equal(load_input(channels=wanted), load_input()[:, positions])


def test_an_unknown_channel_is_refused_with_a_suggestion():
    with pytest.raises(BadSetting, match=r"no channel 'flare'. Choose from pre, flair, post, or all.*'flair'"):
        load_input(channels="flare")


@pytest.mark.parametrize("normalise", ["patient", "image"])
@pytest.mark.parametrize("channels", ["all", ("post", "pre")])
def test_neighbours_are_adjacent_slices_normalised_by_their_own_statistics(normalise, channels):
    """(previous slice, itself, next slice), each as it is loaded alone; the slice at an end is repeated."""
    stacked, alone = (load_input(normalise=normalise, channels=channels, neighbours=n) for n in (1, 0))
    each = alone.shape[1]
    for case in PACK.cases:
        rows = PACK.rows([case])
        for position, row in enumerate(rows):
            before, after = rows[max(position - 1, 0)], rows[min(position + 1, len(rows) - 1)]
            for part, other in enumerate((before, row, after)):
                assert np.array_equal(stacked[row, part * each : (part + 1) * each], alone[other])


def test_two_neighbours_on_each_side_of_a_patient_with_two_slices():
    assert neighbour_rows(["a", "a", "b"], 2).tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]


def test_neighbours_do_not_depend_on_a_leaky_split():
    whole, leaky = (
        SliceLoader(pack, Input(neighbours=1), CPU).load(ROWS)[0] for pack in (PACK, one_case_per_slice(PACK))
    )
    assert torch.equal(whole, leaky)


@pytest.mark.parametrize("size", [16, 48])
def test_slices_are_resized_for_the_model(size):
    images, masks = SliceLoader(PACK, Input(image_size=size), CPU).load(ROWS[:3])
    assert images.shape == (3, 3, size, size)
    assert masks.shape == (3, 1, size, size)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_resizing_keeps_image_and_mask_aligned():
    masks = np.zeros((1, 32, 32), np.uint8)
    masks[0, 4:20, 8:16] = 1
    images = np.repeat(masks[..., None] * 200, 3, -1)
    loader = SliceLoader(pack_of(images, masks, ["P0"]), Input(image_size=16), CPU)
    small, mask = loader.load(np.array([0]))
    expected = torch.zeros(16, 16)
    expected[2:10, 4:8] = 1  # every second pixel
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal((small[0, 0] > 0.5).float(), expected)


def test_a_downsized_mask_keeps_pixels_that_are_half_covered():
    masks = np.zeros((1, 32, 32), np.uint8)
    masks[0, 0, 0] = masks[0, 0, 4] = masks[0, 1, 5] = 1  # a quarter of one small pixel, a half of another
    loader = SliceLoader(pack_of(np.zeros((1, 32, 32, 3), np.uint8), masks, ["P0"]), Input(image_size=16), CPU)
    assert loader.load(np.array([0]))[1].nonzero().tolist() == [[0, 0, 0, 2]]


# The fast paths equal the plain one


@pytest.mark.parametrize(
    "settings",
    [{}, {"channels": ("post", "flair")}, {"channels": "pre"}, {"normalise": "image"}, {"neighbours": 2}],
)
@pytest.mark.parametrize("size", [None, 48])
def test_table_lookup_equals_arithmetic_bit_by_bit(settings, size):
    """A `resident` loader computes every pixel, as on a GPU. A CPU looks the 256 grey levels up."""
    config = Input(image_size=size, **settings)
    looked_up, computed = SliceLoader(PACK, config, CPU), SliceLoader(PACK, config, CPU, resident=True)
    rows = np.array([7, 0, 12, 7])
    for ours, theirs in zip(looked_up.load(rows), computed.load(rows), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(looked_up.load_normalised(rows), computed.load_normalised(rows), strict=True):
        assert torch.equal(ours, theirs)


def test_a_device_accepts_a_read_only_memory_map(tmp_path):
    """`open_pack` returns one. PyTorch warns about such arrays, and warnings are errors in tests."""
    np.save(tmp_path / "images.npy", PACK.images)
    np.save(tmp_path / "masks.npy", PACK.masks)
    images, masks = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    mapped = SliceLoader(replace(PACK, images=images, masks=masks), Input(), CPU, resident=True)
    for ours, theirs in zip(mapped.load(ROWS), SliceLoader(PACK, Input(), CPU).load(ROWS), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [None, 16])
def test_load_normalised_is_normalise_of_load_with_masks_of_the_packed_size(size):
    loader = SliceLoader(PACK, Input(image_size=size), CPU)
    images, masks = loader.load_normalised(ROWS)
    assert torch.equal(images, loader.normalise(loader.load(ROWS)[0], ROWS))
    assert torch.equal(masks[:, 0], torch.from_numpy(PACK.masks).float())


def test_large_batches_use_threads_and_give_the_same_result():
    big = tiny_pack(cases=2, slices=6, size=256)  # 9 MB as float32
    assert np.array_equal(
        load_input(big, np.arange(12)), np.concatenate([load_input(big, np.array([r])) for r in range(12)])
    )


@pytest.mark.parametrize("resident", [False, True])
def test_load_batches_loads_each_batch_in_order(resident):
    loader = SliceLoader(PACK, Input(), CPU, resident=resident)
    batches = [np.array(rows) for rows in ([3, 1], [7, 9], [0, 0], [11, 2], [5, 4])]
    for (images, masks), rows in zip(loader.load_batches(batches), batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((images, masks), loader.load(rows), strict=True))


def spotted_pack():
    """Two patients of two slices, 8 x 10 pixels and 2 channels, zero but for pixels at a few places."""
    images = np.zeros((4, 8, 10, 2), np.uint8)
    images[0, 1, 3, 0] = images[1, 5, 2, 1] = 200  # rows 1 to 5, columns 2 to 3
    images[2, 0:8, 4, 0] = 100  # rows 0 to 7, column 4
    pack = pack_of(images, np.zeros((4, 8, 10), np.uint8), ["A", "A", "B", "B"])
    pack.masks[1, 1:6, 2] = 1
    return pack


def test_the_foreground_of_a_patient_is_the_box_of_all_its_slices_and_channels():
    pack = spotted_pack()
    of_a, of_b = np.s_[1:6, 2:4], np.s_[0:8, 4:5]
    assert foreground_boxes(pack.images, pack.index["case"]) == [of_a, of_a, of_b, of_b]
    assert foreground_boxes(np.zeros((1, 8, 10, 2), np.uint8), ["C"]) == [np.s_[0:8, 0:10]]


@pytest.mark.parametrize("resident", [False, True])
def test_slices_are_cut_to_the_foreground_and_resized(resident):
    pack, rows = spotted_pack(), np.array([2, 1, 0])  # in one batch two boxes
    settings = Input(crop="foreground", image_size=16, neighbours=1)
    loader = SliceLoader(pack, settings, CPU, resident=resident)
    whole = SliceLoader(pack, Input(neighbours=1), CPU).load(rows)
    for part, mode in zip(range(2), ({"mode": "bilinear", "antialias": True}, {"mode": "area"}), strict=True):
        boxes = [np.s_[0:8, 4:5], np.s_[1:6, 2:4], np.s_[1:6, 2:4]]
        cut = [image[None, :, *box] for image, box in zip(whole[part], boxes, strict=True)]
        expected = torch.cat([torch.nn.functional.interpolate(each, (16, 16), **mode) for each in cut])
        expected = (expected >= 0.5).float() if part else expected
        torch.testing.assert_close(loader.load(rows)[part], expected)
    assert loader.load(rows)[1][1, 0].tolist() == [[1.0] * 8 + [0.0] * 8] * 16
    images, masks = loader.load_normalised(rows)
    torch.testing.assert_close(images, loader.normalise(loader.load(rows)[0], rows))
    assert masks.shape == (3, 1, 8, 10), "truth keeps the packed size"


def test_logits_of_a_crop_are_pasted_back_and_lie_outside_at_minus_infinity():
    loader = SliceLoader(spotted_pack(), Input(crop="foreground", image_size=16), CPU)
    logits = torch.full((2, 1, 16, 16), 2.0)
    restored = loader.restore(logits, np.array([2, 0]), (8, 10))
    expected = torch.full((2, 1, 8, 10), -torch.inf)
    expected[0, 0, 0:8, 4:5] = expected[1, 0, 1:6, 2:4] = 2
    torch.testing.assert_close(restored, expected)
    doubled = loader.restore(logits, np.array([2, 0]), (16, 20))
    torch.testing.assert_close(doubled, expected.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert loader.restore(logits[..., :1, :1], np.array([2, 0]), (1, 1)).shape == (2, 1, 1, 1)


def test_reading_ahead_keeps_the_order_and_its_depth():
    read = []
    for used, value in enumerate(read_ahead(lambda n: read.append(n) or n * n, range(9), depth=3)):
        assert value == used**2
        assert len(read) <= used + 4
    assert read == list(range(9))


def test_an_error_while_reading_ahead_is_raised_at_its_item():
    reading = read_ahead(lambda n: 1 // n, [1, 0])
    assert next(reading) == 1
    with pytest.raises(ZeroDivisionError):
        next(reading)


def test_closing_early_leaves_no_reader_thread():
    reading = read_ahead(lambda n: n, range(50))
    next(reading)
    reading.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("bench-reader")]


# Any size


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 31), (1, 40), (50, 95)])
def test_images_are_padded_to_multiples_of_32_and_logits_cropped_back(height, width):
    conv = nn.Conv2d(2, 1, 3, padding=1)
    seen = []

    def model(images):
        seen.append(images.shape)
        return conv(images)

    images = torch.randn(2, 2, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, direct = logits_of(model, images), conv(images)
    (shape,) = seen
    assert shape[-2] % 32 == shape[-1] % 32 == 0
    assert max(shape[-2] - height, shape[-1] - width) < 32
    assert logits.shape == (2, 1, height, width)
    # Only the lower and the right border are affected by the padding.
    torch.testing.assert_close(logits[..., : height - 1, : width - 1], direct[..., : height - 1, : width - 1])


def test_logits_are_float32_in_any_precision_of_the_model():
    assert logits_of(lambda images: images[:, :1].bfloat16(), torch.zeros(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_loads_the_same_as_a_cpu():
    gpu = torch.device("cuda")
    loader = SliceLoader(PACK, Input(image_size=16), gpu)
    images = loader.normalise(loader.load(ROWS)[0], ROWS)
    assert images.device.type == "cuda"
    assert images.cpu().numpy() == pytest.approx(load_input(image_size=16), abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_cannot_hold_the_pack_loads_the_same():
    gpu = torch.device("cuda")
    resident, streamed = (SliceLoader(PACK, Input(), gpu, resident=resident) for resident in (True, False))
    batches = [ROWS[start : start + 3] for start in range(0, 18, 3)]
    for ours, theirs in zip(resident.load_batches(batches), streamed.load_batches(batches), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
