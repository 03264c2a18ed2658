"""Losses made of soft overlap: Dice, Jaccard, Tversky and focal Tversky.

Hits, misses and false alarms are sums of probabilities over one image, so that a large tumour does not drown a
small one, or, with `over` = batch, over all images of a batch (the batch Dice of nnU-Net, Isensee et al. 2021).
`smooth`, in pixels, is added above and below the fraction; it makes an empty image count as predicted perfectly
when nothing is predicted, and keeps a gradient there when something is.

Over images, predicting nothing at all is a trap where most of them are empty: it is right on each of these, and
what the others could teach is multiplied by probabilities that are nearly 0. A network that falls in early, while
it is right nowhere else, hardly comes out again. Over the batch there is no such reward. A batch that is taken in
parts, as memory asks for, is summed part by part.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from bench.registry import loss

Share = Annotated[float, Field(gt=0, lt=1)]  # at 0 or 1 one kind of error would cost nothing


Smooth = Annotated[float, Field(gt=0, le=1e6)]


Over = Literal["image", "batch"]  # what hits and errors are summed over


def tversky_index(logits: Tensor, target: Tensor, *, fn_weight: float, smooth: float, over: Over) -> Tensor:
    """hits / (hits + fn_weight * misses + (1 - fn_weight) * alarms), float32: (B,), or (1,) over the batch."""
    probability, target = units(logits.float().sigmoid(), over), units(target.float(), over)
    hits = (probability * target).sum(1)
    misses = ((1 - probability) * target).sum(1)
    alarms = (probability * (1 - target)).sum(1)
    return (hits + smooth) / (hits + fn_weight * misses + (1 - fn_weight) * alarms + smooth)


def units(values: Tensor, over: Over) -> Tensor:
    """(B, N) one row an image of (B, 1, H, W), or (1, B N) the whole batch as if it were one image."""
    return values.flatten(1) if over == "image" else values.reshape(1, -1)


def soft_dice(logits: Tensor, target: Tensor, *, smooth: float, over: Over) -> Tensor:
    """(2 |P T| + smooth) / (|P| + |T| + smooth): the Tversky index that blames both errors alike."""
    return tversky_index(logits, target, fn_weight=0.5, smooth=smooth / 2, over=over)


@loss
def dice(logits: Tensor, target: Tensor, *, smooth: Smooth = 1.0, over: Over = "image") -> Tensor:
    """1 - soft Dice with plain sums in the denominator (Drozdzal et al. 2016; V-Net squares them).

    logits, target: (B, 1, H, W). Reduced per image, then averaged, or at once.
    """
    return (1 - soft_dice(logits, target, smooth=smooth, over=over)).mean()


@loss
def jaccard(logits: Tensor, target: Tensor, *, smooth: Smooth = 1.0, over: Over = "image") -> Tensor:
    """1 - soft intersection over union (Rahman and Wang 2016).

    logits, target: (B, 1, H, W). Reduced per image, then averaged, or at once.
    """
    probability, target = units(logits.float().sigmoid(), over), units(target.float(), over)
    hits = (probability * target).sum(1)
    union = probability.sum(1) + target.sum(1) - hits
    return (1 - (hits + smooth) / (union + smooth)).mean()


@loss
def tversky(
    logits: Tensor, target: Tensor, *, fn_weight: Share = 0.7, smooth: Smooth = 1.0, over: Over = "image"
) -> Tensor:
    """1 - Tversky index, which weighs missed pixels against false alarms (Salehi et al. 2017).

    logits, target: (B, 1, H, W). `fn_weight` is the share of blame on missed pixels (beta in the paper, alpha
    being 1 - beta); 0.5 gives soft Dice with twice the `smooth`. Reduced per image, then averaged, or at once.
    """
    return (1 - tversky_index(logits, target, fn_weight=fn_weight, smooth=smooth, over=over)).mean()


@loss
def focal_tversky(
    logits: Tensor,
    target: Tensor,
    *,
    fn_weight: Share = 0.7,
    focus: Annotated[float, Field(gt=0, le=10)] = 0.75,
    smooth: Smooth = 1.0,
    over: Over = "image",
) -> Tensor:
    """(1 - Tversky index) ** focus (Abraham and Khan 2019, equation 4).

    logits, target: (B, 1, H, W). `focus` is the exponent itself: the paper writes it 1 / gamma with gamma = 4/3,
    hence 0.75; several libraries call the exponent gamma. `fn_weight` is the share of blame on missed pixels.
    Reduced per image, then averaged, or at once.
    """
    missing = 1 - tversky_index(logits, target, fn_weight=fn_weight, smooth=smooth, over=over)
    # Below 1 the power has an infinite slope at 0, which a perfect prediction would turn into NaN.
    return missing.clamp_min(1e-6).pow(focus).mean()
