"""Binary cross-entropy and focal loss, over independent pixels, and sums of cross-entropy and Dice.

All use log-sigmoids of the logits, so that large logits do not overflow. The sums combine cross-entropy, which is
smooth everywhere, with Dice, which ignores the size of the tumour. The literature calls all three "combo loss";
here each has its own name.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.registry import loss
from bench.training.losses.overlap import Over, Smooth, dice, soft_dice

Weight = Annotated[float, Field(ge=0, le=1)]


@loss
def bce(
    logits: Tensor, target: Tensor, *, positive_weight: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
) -> Tensor:
    """Binary cross-entropy, averaged over pixels.

    logits, target: (B, 1, H, W). `positive_weight` multiplies the terms of tumour pixels.
    """
    weight = torch.full((), positive_weight, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), pos_weight=weight)


@loss
def focal(
    logits: Tensor, target: Tensor, *, alpha: Weight = 0.25, gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
) -> Tensor:
    """Focal loss, -alpha_t (1 - p_t) ** `gamma` ln p_t: easy pixels hardly count (Lin et al. 2017, equation 5).

    logits, target: (B, 1, H, W), the target 0 or 1. p_t is the predicted probability of the true class; `alpha` is
    the weight of tumour pixels and 1 - alpha that of the others. Averaged over pixels; the paper divides by the
    number of positive anchors instead.
    """
    target = target.float()
    margin = logits.float() * (2 * target - 1)  # ln p_t = logsigmoid(margin), ln(1 - p_t) = logsigmoid(-margin)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (-weight * torch.exp(gamma * F.logsigmoid(-margin)) * F.logsigmoid(margin)).mean()


@loss
def bce_dice(
    logits: Tensor, target: Tensor, *, bce_weight: Weight = 0.5, smooth: Smooth = 1.0, over: Over = "image"
) -> Tensor:
    """`bce_weight` * cross-entropy + (1 - `bce_weight`) * Dice loss.

    logits, target: (B, 1, H, W). At 0.5 it is half of `bce_plus_dice`.
    """
    return bce_weight * bce(logits, target) + (1 - bce_weight) * dice(logits, target, smooth=smooth, over=over)


@loss
def bce_plus_dice(logits: Tensor, target: Tensor, *, smooth: Smooth = 1.0, over: Over = "image") -> Tensor:
    """Cross-entropy + Dice loss, unweighted: many code bases call it combo or DiceCE loss.

    logits, target: (B, 1, H, W). Twice `bce_dice` at its default weight: the same minimum, twice the gradient.
    The factor changes SGD and gradient clipping, and hardly changes Adam.
    """
    return bce(logits, target) + dice(logits, target, smooth=smooth, over=over)


@loss(activation="softmax")
def ce_dice(
    logits: Tensor, target: Tensor, *, ce_weight: Weight = 0.5, smooth: Smooth = 1.0, over: Over = "image"
) -> Tensor:
    """`ce_weight` * softmax cross-entropy + (1 - `ce_weight`) * Dice loss, for exclusive structures.

    logits, target: (B, K, H, W). The softmax is over the K structures and the background, whose logit is 0; the
    cross-entropy is averaged over pixels, and the Dice loss over structures. Twice this with `over` = batch is the
    loss of nnU-Net, apart from its Dice (Isensee et al. 2021). With one structure it equals `bce_dice`.
    """
    truth = target.float()
    truth = truth / truth.sum(1, keepdim=True).clamp_min(1)  # interpolation may let two structures touch
    log_probability = F.pad(logits.float(), (0, 0, 0, 0, 1, 0)).log_softmax(1)
    classes = torch.cat((1 - truth.sum(1, keepdim=True), truth), 1)
    entropy = -(classes * log_probability).sum(1).mean()
    each = zip(log_probability.exp()[:, 1:].unbind(1), target.unbind(1), strict=True)
    overlaps = [soft_dice(probability, true, smooth=smooth, over=over).mean() for probability, true in each]
    return ce_weight * entropy + (1 - ce_weight) * (1 - torch.stack(overlaps).mean())


@loss
def combo(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: Weight = 0.5,
    beta: Weight = 0.5,
    smooth: Smooth = 1.0,
    over: Over = "image",
) -> Tensor:
    """`alpha` * weighted cross-entropy - (1 - `alpha`) * soft Dice (Taghanaki et al. 2019, equation 3).

    logits, target: (B, 1, H, W). The cross-entropy is the mean of -beta t ln p - (1 - beta) (1 - t) ln(1 - p);
    `beta` above 0.5 penalises missed pixels more, below 0.5 false positives. Soft Dice is subtracted, as in the
    paper: the loss of a perfect prediction is alpha - 1, which is negative.
    """
    z, t = logits.float(), target.float()
    entropy = -(beta * t * F.logsigmoid(z) + (1 - beta) * (1 - t) * F.logsigmoid(-z)).mean()
    return alpha * entropy - (1 - alpha) * soft_dice(z.sigmoid(), target, smooth=smooth, over=over).mean()
