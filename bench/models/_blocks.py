"""Building blocks of the U-shaped architectures.

All map (B, C, H, W) to (B, C', H', W'). A convolution before a batch norm has no bias: the norm has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Upsampling = Literal["transposed", "nearest", "bilinear"]


def level_widths(base: int, depth: int) -> list[int]:
    """Return the channels of each level, from full resolution down: doubled at every downsampling."""
    return [base * 2**level for level in range(depth + 1)]


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Build two of (3x3 convolution, batch norm, ReLU) with 'same' padding."""
    return nn.Sequential(*_conv_norm_relu(inputs, outputs), *_conv_norm_relu(outputs, outputs))


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

    `contract` has one module per level, from full resolution down; each does its own downsampling. The others are
    ordered from the coarsest skip up: `expand` upsamples, `merge` follows the concatenation with the skip, and a
    gate maps (skip, coarser features) to the skip to use.
    """

    def __init__(
        self,
        contract: Iterable[nn.Module],
        expand: Iterable[nn.Module],
        merge: Iterable[nn.Module],
        head: nn.Module,
        *,
        gates: Iterable[nn.Module] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.contract = nn.ModuleList(contract)
        self.dropout = nn.Dropout(dropout)
        self.expand = nn.ModuleList(expand)
        self.gates = nn.ModuleList(gates)
        self.merge = nn.ModuleList(merge)
        self.head = head

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
