"""The Lovász hinge loss: the Jaccard loss of binary masks, extended to logits."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.registry import loss
from bench.training.losses.overlap import Over, flatten_units


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
