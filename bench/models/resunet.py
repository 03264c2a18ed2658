"""Deep residual U-Net: pre-activation residual units instead of plain convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from bench.models._blocks import Hourglass, level_widths, upsample
from bench.registry import model


class Shortcut(nn.Conv2d):
    """A 1x1 convolution without bias. The stride is applied by indexing before it, which is equivalent.

    The strided 1x1 convolution of oneDNN writes out of bounds in the backward pass for fewer than eight channels
    (uxlfoundation/oneDNN, issue 6035).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.step = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.step, :: self.step])


class Residual(nn.Module):
    """`body(x)` plus x; a 1x1 convolution adapts x if the shape of the body's output differs."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


def residual_unit(inputs: int, outputs: int, stride: int = 1) -> Residual:
    """Build two of (batch norm, ReLU, 3x3 convolution), added to the input (He et al. 2016, figure 4e).

    The ReLUs are not in place: the shortcut needs the unchanged input.
    """
    body = nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
    )
    return Residual(body, inputs, outputs, stride)


def first_unit(inputs: int, outputs: int) -> Residual:
    """Build a unit without the first norm and ReLU, which would set half of the image to zero."""
    body = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
    )
    return Residual(body, inputs, outputs, stride=1)


@model
def resunet(
    channels: int,
    *,
    base: Annotated[int, Field(ge=1)] = 64,
    depth: Annotated[int, Field(ge=1, le=5)] = 4,
) -> nn.Module:
    """Deep residual U-Net of pre-activation units, downsampled by strides (Zhang, Liu and Wang 2018).

    `base` is the width of the first of `depth` + 1 levels; the paper's network has `depth` 3. Upsampling is a 2x2
    transposed convolution, which the paper does not specify.
    """
    levels = level_widths(base, depth)
    upwards = list(pairwise(reversed(levels)))
    return Hourglass(
        contract=[first_unit(channels, base), *(residual_unit(a, b, stride=2) for a, b in pairwise(levels))],
        expand=[upsample(deep, shallow, "transposed") for deep, shallow in upwards],
        merge=[residual_unit(2 * shallow, shallow) for _, shallow in upwards],
        head=nn.Conv2d(base, 1, 1),
    )
