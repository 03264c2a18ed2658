"""A small search plan, and stand-ins for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import optuna

from bench.experiments.search.objective import EpochScore
from bench.experiments.search.plan import SearchPlan, make_plan
from bench.experiments.search.storage import COUNTED

BASE = {
    "dataset": {"name": "phantom", "patients": 9, "size": 32, "slices": 6, "institutions": 2},
    "split": {"name": "patients", "folds": 3},
    "model": {"name": "unet", "base": 4, "depth": 2},
    "train": {"epochs": 1, "batch_size": 4},
}
SPACE = {"train.lr": "1e-4..1e-2 log", "loss": ["bce_dice", "dice"]}


def small_plan(**changes: object) -> SearchPlan:
    return make_plan(**{"base": [BASE], "space": SPACE, "inner": 2, "trials": 3, "sampler": "random", **changes})


def draw_x(trial: optuna.Trial) -> tuple[float, ...]:
    """An objective: the value of x, between 0 and 1."""
    return (trial.suggest_float("x", 0, 1),)


def points(study: optuna.Study) -> list[dict[str, Any]]:
    """The settings of the trials that count."""
    return [t.params for t in study.get_trials(states=COUNTED)]


def epochs(*values: float) -> list[EpochScore]:
    return [EpochScore(n, value, value > max(values[: n - 1], default=-1)) for n, value in enumerate(values, 1)]


def scripted(scores: dict[int, list[EpochScore]]) -> Callable[..., Iterator[EpochScore]]:
    """An evaluator that trains nothing and yields these scores of each inner fold."""
    return lambda experiment, fold, loader, **more: iter(scores[fold.number])


class FakeEvaluator:
    """An evaluator that remembers every patient it was given, and prefers a learning rate of 1e-3."""

    def __init__(self) -> None:
        self.patients: set[str] = set()
        self.calls = 0

    def __call__(self, experiment, fold, loader, **more) -> Iterator[EpochScore]:
        self.calls += 1
        for part in (*experiment.folds, SimpleNamespace(train=fold.train, val=fold.val, test=set())):
            self.patients |= part.train | part.val | part.test
        yield EpochScore(1, 1 - abs(math.log10(experiment.config.train.lr) + 3), True)
