"""Augmentation: the `warp` of `bench` in one step, against the same three transforms of albumentations."""

from __future__ import annotations

from itertools import count

import albumentations as A
import numpy as np
import torch

from bench import registry
from bench.config import Input
from bench.data.loader import SliceLoader
from bench.data.slice_random import SliceRandom
from benchmarks.speed.figure import SpeedFigure, one_thread, race
from benchmarks.speed.problem import SpeedProblem

ROTATE, SCALE, ALPHA, SIGMA = 15.0, 0.1, 120.0, 6.0
OURS = {
    **{"flip": 0.5, "rotate": ROTATE, "scale": SCALE, "shift": 0},
    **{"elastic": 1, "elastic_alpha": ALPHA, "elastic_sigma": SIGMA},
}


def albumentations_warp() -> A.Compose:
    """Return the peer's transforms. The elastic noise is uniform, so that it displaces as strongly as ours."""
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-ROTATE, ROTATE), scale=(1 - SCALE, 1 + SCALE), p=1),
            A.ElasticTransform(alpha=ALPHA, sigma=SIGMA, noise_distribution="uniform", p=1),
        ],
        seed=0,
    )


def measure(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure slices with masks per second on one thread: ours float32 in batches, the peer's uint8 one by one."""
    loader = SliceLoader(problem.pack, Input(), torch.device("cpu"))
    warp = registry.augmentation["warp"].bind(OURS)
    batches = problem.batches(0)[:4]
    ready = [(*loader.load(rows), rows.tolist()) for rows in batches]
    pixels = [
        (np.array(problem.pack.images[row]), np.array(problem.pack.masks[row])) for rows in batches for row in rows
    ]
    epochs, transform = count(), albumentations_warp()

    def ours() -> int:
        epoch = next(epochs)
        return sum(len(warp(i, m, SliceRandom(0, epoch, rows))[0]) for i, m, rows in ready)

    def theirs() -> int:
        return len([transform(image=image, mask=mask) for image, mask in pixels])

    with one_thread():
        our_rates, their_rates = race(ours, theirs, repeats=problem.repeats)
    return [
        SpeedFigure("augment", "albumentations flip, affine, elastic", "images/s", our_rates, their_rates, gate=3)
    ]
