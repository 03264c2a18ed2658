"""One warp: mirror, turn, rotate, scale, shift and bend each slice, all in a single interpolation.

Points are (x, y) in pixels from the centre of the image. A warp is told backwards: for every pixel of the
result, the point of the input it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.device import onto
from bench.registry import augmentation

Probability = Annotated[float, Field(ge=0, le=1)]


@augmentation
def warp(
    images: Tensor,
    masks: Tensor,
    draws: SliceRandom,
    *,
    flip: Probability = 0.5,
    flip_vertical: Probability = 0.0,
    turn: Probability = 0.0,
    rotate: Annotated[float, Field(ge=0, le=180)] = 15.0,
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    affine: Probability = 1.0,
    elastic: Probability = 0.0,
    elastic_alpha: Annotated[float, Field(ge=0, le=1e5)] = 120.0,
    elastic_sigma: Annotated[float, Field(ge=1, le=1e3)] = 6.0,
) -> tuple[Tensor, Tensor]:
    """Mirror, turn, rotate, scale, shift and elastic deformation in one interpolation.

    images: (B, C, H, W), masks: (B, 1, H, W); pixels from outside the image are 0, the background.
    Probabilities, drawn for each slice: `flip` swaps left and right, `flip_vertical` top and bottom, `turn`
    rotates by 90, 180 or 270 degrees (cut and filled where the image is not square), `affine` rotates, scales
    and shifts, `elastic` bends. Amounts: up to +- `rotate` degrees, size times 1 +- `scale`, +- `shift` of
    width and height. Elastic deformation (Simard et al. 2003) as albumentations has it with uniform noise: even
    in [-1, 1], blurred by a Gaussian of `elastic_sigma` pixels, times `elastic_alpha`. The displacement has a
    standard deviation of 0.163 * alpha / sigma pixels in x and in y (120 and 6: 3.3 pixels).
    """
    amounts = affine and (rotate or scale or shift)
    bends = elastic and elastic_alpha
    if not (flip or flip_vertical or turn or amounts or bends):
        return images, masks
    # A fixed number of draws a slice, so that turning one setting leaves the others' numbers as they were.
    chances, spins = draws.uniform(0, 1, 6), draws.uniform(-1, 1, 4)
    moved = (chances[:, 3] < affine).float()
    quarters = torch.where(chances[:, 2] < turn, 1 + (chances[:, 5] * 3).floor().clamp(max=2), 0.0)
    matrix = backward(
        degrees=90 * quarters + moved * rotate * spins[:, 0],
        size=1 + moved * scale * spins[:, 1],
        mirror_x=chances[:, 0] < flip,
        mirror_y=chances[:, 1] < flip_vertical,
    )
    height, width = images.shape[-2:]
    offset = (moved * shift)[:, None] * torch.stack((spins[:, 2] * width, spins[:, 3] * height), -1)
    bend = None
    if bends:
        alpha = elastic_alpha * (chances[:, 4] < elastic).float().view(-1, 1, 1, 1)
        bend = displacement(draws, height, width, alpha=alpha, sigma=elastic_sigma)
    return resample(images, masks, matrix, offset, bend)


def backward(*, degrees: Tensor, size: Tensor, mirror_x: Tensor, mirror_y: Tensor) -> Tensor:
    """(B, 2, 2) matrices from a point of the result to the point of the input.

    The input is mirrored first, then turned counter-clockwise as seen on a screen, then enlarged by `size`. Each
    argument: (B,).
    """
    angle = degrees.deg2rad()
    cos, sin = angle.cos() / size, angle.sin() / size
    x, y = 1 - 2 * mirror_x.float(), 1 - 2 * mirror_y.float()
    return torch.stack((x * cos, -x * sin, y * sin, y * cos), -1).view(-1, 2, 2)


def displacement(draws: SliceRandom, height: int, width: int, *, alpha: float | Tensor, sigma: float) -> Tensor:
    """(B, 2, H, W) displacement in pixels, x before y: uniform noise in [-1, 1], Gaussian blur, times alpha.

    alpha: one number, or (B, 1, 1, 1).
    The noise sits on knots one sigma apart instead of on every pixel: the blur leaves nothing finer, so that
    variance and correlation are those of the dense field, with 1 / sigma² as many numbers drawn. Knots continue
    beyond the border, so that the field is as strong there as elsewhere.
    """
    rows, columns = (_blur(length, sigma, draws.device) for length in (height, width))
    noise = alpha * draws.uniform(-1, 1, 2, rows.shape[1], columns.shape[1])
    field: Tensor = rows @ noise @ columns.T
    return field


@lru_cache(32)
def _blur(length: int, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """(length, knots): the weight of each knot's noise at each pixel."""
    knots = torch.arange(-4, (length - 1) / sigma + 5, dtype=torch.float64)
    distance = torch.arange(length, dtype=torch.float64)[:, None] / sigma - knots
    # A knot stands for sigma pixels of independent noise, whose sum deviates sqrt(sigma) times as much as one.
    weight = torch.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi * sigma)
    # Further out float32 has only subnormal numbers, which make a CPU's matrix product fifteen times slower.
    return onto(device, weight.where(distance.abs() < 6, 0).float())


