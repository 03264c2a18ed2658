"""Losses over independent pixels: binary cross-entropy and focal loss.

Both use log-sigmoids of the logits, so that large logits do not overflow.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.registry import loss


@loss
def bce(
    logits: Tensor, target: Tensor, *, positive_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
) -> Tensor:
    """Binary cross-entropy, averaged over pixels.

    logits, target: (B, 1, H, W). `positive_weight` multiplies the terms of tumour pixels.
    """
    weight = torch.full((), positive_weight, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), pos_weight=weight)


@loss
def focal(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.25,
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0,
) -> Tensor:
    """Focal loss, -alpha_t (1 - p_t) ** gamma ln p_t: easy pixels hardly count (Lin et al. 2017, equation 5).

    logits, target: (B, 1, H, W), the target 0 or 1. p_t is the predicted probability of the true class; `alpha` is
    the weight of tumour pixels and 1 - alpha that of the others. Averaged over pixels; the paper divides by the
    number of positive anchors instead.
    """
    target = target.float()
    margin = logits.float() * (2 * target - 1)  # ln p_t = logsigmoid(margin), ln(1 - p_t) = logsigmoid(-margin)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (-weight * torch.exp(gamma * F.logsigmoid(-margin)) * F.logsigmoid(margin)).mean()
