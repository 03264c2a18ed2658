"""Surface distances of a whole stack at once, by comparing all pairs of points: fast on a GPU.

A distance transform looks at fewer pixels, but slice by slice. Here a stack takes a few kernels, and the host
waits three times: for the sizes of the surfaces, for their points, and for the distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from bench.metrics.surface import Directed, Distances, Mask

MAX_PAIRS = 2**26  # per chunk: 256 MiB for each of its two arrays


@torch.inference_mode()
def stack_distances(
    truth: Mask,
    prediction: Mask,
    spacing: Distances | None = None,
    *,
    device: torch.device | str,
    max_pairs: int = MAX_PAIRS,
) -> list[Directed]:
    """Compute `surface.surface_distances` of every slice of two stacks (S, H, W) without empty slices.

    spacing: (S, 2), 1 if None. Squared distances in pixels are integers, which float32 represents exactly up to
    2^24: up to 2,896 x 2,896 pixels the result is identical to that of the CPU. Others differ by rounding.
    """
    if not len(truth):
        return []
    surfaces = find_surfaces(torch.from_numpy(np.stack([truth, prediction])).to(device))
    sizes: list[list[int]] = surfaces.sum((2, 3)).tolist()
    points = list(torch.split(surfaces.nonzero()[:, 2:].float(), sizes[0] + sizes[1]))  # per slice, row by row
    if spacing is not None:
        scale = torch.from_numpy(np.concatenate([spacing, spacing]).astype(np.float32)).to(device)
        points = [each * by for each, by in zip(points, scale, strict=True)]
    sides = points[: len(truth)], points[len(truth) :]
    nearest: tuple[list[Tensor], list[Tensor]] = [], []
    for chunk in _chunks(sizes[0], sizes[1], max_pairs):
        a, b = (pad_sequence(side[chunk], batch_first=True, padding_value=inf) for side in sides)
        for rows, size, squared in zip(nearest, sizes, _nearest(a, b, max_pairs), strict=True):
            rows += [row[:n] for row, n in zip(squared, size[chunk], strict=True)]
    distances = np.sqrt(torch.cat(nearest[0] + nearest[1]).cpu().numpy().astype(np.float64))
    parts = np.split(distances, np.cumsum(sizes[0] + sizes[1])[:-1])
    return list(zip(parts[: len(truth)], parts[len(truth) :], strict=True))


def find_surfaces(masks: Tensor) -> Tensor:
    """Return the surface of every mask, as `surface.find_surface` does. masks: bool (..., H, W)."""
    around = pad(masks, (1, 1, 1, 1))  # outside the image is background
    vertical = around[..., :-2, 1:-1] & around[..., 2:, 1:-1]
    horizontal = around[..., 1:-1, :-2] & around[..., 1:-1, 2:]
    return masks & ~(vertical & horizontal)


def _chunks(a: Sequence[int], b: Sequence[int], max_pairs: int) -> Iterator[slice]:
    """Yield ranges of slices with at most `max_pairs` padded pairs, or one slice that has more by itself.

    `a` and `b` are the numbers of points on each slice.
    """
    start = 0
    for end in range(1, len(a) + 1):
        grown = slice(start, end + 1)
        if end == len(a) or (end + 1 - start) * max(a[grown]) * max(b[grown]) > max_pairs:
            yield slice(start, end)
            start = end


def _nearest(a: Tensor, b: Tensor, max_pairs: int) -> tuple[Tensor, Tensor]:
    """Return the squared distance from each point of `a` (C, M, 2) to the nearest of `b` (C, N, 2), and back.

    Padded points lie at infinity: they are nearest to no point, and their own results are meaningless.
    """
    rows = max(1, max_pairs // (len(b) * b.shape[1]))
    forth, back = [], b.new_full(b.shape[:2], inf)
    for block in torch.split(a, rows, dim=1):
        y, x = (block[:, :, None, axis] - b[:, None, :, axis] for axis in (0, 1))
        squared = y.square_().add_(x.square_())
        forth.append(squared.amin(2))
        back = torch.minimum(back, squared.amin(1))
    return torch.cat(forth, 1), back
