"""Is there tumour on this slice? One logit a slice, judged over all slices, with intervals over patients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.config import Evaluate
from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.errors import BadSetting, did_you_mean
from bench.inference.predict import predict
from bench.masks import Mask, Masks
from bench.metrics.classification import (
    HIGHER,
    SCORES,
    Calls,
    accuracy,
    best_threshold,
    confusion,
    reliability,
    report_by_class,
    sensitivity,
    specificity,
    summarise_calls,
)
from bench.training.plots import presence_pictures
from bench.types import CaseScore


@dataclass(frozen=True)
class Presence:
    """The task of classifiers. Raises `BadSetting` for settings that say nothing here."""

    settings: Evaluate
    precision: str
    name: ClassVar[str] = "presence"
    segments: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.primary not in SCORES:
            raise BadSetting(
                f"evaluate.primary = '{self.primary}' is no score of a presence model; there are "
                f"{', '.join(SCORES)}.{did_you_mean(self.primary, SCORES)}"
            )
        if self.settings.metrics:
            raise BadSetting(
                "evaluate.metrics chooses among segmentation metrics; a presence model has all scores of its own. "
                "Leave it out."
            )

    @property
    def primary(self) -> str:
        return self.settings.primary

    @property
    def sign(self) -> int:
        return 1 if self.primary in HIGHER else -1

    def target(self, masks: Tensor) -> Tensor:
        """(B, 1, 1, 1): 1 where any pixel of the slice, as the model sees it, is tumour."""
        return masks.amax((2, 3), keepdim=True)

    def validate(self, loader: SliceLoader, model: nn.Module, cases: Iterable[str]) -> float:
        judged = pd.concat(self._judged([model], loader, cases, 0.5), ignore_index=True)
        return SCORES[self.primary](Calls.of(judged))

    def threshold(self, loader: SliceLoader, model: nn.Module, cases: Iterable[str]) -> float:
        given = self.settings.threshold
        if given != "validation":
            return given
        judged = pd.concat(self._judged([model], loader, cases, 0.5))
        return best_threshold(judged["truth"].to_numpy(bool), judged["probability"].to_numpy(np.float64))

    def score(
        self, models: Sequence[nn.Module], loader: SliceLoader, cases: Iterable[str], threshold: float
    ) -> Iterator[tuple[CaseScore, Masks]]:
        for slices in self._judged(models, loader, cases, threshold):
            calls = Calls.of(slices)
            values = {score.__name__: score(calls) for score in (accuracy, sensitivity, specificity)}
            cells = confusion(slices).to_numpy().ravel().tolist()
            counts = dict(zip(("tp", "fn", "fp", "tn"), cells, strict=True))
            yield CaseScore(str(slices["case"].iloc[0]), values, counts, slices), Masks(())

    def summarise(
        self, cases: pd.DataFrame, slices: pd.DataFrame, *, with_interval: bool = True
    ) -> dict[str, float]:
        return summarise_calls(slices, with_interval=with_interval)

    def tables(self, slices: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        """`slices`, which a cascade needs; the confusion matrix, the report by class, the reliability curve."""
        return {
            "slices": slices,
            "confusion": confusion(slices).rename_axis("truth").reset_index(),
            "report": report_by_class(slices),
            "reliability": reliability(slices),
        }

    def pictures(
        self, pack: Pack, cases: pd.DataFrame, slices: pd.DataFrame, predictions: Mapping[str, Mask]
    ) -> Mapping[str, NDArray[np.uint8]]:
        return presence_pictures(slices, confusion(slices), reliability(slices))

    def _judged(
        self, models: Sequence[nn.Module], loader: SliceLoader, cases: Iterable[str], threshold: float
    ) -> Iterator[pd.DataFrame]:
        """A table a patient: case, slice, truth, probability, called."""
        index = loader.pack.index
        for case in sorted(cases):
            rows = loader.pack.rows([case])
            size = self.settings.batch_size
            found = predict(models, loader, rows, batch_size=size, precision=self.precision, shape=(1, 1))
            probability = found[:, 0, 0].astype(np.float64)  # as the threshold was chosen
            yield pd.DataFrame(
                {
                    "case": case,
                    "slice": index["slice"].to_numpy()[rows],
                    "truth": index["positive"].to_numpy()[rows],
                    "probability": probability,
                    "called": probability >= threshold,
                }
            )
