"""Segmentation: which pixels are tumour, scored patient by patient with the metrics of the registry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

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
from bench.inference.scoring import Metric, choose_threshold, needs_pixels, score_case
from bench.masks import Mask, Masks, to_hundredths
from bench.metrics.aggregate import summarise
from bench.types import CaseScore, SliceCounts, Stack


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
        inputs: Iterable[SliceCounts]
        if needs_pixels(metric):
            inputs = (stack for _, _, stack in stacks(predictor, cases, 0.5))
        else:
            inputs = (counts for _, counts in predictor.case_counts(cases, 0.5))
        scores = np.array([metric(each) for each in inputs])
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
