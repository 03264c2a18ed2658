"""What a model is asked for: an outline of the tumour, or whether a slice shows one.

The loop, the folds, the choosing and the recording are the same for every task; a `Task` is what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.masks import Masks
from bench.types import CaseScore


class Task(Protocol):
    """What is trained for, validated by, scored and drawn."""

    @property
    def name(self) -> str:
        """'segmentation' or 'presence': the fact `task` of a model in the registry."""

    @property
    def segments(self) -> bool:
        """Whether it predicts masks, scored patient by patient; else slices are called, scored all together."""

    @property
    def primary(self) -> str:
        """The score by which validation chooses."""

    @property
    def sign(self) -> int:
        """+1 where a higher primary score is better, else -1."""

    def target(self, masks: Tensor) -> Tensor:
        """What the loss compares logits with, of masks (B, 1, H, W)."""

    def validate(self, loader: SliceLoader, model: nn.Module, cases: Iterable[str]) -> float:
        """The primary score of validation patients at threshold 0.5."""

    def threshold(self, loader: SliceLoader, model: nn.Module, cases: Iterable[str]) -> float:
        """The threshold to use: the one that was set, or the best for these validation patients."""

    def score(
        self, models: Sequence[nn.Module], loader: SliceLoader, cases: Iterable[str], threshold: float
    ) -> Iterator[tuple[CaseScore, Masks]]:
        """Each patient's scores and predicted masks (none where the task has none), `models` averaged."""

    def summarise(
        self, cases: pd.DataFrame, slices: pd.DataFrame, *, with_interval: bool = True
    ) -> dict[str, float]:
        """What patients say together, from a row a patient and a row a slice."""

    def tables(self, slices: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
        """Tables of its own that a run should leave."""

    def pictures(
        self, pack: Pack, cases: pd.DataFrame, slices: pd.DataFrame, predictions: Mapping[str, NDArray[np.bool_]]
    ) -> Mapping[str, NDArray[np.uint8]]:
        """Pictures that a run should leave, RGB."""
