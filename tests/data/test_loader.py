"""What a model is shown: the patient's own grey levels, whatever the scanner's gain."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.config import Input
from bench.data.loader import SliceLoader, ahead, stacked
from bench.data.normalise import levels
from bench.data.pack import by_slice
from bench.device import autocast
from bench.errors import BadSetting
from bench.inference.padding import logits_of
from tests.fakes import pack_of, tiny_pack

CPU = torch.device("cpu")
PACK = tiny_pack()
ROWS = np.arange(len(PACK.index))


def shown(pack=PACK, rows=ROWS, **settings) -> np.ndarray:
    """What the model sees of these rows: float32 (B, C, H, W)."""
    loader = SliceLoader(pack, Input(**settings), CPU)
    return loader.standard(loader.unit(rows)[0], rows).numpy()


def slow(pixels: np.ndarray) -> np.ndarray:
    """Clip to the 0.5th and 99.5th percentile, bring to [0, 1], z-score; all pixels of one channel at once."""
    low, high = np.percentile(pixels, (0.5, 99.5), method="inverted_cdf")
    unit = np.clip((pixels.astype(float) - low) / (high - low), 0, 1)
    return (unit - unit.mean()) / unit.std()


def test_patient_mode_is_a_percentile_clip_and_z_score_of_the_whole_patient():
    seen = shown()
    for case in PACK.cases:
        rows = PACK.rows([case])
        for channel in range(3):
            expected = slow(np.asarray(PACK.images[rows][..., channel]))
            assert seen[rows, channel] == pytest.approx(expected, abs=1e-4)


def test_image_mode_does_the_same_slice_by_slice():
    seen = shown(normalise="image")
    for row in ROWS[::3]:
        for channel in range(3):
            assert seen[row, channel] == pytest.approx(slow(PACK.images[row, ..., channel]), abs=1e-4)


def test_imagenet_mode_uses_the_published_constants():
    seen = shown(normalise="imagenet")
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (PACK.images / 255 - mean) / deviation
    assert seen == pytest.approx(np.moveaxis(expected, -1, 1), abs=1e-5)


def test_imagenet_mode_needs_three_channels():
    with pytest.raises(BadSetting, match=r"imagenet needs 3 channels, not 1. Use patient or image"):
        shown(tiny_pack(channels=1), normalise="imagenet")


def test_all_slices_of_a_patient_share_levels_and_patients_do_not():
    found = levels(PACK.histograms, PACK.index["case"].tolist(), "patient")
    for values in (found.low, found.high, found.mean, found.deviation):
        assert values.shape == (len(ROWS), 3)
        for case in PACK.cases:
            assert (values[PACK.rows([case])] == values[PACK.rows([case])[0]]).all()
    assert len({tuple(row) for row in found.mean}) == len(PACK.cases)


def test_the_scanners_gain_changes_nothing():
    """Half of the patients at twice the gain; 254 / 2 is the brightest that both can hold."""
    images = PACK.images // 2
    loud = images.copy()
    loud[::2] = images[::2] * 2
    cases = [f"P{row}" for row in ROWS]
    plain, gained = (shown(pack_of(i, PACK.masks, cases)) for i in (images, loud))
    assert gained == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("normalise", ["patient", "image", "imagenet"])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_channel_gives_numbers(normalise, grey):
    images = PACK.images.copy()
    images[..., 2] = grey
    blank = pack_of(images, PACK.masks, PACK.index["case"].tolist())
    assert np.isfinite(shown(blank, normalise=normalise)).all()
    if normalise != "imagenet":
        assert (shown(blank, normalise=normalise)[:, 2] == 0).all()


def test_background_stays_zero_in_unit_images_and_masks_stay_masks():
    images = PACK.images.copy()
    images[:, :4] = 0
    dark = pack_of(images, PACK.masks, PACK.index["case"].tolist())
    unit, masks = SliceLoader(dark, Input(), CPU).unit(ROWS)
    assert (unit[:, :, :4] == 0).all()
    assert unit.max() == 1
    assert torch.equal(masks[:, 0], torch.from_numpy(PACK.masks).float())


def test_rows_may_come_in_any_order():
    rows = np.array([7, 0, 12])
    assert np.array_equal(shown(rows=rows), shown()[rows])


@pytest.mark.parametrize(
    ("wanted", "positions"), [("all", [0, 1, 2]), ("flair", [1]), (("post", "pre"), [2, 0]), (("flair",), [1])]
)
def test_channels_are_chosen_by_name_in_the_order_given(wanted, positions):
    assert np.array_equal(shown(channels=wanted), shown()[:, positions])


def test_an_unknown_channel_is_refused_with_a_suggestion():
    with pytest.raises(BadSetting, match=r"no channel 'flare' here; there are pre, flair, post, or all.*'flair'"):
        shown(channels="flare")


@pytest.mark.parametrize("normalise", ["patient", "image"])
@pytest.mark.parametrize("channels", ["all", ("post", "pre")])
def test_neighbours_are_the_slices_beside_it_in_their_own_grey_levels(normalise, channels):
    """(slice before, itself, slice after), each as it is seen alone; at an end of a patient that slice again."""
    seen, alone = (shown(normalise=normalise, channels=channels, neighbours=n) for n in (1, 0))
    each = alone.shape[1]
    for case in PACK.cases:
        rows = PACK.rows([case])
        for place, row in enumerate(rows):
            before, after = rows[max(place - 1, 0)], rows[min(place + 1, len(rows) - 1)]
            for part, other in enumerate((before, row, after)):
                assert np.array_equal(seen[row, part * each : (part + 1) * each], alone[other])


def test_two_neighbours_on_either_side_of_a_patient_of_two_slices():
    assert stacked(["a", "a", "b"], 2).tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]


def test_slices_that_are_split_apart_are_still_neighbours():
    whole, leaky = (SliceLoader(pack, Input(neighbours=1), CPU).unit(ROWS)[0] for pack in (PACK, by_slice(PACK)))
    assert torch.equal(whole, leaky)


@pytest.mark.parametrize("size", [16, 48])
def test_slices_are_resized_for_the_model(size):
    images, masks = SliceLoader(PACK, Input(image_size=size), CPU).unit(ROWS[:3])
    assert images.shape == (3, 3, size, size)
    assert masks.shape == (3, 1, size, size)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_resizing_keeps_image_and_mask_in_register():
    masks = np.zeros((1, 32, 32), np.uint8)
    masks[0, 4:20, 8:16] = 1
    images = np.repeat(masks[..., None] * 200, 3, -1)
    loader = SliceLoader(pack_of(images, masks, ["P0"]), Input(image_size=16), CPU)
    small, mask = loader.unit(np.array([0]))
    expected = torch.zeros(16, 16)
    expected[2:10, 4:8] = 1  # every second pixel
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal((small[0, 0] > 0.5).float(), expected)


def test_a_shrunken_mask_keeps_the_pixels_that_are_half_covered():
    masks = np.zeros((1, 32, 32), np.uint8)
    masks[0, 0, 0] = masks[0, 0, 4] = masks[0, 1, 5] = 1  # a quarter of one small pixel, a half of another
    loader = SliceLoader(pack_of(np.zeros((1, 32, 32, 3), np.uint8), masks, ["P0"]), Input(image_size=16), CPU)
    assert loader.unit(np.array([0]))[1].nonzero().tolist() == [[0, 0, 0, 2]]


# The fast ways are the plain way


@pytest.mark.parametrize(
    "settings",
    [{}, {"channels": ("post", "flair")}, {"channels": "pre"}, {"normalise": "image"}, {"neighbours": 2}],
)
@pytest.mark.parametrize("size", [None, 48])
def test_looking_grey_levels_up_is_computing_every_pixel_to_the_bit(settings, size):
    """`resident` is how a GPU reads: arithmetic on all pixels. A CPU looks up the 256 levels there are."""
    given = Input(image_size=size, **settings)
    looked_up, computed = SliceLoader(PACK, given, CPU), SliceLoader(PACK, given, CPU, resident=True)
    rows = np.array([7, 0, 12, 7])
    for ours, theirs in zip(looked_up.unit(rows), computed.unit(rows), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(looked_up.ready(rows), computed.ready(rows), strict=True):
        assert torch.equal(ours, theirs)


def test_a_device_takes_a_pack_that_is_mapped_for_reading_only(tmp_path):
    """As `open_pack` maps it; PyTorch warns of such arrays, and warnings are errors here."""
    np.save(tmp_path / "images.npy", PACK.images)
    np.save(tmp_path / "masks.npy", PACK.masks)
    images, masks = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    mapped = SliceLoader(replace(PACK, images=images, masks=masks), Input(), CPU, resident=True)
    for ours, theirs in zip(mapped.unit(ROWS), SliceLoader(PACK, Input(), CPU).unit(ROWS), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [None, 16])
def test_ready_is_the_z_score_of_unit_with_the_masks_as_packed(size):
    loader = SliceLoader(PACK, Input(image_size=size), CPU)
    images, masks = loader.ready(ROWS)
    assert torch.equal(images, loader.standard(loader.unit(ROWS)[0], ROWS))
    assert torch.equal(masks[:, 0], torch.from_numpy(PACK.masks).float())


def test_large_batches_are_shared_between_threads_and_come_out_the_same():
    big = tiny_pack(cases=2, slices=6, size=256)  # 9 MB as float32
    assert np.array_equal(
        shown(big, np.arange(12)), np.concatenate([shown(big, np.array([r])) for r in range(12)])
    )


@pytest.mark.parametrize("resident", [False, True])
def test_units_are_the_unit_of_each_batch_in_order(resident):
    loader = SliceLoader(PACK, Input(), CPU, resident=resident)
    batches = [np.array(rows) for rows in ([3, 1], [7, 9], [0, 0], [11, 2], [5, 4])]
    for (images, masks), rows in zip(loader.units(batches), batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((images, masks), loader.unit(rows), strict=True))


def test_reading_ahead_keeps_the_order_and_is_never_more_than_its_depth_ahead():
    read = []
    for used, value in enumerate(ahead(lambda n: read.append(n) or n * n, range(9), depth=3)):
        assert value == used**2
        assert len(read) <= used + 4
    assert read == list(range(9))


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_is_used():
    reading = ahead(lambda n: 1 // n, [1, 0])
    assert next(reading) == 1
    with pytest.raises(ZeroDivisionError):
        next(reading)


def test_who_stops_early_leaves_no_reader_behind():
    reading = ahead(lambda n: n, range(50))
    next(reading)
    reading.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("bench-reader")]


# Any size


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 31), (1, 40), (50, 95)])
def test_a_model_sees_multiples_of_32_and_answers_at_the_size_asked(height, width):
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
    # Only the lower and the right border can tell that there is something beyond them.
    torch.testing.assert_close(logits[..., : height - 1, : width - 1], direct[..., : height - 1, : width - 1])


def test_logits_are_float32_whatever_the_model_computes_in():
    assert logits_of(lambda images: images[:, :1].bfloat16(), torch.zeros(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.parametrize(("precision", "on"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_on_a_cpu_bfloat16_is_used_only_when_asked_for(precision, on):
    with autocast(CPU, precision):
        assert torch.is_autocast_enabled("cpu") is on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_shows_the_same_as_a_cpu():
    gpu = torch.device("cuda")
    loader = SliceLoader(PACK, Input(image_size=16), gpu)
    images = loader.standard(loader.unit(ROWS)[0], ROWS)
    assert images.device.type == "cuda"
    assert images.cpu().numpy() == pytest.approx(shown(image_size=16), abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_cannot_hold_the_data_is_fed_the_same():
    gpu = torch.device("cuda")
    resident, streamed = (SliceLoader(PACK, Input(), gpu, resident=resident) for resident in (True, False))
    batches = [ROWS[start : start + 3] for start in range(0, 18, 3)]
    for ours, theirs in zip(resident.units(batches), streamed.units(batches), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
