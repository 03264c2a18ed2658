"""Predict a patient's stack and score it. Means over patients are made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.data.loader import SliceLoader
from bench.device import autocast, out_of_memory
from bench.inference.padding import logits_of
from bench.inference.sliding_window import tiled
from bench.types import SliceCounts, Stack

EVEN = 8  # sizes of batches on a GPU are multiples: cuDNN looks for its fastest kernels at each new size


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module],
    loader: SliceLoader,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    precision: str = "auto",
    shape: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Probabilities (S, H, W) of these rows on the packed grid, averaged over `models`.

    A model that was trained on smaller slices has its logits interpolated, so that every configuration is
    scored on the same pixels. A model with one logit a slice is asked for the shape (1, 1).
    """
    shape = shape or loader.shape
    stack = np.empty((len(rows), *shape), np.float32)
    done = 0
    for probability, _ in _predicted(models, loader, rows, batch_size, precision, shape):
        stack[done : done + len(probability)] = probability.cpu().numpy()
        done += len(probability)
    return stack


@torch.inference_mode()
def count(
    models: Sequence[nn.Module],
    loader: SliceLoader,
    rows: NDArray[np.int64],
    *,
    threshold: float,
    batch_size: int,
    precision: str = "auto",
) -> NDArray[np.int64]:
    """Pixels tp, fp, fn and tn of every row, (S, 4), counted on the device and fetched once, at the end."""
    found = []
    for probability, truth in _predicted(models, loader, rows, batch_size, precision, loader.shape):
        called = probability >= threshold
        hits, calls, there = (m.sum((1, 2)) for m in (called & truth, called, truth))
        found.append(torch.stack((hits, calls - hits, there - hits, truth[0].numel() - calls - there + hits), 1))
    counted: NDArray[np.int64] = torch.cat(found).cpu().numpy()
    return counted


def _predicted(
    models: Sequence[nn.Module],
    loader: SliceLoader,
    rows: NDArray[np.int64],
    batch_size: int,
    precision: str,
    shape: tuple[int, int],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch, on the device: probability float32 (B, *shape) and truth bool (B, H, W) on the packed grid.

    Batches that do not fit in memory are halved.
    """
    patch = loader.patch
    forward = logits_of if patch is None else partial(tiled, size=patch.size, overlap=patch.overlap)
    for model in models:
        model.eval()
    start = 0
    while start < len(rows):
        batch = rows[start : start + batch_size]
        try:
            images, masks = loader.ready(evened(batch, batch_size) if loader.device.type == "cuda" else batch)
            mean = torch.zeros((len(images), 1, *shape), device=loader.device)
            for model in models:
                with autocast(loader.device, precision):
                    logits = forward(model, images)
                if logits.shape[-2:] != shape:
                    logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
                mean += logits.sigmoid() / len(models)
        except RuntimeError as error:
            if batch_size == 1 or not out_of_memory(error):
                raise
            batch_size = max(1, min(batch_size, len(batch)) // 2)
            continue
        yield mean[: len(batch), 0], masks[: len(batch), 0] > 0
        start += len(batch)


def evened(batch: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The batch, its last row repeated up to the next multiple of `EVEN`, or up to `most`."""
    size = min(-(-len(batch) // EVEN) * EVEN, most)
    return np.pad(batch, (0, size - len(batch)), mode="edge")


def stacks(
    models: Sequence[nn.Module],
    loader: SliceLoader,
    cases: Iterable[str],
    *,
    threshold: float,
    batch_size: int,
    precision: str = "auto",
) -> Iterator[tuple[str, NDArray[np.int64], Stack]]:
    """For each patient: name, rows of the pack, and the stack of truth and probability."""
    for case in sorted(cases):
        rows = loader.pack.rows([case])
        probability = predict(models, loader, rows, batch_size=batch_size, precision=precision)
        truth = loader.pack.masks[rows].astype(bool)
        yield case, rows, Stack(truth, probability, threshold, str(loader.device))


def tallies(
    models: Sequence[nn.Module],
    loader: SliceLoader,
    cases: Iterable[str],
    *,
    threshold: float,
    batch_size: int,
    precision: str = "auto",
) -> Iterator[tuple[str, SliceCounts]]:
    """For each patient its name and its counted pixels, for metrics that need no more (`needs_pixels`)."""
    names = sorted(cases)
    each = [loader.pack.rows([case]) for case in names]
    counted = count(
        models, loader, np.concatenate(each), threshold=threshold, batch_size=batch_size, precision=precision
    )
    for case, part in zip(names, np.split(counted, np.cumsum([len(rows) for rows in each])[:-1]), strict=True):
        yield case, SliceCounts(*part.T)
