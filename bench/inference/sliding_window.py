"""Sliding-window inference: cover a slice with overlapping tiles and blend their logits.

Each tile weighs most in its middle (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, floor

import torch
from torch import Tensor

from bench.inference.padding import logits_of


def tiled(model: Callable[[Tensor], Tensor], images: Tensor, *, size: int, overlap: float) -> Tensor:
    """Return logits (B, 1, H, W) float32 of whole slices, from tiles of `size` pixels a side.

    Neighbouring tiles share at least the fraction `overlap` of their side.
    """
    height, width = images.shape[-2:]
    tall, wide = min(size, height), min(size, width)  # an external slice may be smaller than a patch
    weight = _importance(tall, wide, images.device)
    total, weights = (torch.zeros(n, 1, height, width, device=images.device) for n in (len(images), 1))
    for top in tile_starts(height, tall, overlap):
        for left in tile_starts(width, wide, overlap):
            window = ..., slice(top, top + tall), slice(left, left + wide)
            total[window] += weight * logits_of(model, images[window])
            weights[window] += weight
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