def resample(
    images: Tensor, masks: Tensor, matrix: Tensor, offset: Tensor, bend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images and masks read at matrix @ (point - offset) + bend, bilinear, 0 outside; masks cut at one half.

    matrix: (B, 2, 2), offset: (B, 2) pixels by which the result is shifted, bend: (B, 2, H, W) pixels.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(n, device=images.device) - (n - 1) / 2 for n in (width, height))
    # Sums of a row and a column, rather than @: quicker, and exact on a GPU that is allowed TF32.
    across = matrix[:, :, 0, None] * (x - offset[:, :1])[:, None]  # (B, 2, W)
    down = matrix[:, :, 1, None] * (y - offset[:, 1:])[:, None]  # (B, 2, H)
    down[:, 0] += (width - 1) / 2
    down[:, 1] += (height - 1) / 2
    if EXACT_REMAP and images.device.type == "cpu":
        quads = images.new_empty(len(images), -(-(images.shape[1] + 1) // 4), height, width, 4)
        # One by one: what lies in between stays in the processor's cache and asks the system for no fresh memory.
        for row in range(len(images)):
            sources = across[row, :, None] + down[row, ..., None]
            if bend is not None:
                sources += bend[row]
            remap((*images[row], *masks[row]), sources, quads[row])
        found = quads.permute(0, 1, 4, 2, 3).flatten(1, 2)[:, : images.shape[1] + 1]
    else:
        sources = across[:, :, None] + down[..., None]
        found = grid_sample(torch.cat((images, masks), 1), sources if bend is None else sources + bend)
    return found[:, :-1], (found[:, -1:] >= 0.5).to(masks.dtype)


def grid_sample(planes: Tensor, sources: Tensor) -> Tensor:
    """Planes (B, C, H, W) read at column and row `sources` (B, 2, H, W), by PyTorch, on any device."""
    # -1 and 1 are the image's outer edges.
    grid = torch.stack(
        [(2 * s + 1) / n - 1 for s, n in zip(sources.unbind(1), planes.shape[:-3:-1], strict=True)], -1
    )
    return F.grid_sample(planes, grid, mode="bilinear", align_corners=False)


def remap(planes: Sequence[Tensor], sources: Tensor, into: Tensor) -> None:
    """What `grid_sample` does for one slice on a CPU, by OpenCV, in about half the time; within 1e-4 of it.

    planes: (H, W) each; sources: (2, H, W); into: (Q, H, W, 4), filled with the planes four by four: OpenCV is
    quickest there, and with two or with more than four it falls back on rounding coordinates to 1/32 pixel.
    """
    x, y = sources.numpy()
    for number, result in enumerate(into.numpy()):
        quad = np.zeros_like(result)
        for channel, plane in enumerate(planes[4 * number : 4 * number + 4]):
            quad[..., channel] = plane.numpy()
        cv2.remap(quad, x, y, cv2.INTER_LINEAR, result, cv2.BORDER_CONSTANT)


def _remap_is_exact() -> bool:
    """Whether this OpenCV interpolates where it is told (5.0), or at the nearest 1/32 pixel (4.x)."""
    ramp = np.zeros((8, 8, 4), np.float32)
    ramp[:, 1] = 1
    x, y = np.full((8, 8), 0.01, np.float32), np.zeros((8, 8), np.float32)
    return bool(np.allclose(cv2.remap(ramp, x, y, cv2.INTER_LINEAR), 0.01))


EXACT_REMAP = _remap_is_exact()
