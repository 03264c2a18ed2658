"""U-Net, plain or over an encoder of smp or timm."""

from __future__ import annotations

from typing import Annotated

import segmentation_models_pytorch as smp
from pydantic import Field
from torch import nn

from bench.errors import BadSetting
from bench.models._blocks import Hourglass, Upsampling
from bench.models.encoders import build_over_encoder
from bench.registry import model


@model
def unet(
    channels: int,
    structures: int = 1,
    *,
    base: Annotated[int, Field(ge=1, le=512)] = 32,
    depth: Annotated[int, Field(ge=1, le=5)] = 4,
    up: Upsampling = "transposed",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    encoder: str | None = None,
    weights: str | None = None,
) -> nn.Module:
    """U-Net: a contracting and an expanding path joined by skips (Ronneberger et al. 2015).

    Unlike the paper's network it has 'same' padding and batch norm. `base` is the width of the first of
    `depth` + 1 levels. `dropout` acts at the end of the contracting path, as in section 3.1 of the paper.

    With `encoder`, the contracting path is that encoder (`bench list encoders`) with the initial `weights`
    ('imagenet' or a safetensors file). `base`, `depth`, `up` and `dropout` would have no effect and are refused.
    """
    if encoder is not None:
        shape = {"base": base, "depth": depth, "up": up, "dropout": dropout}
        defaults = model["unet"].settings({})
        if unused := [name for name, value in shape.items() if value != defaults[name]]:
            raise BadSetting(
                f"model 'unet': {', '.join(unused)} would have no effect with encoder = '{encoder}', which "
                f"determines the network's shape. Leave out {'them' if len(unused) > 1 else 'it'} or the encoder."
            )
        return build_over_encoder("unet", smp.Unet, channels, structures, encoder, weights)
    if weights is not None:
        raise BadSetting(
            f"model 'unet': weights = '{weights}' would have no effect without an encoder. "
            "Give it one, such as encoder = resnet34, or leave out the weights."
        )
    return Hourglass(channels, base, depth, up, dropout=dropout, structures=structures)
