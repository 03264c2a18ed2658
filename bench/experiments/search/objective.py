"""What a trial is judged by: validation scores of inner folds, made among development patients alone.

The test patients of the outer fold are in none of them, so that no choice can be made by what they show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from optuna import Trial, TrialPruned

from bench.data.loader import SliceLoader
from bench.data.splits import patients
from bench.errors import TrainingError
from bench.experiments.search.space import Space, Value
from bench.training.experiment import Experiment
from bench.training.fold import derive_seed
from bench.training.inference_cost import inference_costs
from bench.training.step import Execution
from bench.types import SILENT, Fold, Watch

COSTS = ("parameters", "flops", "latency")  # objectives beside the score: less is better


@dataclass(frozen=True)
class InnerFold:
    """An inner fold: some development patients fit, the others say how well."""

    number: int
    train: frozenset[str]
    val: frozenset[str]


@dataclass(frozen=True)
class EpochScore:
    """What validation patients say after an epoch; `best` when better than all epochs before."""

    epoch: int
    value: float
    best: bool
    patients: Mapping[str, float] = field(default_factory=dict)  # of a best one, where each patient was asked for


TrialEvaluator = Callable[..., Iterator[EpochScore]]  # with the arguments of `validated`


def inner_folds(index: pd.DataFrame, outer: Fold, count: int, seed: int) -> tuple[Fold, ...]:
    """Grouped folds among all patients but the outer test patients."""
    return tuple(patients(index[~index["case"].isin(outer.test)], folds=count, seed=seed))


def validated(
    experiment: Experiment,
    part: InnerFold,
    loader: SliceLoader,
    *,
    execution: Execution,
    each: bool,
    watch: Watch = SILENT,
) -> Iterator[EpochScore]:
    """Train on the part's training patients; after each epoch, what its validation patients say.

    `each` asks for a score of every validation patient as well, whenever an epoch is the best so far.
    """
    task, settings = experiment.task, experiment.config.train
    seed = derive_seed(experiment.config.seed, "search", part.number)
    model = experiment.model(seed)
    scores: list[float] = []
    best = 0
    rows = experiment.pack.rows(part.train)
    for epoch in experiment.train(model, loader, rows, seed=seed, scores=scores, execution=execution, watch=watch):
        value = task.validate(loader, model, part.val)
        scores.append(task.sign * value)
        if not best or math.isnan(scores[best - 1]) or scores[-1] > scores[best - 1]:
            best = epoch.number
        leads = best == epoch.number
        asked = sorted(part.val) if each and leads else ()
        watch.epoch(epoch.number, settings.epochs, epoch.loss, value)
        yield EpochScore(
            epoch.number, value, leads, {case: task.validate(loader, model, [case]) for case in asked}
        )
        if settings.patience is not None and len(scores) - best >= settings.patience:
            return


@dataclass(frozen=True)
class Objective:
    """The mean over inner folds of the best epoch's validation score, then the costs that are asked for.

    `resolved` makes a experiment of chosen values. With the pruner 'wilcoxon' every patient's score is reported after
    each inner fold, under the patient's number; with another, every epoch's score in the first inner fold.
    """

    space: Space
    resolved: Callable[[Mapping[str, Value]], Experiment]
    folds: tuple[Fold, ...]
    pruner: str
    costs: tuple[str, ...]
    execution: Execution
    judge: TrialEvaluator = validated
    watch: Watch = SILENT

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        experiment = replace(self.resolved(self.space.suggest(trial)), folds=self.folds)
        loader = SliceLoader(experiment.pack, experiment.config.input, experiment.device)
        costs = self._measured(experiment, loader)
        means = []
        for fold in self.folds:
            part = InnerFold(fold.number, fold.train | fold.val, fold.test)
            found = self._fold(trial, experiment, part, loader)
            means.append(found.value)
            trial.set_user_attr("folds", means)
            for number, case in enumerate(sorted(part.train | part.val)):
                if math.isfinite(found.patients.get(case, math.nan)):
                    trial.report(found.patients[case], number)
            if found.patients and fold is not self.folds[-1] and trial.should_prune():
                raise TrialPruned
        return (sum(means) / len(means), *costs)

    def _fold(self, trial: Trial, experiment: Experiment, part: InnerFold, loader: SliceLoader) -> EpochScore:
        """The best pass of an inner fold."""
        each, early = self.pruner == "wilcoxon", self.pruner in ("median", "hyperband") and part.number == 0
        images = len(experiment.pack.rows(part.train)) * experiment.config.train.epochs
        self.watch.fold(part.number, len(self.folds), images)
        found: EpochScore | None = None
        for one in self.judge(experiment, part, loader, execution=self.execution, each=each, watch=self.watch):
            if one.best:
                found = one
            if early and math.isfinite(one.value):
                trial.report(one.value, one.epoch)
                if trial.should_prune():
                    raise TrialPruned
        if found is None or math.isnan(found.value):
            raise TrainingError(
                f"the validation {experiment.task.primary} of inner fold {part.number} is not defined. "
                "Give fewer --inner."
            )
        return found

    def _measured(self, experiment: Experiment, loader: SliceLoader) -> list[float]:
        measured = inference_costs(experiment, loader) if {"flops", "latency"} & set(self.costs) else {}
        known: dict[str, Any] = {
            "parameters": experiment.parameters,
            "flops": measured.get("flops"),
            "latency": measured.get("latency_p50_ms"),
        }
        return [float(known[name]) for name in self.costs]
