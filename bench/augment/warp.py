"""One warp: mirror, turn, rotate, scale, shift and bend each slice, all in a single interpolation.

Points are (x, y) in pixels from the centre of the image. A warp is told backwards: for every pixel of the
result, the point of the input it comes from.
"""

from __future__ import annotations

import math
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.draws import Draws
from bench.registry import augmentation

Probability = Annotated[float, Field(ge=0, le=1)]


@augmentation
def warp(
    images: Tensor,
    masks: Tensor,
    draws: Draws,
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
    offset = moved[:, None] * shift * spins[:, 2:] * spins.new_tensor((width, height))
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


def displacement(draws: Draws, height: int, width: int, *, alpha: float | Tensor, sigma: float) -> Tensor:
    """(B, 2, H, W) displacement in pixels, x before y: uniform noise in [-1, 1], Gaussian blur, times alpha.

    alpha: one number, or (B, 1, 1, 1).
    The noise sits on knots one sigma apart instead of on every pixel: the blur leaves nothing finer, so that
    variance and correlation are those of the dense field, with 1 / sigma² as many numbers drawn. Knots continue
    beyond the border, so that the field is as strong there as elsewhere.
    """
    rows, columns = (_blur(length, sigma).to(draws.device) for length in (height, width))
    noise = alpha * draws.uniform(-1, 1, 2, rows.shape[1], columns.shape[1])
    field: Tensor = rows @ noise @ columns.T
    return field


def _blur(length: int, sigma: float) -> Tensor:
    """(length, knots): the weight of each knot's noise at each pixel."""
    knots = torch.arange(-4, (length - 1) / sigma + 5, dtype=torch.float64)
    distance = torch.arange(length, dtype=torch.float64)[:, None] / sigma - knots
    # A knot stands for sigma pixels of independent noise, whose sum deviates sqrt(sigma) times as much as one.
    weight = torch.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi * sigma)
    # Further out float32 has only subnormal numbers, which make a CPU's matrix product fifteen times slower.
    return weight.where(distance.abs() < 6, 0).float()


def resample(
    images: Tensor, masks: Tensor, matrix: Tensor, offset: Tensor, bend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images and masks read at matrix @ (point - offset) + bend, bilinear, 0 outside; masks cut at one half.

    matrix: (B, 2, 2), offset: (B, 2) pixels by which the result is shifted, bend: (B, 2, H, W) pixels.
    """
    height, width = images.shape[-2:]
    centre = images.new_tensor(((width - 1) / 2, (height - 1) / 2))
    x, y = (torch.arange(n, device=images.device) - (n - 1) / 2 for n in (width, height))
    # Sums of a row and a column, rather than @: quicker, and exact on a GPU that is allowed TF32.
    across = matrix[:, :, 0, None] * (x - offset[:, :1])[:, None]  # (B, 2, W)
    down = matrix[:, :, 1, None] * (y - offset[:, 1:])[:, None]  # (B, 2, H)
    down = down + centre[:, None]
    by_opencv = EXACT_REMAP and images.device.type == "cpu"
    # One by one on a CPU: what lies in between stays in its cache and asks the system for no fresh memory.
    count = 1 if by_opencv else len(images)
    found = images.new_empty(len(images), images.shape[1] + 1, height, width)
    for some in (slice(start, start + count) for start in range(0, len(images), count)):
        sources = across[some, :, None] + down[some, ..., None]
        if bend is not None:
            sources += bend[some]
        planes = torch.cat((images[some], masks[some]), 1)
        found[some] = remap(planes, sources) if by_opencv else grid_sample(planes, sources)
    return found[:, :-1], (found[:, -1:] >= 0.5).to(masks.dtype)


def grid_sample(planes: Tensor, sources: Tensor) -> Tensor:
    """Planes (B, C, H, W) read at column and row `sources` (B, 2, H, W), by PyTorch, on any device."""
    size = sources.new_tensor(planes.shape[:-3:-1])  # width, height
    grid = (2 * sources.movedim(1, -1) + 1) / size - 1  # -1 and 1 are the image's outer edges
    return F.grid_sample(planes, grid, mode="bilinear", align_corners=False)


def remap(planes: Tensor, sources: Tensor) -> Tensor:
    """What `grid_sample` does, on a CPU by OpenCV, in about half the time; they differ by less than 1e-4.

    Four planes at a time, padded if need be: OpenCV is quickest there, and with two or with more than four it
    falls back on rounding coordinates to 1/32 pixel.
    """
    count, height, width = planes.shape[1:]
    padded = F.pad(planes, (0, 0, 0, 0, 0, -count % 4)) if count % 4 else planes
    quads = padded.view(len(planes), -1, 4, height, width).permute(0, 1, 3, 4, 2)
    pixels = quads.contiguous().numpy()
    found = np.empty_like(pixels)
    for row, (x, y) in enumerate(sources.numpy()):
        for quad, into in zip(pixels[row], found[row], strict=True):
            cv2.remap(quad, x, y, cv2.INTER_LINEAR, into, cv2.BORDER_CONSTANT)
    return torch.from_numpy(found).permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :count]


def _remap_is_exact() -> bool:
    """Whether this OpenCV interpolates where it is told (5.0), or at the nearest 1/32 pixel (4.x)."""
    ramp = np.zeros((8, 8, 4), np.float32)
    ramp[:, 1] = 1
    x, y = np.full((8, 8), 0.01, np.float32), np.zeros((8, 8), np.float32)
    return bool(np.allclose(cv2.remap(ramp, x, y, cv2.INTER_LINEAR), 0.01))


EXACT_REMAP = _remap_is_exact()
