"""Tiles cover every pixel and blend as others blend them; a random patch is a piece of its slice, fairly drawn."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import Tensor, nn

from bench import registry
from bench.config import Input, RunConfig
from bench.data.loader import SliceLoader, random_patch
from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting
from bench.inference.predict import Predictor
from bench.inference.sliding_window import logits_of, tile_starts, tiled
from bench.overrides import override
from bench.training.cross_validation import cross_validate
from bench.training.experiment import resolve
from tests.fakes import MemoryRecorder, tiny_pack

CPU = torch.device("cpu")


def net(seed: int = 0, side: int = 3) -> nn.Module:
    """Two convolutions, the first of `side` pixels: with 1 no pixel knows of its neighbours."""
    torch.manual_seed(seed)
    first = nn.Conv2d(3, 6, side, padding=side // 2)
    return nn.Sequential(first, nn.Tanh(), nn.Conv2d(6, 1, side, padding=side // 2)).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def tiles(model: nn.Module, images: Tensor, size: int, overlap: float = 0.5) -> Tensor:
    return tiled(model, images, size=size, overlap=overlap)


# Where tiles lie


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5, 0.7, 0.9, 0.94])
def test_tiles_go_from_border_to_border_and_overlap_as_much_as_asked(overlap):
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(32, 300))
        length = size + int(rng.integers(0, 400))
        found = tile_starts(length, size, overlap)
        assert found[0] == 0
        assert found[-1] == length - size
        steps = np.diff(found)
        assert (steps > 0).all()
        assert (steps <= size * (1 - overlap) + 1e-9).all(), (length, size)
        covered = np.zeros(length, bool)
        for at in found:
            covered[at : at + size] = True
        assert covered.all()


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        (256, 128, 0.5, [0, 64, 128]),
        (256, 128, 0, [0, 128]),
        (100, 100, 0.5, [0]),
        (101, 100, 0.5, [0, 1]),
        (300, 128, 0.5, [0, 57, 115, 172]),  # 172 = 3 x 57.3: as few tiles as do, evenly spaced
        (
            256,
            128,
            0.9,
            [0, 12, 23, 35, 47, 58, 70, 81, 93, 105, 116, 128],
        ),  # 12 pixels at most: 12.8 is not whole
        (
            100,
            50,
            0.9,
            [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50],
        ),  # 50 x (1 - 0.9) is a little under 5 as a float
    ],
)
def test_where_tiles_begin_by_hand(length, size, overlap, expected):
    assert tile_starts(length, size, overlap) == expected


# Whole slices from tiles


@pytest.mark.parametrize(("shape", "size"), [((64, 64), 32), ((70, 45), 32), ((33, 96), 33), ((41, 40), 40)])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.8])
def test_where_pixels_do_not_know_their_neighbours_tiles_change_nothing(shape, size, overlap):
    model, images = net(side=1), noise(2, 3, *shape)
    found = tiles(model, images, size, overlap)
    assert found.shape == (2, 1, *shape)
    assert found.dtype == torch.float32
    assert torch.allclose(found, logits_of(model, images), atol=1e-5)


def test_a_slice_that_is_one_tile_is_predicted_at_once():
    model, images = net(), noise(2, 3, 48, 48)
    assert torch.allclose(tiles(model, images, 48), logits_of(model, images), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (40, 96), (96, 40)])
def test_a_slice_smaller_than_a_tile_is_no_obstacle(shape):
    """As when a model is used on other images than those that it was trained on."""
    model, images = net(side=1), noise(1, 3, *shape)
    assert torch.allclose(tiles(model, images, 64), logits_of(model, images), atol=1e-5)


def bell(size: int) -> np.ndarray:
    """The weight of each pixel of a tile, in loops: a Gaussian of an eighth of a side, 0.001 at least."""
    middle, deviation = (size - 1) / 2, size / 8
    return np.array(
        [
            [max(exp(-((y - middle) ** 2 + (x - middle) ** 2) / (2 * deviation**2)), 1e-3) for x in range(size)]
            for y in range(size)
        ]
    )


@pytest.mark.parametrize(("shape", "size", "overlap"), [((64, 64), 32, 0.5), ((50, 81), 32, 0.3)])
def test_tiles_blend_as_their_gaussians_say(shape, size, overlap):
    model, image, weight = net(), noise(1, 3, *shape), bell(size)
    total, weights = np.zeros(shape), np.zeros(shape)
    for top in tile_starts(shape[0], size, overlap):
        for left in tile_starts(shape[1], size, overlap):
            window = np.s_[top : top + size, left : left + size]
            with torch.no_grad():
                total[window] += weight * model(image[..., window[0], window[1]])[0, 0].double().numpy()
            weights[window] += weight
    assert tiles(model, image, size, overlap)[0, 0].numpy() == pytest.approx(total / weights, abs=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((256, 256), 128), ((128, 192), 64)])
def test_tiles_are_those_of_monai(shape, size):
    """The same places, the same weights, with the same floor under them: what is left is float32 rounding."""
    inferers = pytest.importorskip("monai.inferers", reason="pip install 'medseg-bench[monai]'")
    model, images = net(), noise(2, 3, *shape)
    with torch.no_grad():
        theirs = inferers.sliding_window_inference(
            images, (size, size), 4, model, overlap=0.5, mode="gaussian", sigma_scale=0.125
        )
    assert torch.allclose(tiles(model, images, size), theirs, atol=1e-5)
    assert not torch.allclose(logits_of(model, images), theirs, atol=1e-3)


def test_models_of_patches_are_evaluated_by_tiles():
    model, pack = net(), tiny_pack(cases=2, slices=3, size=48)
    patched, whole = (
        SliceLoader(pack, Input(patch=patch), CPU) for patch in ({"size": 32, "overlap": 0.25}, None)
    )
    rows = np.arange(6)
    logits = tiles(model, whole.load_normalised(rows)[0], 32, 0.25)
    probability = Predictor([model], patched, 4).probabilities(rows)
    assert probability == pytest.approx(logits.sigmoid().numpy(), abs=1e-6)
    assert probability != pytest.approx(Predictor([model], whole, 4).probabilities(rows), abs=1e-3)
    counted = Predictor([model], patched, 4).counts(rows, 0.5)
    truth = pack.masks == 1
    assert counted[:, 0, 0].tolist() == ((probability[:, 0] >= 0.5) & truth).sum((1, 2)).tolist()


def test_tiles_of_a_resized_slice_are_scored_on_the_packed_grid():
    model, pack = net(), tiny_pack(cases=1, slices=2, size=64)
    loader = SliceLoader(pack, Input(image_size=48, patch={"size": 32}), CPU)
    probability = Predictor([model], loader, 2).probabilities(np.arange(2))
    logits = tiles(model, loader.load_normalised(np.arange(2))[0], 32)
    assert logits.shape[-2:] == (48, 48)
    expected = nn.functional.interpolate(logits, (64, 64), mode="bilinear").sigmoid()
    assert probability == pytest.approx(expected.numpy(), abs=1e-6)


# Random patches

HEIGHT, WIDTH, SIZE = 40, 50, 32


def coordinates(slices: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Images (B, 3, H, W) whose channels are the row, the column and the number of the slice."""
    axes = torch.arange(slices), torch.arange(height), torch.arange(width)
    number, row, column = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((row, column, number), 1).float()


