"""The objective of a trial: validation scores of inner folds, which split the development patients.

The test patients of the outer fold are in no inner fold, so they cannot influence a choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd
from optuna import Trial, TrialPruned

from bench.data.loader import SliceLoader
from bench.data.splits import patients
from bench.errors import TrainingError
from bench.experiments.search.space import Space, Value
from bench.training.execution import inference_costs
from bench.training.experiment import Experiment
from bench.training.fold import derive_seed
from bench.training.step import Execution
from bench.types import SILENT, Fold, Watch

COSTS = ("parameters", "flops", "latency")  # objectives beside the score; less is better


@dataclass(frozen=True)
class InnerFold:
    """Development patients in two parts: one to train on, one to score."""

    number: int
    train: frozenset[str]
    val: frozenset[str]


@dataclass(frozen=True)
class EpochScore:
    """The validation score after an epoch; `best` if it is better than after all epochs before."""

    epoch: int
    value: float
    best: bool
    patients: Mapping[str, float] = field(default_factory=dict)  # of a best epoch, if scores by patient are wanted


TrialEvaluator = Callable[..., Iterator[EpochScore]]  # with the arguments of `train_and_validate`


def inner_folds(index: pd.DataFrame, outer: Fold, count: int, seed: int) -> tuple[Fold, ...]:
    """Return folds grouped by patient among all patients but the outer test patients."""
    return tuple(patients(index[~index["case"].isin(outer.test)], folds=count, seed=seed))


def train_and_validate(
    experiment: Experiment,
    fold: InnerFold,
    loader: SliceLoader,
    *,
    execution: Execution,
    per_patient: bool,
    watch: Watch = SILENT,
) -> Iterator[EpochScore]:
    """Train on the fold's training patients; after each epoch, yield the score of its validation patients.

    With `per_patient`, an epoch that is the best so far also has the score of every validation patient.
    """
    task, settings = experiment.task, experiment.config.train
    seed = derive_seed(experiment.config.seed, "search", fold.number)
    model = experiment.model(seed)
    predictor = experiment.predictor([model], loader)
    scores: list[float] = []
    best = 0
    rows = experiment.pack.rows(fold.train)
    for epoch in experiment.train(model, loader, rows, seed=seed, scores=scores, execution=execution, watch=watch):
        value = task.validate(predictor, fold.val)
        scores.append(task.sign * value)
        if not best or math.isnan(scores[best - 1]) or scores[-1] > scores[best - 1]:
            best = epoch.number
        is_best = best == epoch.number
        cases = sorted(fold.val) if per_patient and is_best else ()
        watch.epoch(epoch.number, settings.epochs, epoch.loss, value)
        yield EpochScore(epoch.number, value, is_best, {case: task.validate(predictor, [case]) for case in cases})
        if settings.patience is not None and len(scores) - best >= settings.patience:
            return


@dataclass(frozen=True)
class Objective:
    """The mean over inner folds of the best epoch's validation score, then the costs of the plan.

    `resolve` makes an experiment of chosen values. The pruner 'wilcoxon' gets every patient's score after each
    inner fold, with the patient's number as its step; the others get the score of every epoch of the first fold.
    """

    space: Space
    resolve: Callable[[Mapping[str, Value]], Experiment]
    folds: tuple[Fold, ...]
    pruner: str
    costs: tuple[str, ...]
    execution: Execution
    evaluator: TrialEvaluator = train_and_validate
    watch: Watch = SILENT

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        experiment = replace(self.resolve(self.space.suggest(trial)), folds=self.folds)
        loader = SliceLoader(experiment.pack, experiment.config.input, experiment.device)
        measured = inference_costs(experiment, loader) if {"flops", "latency"} & set(self.costs) else {}
        flops, latency = (measured.get(key, math.nan) for key in ("flops", "latency_p50_ms"))
        costs = {"parameters": experiment.parameters, "flops": flops, "latency": latency}
        means = []
        for fold in self.folds:
            inner = InnerFold(fold.number, fold.train | fold.val, fold.test)
            best = self._run_fold(trial, experiment, inner, loader)
            means.append(best.value)
            trial.set_user_attr("folds", means)
            for number, case in enumerate(sorted(inner.train | inner.val)):
                if math.isfinite(best.patients.get(case, math.nan)):
                    trial.report(best.patients[case], number)
            if best.patients and fold is not self.folds[-1] and trial.should_prune():
                raise TrialPruned
        return (sum(means) / len(means), *(float(costs[name]) for name in self.costs))

    def _run_fold(self, trial: Trial, experiment: Experiment, fold: InnerFold, loader: SliceLoader) -> EpochScore:
        """Return the score of the best epoch of an inner fold."""
        per_epoch = self.pruner in ("median", "hyperband") and fold.number == 0
        images = len(experiment.pack.rows(fold.train)) * experiment.config.train.epochs
        self.watch.fold(fold.number, len(self.folds), images)
        best: EpochScore | None = None
        per_patient = self.pruner == "wilcoxon"
        for score in self.evaluator(
            experiment, fold, loader, execution=self.execution, per_patient=per_patient, watch=self.watch
        ):
            if score.best:
                best = score
            if per_epoch and math.isfinite(score.value):
                trial.report(score.value, score.epoch)
                if trial.should_prune():
                    raise TrialPruned
        if best is None or math.isnan(best.value):
            raise TrainingError(
                f"the validation {experiment.task.primary} of inner fold {fold.number} is not defined. "
                "Give fewer --inner."
            )
        return best
