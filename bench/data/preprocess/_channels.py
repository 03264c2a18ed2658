"""Apply a step to every channel separately: channels are different scans, so a step must not mix them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.data.source import Pixels


def each_channel(change: Callable[[Pixels], Pixels], image: Pixels) -> Pixels:
    """Apply `change` to every channel (H, W) of an image (H, W, C)."""
    return np.stack([change(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])], axis=-1)


def to_grey_levels(values: NDArray[np.floating]) -> Pixels:
    """Round and clip to 0..255."""
    return values.round().clip(0, 255).astype(np.uint8)
