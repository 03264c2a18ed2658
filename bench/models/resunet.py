"""Deep residual U-Net: full pre-activation units instead of plain convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from bench.models._blocks import Hourglass, upsample, widths
from bench.registry import model


class Shortcut(nn.Conv2d):
    """A 1x1 convolution without bias; a stride is taken before it, which gives the same.

    oneDNN's own strided 1x1 convolution of fewer than eight channels writes beyond its memory in the backward
    pass (uxlfoundation/oneDNN, issue 6035).
    """

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__(into, out, 1, bias=False)
        self.step = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :: self.step, :: self.step])


class Residual(nn.Module):
    """`body(x)` plus x, which a 1x1 convolution brings to the body's shape where that differs."""

    def __init__(self, body: nn.Module, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = into == out and stride == 1
        self.shortcut = nn.Identity() if same else Shortcut(into, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


def residual_unit(into: int, out: int, stride: int = 1) -> Residual:
    """Twice (batch norm, ReLU, 3x3 convolution), added to the input (He et al. 2016, figure 4e).

    The ReLUs are not in place: the shortcut needs the input as it came.
    """
    body = nn.Sequential(
        nn.BatchNorm2d(into),
        nn.ReLU(),
        nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1),
    )
    return Residual(body, into, out, stride)


def first_unit(into: int, out: int) -> Residual:
    """The same without the first norm and ReLU, which would cut away half of the image."""
    body = nn.Sequential(
        nn.Conv2d(into, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1),
    )
    return Residual(body, into, out, stride=1)


@model
def resunet(
    channels: int,
    *,
    base: Annotated[int, Field(ge=1)] = 64,
    depth: Annotated[int, Field(ge=1, le=5)] = 4,
) -> nn.Module:
    """U-Net of pre-activated residual units, downsampled by strides (Zhang, Liu and Wang 2018).

    `base` is the width of the first of `depth` + 1 levels; the paper's network has `depth` 3. Upsampling is a
    learnt 2x2 transposed convolution, where the paper leaves it open.
    """
    levels = widths(base, depth)
    upwards = list(pairwise(reversed(levels)))
    return Hourglass(
        contract=[first_unit(channels, base), *(residual_unit(a, b, stride=2) for a, b in pairwise(levels))],
        expand=[upsample(deep, shallow, "transposed") for deep, shallow in upwards],
        merge=[residual_unit(2 * shallow, shallow) for _, shallow in upwards],
        head=nn.Conv2d(base, 1, 1),
    )
