"""Presence: does a slice show tumour (any structure)? One logit per slice, scored over slices, with intervals
over patients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from bench.config import Evaluate
from bench.data.pack import Pack
from bench.errors import BadSetting, did_you_mean
from bench.inference.predict import Predictor
from bench.masks import Mask, Masks
from bench.metrics import classification
from bench.metrics.classification import SCORES, Calls, confusion_matrix
from bench.training.plots import presence_pictures
from bench.types import CaseScore


@dataclass(frozen=True)
class Presence:
    """The task of classifiers. Raises `BadSetting` for settings that have no meaning here."""

    settings: Evaluate
    name: ClassVar[str] = "presence"
    segments: ClassVar[bool] = False
    output_shape: ClassVar[tuple[int, int]] = (1, 1)

    def __post_init__(self) -> None:
        if self.primary not in SCORES:
            raise BadSetting(
                f"evaluate.primary = '{self.primary}' is no score of a presence model; there are "
                f"{', '.join(SCORES)}.{did_you_mean(self.primary, SCORES)}"
            )
        if self.settings.metrics:
            raise BadSetting(
                "evaluate.metrics chooses among segmentation metrics, and a presence model always gets all of its "
                "own scores. Leave it out."
            )

    @property
    def primary(self) -> str:
        return self.settings.primary

    @property
    def sign(self) -> int:
        return 1 if self.primary in classification.HIGHER else -1

    def target(self, masks: Tensor) -> Tensor:
        """Return (B, 1, 1, 1): 1 where any pixel of the slice, as the model sees it, is in a structure."""
        return masks.amax((1, 2, 3), keepdim=True)

    def validate(self, predictor: Predictor, cases: Iterable[str]) -> float:
        return SCORES[self.primary](Calls.from_table(pd.concat(_classify(predictor, cases, 0.5))))

    def thresholds(self, predictor: Predictor, cases: Iterable[str]) -> tuple[float]:
        if self.settings.threshold != "validation":
            return (self.settings.threshold,)
        slices = pd.concat(_classify(predictor, cases, 0.5))
        truth, probability = slices["truth"].to_numpy(bool), slices["probability"].to_numpy(np.float64)
        return (classification.best_threshold(truth, probability),)

    def score(
        self, predictor: Predictor, cases: Iterable[str], thresholds: Sequence[float]
    ) -> Iterator[tuple[CaseScore, Masks]]:
        for slices in _classify(predictor, cases, thresholds[0]):
            calls = Calls.from_table(slices)
            values = {name: SCORES[name](calls) for name in ("accuracy", "sensitivity", "specificity")}
            cells = confusion_matrix(slices).to_numpy().ravel().tolist()
            counts = dict(zip(("tp", "fn", "fp", "tn"), cells, strict=True))
            yield CaseScore(str(slices["case"].iloc[0]), values, counts, slices), Masks(())

    def summarise(
        self, cases: pd.DataFrame, slices: pd.DataFrame, *, with_interval: bool = True
    ) -> dict[str, float]:
        return classification.summarise_calls(slices, with_interval=with_interval)

    def tables(self, slices: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        """Return the slices, which a cascade needs, confusion matrix, report by class and reliability curve."""
        return {
            "slices": slices,
            "confusion": confusion_matrix(slices).rename_axis("truth").reset_index(),
            "report": classification.report_by_class(slices),
            "reliability": classification.reliability_curve(slices),
        }

    def pictures(
        self, pack: Pack, cases: pd.DataFrame, slices: pd.DataFrame, predictions: Mapping[str, Mask]
    ) -> Mapping[str, NDArray[np.uint8]]:
        return presence_pictures(slices, confusion_matrix(slices), classification.reliability_curve(slices))


def _classify(predictor: Predictor, cases: Iterable[str], threshold: float) -> Iterator[pd.DataFrame]:
    """Yield one table per patient: case, slice, truth, probability, called."""
    index = predictor.pack.index
    for case in sorted(cases):
        rows = predictor.pack.rows([case])
        # float64, so that it compares with the threshold as when that was chosen
        probability = predictor.probabilities(rows, Presence.output_shape)[:, 0, 0, 0].astype(np.float64)
        yield pd.DataFrame(
            {
                "case": case,
                "slice": index["slice"].to_numpy()[rows],
                "truth": index["positive"].to_numpy()[rows],
                "probability": probability,
                "called": probability >= threshold,
            }
        )
