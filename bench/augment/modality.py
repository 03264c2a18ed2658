"""Sequences that were not taken."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.draws import Draws
from bench.errors import BadSetting
from bench.registry import augmentation


@augmentation
def modality_dropout(
    images: Tensor,
    masks: Tensor,
    draws: Draws,
    *,
    probability: Annotated[float, Field(ge=0, le=1)] = 0.3,
    by: Annotated[int, Field(ge=0)] = 0,
    of: Annotated[int | None, Field(ge=1)] = None,
) -> tuple[Tensor, Tensor]:
    """Sequences go missing and another stands in for them, as in data sets that were completed that way.

    images: (B, C, H, W); masks pass untouched. Each channel is replaced by channel number `by`, from 0, with this
    `probability`, whatever becomes of the others. `of` is the number of channels of one slice where the model sees
    its neighbours as well (`input.neighbours`): all of them lose the same. In LGG, FLAIR, which is `by: 1`, stands
    for what was not taken in 10 of 110 patients. After ModDrop (Neverova et al. 2016), which puts zeros instead.
    """
    count = of or images.shape[1]
    if by >= count or images.shape[1] % count:
        raise BadSetting(
            f"augmentation 'modality_dropout': by = {by} and of = {of} do not fit {images.shape[1]} channels. "
            "Number the channels of a slice from 0; of is how many these are."
        )
    slices = images.reshape(len(images), -1, count, *images.shape[2:])
    gone = draws.uniform(0, 1, 1, count, 1, 1) < probability
    return torch.where(gone, slices[:, :, by : by + 1], slices).flatten(1, 2), masks
