"""Differences between scanners and sessions: gain, contrast, gamma, noise and missing MRI sequences."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, did_you_mean
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


@augmentation
def modality_dropout(
    images: Tensor,
    masks: Tensor,
    draws: SliceRandom,
    *,
    probability: Annotated[float, Field(ge=0, le=1)] = 0.3,
    by: str | Annotated[int, Field(ge=0, le=10_000)] = 0,
) -> tuple[Tensor, Tensor]:
    """Replace missing sequences by another one, as in datasets that were completed that way.

    images: (B, C, H, W); masks are unchanged. Each channel is replaced independently, with this `probability`, by
    the channel `by`: a name or a number from 0. A slice and its neighbours lose the same channels. In LGG, `by:
    flair` matches the sequences that FLAIR replaces in 10 of 110 patients. After ModDrop (Neverova et al. 2016),
    which replaces by zeros.
    """
    names = draws.channels or tuple(map(str, range(images.shape[1])))
    if by not in (*names, *range(len(names))):
        raise BadSetting(
            f"augmentation 'modality_dropout': there is no channel by = {by} among {', '.join(names)}. "
            "Use one of these names, or a number from 0." + did_you_mean(str(by), names)
        )
    substitute = by if isinstance(by, int) else names.index(by)
    slices = images.reshape(len(images), -1, len(names), *images.shape[2:])
    missing = draws.uniform(0, 1, 1, len(names), 1, 1) < probability
    return torch.where(missing, slices[:, :, substitute : substitute + 1], slices).flatten(1, 2), masks
