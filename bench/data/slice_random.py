"""Random numbers that belong to a slice, not to a batch.

Every slice has a counter-based generator in every epoch, keyed by (seed, epoch, slice). Its numbers do not depend
on batch order, batch size or the number of workers (Salmon et al. 2011, Philox).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.device import onto


class SliceRandom:
    """Random numbers for one batch: row i always comes from the generator of `slices[i]`.

    `channels` are the channel names of one slice. If a model sees neighbouring slices, an image holds these
    channels once per slice, and all copies of a channel must get the same number.
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
        keys = [[np.uint64(seed), (np.uint64(epoch) << np.uint64(40)) | np.uint64(s)] for s in slices]
        self.generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """Draw float32 (B, *shape) from [low, high). In ranges other than [0, 1), rounding may reach `high`."""
        unit = self._to_tensor([g.random(shape, dtype=np.float32) for g in self.generators])
        return low + (high - low) * unit

    def uniform_per_channel(self, low: float, high: float, count: int, channels: int) -> Tensor:
        """Draw (B, count, channels, 1, 1), equal for the same channel of neighbouring slices."""
        each = len(self.channels) or channels
        return self.uniform(low, high, count, each, 1, 1).repeat(1, 1, channels // each, 1, 1)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal float32 (B, *shape)."""
        return self._to_tensor([g.standard_normal(shape, dtype=np.float32) for g in self.generators])

    def _to_tensor(self, rows: list[np.ndarray | float]) -> Tensor:
        return onto(self.device, np.asarray(rows, dtype=np.float32))
