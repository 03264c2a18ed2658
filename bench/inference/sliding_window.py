"""Run a model on slices of any size: padded, or covered by overlapping tiles whose logits are blended.

Each tile weighs most in its middle (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, floor

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE = 32  # every model takes sides that are multiples of it


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return logits (B, K, H, W) float32 for images (B, C, H, W), padded to the model's stride, then cropped."""
    height, width = images.shape[-2:]
    logits: Tensor = model(pad_to_stride(images))
    return logits[..., :height, :width].float()


def pad_to_stride(images: Tensor) -> Tensor:
    """Repeat the last row and column of images (B, C, H, W) until their sides are multiples of `STRIDE`."""
    bottom, right = (-side % STRIDE for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def tiled(model: Callable[[Tensor], Tensor], images: Tensor, *, size: int, overlap: float) -> Tensor:
    """Return logits (B, K, H, W) float32 of whole slices, from tiles of `size` pixels a side.

    Neighbouring tiles share at least the fraction `overlap` of their side.
    """
    height, width = images.shape[-2:]
    tall, wide = min(size, height), min(size, width)  # an external slice may be smaller than a patch
    weight = _importance(tall, wide, images.device)
    total: Tensor | None = None
    weights = torch.zeros(1, 1, height, width, device=images.device)
    for top in tile_starts(height, tall, overlap):
        for left in tile_starts(width, wide, overlap):
            window = ..., slice(top, top + tall), slice(left, left + wide)
            logits = logits_of(model, images[window])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[window] += weight * logits
            weights[window] += weight
    assert total is not None
    return total / weights


def tile_starts(length: int, size: int, overlap: float) -> list[int]:
    """Return where tiles begin: evenly spaced from border to border, sharing `overlap` of their length or more."""
    step = floor(size * (1 - overlap) + 1e-9)  # whole pixels, or rounding could reduce the overlap
    count = ceil((length - size) / step)
    return [round(number * (length - size) / max(count, 1)) for number in range(count + 1)]


@lru_cache(8)
def _importance(tall: int, wide: int, device: torch.device) -> Tensor:
    """Return Gaussian weights (tall, wide): deviation an eighth of a side, never so small that corners vanish."""
    down, across = (
        torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * (side / 8) ** 2)) for side in (tall, wide)
    )
    # Made on the CPU and copied: the CUDA streams of several folds share the cached tensor.
    return (down[:, None] * across).clamp(min=1e-3).to(device)
