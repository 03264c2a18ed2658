"""Test-time augmentation: a model sees a slice from several sides, and each answer is turned back.

As modules, so that `predict`, which averages the probabilities of its models, and `tiled`, which shows them
patches, need to know nothing of it.
"""

from __future__ import annotations

from torch import Tensor, nn

VIEWS = {  # quarters of a turn, and whether mirrored before
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "turns": tuple((quarters, mirrored) for quarters in range(4) for mirrored in (False, True)),
}


class TurnedModel(nn.Module):
    """A model that sees (B, C, H, W) mirrored left to right or not, then turned, and answers for it as it was."""

    def __init__(self, model: nn.Module, quarters: int, mirrored: bool) -> None:
        super().__init__()
        self.model, self.quarters, self.mirrored = model, quarters, mirrored

    def forward(self, images: Tensor) -> Tensor:
        seen = images.flip(-1) if self.mirrored else images
        logits: Tensor = self.model(seen.rot90(self.quarters, (-2, -1))).rot90(-self.quarters, (-2, -1))
        return logits.flip(-1) if self.mirrored else logits


def tta_views(model: nn.Module, how: str) -> list[nn.Module]:
    """The model from all sides of `how`, a key of `VIEWS`: their mean probability is the augmented one."""
    return [TurnedModel(model, *turn) for turn in VIEWS[how]]
