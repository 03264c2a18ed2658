"""Sequences that were not taken."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, did_you_mean
from bench.registry import augmentation


@augmentation
def modality_dropout(
    images: Tensor,
    masks: Tensor,
    draws: SliceRandom,
    *,
    probability: Annotated[float, Field(ge=0, le=1)] = 0.3,
    by: str | Annotated[int, Field(ge=0)] = 0,
) -> tuple[Tensor, Tensor]:
    """Sequences go missing and another stands in for them, as in data sets that were completed that way.

    images: (B, C, H, W); masks pass untouched. Each channel is replaced by the channel `by`, a name or a number
    from 0, with this `probability`, whatever becomes of the others; a slice and its neighbours lose the same. In
    LGG, `by: flair` is what stands for sequences that were not taken, in 10 of 110 patients. After ModDrop
    (Neverova et al. 2016), which puts zeros instead.
    """
    names = draws.channels or tuple(map(str, range(images.shape[1])))
    if by not in (*names, *range(len(names))):
        raise BadSetting(
            f"augmentation 'modality_dropout': there is no channel by = {by} among {', '.join(names)}. "
            "Name one of these, or number it from 0." + did_you_mean(str(by), names)
        )
    put = by if isinstance(by, int) else names.index(by)
    slices = images.reshape(len(images), -1, len(names), *images.shape[2:])
    gone = draws.uniform(0, 1, 1, len(names), 1, 1) < probability
    return torch.where(gone, slices[:, :, put : put + 1], slices).flatten(1, 2), masks
