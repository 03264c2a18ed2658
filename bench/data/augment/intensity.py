"""What differs between scanners and sessions: gain, contrast, gamma and noise."""

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

    images: (B, C, H, W) in [0, 1], and clamped to it again; masks pass untouched. Each channel, being a scan of
    its own, has its own numbers, which hold for the slices beside it too. In this order:
    `gamma`: v ** g, with g between 1 / (1 + gamma) and 1 + gamma, evenly on a log scale;
    `contrast`: the distance to the channel's mean times 1 +- contrast;
    `brightness`: times 1 +- brightness, a gain, which leaves a dark background dark;
    `noise`: normal, its standard deviation even between 0 and `noise` of the full range. Off by default: one
    number a pixel, drawn on the CPU, costs more than all the rest.
    """
    if not (brightness or contrast or gamma or noise):
        return images, masks
    exponent, distance, gain, deviation = draws.of_channels(-1, 1, 4, images.shape[1]).unbind(1)
    if gamma:
        images = images.pow((1 + gamma) ** exponent)
    if contrast:
        mean = images.mean((2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + contrast * distance)
    if brightness:
        images = images * (1 + brightness * gain)
    if noise:
        images = images + draws.normal(*images.shape[1:]) * (noise * deviation.abs())
    return images.clamp(0, 1), masks
