"""Segmentation: which pixels belong to each structure, scored patient by patient with the registry's metrics."""

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
from bench.structures import structure_column
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
        """Return what the loss compares logits with, for masks (B, K, H, W)."""
        return masks

    def validate(self, predictor: Predictor, cases: Iterable[str]) -> float:
        """Return the primary score of validation patients at threshold 0.5."""
        metric = self.metrics[self.primary]
        each: Iterable[Sequence[SliceCounts]]
        if needs_pixels(metric) or predictor.pack.padded:
            halves = (0.5,) * len(predictor.pack.structures)
            each = (of_case for _, _, of_case in stacks(predictor, cases, halves))
        else:
            each = predictor.case_counts(cases, 0.5)
        return mean_defined([overall(self.primary, [metric(one) for one in of_case]) for of_case in each])

    def thresholds(self, predictor: PredictsStacks, cases: Iterable[str]) -> tuple[float, ...]:
        """Return a threshold for each structure: the one set, or the best for these validation patients."""
        if self.settings.threshold != "validation":
            return (self.settings.threshold,) * len(predictor.pack.structures)
        return choose_thresholds(predictor, cases)

    def score(
        self, predictor: PredictsStacks, cases: Iterable[str], thresholds: Sequence[float]
    ) -> Iterator[tuple[CaseScore, Masks]]:
        """Yield each patient's scores and predicted masks; a task without masks yields none."""
        pack = predictor.pack
        numbers = pack.index["slice"].to_numpy()
        for case, rows, each in stacks(predictor, cases, thresholds):
            scored = score_case(case, numbers[rows].tolist(), pack.structures.names, each, self.metrics)
            mask, probability = (
                pack.pad(np.stack([getattr(stack, of) for stack in each], 1))
                for of in ("prediction", "probability")
            )
            yield scored, Masks([(case, mask)], [(case, to_hundredths(probability))])

    def score_mask(
        self,
        case: str,
        numbers: Sequence[int],
        structures: Sequence[str],
        truth: Mask,
        mask: Mask,
        spacing: NDArray[np.float64] | None = None,
        probability: NDArray[np.float32] | None = None,
    ) -> CaseScore:
        """Score predicted masks, bool (S, K, H, W), by all metrics, or by those that need no probability.

        spacing: (S, 2) as of a `Stack`; probability: float32 (S, K, H, W).
        """
        metrics = {
            name: metric
            for name, metric in self.metrics.items()
            if probability is not None or not registry.metric[name].facts.get("probability")
        }
        soft = mask.astype(np.float32) if probability is None else probability
        each = [Stack(truth[:, k], soft[:, k], called=mask[:, k], spacing=spacing) for k in range(len(structures))]
        return score_case(case, numbers, structures, each, metrics)

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


def needs_spacing(metric: str) -> bool:
    """Return whether a metric, by name, is computed only for slices whose pixels have a known size."""
    return metric in registry.metric and bool(registry.metric[metric].facts.get("needs_spacing"))


def score_case(
    case: str,
    numbers: Sequence[int],
    structures: Sequence[str],
    stacks: Sequence[Stack],
    metrics: Mapping[str, Metric],
) -> CaseScore:
    """Compute all metrics of one patient, its pixel counts, and one table row per slice.

    Metrics in millimetres are left out if the spacing is unknown. With several structures, the plain names hold
    what they are together (`overall`), and pixel counts are summed.
    """
    if stacks[0].spacing is None:
        metrics = {name: metric for name, metric in metrics.items() if not needs_spacing(name)}
    each = []
    for stack in stacks:
        counts = {name: getattr(stack, name) for name in COUNTS}
        each.append(
            CaseScore(
                case,
                {name: float(metric(stack)) for name, metric in metrics.items()},
                {name: int(values.sum()) for name, values in counts.items()},
                pd.DataFrame(counts | {"dice": dice_of(stack.tp, stack.fp, stack.fn)}),
            )
        )
    values = {name: overall(name, [score.values[name] for score in each]) for name in metrics}
    total = {name: sum(score.counts[name] for score in each) for name in COUNTS}
    table = pd.DataFrame({"case": case, "slice": numbers})
    for name in COUNTS:
        table[name] = np.sum([score.slices[name] for score in each], axis=0)
    table["dice"] = pd.concat([score.slices["dice"] for score in each], axis=1).mean(axis=1)
    if len(each) > 1:
        for structure, score in zip(structures, each, strict=True):
            values |= {structure_column(name, structure): value for name, value in score.values.items()}
            total |= {structure_column(name, structure): value for name, value in score.counts.items()}
            table = table.join(score.slices.add_suffix(f"[{structure}]"))
    return CaseScore(case, values, total, table)


def overall(metric: str, values: Sequence[float]) -> float:
    """Return a patient's score over all structures: the sum of slices, else the mean of what is defined."""
    if metric in registry.metric and registry.metric[metric].facts.get("unit") == "slices":
        return float(np.sum(values))
    return mean_defined(values)


def mean_defined(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan


def choose_thresholds(predictor: PredictsStacks, cases: Iterable[str]) -> tuple[float, ...]:
    """Return for each structure the threshold with the best mean per-patient Dice, as if it were the only one.

    `cases` must be validation patients, never test patients.
    """
    halves = (0.5,) * len(predictor.pack.structures)
    curves = [[dice_curve(stack) for stack in each] for _, _, each in stacks(predictor, cases, halves)]
    return tuple(choose_threshold(of_structure) for of_structure in zip(*curves, strict=True))


def choose_threshold(curves: Sequence[NDArray[np.float64]]) -> float:
    """Return the threshold with the best mean of patients' Dice (`dice_curve`); of equal ones, nearest 0.5."""
    # A patient with tumour has a Dice at every threshold; without any such patient there is nothing to choose by.
    if all(np.isnan(curve).any() for curve in curves):
        return 0.5
    mean = np.nanmean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]])


def dice_curve(stack: Stack) -> NDArray[np.float64]:
    """Return the Dice of the stack at every threshold, from one histogram of probabilities."""
    bins = to_hundredths(stack.probability)
    inside = np.bincount(bins[stack.truth], minlength=100)
    outside = np.bincount(bins[~stack.truth], minlength=100)
    tp = inside[::-1].cumsum()[::-1][1:]  # summed from the top: pixels that reach a threshold
    fp = outside[::-1].cumsum()[::-1][1:]
    return dice_of(tp, fp, stack.truth.sum() - tp)
