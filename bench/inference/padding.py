"""Run a model on images of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

STRIDE = 32  # every model takes sides that are multiples of it


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return logits (B, 1, H, W) float32 for images (B, C, H, W), padded to the model's stride, then cropped."""
    height, width = images.shape[-2:]
    bottom, right = -height % STRIDE, -width % STRIDE
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom), mode="replicate")
    logits: Tensor = model(images)
    return logits[..., :height, :width].float()
