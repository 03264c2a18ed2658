"""Which pixels are tumour: a patient's stack is predicted, and its metrics are those of the registry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import registry
from bench.config import Evaluate
from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.errors import BadSetting
from bench.inference.overlays import overlays
from bench.inference.predict import stacks, tallies
from bench.inference.scoring import Metric, choose_threshold, needs_pixels, score_case
from bench.masks import Mask, Masks, to_hundredths
from bench.metrics.aggregate import summarise
from bench.types import CaseScore, SliceCounts, Stack


@dataclass(frozen=True)
class Segmentation:
    """The task of most runs. Raises `UnknownName` or `BadSetting` for metrics that cannot be used."""

    settings: Evaluate
    precision: str
    name: ClassVar[str] = "segmentation"
    segments: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if registry.metric[self.primary].facts.get("higher") is None:
            raise BadSetting(f"'{self.primary}' is neither better high nor low. Choose evaluate.primary=dice.")
        assert self.metrics  # every name is there

    @property
    def primary(self) -> str:
        return self.settings.primary

    @property
    def sign(self) -> int:
        return 1 if registry.metric[self.primary].facts["higher"] else -1

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        names = self.settings.metrics or tuple(registry.metric)
        return {name: registry.metric[name].bind({}) for name in dict.fromkeys((*names, self.primary))}

    def target(self, masks: Tensor) -> Tensor:
        return masks

    def validate(self, loader: SliceLoader, model: nn.Module, cases: Iterable[str]) -> float:
        metric = self.metrics[self.primary]
        size = self.settings.batch_size
        given: Iterable[SliceCounts]
        if needs_pixels(metric):
            found = stacks([model], loader, cases, threshold=0.5, batch_size=size, precision=self.precision)
            given = (stack for _, _, stack in found)
        else:
            counted = tallies([model], loader, cases, threshold=0.5, batch_size=size, precision=self.precision)
            given = (tally for _, tally in counted)
        scores = np.array([metric(case) for case in given])
        return float(np.nanmean(scores)) if not np.isnan(scores).all() else math.nan

    def threshold(self, loader: SliceLoader, model: nn.Module, cases: Iterable[str]) -> float:
        given, size = self.settings.threshold, self.settings.batch_size
        if given != "validation":
            return given
        found = stacks([model], loader, cases, threshold=0.5, batch_size=size, precision=self.precision)
        return choose_threshold(stack for _, _, stack in found)

    def score(
        self, models: Sequence[nn.Module], loader: SliceLoader, cases: Iterable[str], threshold: float
    ) -> Iterator[tuple[CaseScore, Masks]]:
        numbers, metrics = loader.pack.index["slice"].to_numpy(), self.metrics
        size = self.settings.batch_size
        found = stacks(models, loader, cases, threshold=threshold, batch_size=size, precision=self.precision)
        for case, rows, stack in found:
            scored = score_case(case, numbers[rows].tolist(), stack, metrics)
            yield scored, Masks([(case, stack.prediction)], [(case, to_hundredths(stack.probability))])

    def score_mask(self, case: str, numbers: Sequence[int], truth: Mask, mask: Mask) -> CaseScore:
        """Score a predicted mask, bool (S, H, W), by all metrics that need no probability."""
        hard = {
            name: metric
            for name, metric in self.metrics.items()
            if not registry.metric[name].facts.get("probability")
        }
        return score_case(case, numbers, Stack(truth, mask.astype(np.float32)), hard)

    def summarise(
        self, cases: pd.DataFrame, slices: pd.DataFrame, *, with_interval: bool = True
    ) -> dict[str, float]:
        return summarise(cases, with_interval=with_interval)

    def tables(self, slices: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        return {}

    def pictures(
        self, pack: Pack, cases: pd.DataFrame, slices: pd.DataFrame, predictions: Mapping[str, Mask]
    ) -> Mapping[str, NDArray[np.uint8]]:
        drawn = overlays(pack, cases, predictions, self.primary, sign=self.sign)
        return {f"overlays/{name}": pixels for name, pixels in drawn.items()}
