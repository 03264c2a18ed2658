"""What the U-shaped architectures are made of.

All take and give (B, C, H, W). A convolution before a batch norm has no bias: the norm has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Upsampling = Literal["transposed", "nearest", "bilinear"]


def widths(base: int, depth: int) -> list[int]:
    """Channels of each level, from full resolution down: doubled at every downsampling."""
    return [base * 2**level for level in range(depth + 1)]


def double_conv(into: int, out: int) -> nn.Sequential:
    """Twice (3x3 convolution, batch norm, ReLU), 'same' padded."""
    return nn.Sequential(*_conv_norm_relu(into, out), *_conv_norm_relu(out, out))


def upsample(into: int, out: int, how: Upsampling) -> nn.Module:
    """Twice the resolution: a learnt 2x2 transposed convolution, or a resize and a 3x3 convolution.

    The resize cannot leave the checkerboard of a transposed convolution (Odena et al. 2016).
    """
    if how == "transposed":
        return nn.ConvTranspose2d(into, out, 2, stride=2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode=how), *_conv_norm_relu(into, out))


def _conv_norm_relu(into: int, out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)


class Hourglass(nn.Module):
    """A contracting path, an expanding path, and a skip between them at every resolution.

    `contract` runs from full resolution down, one module a level, each doing its own downsampling. `expand`
    (upsampling), `merge` (what follows the concatenation with the skip) and `gates`, where there are any,
    run from the coarsest skip up; a gate sees (skip, coarser features) and gives the skip to use.
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
