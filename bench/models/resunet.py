"""Deep residual U-Net: pre-activation residual units instead of plain convolutions."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from bench.models._blocks import Hourglass
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


class ResidualUnit(nn.Module):
    """Two of (batch norm, ReLU, 3x3 convolution), added to the input (He et al. 2016, figure 4e).

    The `first` unit has no first norm and ReLU, which would set half of the image to zero. The ReLUs are not in
    place: the shortcut needs the unchanged input. A 1x1 convolution adapts it if the shape of the output differs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, first: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *([] if first else [nn.BatchNorm2d(inputs), nn.ReLU()]),
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


@model
def resunet(
    channels: int,
    structures: int = 1,
    *,
    base: Annotated[int, Field(ge=1, le=512)] = 64,
    depth: Annotated[int, Field(ge=1, le=5)] = 4,
) -> nn.Module:
    """Deep residual U-Net of pre-activation units, downsampled by strides (Zhang, Liu and Wang 2018).

    `base` is the width of the first of `depth` + 1 levels; the paper's network has `depth` 3. Upsampling is a 2x2
    transposed convolution, which the paper does not specify.
    """
    first, down = partial(ResidualUnit, first=True), partial(ResidualUnit, stride=2)
    return Hourglass(
        channels, base, depth, "transposed", first=first, down=down, merge=ResidualUnit, structures=structures
    )
