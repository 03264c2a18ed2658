"""Batches of model input from packed bytes.

Normalisation has two halves, with augmentation between them. First each slice is clipped to its dark and bright
percentiles and scaled to [0, 1], where 0 is the background for every patient, whatever the gain of the scanner.
The z-score follows after augmentation.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.config import Input
from bench.data.crop import Box, foreground_boxes, scale_box
from bench.data.normalise import compute_intensity_stats
from bench.data.pack import Pack
from bench.data.slice_random import SliceRandom
from bench.data.source import Pixels
from bench.device import onto
from bench.errors import BadSetting, did_you_mean

T = TypeVar("T")
R = TypeVar("R")

MIN_BYTES_FOR_THREADS = 1 << 20  # smaller batches are faster in one thread


def channel_numbers(available: Sequence[str], wanted: str | Sequence[str]) -> list[int]:
    """Return the positions of the wanted channels; 'all' selects all. Raises `BadSetting`."""
    names = list(available) if wanted == "all" else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in available:
            raise BadSetting(
                f"the data has no channel '{name}'. Choose from {', '.join(available)}, or all."
                + did_you_mean(name, available)
            )
    return [list(available).index(name) for name in names]


def neighbour_rows(cases: Sequence[str], neighbours: int) -> NDArray[np.int64]:
    """Return the rows (N, 2 neighbours + 1) of each slice and its neighbours; the slice at an end is repeated.

    cases: the patient of each row. The rows of a patient are consecutive, in the order of its slices.
    """
    group = pd.Series(list(cases)).groupby(list(cases), sort=False)
    position, count = group.cumcount().to_numpy(), group.transform("size").to_numpy()
    first = np.arange(len(position)) - position
    wanted = position[:, None] + np.arange(-neighbours, neighbours + 1)
    rows: NDArray[np.int64] = first[:, None] + wanted.clip(0, count[:, None] - 1)
    return rows


class SliceLoader:
    """Loads rows of a pack as batches on a device, with the channels of `neighbours` if the settings ask for them.

    A GPU holds the whole pack if it fits (`resident`). Otherwise the pack stays in memory-mapped files and each
    batch is read when it is needed, so a dataset may be larger than the memory.
    """

    def __init__(self, pack: Pack, settings: Input, device: torch.device, *, resident: bool | None = None) -> None:
        self.pack, self.device, self.size, self.patch = pack, device, settings.image_size, settings.patch
        self.channels = channel_numbers(pack.manifest.channels, settings.channels)
        self.channel_names = [pack.manifest.channels[number] for number in self.channels]  # of one slice
        height, width = self.shape = pack.masks.shape[1:]  # of the packed slices
        self._target = (self.size or height, self.size or width)
        select_all = self.channels == list(range(len(pack.manifest.channels)))
        # On the device from the start: a list would be copied there, synchronously, for every batch.
        self._selection = slice(None) if select_all else torch.tensor(self.channels, device=device)
        patients = pack.index["patient" if "patient" in pack.index else "case"].tolist()
        self._neighbours = neighbour_rows(patients, settings.neighbours)
        self._boxes = foreground_boxes(pack.images, patients) if settings.crop else None
        self._resizes = self._boxes is not None or self._target != self.shape
        stats = compute_intensity_stats(pack.histograms, patients, settings.normalise)
        self._stats = [
            torch.from_numpy(v[:, self.channels][self._neighbours].reshape(len(v), -1)).to(device)[..., None, None]
            for v in stats
        ]
        count = len(pack.structures)
        self._bits = np.uint8 if count <= 8 else np.int64  # PyTorch shifts no wider unsigned numbers
        self._shifts = torch.arange(count, dtype=torch.uint8, device=device)[:, None, None]
        self.resident = device.type == "cuda" and _fits_on_gpu(pack, device) if resident is None else resident
        if self.resident:
            # Copied first: PyTorch warns about read-only memory maps.
            self._images = torch.from_numpy(np.array(pack.images)).to(device)
            self._masks = torch.from_numpy(pack.masks.astype(self._bits)).to(device)

    def load(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Load images (B, C, H, W) in [0, 1] and masks (B, K, H, W), float32, at the input size of the model."""
        images, masks = self._read(rows, _scale)
        if self._resizes:
            masks = (self._resize(masks, rows, mode="area") >= 0.5).float()
            images = self._resize(images, rows, mode="bilinear", antialias=True)
        return images, masks

    def load_batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `load(rows)` for each batch. Data that a GPU cannot hold is read while the GPU computes.

        On a CPU nothing is read ahead: a reader thread slows the training beside it by a sixth (measured on two
        cores).
        """
        if self.resident or self.device.type == "cpu":
            yield from map(self.load, batches)
            return
        stream = torch.cuda.current_stream(self.device)

        def read(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            with torch.cuda.stream(stream):  # a stream of its own could overwrite what training still needs
                return self.load(rows)

        yield from read_ahead(read, batches)

    def normalise(self, images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Return the z-score of images in [0, 1], channels last in memory."""
        mean, std = (v[onto(self.device, rows)] for v in self._stats[2:])
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def load_normalised(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Load what a model is evaluated on: normalised images and masks of the packed size.

        Images (B, C, H, W) float32 equal `normalise(load(rows)[0], rows)` bit by bit; masks (B, K, H, W) float32.
        """
        if self._resizes:
            images, masks = self._read(rows, _scale)
            return self.normalise(self._resize(images, rows, mode="bilinear", antialias=True), rows), masks
        return self._read(rows, _scale_and_normalise)

    def restore(self, logits: Tensor, rows: NDArray[np.int64], shape: tuple[int, int]) -> Tensor:
        """Resize logits (B, K, h, w) of loaded rows to whole slices of `shape`; -inf outside of a crop.

        -inf is a probability of 0 in every activation.
        """
        if logits.shape[-2:] == shape and (self._boxes is None or shape == (1, 1)):
            return logits
        whole = partial(F.interpolate, mode="bilinear", align_corners=False)
        if self._boxes is None:
            return whole(logits, shape)
        restored = logits.new_full((*logits.shape[:2], *shape), -torch.inf)
        for places, box in self._crops(rows):
            top_left = scale_box(box, self.shape, shape)
            size = tuple(side.stop - side.start for side in top_left)
            restored[(places, slice(None), *top_left)] = whole(logits[places], size)
        return restored

    def _resize(self, images: Tensor, rows: NDArray[np.int64], **how: Any) -> Tensor:
        """Resize images (B, C, H, W) of these rows, or what `input.crop` leaves of them, to the input size."""
        if self._boxes is None:
            return F.interpolate(images, self._target, **how)
        resized = images.new_empty((*images.shape[:2], *self._target))
        for places, box in self._crops(rows):
            resized[places] = F.interpolate(images[places][..., *box], self._target, **how)
        return resized

    def _crops(self, rows: NDArray[np.int64]) -> Iterator[tuple[list[int], Box]]:
        """Yield the places of a batch that share a box, and the box."""
        assert self._boxes is not None
        shared = defaultdict(list)
        for place, row in enumerate(rows.tolist()):
            height, width = self._boxes[row]
            shared[height.start, height.stop, width.start, width.stop].append(place)
        for (top, bottom, left, right), places in shared.items():
            yield places, (slice(top, bottom), slice(left, right))

    def _read(self, rows: NDArray[np.int64], transform: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Read images (B, C, H, W) with transformed grey levels, and masks (B, K, H, W), float32 as packed."""
        slices = self._neighbours[rows].ravel()
        if self.device.type == "cpu" and not self.resident:
            # There are only 256 grey levels: transform these, then look every pixel up.
            levels = torch.arange(256, dtype=torch.float32)
            tables = transform(levels, *(v[torch.from_numpy(rows)][..., 0] for v in self._stats))
            masks = torch.from_numpy(self.pack.truth(rows).astype(np.float32))
            tables = tables.reshape(len(slices), len(self.channels), 256)
            return self._stack(_look_up(self.pack.images, slices, self.channels, tables)), masks
        indices = onto(self.device, rows)
        if self.resident:
            # Without neighbours the indices on the device can be reused.
            images = self._images[indices if len(slices) == len(rows) else onto(self.device, slices)]
            masks = self._masks[indices]
        else:
            images = onto(self.device, self.pack.images[slices])
            masks = onto(self.device, self.pack.masks[rows].astype(self._bits))
        images = self._stack(images.permute(0, 3, 1, 2)[:, self._selection].float())
        return transform(images, *(v[indices] for v in self._stats)), (masks[:, None] >> self._shifts & 1).float()

    def _stack(self, images: Tensor) -> Tensor:
        """Turn K consecutive slices (B K, C, H, W) into the channels of the middle one, (B, K C, H, W)."""
        each = self._neighbours.shape[1]
        return images if each == 1 else images.reshape(-1, each * images.shape[1], *images.shape[2:])


def read_ahead(read: Callable[[T], R], items: Iterable[T], depth: int = 2) -> Iterator[R]:
    """Yield `read(item)` in order, computed in a thread up to `depth` items before the caller needs them."""
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


def _scale(levels: Tensor, low: Tensor, high: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((levels - low) / (high - low)).clamp_(0, 1)


def _scale_and_normalise(levels: Tensor, low: Tensor, high: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (_scale(levels, low, high, mean, std) - mean) / std


def _look_up(images: Pixels, rows: NDArray[np.int64], channels: Sequence[int], tables: Tensor) -> Tensor:
    """Map each pixel through the table (B, C, 256) of its slice; return (B, C, H, W), channels last in memory."""
    entries = tables.transpose(1, 2).contiguous().numpy()
    result = np.empty((len(rows), *images.shape[1:3], len(channels)), np.float32)
    select_all = list(channels) == list(range(images.shape[-1]))

    def fill(places: NDArray[np.int64]) -> None:
        for at in places:
            pixels = np.asarray(images[rows[at]])
            selected = pixels if select_all else np.ascontiguousarray(pixels[..., channels])
            cv2.LUT(selected, entries[at : at + 1], result[at])

    parts = np.array_split(np.arange(len(rows)), torch.get_num_threads())
    if len(parts) > 1 and result.nbytes > MIN_BYTES_FOR_THREADS:
        list(_thread_pool(len(parts)).map(fill, parts))
    else:
        fill(np.arange(len(rows)))
    return torch.from_numpy(result).permute(0, 3, 1, 2)


@cache
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "bench-loader")


def _fits_on_gpu(pack: Pack, device: torch.device) -> bool:
    """Return whether the pack takes less than half of the free GPU memory."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached by PyTorch
    return 2 * (pack.images.nbytes + pack.masks.nbytes) < free


def random_patch(
    images: Tensor, masks: Tensor, draws: SliceRandom, *, size: int, tumour_share: float
) -> tuple[Tensor, Tensor]:
    """Cut one patch of `size` pixels square from each slice: images (B, C, size, size), masks (B, K, size, size).

    With probability `tumour_share`, the patch of a slice with tumour contains a tumour pixel. That pixel is chosen
    uniformly, and so is its place in the patch, as far as the border allows. Other patches are placed uniformly.
    """
    count, _, height, width = images.shape
    corner, pixel, within = draws.uniform(0, 1, 2), draws.uniform(), draws.uniform(0, 1, 2)
    last = onto(images.device, torch.tensor((height - size, width - size)))  # the last possible corner
    anywhere = (corner * (last + 1)).long()
    tumour = masks.amax(1).flatten(1) > 0.5
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
