"""Slice classifier: an encoder, global average pooling, and one logit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from bench.models.encoders import Encoder, Weights, build_over_encoder
from bench.registry import model


class PooledClassifier(nn.Module):
    """Maps images (B, C, H, W) to logits (B, 1, 1, 1)."""

    def __init__(self, encoder: nn.Module, width: int, hidden: int | None, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)]
        if hidden is not None:
            layers += [nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Conv2d(hidden or width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x)[-1])
        return logits


@model(task="presence", defaults={"loss": "bce", "evaluate.primary": "auroc"})
def classifier(
    channels: int,
    *,
    encoder: Encoder = "resnet50",
    weights: Weights = None,
    hidden: Annotated[int, Field(ge=1, le=65536)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Slice classifier: any encoder with global average pooling and one logit, (B, 1, 1, 1).

    For the presence task (does the slice show tumour, or any of several structures?): trained on slice labels with
    `bce` or `focal`, scored by AUROC and related scores, ranked on a separate board. `hidden` adds a layer of that
    width between pooling and logit, and `dropout` acts before the logit. The encoder is `.encoder` and can be
    frozen.
    """

    def decoder(
        encoder_name: str, encoder_weights: Any, in_channels: int, classes: int, **options: Any
    ) -> nn.Module:
        body = get_encoder(encoder_name, in_channels=in_channels, depth=5, weights=encoder_weights, **options)
        return PooledClassifier(body, body.out_channels[-1], hidden, dropout)

    return build_over_encoder("classifier", decoder, channels, 1, encoder, weights, logits_size=lambda *_: (1, 1))
