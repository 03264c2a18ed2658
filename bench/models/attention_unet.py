"""Attention U-Net: features of the coarser level weight the skip connection of the finer one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models._blocks import Hourglass
from bench.registry import model


class AttentionGate(nn.Module):
    """Additive attention on a skip (Oktay et al. 2018, equations 1 and 2).

    q = psi^T relu(W_x x + W_g g + b_g) + b_psi, alpha = sigmoid(q), and the skip becomes alpha x.
    x is the skip (B, F, 2H, 2W), g the gating signal from the next coarser level (B, G, H, W). The scores are
    computed on the grid of g; alpha is resampled bilinearly to the grid of x.
    """

    def __init__(self, skip: int, gating: int, hidden: int) -> None:
        super().__init__()
        self.of_skip = nn.Conv2d(skip, hidden, 1, stride=2, bias=False)
        self.of_gating = nn.Conv2d(gating, hidden, 1)
        self.psi = nn.Conv2d(hidden, 1, 1)

    def coefficients(self, skip: Tensor, gating: Tensor) -> Tensor:
        """Return alpha, (B, 1, 2H, 2W) in [0, 1]."""
        scores = self.psi(F.relu(self.of_skip(skip) + self.of_gating(gating)))
        return F.interpolate(scores.sigmoid(), scale_factor=2, mode="bilinear")

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        return skip * self.coefficients(skip, gating)


@model
def attention_unet(
    channels: int,
    structures: int = 1,
    *,
    base: Annotated[int, Field(ge=2, le=512)] = 64,
    depth: Annotated[int, Field(ge=1, le=5)] = 4,
) -> nn.Module:
    """Attention U-Net: skips pass through additive attention gates (Oktay et al. 2018).

    `base` is the width of the first of `depth` + 1 levels. Upsampling is a nearest-neighbour resize and a 3x3
    convolution. As in the paper, the skip of full resolution has no gate: its features are too low-level.
    """

    def gate(skip: int, gating: int) -> nn.Module:
        return AttentionGate(skip, gating, skip // 2)

    return Hourglass(channels, base, depth, "nearest", gate=gate, structures=structures)
