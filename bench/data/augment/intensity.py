"""Differences between scanners and sessions: gain, contrast, gamma and noise."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.registry import augmentation

Amount = Annotated[float, Field(ge=0, lt=1)]


@augmentation
def intensity(
    images: Tensor,
    masks: Tensor,
    draws: SliceRandom,
    *,
    brightness: Amount = 0.1,
    contrast: Amount = 0.1,
    gamma: Amount = 0.2,
    noise: Amount = 0.0,
) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, gamma and noise; each setting is the largest amount, and 0 is off.

    images: (B, C, H, W) in [0, 1], clamped to that range afterwards; masks are unchanged. Each channel gets its
    own random numbers, shared by neighbouring slices. In this order:
    `gamma`: v ** g, with g log-uniform between 1 / (1 + gamma) and 1 + gamma;
    `contrast`: the distance to the mean of the channel times 1 +- contrast;
    `brightness`: times 1 +- brightness, a gain, which leaves a dark background dark;
    `noise`: Gaussian, with a standard deviation uniform between 0 and `noise` of the full range. Off by default:
    one random number per pixel, drawn on the CPU, costs more than all the rest.
    """
    if not (brightness or contrast or gamma or noise):
        return images, masks
    exponent, distance, gain, std = draws.uniform_per_channel(-1, 1, 4, images.shape[1]).unbind(1)
    if gamma:
        images = images.pow((1 + gamma) ** exponent)
    if contrast:
        mean = images.mean((2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + contrast * distance)
    if brightness:
        images = images * (1 + brightness * gain)
    if noise:
        images = images + draws.normal(*images.shape[1:]) * (noise * std.abs())
    return images.clamp(0, 1), masks
