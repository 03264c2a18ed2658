"""Missing MRI sequences."""

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
