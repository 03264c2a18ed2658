"""Batches for a model: read from the pack, against a DataLoader that reads every slice with OpenCV."""

from __future__ import annotations

from itertools import count

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.config import Input
from bench.data.loader import SliceLoader
from bench.data.normalise import IMAGENET
from bench.data.source import SliceFile
from benchmarks.speed.figure import SpeedFigure, race
from benchmarks.speed.problem import BATCH, SpeedProblem

WORKERS = 2
MEAN, DEVIATION = (np.array(v, np.float32) for v in IMAGENET)


class TiffSlices(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of TIFF files as a notebook reads them: decoded, normalised and transposed to CHW one by one."""

    def __init__(self, files: tuple[SliceFile, ...]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.files[row].image)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.files[row].mask), cv2.IMREAD_GRAYSCALE)
        image = (image.astype(np.float32) / 255 - MEAN) / DEVIATION
        target = np.asarray(mask, np.float32)[None] / 255
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(target)


def measure(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure images per second, float32 and normalised, in random batches of 16.

    The untimed turns bring files and pack into the page cache.
    """
    slice_loader = SliceLoader(problem.pack, Input(), torch.device("cpu"))
    epochs = count()
    slices = TiffSlices(problem.source.slices)
    tiff_loader = DataLoader(
        slices,
        BATCH,
        sampler=RandomSampler(slices, replacement=True, num_samples=problem.images),
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="spawn",  # forking a process with threads may deadlock
    )

    def ours() -> int:
        return sum(len(slice_loader.load_normalised(rows)[0]) for rows in problem.batches(next(epochs)))

    def theirs() -> int:
        return sum(len(images) for images, _ in tiff_loader)

    our_rates, their_rates = race(ours, theirs, repeats=problem.repeats)
    return [SpeedFigure("data", f"cv2 DataLoader, {WORKERS} workers", "images/s", our_rates, their_rates, gate=10)]
