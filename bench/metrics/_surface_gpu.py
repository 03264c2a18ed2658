"""Surface distances of a whole stack at once, by trying all pairs: the quick way where there is a GPU.

A distance transform looks at fewer pixels, but one slice after another; here a patient is a handful of kernels
and the host waits three times: for the sizes of the surfaces, for their points, and for the distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from bench.metrics.surface import Directed, Mask

AT_ONCE = 2**26  # pairs: 256 MiB for each of the two arrays that a chunk needs


@torch.inference_mode()
def stack_distances(
    truth: Mask, prediction: Mask, device: torch.device | str, *, at_once: int = AT_ONCE
) -> list[Directed]:
    """`surface.surface_distances` of every slice of two stacks (S, H, W), none of them empty.

    Squared distances are whole numbers, which float32 holds up to 2^24: up to 2,896 x 2,896 pixels the result is
    that of the CPU, bit for bit.
    """
    if not len(truth):
        return []
    edges = surfaces(torch.from_numpy(np.stack([truth, prediction])).to(device))
    sizes: list[list[int]] = edges.sum((2, 3)).tolist()
    points = list(torch.split(edges.nonzero()[:, 2:].float(), sizes[0] + sizes[1]))  # of a slice, row by row
    sides = points[: len(truth)], points[len(truth) :]
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for chunk in _chunks(sizes[0], sizes[1], at_once):
        here, there = (pad_sequence(side[chunk], batch_first=True, padding_value=inf) for side in sides)
        for side, size, squared in zip(found, sizes, _nearest(here, there, at_once), strict=True):
            side += [row[:n] for row, n in zip(squared, size[chunk], strict=True)]
    distances = np.sqrt(torch.cat(found[0] + found[1]).cpu().numpy().astype(np.float64))
    parts = np.split(distances, np.cumsum(sizes[0] + sizes[1])[:-1])
    return list(zip(parts[: len(truth)], parts[len(truth) :], strict=True))


def surfaces(masks: Tensor) -> Tensor:
    """The surface of every mask, as `surface.surface` has it. masks: bool (..., H, W)."""
    around = pad(masks, (1, 1, 1, 1))  # outside the image is background
    vertical = around[..., :-2, 1:-1] & around[..., 2:, 1:-1]
    horizontal = around[..., 1:-1, :-2] & around[..., 1:-1, 2:]
    return masks & ~(vertical & horizontal)


def _chunks(here: Sequence[int], there: Sequence[int], at_once: int) -> Iterator[slice]:
    """Neighbouring slices that have at most `at_once` pairs, padded as they are, or one that alone has more."""
    start = 0
    for end in range(1, len(here) + 1):
        grown = slice(start, end + 1)
        if end == len(here) or (end + 1 - start) * max(here[grown]) * max(there[grown]) > at_once:
            yield slice(start, end)
            start = end


def _nearest(here: Tensor, there: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """From each point of `here` (C, M, 2) the squared distance to the nearest of `there` (C, N, 2), and back.

    Padding lies at infinity, so it is nearest to nothing; what is said of padding itself means nothing.
    """
    rows = max(1, at_once // (len(there) * there.shape[1]))
    forth, back = [], there.new_full(there.shape[:2], inf)
    for block in torch.split(here, rows, dim=1):
        y, x = (block[:, :, None, axis] - there[:, None, :, axis] for axis in (0, 1))
        squared = y.square_().add_(x.square_())
        forth.append(squared.amin(2))
        back = torch.minimum(back, squared.amin(1))
    return torch.cat(forth, 1), back
