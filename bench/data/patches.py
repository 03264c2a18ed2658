"""Random training patches, which contain tumour as often as the settings ask."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.device import onto


def random_patch(
    images: Tensor, masks: Tensor, draws: SliceRandom, *, size: int, tumour_share: float
) -> tuple[Tensor, Tensor]:
    """Cut one patch of `size` pixels square from each slice: images (B, C, size, size), masks (B, 1, size, size).

    With probability `tumour_share`, the patch of a slice with tumour contains a tumour pixel. That pixel is chosen
    uniformly, and so is its place in the patch, as far as the border allows. Other patches are placed uniformly.
    """
    count, _, height, width = images.shape
    corner, pixel, within = draws.uniform(0, 1, 2), draws.uniform(), draws.uniform(0, 1, 2)
    last = onto(images.device, torch.tensor((height - size, width - size)))  # the last possible corner
    anywhere = (corner * (last + 1)).long()
    tumour = masks.flatten(1) > 0.5
    cumulative = tumour.cumsum(1)
    total = cumulative[:, -1:]
    rank = (pixel[:, None] * total).floor().clamp(max=total - 1).long() + 1
    chosen = torch.searchsorted(cumulative, rank)[:, 0]
    around_tumour = torch.stack((chosen // width, chosen % width), 1) - (within * size).long()
    wanted = (draws.uniform() < tumour_share) & (total[:, 0] > 0)
    first = torch.minimum(torch.where(wanted[:, None], around_tumour, anywhere).clamp(min=0), last)
    offsets = torch.arange(size, device=images.device)
    rows, columns = (first[:, axis, None] + offsets for axis in (0, 1))
    item = torch.arange(count, device=images.device)[:, None, None]
    index = item, slice(None), rows[:, :, None], columns[:, None, :]
    return images[index].permute(0, 3, 1, 2), masks[index].permute(0, 3, 1, 2)
