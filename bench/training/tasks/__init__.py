"""What a model is trained for: to segment the tumour, or to say whether a slice shows one.

The training loop, the folds and the recording are the same for every task; a `Task` is what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from bench.data.pack import Pack
from bench.inference.predict import Predictor
from bench.masks import Masks
from bench.types import CaseScore


class Task(Protocol):
    """How a model is trained, validated, scored and drawn."""

    @property
    def name(self) -> str:
        """'segmentation' or 'presence': the fact `task` of a model in the registry."""

    @property
    def segments(self) -> bool:
        """Whether it predicts masks, scored patient by patient; otherwise it classifies slices."""

    @property
    def output_shape(self) -> tuple[int, int] | None:
        """Height and width of a model's output where that is not the slice's."""

    @property
    def primary(self) -> str:
        """The score by which validation chooses."""

    @property
    def sign(self) -> int:
        """+1 where a higher primary score is better, otherwise -1."""

    def target(self, masks: Tensor) -> Tensor:
        """Return what the loss compares logits with, for masks (B, 1, H, W)."""

    def validate(self, predictor: Predictor, cases: Iterable[str]) -> float:
        """Return the primary score of validation patients at threshold 0.5."""

    def threshold(self, predictor: Predictor, cases: Iterable[str]) -> float:
        """Return the threshold that was set, or the best for these validation patients."""

    def score(
        self, predictor: Predictor, cases: Iterable[str], threshold: float
    ) -> Iterator[tuple[CaseScore, Masks]]:
        """Yield each patient's scores and predicted masks; a task without masks yields none."""

    def summarise(
        self, cases: pd.DataFrame, slices: pd.DataFrame, *, with_interval: bool = True
    ) -> dict[str, float]:
        """Return scores over all patients, from one row per patient and one row per slice."""

    def tables(self, slices: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        """Return further tables that a run logs, by name."""

    def pictures(
        self, pack: Pack, cases: pd.DataFrame, slices: pd.DataFrame, predictions: Mapping[str, NDArray[np.bool_]]
    ) -> Mapping[str, NDArray[np.uint8]]:
        """Return pictures that a run logs, RGB (H, W, 3), by name."""
