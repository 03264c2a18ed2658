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

from bench.inference.scoring import score_case
from bench.metrics.overlap import dice
from bench.metrics.surface import hd95
from bench.types import Stack
from benchmarks.speed.figure import SpeedFigure, one_thread, race
from benchmarks.speed.problem import SpeedProblem

Mask = NDArray[np.bool_]
Volume = tuple[Mask, NDArray[np.float32]]  # truth and probability, (S, H, W)
Scorer = Callable[[Any, Mask, Mask], tuple[float, float]]  # the peer's module, truth, prediction -> Dice, HD95
TOLERANCE = 1e-6  # relative: MONAI computes in float32
MISSING = "not installed: pip install 'medseg-bench[peers]'"


def monai(metrics: Any, truth: Mask, prediction: Mask) -> tuple[float, float]:
    """All slices as one batch of one channel; for Dice, the volume as one item."""
    true, found = (torch.from_numpy(m)[:, None].float() for m in (truth, prediction))
    distance = metrics.compute_hausdorff_distance(found, true, include_background=True, percentile=95)
    overlap = metrics.compute_dice(found.transpose(0, 1)[None], true.transpose(0, 1)[None])
    return float(overlap), float(distance.mean())


def medpy(metrics: Any, truth: Mask, prediction: Mask) -> tuple[float, float]:
    """HD95 slice by slice, since distances are in 2D; Dice of the volume."""
    distances = [metrics.hd95(p, t) for p, t in zip(prediction, truth, strict=True)]
    return float(metrics.dc(prediction, truth)), float(np.mean(distances))


@dataclass(frozen=True)
class Peer:
    """A library that scores volumes. `agrees` when its HD95 is defined as ours is."""

    name: str
    module: str
    score: Scorer
    gate: float
    agrees: bool
    note: str


PEERS = (
    Peer("MONAI", "monai.metrics", monai, 2.0, True, "the same values to 1e-6"),
    Peer("MedPy", "medpy.metric.binary", medpy, 10.0, False, "its percentile pools both directions: time only"),
)


def figures(given: SpeedProblem, peers: Sequence[Peer] = PEERS) -> list[SpeedFigure]:
    """Volumes a second, one thread: Dice of the volume and the mean over its slices of the 2D HD95.

    Each side starts from a probability. The peers are given only the slices that both masks mark, since on an
    empty one they warn, answer NaN or raise; ours scores all slices, by its conventions. With a GPU, our distances
    are found there, as in a run.
    """
    volumes = [predicted(given.pack.masks[given.pack.rows([case])].astype(bool)) for case in given.pack.cases]
    modules = {peer.name: module for peer in peers if (module := _installed(peer.module)) is not None}
    there = [peer for peer in peers if peer.name in modules]
    for peer in there:
        if peer.agrees:
            agree(peer.score, modules[peer.name], volumes)
    with one_thread():
        ours, *theirs = race(
            partial(score, volumes, str(given.device)),
            *(partial(score_with, peer.score, modules[peer.name], volumes) for peer in there),
            repeats=given.repeats,
        )
    found = {peer.name: rates for peer, rates in zip(there, theirs, strict=True)}
    return [
        SpeedFigure("eval", p.name, "volumes/s", ours, found[p.name], p.gate, note=p.note)
        if p.name in found
        else SpeedFigure("eval", p.name, "volumes/s", ours, (), p.gate, note=MISSING)
        for p in peers
    ]


def score(volumes: Sequence[Volume], device: str = "cpu") -> int:
    """Our side: every volume as a run on this device scores it."""
    for truth, probability in volumes:
        stack = Stack(truth, probability, device=device)
        score_case("speed", range(1, len(truth) + 1), stack, {"dice": dice, "hd95": hd95})
    return len(volumes)


def score_with(scorer: Scorer, module: Any, volumes: Sequence[Volume]) -> int:
    """Their side."""
    for volume in volumes:
        truth, prediction = shared(volume)
        if len(truth):
            scorer(module, truth, prediction)
    return len(volumes)


def predicted(truth: Mask, seed: int = 0) -> Volume:
    """A truth and a plausible probability of it: moved by some pixels, its outline smooth and uneven."""
    rng = np.random.default_rng(seed)
    near = gaussian_filter(np.roll(truth, (2, -3), (1, 2)).astype(np.float32), (0, 2, 2))
    ripple = gaussian_filter(rng.standard_normal(truth.shape, np.float32), (0, 4, 4))
    return truth, np.clip(near * (1 + 2 * ripple), 0, 1)


def shared(volume: Volume) -> tuple[Mask, Mask]:
    """Truth and prediction of the slices that both mark."""
    truth, prediction = volume[0], volume[1] >= 0.5
    both = truth.any((1, 2)) & prediction.any((1, 2))
    return truth[both], prediction[both]


def agree(scorer: Scorer, module: Any, volumes: Sequence[Volume]) -> None:
    """Raise `AssertionError` unless the scorer finds what we find, where both masks mark something."""
    for volume in volumes:
        truth, prediction = shared(volume)
        if len(truth):
            stack = Stack(truth, prediction.astype(np.float32))
            found = scorer(module, truth, prediction)
            np.testing.assert_allclose(found, (dice(stack), hd95(stack)), rtol=TOLERANCE)


def _installed(module: str) -> Any | None:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        return None
