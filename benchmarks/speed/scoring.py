"""Dice and HD95 of a patient: ours, against MONAI's and MedPy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from bench.metrics.overlap import dice
from bench.metrics.surface import hd95
from bench.training.tasks.segmentation import score_case
from bench.types import Stack
from benchmarks.speed.figure import SpeedFigure, one_thread, race
from benchmarks.speed.problem import SpeedProblem

Mask = NDArray[np.bool_]
Volume = tuple[Mask, NDArray[np.float32]]  # truth and probability, (S, H, W)
Scorer = Callable[[Any, Mask, Mask], tuple[float, float]]  # (peer's module, truth, prediction) -> Dice, HD95
TOLERANCE = 1e-6  # relative: MONAI computes in float32
MISSING = "not installed: pip install 'medseg-bench[peers]'"


def score_with_monai(metrics: Any, truth: Mask, prediction: Mask) -> tuple[float, float]:
    """Return Dice and mean HD95. The slices are one batch with one channel; for Dice, the volume is one item."""
    true, predicted = (torch.from_numpy(m)[:, None].float() for m in (truth, prediction))
    distance = metrics.compute_hausdorff_distance(predicted, true, include_background=True, percentile=95)
    overlap = metrics.compute_dice(predicted.transpose(0, 1)[None], true.transpose(0, 1)[None])
    return float(overlap), float(distance.mean())


def score_with_medpy(metrics: Any, truth: Mask, prediction: Mask) -> tuple[float, float]:
    """Return Dice of the volume and mean HD95, slice by slice since distances are in 2D."""
    distances = [metrics.hd95(p, t) for p, t in zip(prediction, truth, strict=True)]
    return float(metrics.dc(prediction, truth)), float(np.mean(distances))


@dataclass(frozen=True)
class ScoringPeer:
    """A library that scores volumes. `agrees`: its HD95 is defined as ours is."""

    name: str
    module: str
    score: Scorer
    gate: float
    agrees: bool
    note: str


PEERS = (
    ScoringPeer("MONAI", "monai.metrics", score_with_monai, 2.0, True, "the same values to 1e-6"),
    ScoringPeer(
        "MedPy",
        "medpy.metric.binary",
        score_with_medpy,
        10.0,
        False,
        "its percentile pools both directions: time only",
    ),
)


def measure(problem: SpeedProblem, peers: Sequence[ScoringPeer] = PEERS) -> list[SpeedFigure]:
    """Measure volumes per second on one thread: Dice of the volume and the mean 2D HD95 of its slices.

    Each side starts from a probability. Ours scores all slices by its conventions. The peers score only slices
    that both masks mark, since on an empty mask they warn, return NaN or raise. With a GPU, our distances are
    computed on it, as in a run.
    """
    volumes = [
        make_volume(problem.pack.masks[problem.pack.rows([case])].astype(bool)) for case in problem.pack.cases
    ]
    modules = {peer.name: module for peer in peers if (module := _import(peer.module)) is not None}
    installed = [peer for peer in peers if peer.name in modules]
    for peer in installed:
        if peer.agrees:
            check_agreement(peer.score, modules[peer.name], volumes)
    with one_thread():
        ours, *theirs = race(
            partial(score_volumes, volumes, str(problem.device)),
            *(partial(score_volumes_with, peer.score, modules[peer.name], volumes) for peer in installed),
            repeats=problem.repeats,
        )
    rates = {peer.name: peer_rates for peer, peer_rates in zip(installed, theirs, strict=True)}
    return [
        SpeedFigure(
            "eval",
            peer.name,
            "volumes/s",
            ours,
            rates.get(peer.name, ()),
            peer.gate,
            note=peer.note if peer.name in rates else MISSING,
        )
        for peer in peers
    ]


def score_volumes(volumes: Sequence[Volume], device: str = "cpu") -> int:
    """Score every volume as a run on this device does."""
    for truth, probability in volumes:
        stack = Stack(truth, probability, device=device)
        score_case("speed", range(1, len(truth) + 1), ["tumour"], [stack], {"dice": dice, "hd95": hd95})
    return len(volumes)


def score_volumes_with(scorer: Scorer, module: Any, volumes: Sequence[Volume]) -> int:
    """Score every volume with the peer."""
    for volume in volumes:
        truth, prediction = select_marked_slices(volume)
        if len(truth):
            scorer(module, truth, prediction)
    return len(volumes)


def make_volume(truth: Mask, seed: int = 0) -> Volume:
    """Return the truth and a plausible probability: shifted by a few pixels, with a smooth and uneven outline."""
    rng = np.random.default_rng(seed)
    blurred = gaussian_filter(np.roll(truth, (2, -3), (1, 2)).astype(np.float32), (0, 2, 2))
    ripple = gaussian_filter(rng.standard_normal(truth.shape, np.float32), (0, 4, 4))
    return truth, np.clip(blurred * (1 + 2 * ripple), 0, 1)


def select_marked_slices(volume: Volume) -> tuple[Mask, Mask]:
    """Return truth and prediction of the slices that both of them mark."""
    truth, prediction = volume[0], volume[1] >= 0.5
    both = truth.any((1, 2)) & prediction.any((1, 2))
    return truth[both], prediction[both]


def check_agreement(scorer: Scorer, module: Any, volumes: Sequence[Volume]) -> None:
    """Raise `AssertionError` unless the scorer's values equal ours on slices that both masks mark."""
    for volume in volumes:
        truth, prediction = select_marked_slices(volume)
        if len(truth):
            stack = Stack(truth, prediction.astype(np.float32))
            np.testing.assert_allclose(
                scorer(module, truth, prediction), (dice(stack), hd95(stack)), rtol=TOLERANCE
            )


def _import(module: str) -> Any | None:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        return None
