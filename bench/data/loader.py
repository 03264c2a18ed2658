"""From packed bytes to model input.

Normalisation has two halves with augmentation between them. `Levels` clip a slice to its dark and bright
end and bring that range to [0, 1], where 0 is background for every patient, whatever the scanner's gain;
then comes the z-score. Both come from the pack's histograms, so no pixel is read twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.config import Input
from bench.data.normalise import levels
from bench.data.pack import Pack
from bench.data.source import Pixels
from bench.device import onto
from bench.errors import BadSetting, did_you_mean

T = TypeVar("T")


R = TypeVar("R")


WORTH_THREADS = 1 << 20  # bytes of a batch from which on sharing it between threads saves time


def channel_numbers(available: Sequence[str], wanted: str | Sequence[str]) -> list[int]:
    """Positions of the wanted channels; 'all' is all. Raises `BadSetting`."""
    names = list(available) if wanted == "all" else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in available:
            raise BadSetting(
                f"no channel '{name}' here; there are {', '.join(available)}, or all."
                + did_you_mean(name, available)
            )
    return [list(available).index(name) for name in names]


def stacked(whose: Sequence[str], neighbours: int) -> NDArray[np.int64]:
    """(N, 2 neighbours + 1) rows of the slices before, of each slice and after; past an end it is the last again.

    whose: the patient of each row; the rows of one lie together, in the order of their slices.
    """
    group = pd.Series(list(whose)).groupby(list(whose), sort=False)
    place, count = group.cumcount().to_numpy(), group.transform("size").to_numpy()
    first = np.arange(len(place)) - place
    beside = place[:, None] + np.arange(-neighbours, neighbours + 1)
    rows: NDArray[np.int64] = first[:, None] + beside.clip(0, count[:, None] - 1)
    return rows


class SliceLoader:
    """Rows of a pack as batches on a device; with `neighbours`, the channels of the slices beside them as well.

    A GPU holds all bytes from the start where they fit (`resident`); else they stay in the memory-mapped file and
    each batch is read as it is needed, so that a data set may be larger than any memory.
    """

    def __init__(self, pack: Pack, settings: Input, device: torch.device, *, resident: bool | None = None) -> None:
        self.pack, self.device, self.size, self.patch = pack, device, settings.image_size, settings.patch
        self.channels = channel_numbers(pack.manifest.channels, settings.channels)
        every = self.channels == list(range(len(pack.manifest.channels)))
        # On the device from the start: a list would be sent there for every batch, and waited for.
        self._chosen = slice(None) if every else torch.tensor(self.channels, device=device)
        whose = pack.index["patient" if "patient" in pack.index else "case"]
        self._around = stacked(whose.tolist(), settings.neighbours)
        found = levels(pack.histograms, whose.tolist(), settings.normalise)
        self._levels = [
            torch.from_numpy(v[:, self.channels][self._around].reshape(len(v), -1)).to(device)[..., None, None]
            for v in (found.low, found.high, found.mean, found.deviation)
        ]
        self.resident = device.type == "cuda" and _fits(pack, device) if resident is None else resident
        if self.resident:
            # Copied first: PyTorch warns of arrays that are mapped for reading only.
            self._images = torch.from_numpy(np.array(pack.images)).to(device)
            self._masks = torch.from_numpy(np.array(pack.masks)).to(device)

    @property
    def names(self) -> list[str]:
        """The names of one slice's channels."""
        return [self.pack.manifest.channels[number] for number in self.channels]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the packed slices."""
        height, width = self.pack.masks.shape[1:]
        return height, width

    def unit(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and masks (B, 1, H, W), float32, at the model's size."""
        images, masks = self._read(rows, _unit)
        if self._resizes:
            masks = (F.interpolate(masks, self._target, mode="area") >= 0.5).float()
        return self._resized(images), masks

    def units(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """`unit` of each batch. What a GPU cannot hold is read while it computes.

        A CPU has no time to spare: a thread that reads ahead slows the training beside it by a sixth (seen
        on two cores).
        """
        if self.resident or self.device.type == "cpu":
            yield from map(self.unit, batches)
            return
        stream = torch.cuda.current_stream(self.device)

        def read(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            with torch.cuda.stream(stream):  # the reader's own would not know what the training one still needs
                return self.unit(rows)

        yield from ahead(read, batches)

    def standard(self, images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The z-score of images in [0, 1], channels last in memory."""
        mean, deviation = (v[onto(self.device, rows)] for v in self._levels[2:])
        return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def ready(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """What a model is evaluated on: `standard` of `unit`, bit by bit, and the masks as they are packed.

        Images (B, C, H, W) float32 at the model's size; masks (B, 1, H, W) float32 on the packed grid.
        """
        if self._resizes:
            images, masks = self._read(rows, _unit)
            return self.standard(self._resized(images), rows), masks
        return self._read(rows, _standard)

    @property
    def _target(self) -> tuple[int, int]:
        return (self.size, self.size) if self.size else self.shape

    @property
    def _resizes(self) -> bool:
        return self._target != self.shape

    def _resized(self, images: Tensor) -> Tensor:
        return F.interpolate(images, self._target, mode="bilinear", antialias=True) if self._resizes else images

    def _read(self, rows: NDArray[np.int64], scale: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), their grey levels scaled, and masks (B, 1, H, W), float32 as packed."""
        seen = self._around[rows].ravel()
        if self.device.type == "cpu" and not self.resident:
            # There are only 256 grey levels: scale these, then look every pixel up.
            grey = torch.arange(256, dtype=torch.float32)
            tables = scale(grey, *(v[torch.from_numpy(rows)][..., 0] for v in self._levels))
            masks = torch.from_numpy(self.pack.masks[rows].astype(np.float32))
            tables = tables.reshape(len(seen), len(self.channels), 256)
            return self._beside(_look_up(self.pack.images, seen, self.channels, tables)), masks[:, None]
        where = onto(self.device, rows)
        if self.resident:
            # Nothing more is sent to the device where a slice has no neighbours.
            images = self._images[where if len(seen) == len(rows) else onto(self.device, seen)]
            masks = self._masks[where]
        else:
            images, masks = onto(self.device, self.pack.images[seen]), onto(self.device, self.pack.masks[rows])
        images = self._beside(images.permute(0, 3, 1, 2)[:, self._chosen].float())
        return scale(images, *(v[where] for v in self._levels)), masks[:, None].float()

    def _beside(self, images: Tensor) -> Tensor:
        """Slices one after another (B K, C, H, W) as channels of the one in their middle, (B, K C, H, W)."""
        each = self._around.shape[1]
        return images if each == 1 else images.reshape(-1, each * images.shape[1], *images.shape[2:])


def ahead(read: Callable[[T], R], items: Iterable[T], depth: int = 2) -> Iterator[R]:
    """`read` of each item in turn, done in a thread while the caller uses the ones before."""
    with ThreadPoolExecutor(1, "bench-reader") as reader:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(reader.submit(read, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)


def _unit(grey: Tensor, low: Tensor, high: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return ((grey - low) / (high - low)).clamp_(0, 1)


def _standard(grey: Tensor, low: Tensor, high: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return (_unit(grey, low, high, mean, deviation) - mean) / deviation


def _look_up(images: Pixels, rows: NDArray[np.int64], channels: Sequence[int], tables: Tensor) -> Tensor:
    """Images (B, C, H, W), channels last in memory: each pixel's entry in its slice's table, (B, C, 256)."""
    entries = tables.transpose(1, 2).contiguous().numpy()
    found = np.empty((len(rows), *images.shape[1:3], len(channels)), np.float32)
    every = list(channels) == list(range(images.shape[-1]))

    def fill(some: NDArray[np.int64]) -> None:
        for at in some:
            pixels = np.asarray(images[rows[at]])
            cv2.LUT(
                pixels if every else np.ascontiguousarray(pixels[..., channels]), entries[at : at + 1], found[at]
            )

    parts = np.array_split(np.arange(len(rows)), torch.get_num_threads())
    if len(parts) > 1 and found.nbytes > WORTH_THREADS:
        list(_pool(len(parts)).map(fill, parts))
    else:
        fill(np.arange(len(rows)))
    return torch.from_numpy(found).permute(0, 3, 1, 2)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "bench-loader")


def _fits(pack: Pack, device: torch.device) -> bool:
    """Whether the pack takes less than half of the free GPU memory."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # what PyTorch has in stock
    return 2 * (pack.images.nbytes + pack.masks.nbytes) < free
