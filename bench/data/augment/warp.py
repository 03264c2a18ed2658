"""Flips, rotation, scaling, shift and elastic deformation of each slice, in a single interpolation.

Points are (x, y) in pixels from the centre of the image. A warp maps backwards: from each pixel of the result to
the point of the input that it comes from.
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
    """Flips, quarter turns, rotation, scaling, shift and elastic deformation in one interpolation.

    images: (B, C, H, W), masks: (B, K, H, W); pixels from outside the image become 0, the background.
    Probabilities, drawn for each slice: `flip` swaps left and right, `flip_vertical` top and bottom, `turn`
    rotates by 90, 180 or 270 degrees (an image that is not square is cropped and padded), `affine` rotates, scales
    and shifts, `elastic` deforms. Amounts: up to +- `rotate` degrees, size times 1 +- `scale`, +- `shift` of
    width and height. Elastic deformation (Simard et al. 2003) as in albumentations with uniform noise: uniform
    in [-1, 1], blurred by a Gaussian of `elastic_sigma` pixels, times `elastic_alpha`. The displacement has a
    standard deviation of 0.163 * alpha / sigma pixels in x and in y (120 and 6: 3.3 pixels).
    """
    use_affine = affine and (rotate or scale or shift)
    use_elastic = elastic and elastic_alpha
    if not (flip or flip_vertical or turn or use_affine or use_elastic):
        return images, masks
    # A fixed number of draws per slice, so that changing one setting does not change the numbers of the others.
    chances, amounts = draws.uniform(0, 1, 6), draws.uniform(-1, 1, 4)
    moved = (chances[:, 3] < affine).float()
    quarters = torch.where(chances[:, 2] < turn, 1 + (chances[:, 5] * 3).floor().clamp(max=2), 0.0)
    matrix = inverse_matrices(
        degrees=90 * quarters + moved * rotate * amounts[:, 0],
        size=1 + moved * scale * amounts[:, 1],
        mirror_x=chances[:, 0] < flip,
        mirror_y=chances[:, 1] < flip_vertical,
    )
    height, width = images.shape[-2:]
    offset = (moved * shift)[:, None] * torch.stack((amounts[:, 2] * width, amounts[:, 3] * height), -1)
    displacement = None
    if use_elastic:
        alpha = elastic_alpha * (chances[:, 4] < elastic).float().view(-1, 1, 1, 1)
        displacement = elastic_displacement(draws, height, width, alpha=alpha, sigma=elastic_sigma)
    return resample(images, masks, matrix, offset, displacement)


def inverse_matrices(*, degrees: Tensor, size: Tensor, mirror_x: Tensor, mirror_y: Tensor) -> Tensor:
    """Return matrices (B, 2, 2) from a point of the result to the point of the input.

    The input is mirrored first, then rotated counter-clockwise as seen on a screen, then enlarged by `size`. Each
    argument: (B,).
    """
    angle = degrees.deg2rad()
    cos, sin = angle.cos() / size, angle.sin() / size
    x, y = 1 - 2 * mirror_x.float(), 1 - 2 * mirror_y.float()
    return torch.stack((x * cos, -x * sin, y * sin, y * cos), -1).view(-1, 2, 2)


def elastic_displacement(
    draws: SliceRandom, height: int, width: int, *, alpha: float | Tensor, sigma: float
) -> Tensor:
    """Draw displacements (B, 2, H, W) in pixels, x before y: uniform noise in [-1, 1], Gaussian blur, times alpha.

    alpha: one number, or (B, 1, 1, 1).
    The noise is drawn at knots one sigma apart instead of at every pixel. The blur removes anything finer, so
    variance and correlation are those of the dense field, with 1 / sigma² as many random numbers. Knots continue
    beyond the border, so that the field is as strong there as elsewhere.
    """
    rows, columns = (_blur_weights(length, sigma, draws.device) for length in (height, width))
    noise = alpha * draws.uniform(-1, 1, 2, rows.shape[1], columns.shape[1])
    field: Tensor = rows @ noise @ columns.T
    return field


@lru_cache(32)
def _blur_weights(length: int, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """Return the weight (length, knots) of the noise of each knot at each pixel."""
    knots = torch.arange(-4, (length - 1) / sigma + 5, dtype=torch.float64)
    distance = torch.arange(length, dtype=torch.float64)[:, None] / sigma - knots
    # A knot represents sigma pixels of independent noise: their sum has sqrt(sigma) times the deviation of one.
    weight = torch.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi * sigma)
    # Further out, float32 weights are subnormal, which makes a matrix product on a CPU fifteen times slower.
    return onto(device, weight.where(distance.abs() < 6, 0).float())


def resample(
    images: Tensor, masks: Tensor, matrix: Tensor, offset: Tensor, displacement: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample at matrix @ (point - offset) + displacement, bilinear, 0 outside; masks are thresholded at one half.

    matrix: (B, 2, 2); offset: (B, 2) pixels by which the result is shifted; displacement: (B, 2, H, W) pixels.
    """
    height, width = images.shape[-2:]
    channels, planes = images.shape[1], images.shape[1] + masks.shape[1]
    x, y = (torch.arange(n, device=images.device) - (n - 1) / 2 for n in (width, height))
    # Sums of a row and a column instead of @: faster, and exact on a GPU that uses TF32.
    across = matrix[:, :, 0, None] * (x - offset[:, :1])[:, None]  # (B, 2, W)
    down = matrix[:, :, 1, None] * (y - offset[:, 1:])[:, None]  # (B, 2, H)
    down[:, 0] += (width - 1) / 2
    down[:, 1] += (height - 1) / 2
    if EXACT_REMAP and images.device.type == "cpu":
        quads = images.new_empty(len(images), -(-planes // 4), height, width, 4)
        # One by one: intermediate results stay in the CPU cache and need no new memory.
        for row in range(len(images)):
            sources = across[row, :, None] + down[row, ..., None]
            if displacement is not None:
                sources += displacement[row]
            remap_slice((*images[row], *masks[row]), sources, quads[row])
        sampled = quads.permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :planes]
    else:
        sources = across[:, :, None] + down[..., None]
        sources = sources if displacement is None else sources + displacement
        sampled = grid_sample(torch.cat((images, masks), 1), sources)
    return sampled[:, :channels], (sampled[:, channels:] >= 0.5).to(masks.dtype)


def grid_sample(planes: Tensor, sources: Tensor) -> Tensor:
    """Sample planes (B, C, H, W) at columns and rows `sources` (B, 2, H, W), with PyTorch, on any device."""
    # -1 and 1 are the outer edges of the image.
    axes = [(2 * s + 1) / n - 1 for s, n in zip(sources.unbind(1), planes.shape[:-3:-1], strict=True)]
    return F.grid_sample(planes, torch.stack(axes, -1), mode="bilinear", align_corners=False)


def remap_slice(planes: Sequence[Tensor], sources: Tensor, into: Tensor) -> None:
    """Sample one slice on a CPU with OpenCV: like `grid_sample` to within 1e-4, in about half the time.

    planes: (H, W) each; sources: (2, H, W); into: (Q, H, W, 4), filled with four planes at a time. OpenCV is
    fastest with four; with two, or with more than four, it rounds coordinates to 1/32 pixel.
    """
    x, y = sources.numpy()
    for number, result in enumerate(into.numpy()):
        quad = np.zeros_like(result)
        for channel, plane in enumerate(planes[4 * number : 4 * number + 4]):
            quad[..., channel] = plane.numpy()
        cv2.remap(quad, x, y, cv2.INTER_LINEAR, result, cv2.BORDER_CONSTANT)


def _remap_is_exact() -> bool:
    """Return whether this OpenCV interpolates at exact coordinates (5.0) or at the nearest 1/32 pixel (4.x)."""
    ramp = np.zeros((8, 8, 4), np.float32)
    ramp[:, 1] = 1
    x, y = np.full((8, 8), 0.01, np.float32), np.zeros((8, 8), np.float32)
    return bool(np.allclose(cv2.remap(ramp, x, y, cv2.INTER_LINEAR), 0.01))


EXACT_REMAP = _remap_is_exact()
