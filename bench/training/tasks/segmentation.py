"""Segmentation: which pixels are tumour, scored patient by patient with the metrics of the registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, get_type_hints

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from bench import registry
from bench.config import Evaluate
from bench.data.pack import Pack
from bench.errors import BadSetting
from bench.inference.overlays import overlays
from bench.inference.predict import Predictor, PredictsStacks, stacks
from bench.masks import THRESHOLDS, Mask, Masks, to_hundredths
from bench.metrics.aggregate import COUNTS, summarise
from bench.metrics.confusion import dice_of
from bench.types import CaseScore, SliceCounts, Stack

Metric = Callable[[Any], float]  # of a Stack, or of SliceCounts


@dataclass(frozen=True)
class Segmentation:
    """The default task. Raises `UnknownName` or `BadSetting` for metrics that cannot be used."""

    settings: Evaluate = field(default_factory=Evaluate)
    name: ClassVar[str] = "segmentation"  # the fact `task` of a model in the registry
    segments: ClassVar[bool] = True  # predicts masks, scored patient by patient; otherwise it classifies slices
    output_shape: ClassVar[None] = None  # height and width of a model's output where that is not the slice's

    def __post_init__(self) -> None:
        if registry.metric[self.primary].facts.get("higher") is None:
            raise BadSetting(
                f"'{self.primary}' has no direction: neither high nor low is better. Use evaluate.primary=dice."
            )
        assert self.metrics  # raises for unknown names

    @property
    def primary(self) -> str:
        """The score by which validation chooses."""
        return self.settings.primary

    @property
    def sign(self) -> int:
        """+1 where a higher primary score is better, otherwise -1."""
        return 1 if registry.metric[self.primary].facts["higher"] else -1

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics to compute, by name; all that are registered unless some were chosen."""
        names = self.settings.metrics or tuple(registry.metric)
        return {name: registry.metric[name].bind({}) for name in dict.fromkeys((*names, self.primary))}

    def target(self, masks: Tensor) -> Tensor:
        """Return what the loss compares logits with, for masks (B, 1, H, W)."""
        return masks

    def validate(self, predictor: Predictor, cases: Iterable[str]) -> float:
        """Return the primary score of validation patients at threshold 0.5."""
        metric = self.metrics[self.primary]
        if needs_pixels(metric):
            scores = [metric(stack) for _, _, stack in stacks(predictor, cases, 0.5)]
        else:
            scores = [metric(counts) for _, counts in predictor.case_counts(cases, 0.5)]
        return float(np.nanmean(scores)) if not np.isnan(scores).all() else math.nan

    def threshold(self, predictor: PredictsStacks, cases: Iterable[str]) -> float:
        """Return the threshold that was set, or the best for these validation patients."""
        if self.settings.threshold != "validation":
            return self.settings.threshold
        return choose_threshold(stack for _, _, stack in stacks(predictor, cases, 0.5))

    def score(
        self, predictor: PredictsStacks, cases: Iterable[str], threshold: float
    ) -> Iterator[tuple[CaseScore, Masks]]:
        """Yield each patient's scores and predicted masks; a task without masks yields none."""
        numbers = predictor.pack.index["slice"].to_numpy()
        for case, rows, stack in stacks(predictor, cases, threshold):
            scored = score_case(case, numbers[rows].tolist(), stack, self.metrics)
            yield scored, Masks([(case, stack.prediction)], [(case, to_hundredths(stack.probability))])

    def score_mask(self, case: str, numbers: Sequence[int], truth: Mask, mask: Mask) -> CaseScore:
        """Score a predicted mask, bool (S, H, W), by all metrics that need no probability."""
        metrics = {
            name: metric
            for name, metric in self.metrics.items()
            if not registry.metric[name].facts.get("probability")
        }
        return score_case(case, numbers, Stack(truth, mask.astype(np.float32)), metrics)

    def summarise(
        self, cases: pd.DataFrame, slices: pd.DataFrame, *, with_interval: bool = True
    ) -> dict[str, float]:
        """Return scores over all patients, from one row per patient and one row per slice."""
        return summarise(cases, with_interval=with_interval)

    def tables(self, slices: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        """Return further tables that a run logs, by name."""
        return {}

    def pictures(
        self, pack: Pack, cases: pd.DataFrame, slices: pd.DataFrame, predictions: Mapping[str, Mask]
    ) -> Mapping[str, NDArray[np.uint8]]:
        """Return pictures that a run logs, RGB (H, W, 3), by name."""
        drawn = overlays(pack, cases, predictions, self.primary, sign=self.sign)
        return {f"overlays/{name}": pixels for name, pixels in drawn.items()}


def needs_pixels(metric: Metric) -> bool:
    """Return whether a metric takes a `Stack`; one whose argument is annotated `SliceCounts` needs no pixels."""
    function = metric.func if isinstance(metric, partial) else metric
    argument = next(iter(get_type_hints(function).values()), Stack)
    return argument is not SliceCounts


def score_case(case: str, numbers: Sequence[int], stack: Stack, metrics: Mapping[str, Metric]) -> CaseScore:
    """Compute all metrics of one patient, its pixel counts, and one table row per slice."""
    counts = {name: getattr(stack, name) for name in COUNTS}
    slices = {"case": case, "slice": numbers, **counts, "dice": dice_of(stack.tp, stack.fp, stack.fn)}
    return CaseScore(
        case,
        {name: float(metric(stack)) for name, metric in metrics.items()},
        {name: int(values.sum()) for name, values in counts.items()},
        pd.DataFrame(slices),
    )


def choose_threshold(stacks: Iterable[Stack]) -> float:
    """Return the threshold with the best mean per-patient Dice; of equal ones, the nearest to 0.5.

    `stacks` must be those of validation patients, never of test patients.
    """
    curves = [_dice_curve(stack) for stack in stacks]
    # A patient with tumour has a Dice at every threshold; without any such patient there is nothing to choose by.
    if all(np.isnan(curve).any() for curve in curves):
        return 0.5
    mean = np.nanmean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]])


def _dice_curve(stack: Stack) -> NDArray[np.float64]:
    """Return the Dice of the stack at every threshold, from one histogram of probabilities."""
    bins = to_hundredths(stack.probability)
    inside = np.bincount(bins[stack.truth], minlength=100)
    outside = np.bincount(bins[~stack.truth], minlength=100)
    tp = inside[::-1].cumsum()[::-1][1:]  # summed from the top: pixels that reach a threshold
    fp = outside[::-1].cumsum()[::-1][1:]
    return dice_of(tp, fp, stack.truth.sum() - tp)
