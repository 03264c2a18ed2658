"""Mirror, rotate, scale and bend: one warp, against the same three steps of albumentations."""

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


def peer() -> A.Compose:
    """Elastic noise is uniform, so that the displacement is as strong as ours."""
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-ROTATE, ROTATE), scale=(1 - SCALE, 1 + SCALE), p=1),
            A.ElasticTransform(alpha=ALPHA, sigma=SIGMA, noise_distribution="uniform", p=1),
        ],
        seed=0,
    )


def figures(given: SpeedProblem) -> list[SpeedFigure]:
    """Slices with masks a second, one thread each: ours float32 in batches, albumentations' uint8 one by one."""
    loader = SliceLoader(given.pack, Input(), torch.device("cpu"))
    change = registry.augmentation["warp"].bind(OURS)
    batches = given.batches(0)[:4]
    ready = [(*loader.unit(rows), rows.tolist()) for rows in batches]
    pixels = [
        (np.array(given.pack.images[row]), np.array(given.pack.masks[row])) for rows in batches for row in rows
    ]
    epochs, transform = count(), peer()

    def ours() -> int:
        epoch = next(epochs)
        return sum(len(change(i, m, SliceRandom(0, epoch, rows))[0]) for i, m, rows in ready)

    def theirs() -> int:
        return len([transform(image=image, mask=mask) for image, mask in pixels])

    with one_thread():
        fast, slow = race(ours, theirs, repeats=given.repeats)
    return [SpeedFigure("augment", "albumentations flip, affine, elastic", "images/s", fast, slow, gate=3)]
