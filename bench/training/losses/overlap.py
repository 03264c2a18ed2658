"""Losses of soft overlap: Dice, Jaccard, the Lovász hinge, Tversky and focal Tversky.

Hits, misses and false alarms are sums of probabilities. With `over` = image they are sums over one image, so that
a large tumour does not hide a small one. With `over` = batch they are sums over all images of a batch (the batch
Dice of nnU-Net, Isensee et al. 2021); a batch that is split into micro-batches is summed per micro-batch.

`smooth`, in pixels, is added to numerator and denominator. An empty image then scores perfectly when nothing is
predicted, and still has a gradient when something is.

Where most images are empty, `over` = image can trap a network that predicts nothing: it is right on every empty
image, and the gradient of the others is multiplied by probabilities near 0. `over` = batch has no such trap.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.registry import loss

Share = Annotated[float, Field(ge=1e-6, lt=1)]  # at 0 or 1 one kind of error would cost nothing
Smooth = Annotated[float, Field(ge=1e-12, le=1e6, description="added to numerator and denominator")]
Over = Annotated[Literal["image", "batch"], Field(description="pixels that are summed before dividing")]


def tversky_index(probability: Tensor, target: Tensor, *, fn_weight: float, smooth: float, over: Over) -> Tensor:
    """Return hits / (hits + fn_weight * misses + (1 - fn_weight) * alarms): float32, (B,) or (1,) for a batch."""
    probability, target = flatten_units(probability, over), flatten_units(target.float(), over)
    hits = (probability * target).sum(1)
    misses = ((1 - probability) * target).sum(1)
    alarms = (probability * (1 - target)).sum(1)
    return (hits + smooth) / (hits + fn_weight * misses + (1 - fn_weight) * alarms + smooth)


def flatten_units(values: Tensor, over: Over) -> Tensor:
    """Flatten (B, 1, H, W) to one row per image, (B, N), or to one row for the whole batch, (1, B * N)."""
    return values.flatten(1) if over == "image" else values.reshape(1, -1)


def soft_dice(probability: Tensor, target: Tensor, *, smooth: float, over: Over) -> Tensor:
    """Return (2 |P T| + smooth) / (|P| + |T| + smooth): the Tversky index with equal weights for both errors."""
    return tversky_index(probability, target, fn_weight=0.5, smooth=smooth / 2, over=over)


@loss
def dice(logits: Tensor, target: Tensor, *, smooth: Smooth = 1.0, over: Over = "image") -> Tensor:
    """Dice loss, 1 - soft Dice, with plain sums in the denominator (Drozdzal et al. 2016; V-Net squares them).

    logits, target: (B, 1, H, W). Computed per image and averaged, or over the whole batch.
    """
    return (1 - soft_dice(logits.float().sigmoid(), target, smooth=smooth, over=over)).mean()


@loss
def jaccard(logits: Tensor, target: Tensor, *, smooth: Smooth = 1.0, over: Over = "image") -> Tensor:
    """Jaccard loss, 1 - soft intersection over union (Rahman and Wang 2016).

    logits, target: (B, 1, H, W). Computed per image and averaged, or over the whole batch.
    """
    probability, target = flatten_units(logits.float().sigmoid(), over), flatten_units(target.float(), over)
    hits = (probability * target).sum(1)
    union = probability.sum(1) + target.sum(1) - hits
    return (1 - (hits + smooth) / (union + smooth)).mean()


@loss
def lovasz(logits: Tensor, target: Tensor, *, over: Over = "image") -> Tensor:
    """Lovász hinge loss: the Lovász extension of the Jaccard loss (Berman et al. 2018, algorithm 1).

    logits, target: (B, 1, H, W). Computed per image and averaged, or over the whole batch. For an empty mask it
    equals the largest hinge error, because one false pixel takes the Jaccard index from 1 to 0.
    """
    truth = flatten_units(target, over) > 0.5
    errors = 1 - flatten_units(logits.float(), over) * torch.where(truth, 1.0, -1.0)
    return (errors.relu() * jaccard_steps(errors.detach(), truth)).sum(1).mean()


def jaccard_steps(errors: Tensor, truth: Tensor) -> Tensor:
    """Return how much each pixel adds to the Jaccard loss when pixels become wrong by descending error, (B, N).

    errors: (B, N) float; truth: (B, N) bool. The steps of an image sum to 1.
    """
    order = errors.argsort(dim=1, descending=True, stable=True)
    ordered = truth.gather(1, order).long()  # integers: exact, and cumsum is deterministic on GPUs
    intersection = ordered.sum(1, keepdim=True) - ordered.cumsum(1)
    union = ordered.sum(1, keepdim=True) + (1 - ordered).cumsum(1)
    loss_so_far = 1 - intersection / union
    steps = loss_so_far.diff(dim=1, prepend=torch.zeros_like(loss_so_far[:, :1]))
    return torch.empty_like(steps).scatter(1, order, steps)


@loss
def tversky(
    logits: Tensor, target: Tensor, *, fn_weight: Share = 0.7, smooth: Smooth = 1.0, over: Over = "image"
) -> Tensor:
    """Tversky loss, 1 - Tversky index, which weights missed pixels against false alarms (Salehi et al. 2017).

    logits, target: (B, 1, H, W). `fn_weight` is the weight of missed pixels (beta in the paper) and 1 - fn_weight
    that of false alarms (alpha); 0.5 equals the Dice loss with twice the `smooth`. Computed per image and
    averaged, or over the whole batch.
    """
    return (
        1 - tversky_index(logits.float().sigmoid(), target, fn_weight=fn_weight, smooth=smooth, over=over)
    ).mean()


@loss
def focal_tversky(
    logits: Tensor,
    target: Tensor,
    *,
    fn_weight: Share = 0.7,
    focus: Annotated[float, Field(ge=0.01, le=10)] = 0.75,
    smooth: Smooth = 1.0,
    over: Over = "image",
) -> Tensor:
    """Focal Tversky loss, (1 - Tversky index) ** focus (Abraham and Khan 2019, equation 4).

    logits, target: (B, 1, H, W). `focus` is the exponent: 1 / gamma in the paper, with gamma = 4/3, hence 0.75;
    several libraries call the exponent gamma. `fn_weight` is the weight of missed pixels. Computed per image and
    averaged, or over the whole batch.
    """
    missing = 1 - tversky_index(logits.float().sigmoid(), target, fn_weight=fn_weight, smooth=smooth, over=over)
    # An exponent below 1 has an infinite slope at 0, which would make the gradient of a perfect prediction NaN.
    return missing.clamp_min(1e-6).pow(focus).mean()
