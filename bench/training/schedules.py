"""Learning-rate schedules: functions that return the factor on the base rate.

A schedule is a pure function of `progress`, the share of training steps done (0 to 1), and of `scores`, the
validation score after each finished epoch (higher is better). It has no state to save when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, pow
from typing import Annotated

from pydantic import Field

from bench.registry import schedule

Share = Annotated[float, Field(ge=0, le=1)]
Inner = Annotated[float, Field(ge=1e-6, lt=1)]  # a share that is neither none nor all
Power = Annotated[float, Field(ge=0.01, le=100)]
Ratio = Annotated[float, Field(ge=1, le=1e9)]


@schedule
def constant(progress: float, scores: Sequence[float]) -> float:
    """Constant learning rate: always the base rate."""
    return 1.0


@schedule
def cosine(progress: float, scores: Sequence[float], *, floor: Share = 0.0) -> float:
    """Half a cosine from the base rate down to `floor` times it (Loshchilov and Hutter 2017, without restarts)."""
    return _ease(1.0, floor, progress)


@schedule
def poly(progress: float, scores: Sequence[float], *, power: Power = 0.9) -> float:
    """Polynomial decay (1 - progress) ** `power`, as in DeepLab (Chen et al. 2018) and nnU-Net."""
    return pow(max(0.0, 1 - progress), power)


@schedule
def one_cycle(
    progress: float, scores: Sequence[float], *, rise: Inner = 0.3, start_div: Ratio = 25.0, final_div: Ratio = 1e4
) -> float:
    """One cycle: half a cosine up to the base rate, then half a cosine down to almost zero (Smith 2018).

    The peak is the base rate, reached after the share `rise` of the steps. The cycle starts at 1 / `start_div`
    of the peak and ends at 1 / (`start_div` * `final_div`) of it. Momentum does not change.
    """
    start = 1 / start_div
    if progress < rise:
        return _ease(start, 1.0, progress / rise)
    return _ease(1.0, start / final_div, (progress - rise) / (1 - rise))


@schedule
def plateau(
    progress: float,
    scores: Sequence[float],
    *,
    factor: Inner = 0.1,
    patience: Annotated[int, Field(ge=0, le=100_000)] = 10,
    floor: Share = 0.0,
    threshold: Annotated[float, Field(ge=0, le=1)] = 1e-4,
) -> float:
    """Multiply the rate by `factor` when the validation score has not improved for more than `patience` epochs.

    A score improves if it exceeds best * (1 + `threshold`), as in torch's ReduceLROnPlateau; NaN does not. The
    rate stays at or above `floor` times the base rate. All scores are read again at each call: there is no state.
    """
    rate, best, stale_epochs = 1.0, float("-inf"), 0
    for score in scores:
        if score > best * (1 + threshold):
            best, stale_epochs = score, 0
        else:
            stale_epochs += 1
        if stale_epochs > patience:
            rate, stale_epochs = max(rate * factor, floor), 0
    return rate


def _ease(start: float, end: float, progress: float) -> float:
    """Interpolate by half a cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * (1 + cos(pi * min(max(progress, 0.0), 1.0))) / 2
