from __future__ import annotations

import torch
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.device import onto


def random_patch(
    images: Tensor, masks: Tensor, draws: SliceRandom, *, size: int, tumour_share: float
) -> tuple[Tensor, Tensor]:
    """One patch of `size` pixels a side out of each slice: images (B, C, size, size), masks (B, 1, size, size).

    With probability `tumour_share` the patch of a slice with tumour holds a tumour pixel, any with the same
    chance, at any place of the patch that the border allows; all others lie anywhere, each place as likely.
    """
    count, _, height, width = images.shape
    corner, pixel, within = draws.uniform(0, 1, 2), draws.uniform(), draws.uniform(0, 1, 2)
    room = onto(images.device, torch.tensor((height - size, width - size)))
    anywhere = (corner * (room + 1)).long()
    tumour = masks.flatten(1) > 0.5
    before = tumour.cumsum(1)
    total = before[:, -1:]
    chosen = torch.searchsorted(before, (pixel[:, None] * total).floor().clamp(max=total - 1).long() + 1)[:, 0]
    at = torch.stack((chosen // width, chosen % width), 1)
    around = at - (within * size).long()
    wanted = (draws.uniform() < tumour_share) & (total[:, 0] > 0)
    first = torch.minimum(torch.where(wanted[:, None], around, anywhere).clamp(min=0), room)
    reach = torch.arange(size, device=images.device)
    rows, columns = (first[:, axis, None] + reach for axis in (0, 1))
    item = torch.arange(count, device=images.device)[:, None, None]
    where = item, slice(None), rows[:, :, None], columns[:, None, :]
    return images[where].permute(0, 3, 1, 2), masks[where].permute(0, 3, 1, 2)
