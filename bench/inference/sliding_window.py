"""Patches: what a model trains on where a slice is too much, and how whole slices are predicted with it.

Training takes one patch a slice, at random; prediction covers the slice with overlapping tiles and blends their
logits, each weighing most in its middle (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, floor

import torch
from torch import Tensor

from bench.inference.padding import logits_of


def tiled(model: Callable[[Tensor], Tensor], images: Tensor, *, size: int, overlap: float) -> Tensor:
    """Logits (B, 1, H, W) float32 of whole slices, from tiles of `size` pixels a side that overlap by a share."""
    height, width = images.shape[-2:]
    tall, wide = min(size, height), min(size, width)  # a slice from elsewhere may be smaller than a patch
    weight = _importance(tall, wide, images.device)
    total, weights = (torch.zeros(n, 1, height, width, device=images.device) for n in (len(images), 1))
    for top in tile_starts(height, tall, overlap):
        for left in tile_starts(width, wide, overlap):
            window = ..., slice(top, top + tall), slice(left, left + wide)
            total[window] += weight * logits_of(model, images[window])
            weights[window] += weight
    return total / weights


def tile_starts(length: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin: evenly spaced, from border to border, sharing `overlap` of their length or more."""
    farthest = floor(size * (1 - overlap) + 1e-9)  # whole pixels, or rounding could take some of the overlap
    steps = ceil((length - size) / farthest)
    return [round(step * (length - size) / max(steps, 1)) for step in range(steps + 1)]


@lru_cache(8)
def _importance(tall: int, wide: int, device: torch.device) -> Tensor:
    """(tall, wide): a Gaussian, its deviation an eighth of a side, never so small that a corner would be lost."""
    down, across = (
        torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * (side / 8) ** 2)) for side in (tall, wide)
    )
    # Made on the CPU: the streams of several folds share it, and a copy is waited for.
    return (down[:, None] * across).clamp(min=1e-3).to(device)
