"""Predict slices: one `Predictor` gives probabilities, pixel counts and scored stacks of any rows of a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.device import autocast, out_of_memory
from bench.errors import TrainingError
from bench.inference.sliding_window import logits_of, tiled
from bench.structures import call_structures
from bench.types import SliceCounts, Stack


def softmax_with_background(logits: Tensor) -> Tensor:
    """Return the probabilities (B, K, H, W) of K exclusive structures; the logit of the background is 0.

    K logits are enough, as softmax is the same after adding a number to all. With K = 1 this is the sigmoid.
    """
    return F.pad(logits, (0, 0, 0, 0, 1, 0)).softmax(1)[:, 1:]


# From logits (B, K, H, W) to probabilities: each structure by itself, or all together with the background.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": softmax_with_background}
BATCH_STEP = 8  # batch sizes on a GPU are multiples of it: cuDNN searches its fastest kernels at each new size


@dataclass(frozen=True)
class Predictor:
    """Models whose probabilities are averaged, on the input that one loader gives.

    A model trained on smaller slices has its logits interpolated, so that every configuration is scored on the
    same pixels. `activation` names one of `ACTIVATIONS`. Batches that do not fit in memory are halved.
    """

    models: Sequence[nn.Module]
    loader: SliceLoader
    batch_size: int
    precision: str = "auto"
    activation: str = "sigmoid"

    @property
    def pack(self) -> Pack:
        return self.loader.pack

    @property
    def device(self) -> str:
        return str(self.loader.device)

    @torch.inference_mode()
    def probabilities(self, rows: NDArray[np.int64], shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return float32 (S, K, H, W) on the packed grid; `shape` is (1, 1) for models of one logit a slice."""
        parts = [probability.cpu().numpy() for probability, _ in self._batches(rows, shape or self.loader.shape)]
        stack: NDArray[np.float32] = np.concatenate(parts)
        self._refuse_nan(rows, np.asarray(np.isnan(stack).any(axis=(1, 2, 3))))
        return stack

    @torch.inference_mode()
    def counts(self, rows: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
        """Return pixels tp, fp, fn and tn of every row, (S, K, 4), counted on the device and fetched once."""
        batches = []
        for probability, truth in self._batches(rows, self.loader.shape):
            called = probability >= threshold
            if self.pack.structures.exclusive and called.shape[1] > 1:
                called &= F.one_hot(probability.argmax(1), called.shape[1]).permute(0, 3, 1, 2).bool()
            tp, positive, true = (m.sum((2, 3)) for m in (called & truth, called, truth))
            nan = probability.isnan().flatten(2).any(2)
            tn = truth.shape[2] * truth.shape[3] - positive - true + tp
            batches.append(torch.stack((tp, positive - tp, true - tp, tn, nan), -1))
        counted: NDArray[np.int64] = torch.cat(batches).cpu().numpy()
        self._refuse_nan(rows, np.asarray(counted[..., 4].any(1)))
        return counted[..., :4]

    def _refuse_nan(self, rows: NDArray[np.int64], nan: NDArray[np.bool_]) -> None:
        """Raise `TrainingError` if a prediction is not a number. It names the first slice that has one."""
        if nan.any():
            slice_of = self.pack.index.iloc[rows[nan.argmax()]]
            raise TrainingError(
                f"the prediction for {slice_of['case']} (slice {slice_of['slice']}, {nan.sum()} slices in all) is "
                "not a number, so it is not scored. Train with a smaller --lr or in float32, or fix the model."
            )

    def case_counts(self, cases: Iterable[str], threshold: float) -> Iterator[list[SliceCounts]]:
        """Yield the counts of each patient's structures, for metrics that need no pixels (`needs_pixels`)."""
        names = sorted(cases)
        rows = [self.pack.rows([case]) for case in names]
        counted = self.counts(np.concatenate(rows), threshold)
        ends = np.cumsum([len(each) for each in rows])[:-1]
        for part in np.split(counted, ends):
            yield [SliceCounts(*part[:, k].T) for k in range(part.shape[1])]

    def _batches(self, rows: NDArray[np.int64], shape: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, on the device, probability float32 (B, K, *shape) and truth bool (B, K, H, W) as packed."""
        loader, size, start = self.loader, self.batch_size, 0
        patch = loader.patch
        forward = logits_of if patch is None else partial(tiled, size=patch.size, overlap=patch.overlap)
        for model in self.models:
            model.eval()
        while start < len(rows):
            batch = rows[start : start + size]
            try:
                padded = padded_batch(batch, size) if loader.device.type == "cuda" else batch
                images, masks = loader.load_normalised(padded)
                mean: Tensor | float = 0.0
                for model in self.models:
                    with autocast(loader.device, self.precision):
                        logits = forward(model, images)
                    logits = loader.restore(logits, padded, shape)
                    mean = mean + ACTIVATIONS[self.activation](logits) / len(self.models)
            except RuntimeError as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size = max(1, min(size, len(batch)) // 2)
                continue
            assert isinstance(mean, Tensor)  # there is at least one model
            yield mean[: len(batch)], masks[: len(batch)] > 0
            start += len(batch)


class PredictsProbabilities(Protocol):
    """Anything that predicts the slices of a patient."""

    def probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (S, K, H, W) on the packed grid."""


@dataclass(frozen=True)
class MeanPredictor:
    """The mean probability of several predictors, each with a loader of its own; `tick()` follows each call."""

    predictors: Sequence[PredictsProbabilities]
    pack: Pack
    device: str = "cpu"
    tick: Callable[[], None] = lambda: None

    def probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (S, K, H, W) on the packed grid."""
        mean: NDArray[np.float32] = np.mean([p.probabilities(rows) for p in self.predictors], axis=0)
        self.tick()
        return mean


PredictsStacks = Predictor | MeanPredictor


def stacks(
    predictor: PredictsStacks, cases: Iterable[str], thresholds: Sequence[float]
) -> Iterator[tuple[str, NDArray[np.int64], list[Stack]]]:
    """Yield each patient's name, its rows of the pack, and the stacks of its structures."""
    structures = predictor.pack.structures
    for case in sorted(cases):
        rows = predictor.pack.rows([case])
        own = ..., *predictor.pack.own_grid(rows)
        truth, probability = predictor.pack.truth(rows)[own], predictor.probabilities(rows)[own]
        called = call_structures(probability, thresholds, exclusive=structures.exclusive)
        spacing = predictor.pack.spacing(rows)
        each = zip(range(len(structures)), thresholds, strict=True)
        yield (
            case,
            rows,
            [Stack(truth[:, k], probability[:, k], t, predictor.device, called[:, k], spacing) for k, t in each],
        )


def padded_batch(batch: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the batch, its last row repeated up to the next multiple of `BATCH_STEP`, or up to `most`."""
    size = min(-(-len(batch) // BATCH_STEP) * BATCH_STEP, most)
    return np.pad(batch, (0, size - len(batch)), mode="edge")
