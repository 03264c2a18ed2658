"""Test-time augmentation (TTA): a model sees a slice flipped and turned, and each answer is turned back.

The views are modules, so neither `Predictor`, which averages its models, nor `tiled`, which cuts patches, needs
to know about them.
"""

from __future__ import annotations

from torch import Tensor, nn

VIEWS = {  # quarter turns, and whether mirrored before
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "turns": tuple((quarters, mirrored) for quarters in range(4) for mirrored in (False, True)),
}


class TurnedModel(nn.Module):
    """A model of (B, C, H, W) whose input is mirrored or not, then turned, and whose logits are turned back."""

    def __init__(self, model: nn.Module, quarters: int, mirrored: bool) -> None:
        super().__init__()
        self.model, self.quarters, self.mirrored = model, quarters, mirrored

    def forward(self, images: Tensor) -> Tensor:
        seen = images.flip(-1) if self.mirrored else images
        logits: Tensor = self.model(seen.rot90(self.quarters, (-2, -1))).rot90(-self.quarters, (-2, -1))
        return logits.flip(-1) if self.mirrored else logits


def tta_views(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the model in all views of `name`, a key of `VIEWS`; without TTA, the model itself."""
    return [model] if name == "none" else [TurnedModel(model, *view) for view in VIEWS[name]]
