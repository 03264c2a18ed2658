"""Random numbers that belong to a slice, not to a batch.

Every slice of every epoch has a counter-based generator of its own, keyed by (seed, epoch, slice): what is
drawn for it depends on neither batch order, batch size nor the number of workers (Salmon et al. 2011, Philox).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.device import onto


class SliceRandom:
    """Random numbers for one batch: row i always comes from the generator of `slices[i]`.

    `channels` are the names of one slice's channels. Where a model sees neighbouring slices, an image has them
    several times over, slice by slice: what is one scan must be drawn for once.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        slices: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        channels: Sequence[str] = (),
    ) -> None:
        self.device, self.channels = device, tuple(channels)
        self.generators = [
            np.random.Generator(
                np.random.Philox(key=[np.uint64(seed), (np.uint64(epoch) << np.uint64(40)) | np.uint64(s)])
            )
            for s in slices
        ]

    def __len__(self) -> int:
        return len(self.generators)

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """float32 (B, *shape) in [low, high); rounding may reach `high` of another range than [0, 1)."""
        unit = self._tensor([g.random(shape, dtype=np.float32) for g in self.generators])
        return low + (high - low) * unit

    def of_channels(self, low: float, high: float, count: int, channels: int) -> Tensor:
        """`uniform` (B, count, channels, 1, 1), the same for a channel in all slices that the model sees."""
        each = len(self.channels) or channels
        return self.uniform(low, high, count, each, 1, 1).repeat(1, 1, channels // each, 1, 1)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 (B, *shape)."""
        return self._tensor([g.standard_normal(shape, dtype=np.float32) for g in self.generators])

    def chance(self, probability: float) -> Tensor:
        """bool (B,): true with this probability."""
        return self.uniform() < probability

    def _tensor(self, rows: list[np.ndarray | float]) -> Tensor:
        return onto(self.device, np.asarray(rows, dtype=np.float32))
