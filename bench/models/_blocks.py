"""Building blocks of the U-shaped architectures.

All map (B, C, H, W) to (B, C', H', W'). A convolution before a batch norm has no bias: the norm has one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.errors import BadSetting

Upsampling = Annotated[
    Literal["transposed", "nearest", "bilinear"],
    Field(description="upsampling: a transposed convolution, or a resize and a convolution"),
]
Block = Callable[[int, int], nn.Module]  # of input and output channels


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Build two of (3x3 convolution, batch norm, ReLU) with 'same' padding."""
    return nn.Sequential(*_conv_norm_relu(inputs, outputs), *_conv_norm_relu(outputs, outputs))


def pool_and_convolve(inputs: int, outputs: int) -> nn.Sequential:
    """Build a 2x2 max pooling and a `double_conv`."""
    return nn.Sequential(nn.MaxPool2d(2), double_conv(inputs, outputs))


def upsample(inputs: int, outputs: int, mode: Upsampling) -> nn.Module:
    """Build a layer that doubles the resolution: a 2x2 transposed convolution, or a resize and a 3x3 convolution.

    A resize avoids the checkerboard artefacts of transposed convolutions (Odena et al. 2016).
    """
    if mode == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), *_conv_norm_relu(inputs, outputs))


def _conv_norm_relu(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class Hourglass(nn.Module):
    """A contracting path and an expanding path with a skip connection at every resolution.

    The channels double from `base` at each of `depth` downsamplings. `first` starts the contracting path, `down`
    continues it and does its own downsampling, and `merge` follows the concatenation of a skip with the coarser
    features. `gate`, of the channels of a skip and of the coarser features, maps (skip, coarser features) to the
    skip to use; the skip of full resolution has none.
    """

    def __init__(
        self,
        channels: int,
        base: int,
        depth: int,
        up: Upsampling,
        *,
        first: Block = double_conv,
        down: Block = pool_and_convolve,
        merge: Block = double_conv,
        gate: Block | None = None,
        dropout: float = 0.0,
        structures: int = 1,
    ) -> None:
        super().__init__()
        levels = [base * 2**level for level in range(depth + 1)]
        upwards = list(pairwise(reversed(levels)))
        self.contract = nn.ModuleList([first(channels, base), *(down(a, b) for a, b in pairwise(levels))])
        self.dropout = nn.Dropout(dropout)
        self.expand = nn.ModuleList(upsample(deep, shallow, up) for deep, shallow in upwards)
        self.gates = nn.ModuleList(gate(shallow, deep) for deep, shallow in upwards[:-1] if gate)
        self.merge = nn.ModuleList(merge(2 * shallow, shallow) for _, shallow in upwards)
        self.head = nn.Conv2d(base, structures, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.contract:
            x = block(x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for level, (up, merge) in enumerate(zip(self.expand, self.merge, strict=True)):
            skip = skips.pop()
            if level < len(self.gates):
                skip = self.gates[level](skip, x)
            x = merge(torch.cat([skip, up(x)], 1))
        logits: Tensor = self.head(x)
        return logits


def refuse_small_images(net: nn.Module, model: str, smallest: int, other: str) -> nn.Module:
    """Let `net` raise `BadSetting` for images with a side below `smallest` pixels, which suggests `other`."""

    def check(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        if min(height, width) < smallest:
            raise BadSetting(
                f"model '{model}' needs images of at least {smallest} pixels per side and got {height}x{width}. "
                f"Raise input.image_size, or choose another model such as {other}."
            )

    net.register_forward_pre_hook(check)
    return net