def cut(masks: Tensor, *, share: float = 0.5, size: int = SIZE, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """A patch of coordinates and of masks (B, 1, H, W) out of each slice."""
    count, _, height, width = masks.shape
    images = coordinates(count, height, width)
    return random_patch(images, masks, SliceRandom(1, epoch, range(count)), size=size, tumour_share=share)


def corners(patches: Tensor) -> np.ndarray:
    """Where the patches of coordinates begin, (B, 2)."""
    return patches[:, :2, 0, 0].long().numpy()


def pixel(row: int, column: int, count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Masks of `count` slices with one and the same tumour pixel."""
    masks = torch.zeros(count, 1, height, width)
    masks[:, :, row, column] = 1
    return masks


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_image_and_mask_are_cut_out_of_their_slice_at_the_same_place(share):
    masks = (noise(20, 1, HEIGHT, WIDTH) > 2).float()
    images, truth = cut(masks, share=share)
    assert images.shape == (20, 3, SIZE, SIZE)
    assert truth.shape == (20, 1, SIZE, SIZE)
    for number, (top, left) in enumerate(corners(images)):
        window = np.s_[:, top : top + SIZE, left : left + SIZE]
        assert torch.equal(images[number], coordinates(20)[number][window])
        assert torch.equal(truth[number], masks[number][window])


@pytest.mark.parametrize(
    ("row", "column"), [(0, 0), (0, 49), (39, 0), (39, 49), (0, 25), (20, 49), (39, 25), (20, 25), (7, 17)]
)
def test_a_patch_that_is_to_hold_tumour_does_wherever_the_tumour_is(row, column):
    images, truth = cut(pixel(row, column, 300), share=1)
    assert (truth.sum((1, 2, 3)) == 1).all()
    top, left = corners(images).T
    assert (truth[np.arange(300), 0, row - top, column - left] == 1).all()


@pytest.mark.parametrize("size", [32, 33, 40])
def test_patches_stay_within_their_slice(size):
    for share in (0, 1):
        top, left = corners(cut((noise(300, 1, HEIGHT, WIDTH) > 2.5).float(), share=share, size=size)[0]).T
        assert top.min() == left.min() == 0
        assert top.max() == HEIGHT - size
        assert left.max() == WIDTH - size


def places(first: np.ndarray, height: int, width: int, size: int = SIZE) -> np.ndarray:
    """How often each place was drawn."""
    down, across = height - size + 1, width - size + 1
    return np.bincount(first[:, 0] * across + first[:, 1], minlength=down * across)


@pytest.mark.parametrize(
    ("masks", "share"),
    [(pixel(0, 0, 3000, 36, 35), 0), (torch.zeros(3000, 1, 36, 35), 1), (torch.ones(3000, 1, 36, 35), 0)],
)
def test_without_tumour_or_without_the_wish_for_it_every_place_is_as_likely(masks, share):
    """5 x 4 places, 150 draws each; equal chances give p < 0.001 once in a thousand seeds."""
    drawn = places(corners(cut(masks, share=share)[0]), 36, 35)
    assert len(drawn) == 20
    assert chisquare(drawn).pvalue > 0.001


def test_a_tumour_pixel_lies_anywhere_in_its_patch():
    """A pixel in the middle of a large slice: all 4 x 4 parts of the patch get it as often."""
    top, left = corners(cut(pixel(40, 40, 1600, 80, 80), share=1)[0]).T
    down, across = (40 - top) // (SIZE // 4), (40 - left) // (SIZE // 4)
    assert chisquare(np.bincount(4 * down + across, minlength=16)).pvalue > 0.001


@pytest.mark.parametrize("share", [0.5, 1])
def test_every_tumour_pixel_is_as_likely_to_be_chosen(share):
    """A tumour of three pixels has three quarters of the patches, one of a single pixel far from it the rest.

    Of the patches that may lie anywhere, 50 of 89 places are to the left.
    """
    masks = pixel(10, 100, 1000, 40, 120)
    masks[:, :, 20, 5:8] = 1
    left = corners(cut(masks, share=share)[0])[:, 1]
    expected = share * 3 / 4 + (1 - share) * 50 / 89
    assert binomtest(int((left < 50).sum()), 1000, expected).pvalue > 0.001


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_share_is_of_patches_that_are_sure_to_hold_tumour(share):
    """By chance alone, a corner pixel is in one of 65 x 65 places."""
    truth = cut(pixel(0, 0, 1000, 96, 96), share=share)[1]
    held = int(truth.amax((1, 2, 3)).sum())
    assert binomtest(held, 1000, share + (1 - share) / 65**2).pvalue > 0.001


def test_a_slice_is_cut_the_same_in_any_batch_and_otherwise_in_another_epoch():
    masks, images = (noise(6, 1, HEIGHT, WIDTH) > 2).float(), coordinates(6)

    def drawn(slices: list[int], epoch: int = 3) -> tuple[Tensor, Tensor]:
        draws = SliceRandom(1, epoch, slices)
        return random_patch(images[slices], masks[slices], draws, size=SIZE, tumour_share=0.5)

    whole, others = drawn(list(range(6))), drawn([4, 1, 5])
    assert all(torch.equal(a[[4, 1, 5]], b) for a, b in zip(whole, others, strict=True))
    assert all(torch.equal(a[2:3], b) for a, b in zip(whole, drawn([2]), strict=True))
    assert not torch.equal(whole[0], drawn(list(range(6)), epoch=4)[0])


@pytest.mark.parametrize("share", [0, 1])
def test_a_patch_as_large_as_the_slice_is_the_slice(share):
    masks = (noise(5, 1, SIZE, SIZE) > 1).float()
    images, truth = cut(masks, share=share)
    assert torch.equal(images, coordinates(5, SIZE, SIZE))
    assert torch.equal(truth, masks)


# A run


def config(**changes: Any) -> RunConfig:
    tiny = {"dataset.patients": 6, "dataset.size": 64, "dataset.slices": 6, "dataset.institutions": 2}
    tiny |= {"split.folds": 3, "model.base": 2, "model.depth": 1, "train.epochs": 1, "train.batch_size": 4}
    return override(RunConfig(), tiny, {k.replace("__", "."): v for k, v in changes.items()})


def test_a_run_trains_on_patches_and_is_scored_on_whole_slices(tmp_path: Path, monkeypatch):
    @registry.loss(name="test_shapes")
    def shapes(logits: Tensor, target: Tensor) -> Tensor:
        """Remembers what it was given."""
        seen.append((logits.shape[2:], target.shape[2:], target.amax((1, 2, 3)).tolist()))
        return (logits * 0).sum()

    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    seen: list[Any] = []
    recorder = MemoryRecorder()
    try:
        asked = {"input__patch__size": 32, "input__patch__tumour_share": 1, "train__positive_fraction": 0.99}
        experiment = resolve(config(loss="test_shapes", augment="none", **asked))
        seen.clear()  # of the trial
        cross_validate(experiment, recorder, only=0)
    finally:
        del registry.loss._entries["test_shapes"]
    assert {(logits, target) for logits, target, _ in seen} == {((32, 32), (32, 32))}
    assert np.mean([held for *_, batch in seen for held in batch]) > 0.9
    slices = recorder.children["fold 0"].tables["slices"]
    assert (slices[["tp", "fp", "fn", "tn"]].sum(axis=1) == 64 * 64).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"input__patch__size": 65},
            "input.patch.size = 65 is larger than the 64 pixels of a slice. Give a smaller one",
        ),
        ({"input__patch__size": 64, "input__image_size": 48}, "larger than the 48 pixels"),
        ({"model": "pan", "input__patch__size": 64}, "pan needs slices of 128 pixels"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(changes, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    with pytest.raises(BadSetting, match=sentence):
        resolve(config(**changes))
