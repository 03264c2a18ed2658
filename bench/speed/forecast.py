"""What a whole suite would cost, from the seconds an image of some models: the scheduler, played through."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import product
from statistics import NormalDist

import numpy as np
import pandas as pd

from bench.config import Train
from bench.scheduling import Job, Policy, next_job, simulate

# What a forecast assumes.
# Seconds an image of seven models (U-Net 32 and 64, ResUNet, Attention U-Net, U-Net over ResNet50 and over
# EfficientNet-B0, SegFormer B2) at half of their fused roof on an H200.
PLAN = tuple(1 / rate for rate in (2640, 910, 750, 670, 2775, 4740, 2570))
LGG_SLICES = 3929  # the other data sets are taken to be as large
PREDICTION = 1 / 3  # of a training step: forward alone; backward is twice that
STARTUP = 30.0  # s: a process that imports torch, smp and mlflow on a new machine; a guess
LOAD = 10.0  # s: a pack of 1 GB from disk to the GPU; a guess
DAILY = 1 / 24  # deaths an hour: each worker once a day, as machines that may be taken back do; a guess


def costs(frame: pd.DataFrame) -> list[float]:
    """Seconds an image of the models that were measured."""
    return [1 / rate for rate in frame.loc[frame["axis"] == "models", "images_per_second"]]


def log_normal(measured: Iterable[float], count: int) -> list[float]:
    """Costs of `count` architectures: the middles of equal shares of the log-normal that fits the measured ones.

    No random sample, so that two forecasts differ by what they assume and not by luck.
    """
    logs = np.log(list(measured))
    middles = [NormalDist().inv_cdf((place + 0.5) / count) for place in range(count)]
    return [float(np.exp(logs.mean() + logs.std() * z)) for z in middles]


def cells(
    per_image: Sequence[float], slices: Sequence[int], *, folds: int, seeds: int, epochs: int, val: float = 0.2
) -> list[Job]:
    """Every architecture on every data set, fold and seed; `val` is its share of the slices that do not test."""
    seen = epochs * (1 - 1 / folds) * (1 - val + val * PREDICTION) + PREDICTION / folds
    return [
        Job(f"data {d}, architecture {m}, fold {fold}, seed {seed}", cost * n * seen, f"data {d}")
        for d, n in enumerate(slices)
        for m, cost in enumerate(per_image)
        for fold in range(folds)
        for seed in range(seeds)
    ]


def forecast(
    measured: Iterable[float] = PLAN,
    *,
    architectures: int = 100,
    slices: Sequence[int] = (LGG_SLICES,) * 10,
    folds: int = 5,
    seeds: int = 3,
    epochs: int = Train().epochs,
    workers: Sequence[int] = (1, 8, 32, 128),
    startup: float = STARTUP,
    load: float = LOAD,
    loss_rate: float = DAILY,
    seed: int = 0,
) -> pd.DataFrame:
    """What all cells of a suite take, from the seconds an image of some architectures: the plan, or `costs`.

    A row for each number of workers, order and kind of loss: makespan in `days`, mean `busy` share, `gpu_hours`
    (all workers are held until the last cell is done), `lost_hours` of work that was done again. One cell a GPU at
    a time, each at full length; `loss_rate` is deaths an hour and worker. Arbitrary order takes any job, whatever
    data set the worker holds.
    """
    jobs = cells(log_normal(measured, architectures), slices, folds=folds, seeds=seeds, epochs=epochs)
    rng = random.Random(seed)
    orders: dict[str, Policy] = {
        "longest first": next_job,
        "arbitrary": lambda waiting, held, load: rng.randrange(len(waiting)),
    }
    losses = {"none": (0.0, 1.0), "saved each epoch": (loss_rate, 1 / epochs), "never saved": (loss_rate, 1.0)}
    rows = []
    for count, order, loss in product(workers, orders, losses):
        rate, step = losses[loss]
        options = {"startup": startup, "load": load, "loss_rate": rate, "checkpoint": step}
        done = simulate(jobs, count, seed=seed, choose=orders[order], **options)
        what = {"workers": count, "order": order, "losses": loss}
        times = {"days": done.makespan / 86400, "busy": sum(done.busy) / count}
        hours = {"gpu_hours": count * done.makespan / 3600, "lost_hours": done.lost / 3600}
        rows.append(what | times | hours)
    return pd.DataFrame(rows)
