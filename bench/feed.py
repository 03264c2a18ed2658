"""From packed bytes to model input.

Normalisation has two halves with augmentation between them. `Levels` clip a slice to its dark and bright
end and bring that range to [0, 1], where 0 is background for every patient, whatever the scanner's gain;
then comes the z-score. Both come from the pack's histograms, so no pixel is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.config import Input
from bench.errors import BadSetting, did_you_mean
from bench.pack import Pack

CLIP = (0.5, 99.5)  # percentiles that end the range
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # means and deviations of the channels in [0, 1]
STRIDE = 32  # every model takes sides that are multiples of this


@dataclass(frozen=True)
class Levels:
    """Per slice and channel (N, C): the range [low, high] in grey levels, mean and deviation within it."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


def levels(histograms: NDArray[np.uint32], cases: Sequence[str], normalise: str) -> Levels:
    """Levels of every slice, from histograms (N, C, 256).

    'patient': one range for all slices of a patient, the default, since levels differ eightfold between
    patients; 'image': each slice for itself; 'imagenet': the constants that pretrained encoders expect.
    """
    shape = histograms.shape[:2]
    if normalise == "imagenet":
        if shape[1] != 3:
            raise BadSetting(f"input.normalise = imagenet needs 3 channels, not {shape[1]}. Use patient or image.")
        mean, deviation = (np.tile(np.array(v, np.float32), (shape[0], 1)) for v in IMAGENET)
        return Levels(np.zeros(shape, np.float32), np.full(shape, 255, np.float32), mean, deviation)
    _, group = np.unique(cases, return_inverse=True) if normalise == "patient" else (None, np.arange(shape[0]))
    pooled = np.zeros((group.max() + 1, shape[1], 256))
    np.add.at(pooled, group, histograms)
    return Levels(*(v[group].astype(np.float32) for v in _of_histogram(pooled)))


def _of_histogram(histogram: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    share = histogram.cumsum(-1) / histogram.sum(-1, keepdims=True)
    low, high = ((share >= q / 100).argmax(-1).astype(float) for q in CLIP)
    high = np.maximum(high, low + 1)  # a blank channel has no range
    unit = ((np.arange(256) - low[..., None]) / (high - low)[..., None]).clip(0, 1)
    weight = histogram / histogram.sum(-1, keepdims=True)
    mean = (weight * unit).sum(-1)
    deviation = np.sqrt((weight * (unit - mean[..., None]) ** 2).sum(-1))
    return low, high, mean, np.maximum(deviation, 1e-3)


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


class Feed:
    """Rows of a pack as batches on a device.

    On a GPU the bytes move there once; on a CPU they stay in the memory-mapped file.
    """

    def __init__(self, pack: Pack, settings: Input, device: torch.device) -> None:
        self.pack, self.device, self.size = pack, device, settings.image_size
        self.channels = channel_numbers(pack.manifest.channels, settings.channels)
        found = levels(pack.histograms, pack.index["case"].tolist(), settings.normalise)
        self._levels = [
            torch.from_numpy(v[:, self.channels].copy()).to(device)[..., None, None]
            for v in (found.low, found.high, found.mean, found.deviation)
        ]
        self._resident = device.type == "cuda" and _fits(pack, device)
        if self._resident:
            self._images = torch.from_numpy(np.ascontiguousarray(pack.images)).to(device)
            self._masks = torch.from_numpy(np.ascontiguousarray(pack.masks)).to(device)

    def unit(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and masks (B, 1, H, W), float32, at the model's size."""
        images, masks = self._read(rows)
        images = images.permute(0, 3, 1, 2)[:, self.channels].float()
        low, high = (v[rows] for v in self._levels[:2])
        images = ((images - low) / (high - low)).clamp_(0, 1)
        masks = masks[:, None].float()
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
            masks = (F.interpolate(masks, (self.size, self.size), mode="area") >= 0.5).float()
        return images, masks

    def standard(self, images: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The z-score of images in [0, 1], channels last in memory."""
        mean, deviation = (v[rows] for v in self._levels[2:])
        return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def _read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        if self._resident:
            where = torch.from_numpy(rows).to(self.device)
            return self._images[where], self._masks[where]
        return (
            torch.from_numpy(self.pack.images[rows]).to(self.device),
            torch.from_numpy(self.pack.masks[rows]).to(self.device),
        )


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, 1, H, W) float32 for images of any size: padded to the model's stride, cropped again."""
    height, width = images.shape[-2:]
    bottom, right = -height % STRIDE, -width % STRIDE
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom), mode="replicate")
    logits: Tensor = model(images)
    return logits[..., :height, :width].float()


def _fits(pack: Pack, device: torch.device) -> bool:
    """Whether the pack takes less than half of the free GPU memory."""
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * (pack.images.nbytes + pack.masks.nbytes) < free
