"""Channels are scans of their own: what is done to one must not look at another. Grey levels are bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.data.source import Pixels


def each_channel(change: Callable[[Pixels], Pixels], image: Pixels) -> Pixels:
    """`change` of every channel (H, W) of an image (H, W, C)."""
    return np.stack([change(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])], axis=-1)


def grey_levels(values: NDArray[np.floating]) -> Pixels:
    """Rounded, and cut to 0..255."""
    return values.round().clip(0, 255).astype(np.uint8)
