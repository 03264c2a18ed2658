"""Resolve a search plan: load and check everything that it names before any trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna import Study

from bench.config import RunConfig
from bench.console import Display
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.errors import BadSetting
from bench.experiments.search.objective import Objective, TrialEvaluator, inner_folds
from bench.experiments.search.plan import SearchPlan, make_pruner, make_sampler
from bench.experiments.search.space import Space, Value, build_space
from bench.overrides import configure
from bench.tracking.resume import digest, hash_code
from bench.training.execution import choose_execution
from bench.training.experiment import Experiment, resolve, task_of
from bench.types import Fold


@dataclass(frozen=True)
class ResolvedSearch:
    """A plan with its space and the experiment of its base settings, loaded and checked.

    `machine` holds settings that may differ between machines: folder and device.
    """

    plan: SearchPlan
    machine: Mapping[str, Any]
    space: Space
    experiment: Experiment

    @property
    def outer_fold(self) -> Fold:
        return next(f for f in self.experiment.folds if f.number == self.plan.fold)

    @property
    def dependencies(self) -> dict[str, str]:
        """What the trials depend on beside the plan."""
        return {
            "data": self.experiment.pack.manifest.key,
            "split": self.experiment.split_hash,
            "code": digest(hash_code(self.experiment.config, also=("experiments/search",))),
        }

    def configure(self, chosen: Mapping[str, Value]) -> RunConfig:
        """Return the settings of a trial. Raises `BadSetting` if they are scored differently from the base."""
        config = configure(*self.plan.base, self.machine, chosen)
        task, base = task_of(config), self.experiment.task
        if (task.name, task.primary) != (base.name, base.primary):
            raise BadSetting(f"it is scored by {task.primary}, the base by {base.primary}. Search one of them.")
        return config

    def make_objective(self, evaluator: TrialEvaluator, display: Display) -> Objective:
        """Return the objective of the trials, which has only inner folds."""
        config = self.experiment.config
        configure_torch(self.experiment.device, deterministic=config.train.deterministic, threads=config.threads)
        seed = int(config.split.params.get("seed", 0))
        folds = inner_folds(self.experiment.pack.index, self.outer_fold, self.plan.inner, seed)
        inner = replace(self.experiment, folds=folds)
        return Objective(
            space=self.space,
            resolve=lambda chosen: resolve(self.configure(chosen)),
            folds=folds,
            pruner=self.plan.pruner,
            costs=self.plan.costs,
            execution=choose_execution(inner, SliceLoader(inner.pack, config.input, inner.device)).execution,
            evaluator=evaluator,
            watch=display,
        )

    def set_sampler_and_pruner(self, study: Study) -> None:
        """Give a study its sampler and pruner, which the storage does not keep."""
        epochs = self.space.dimensions.get("train.epochs")
        ends = epochs.ends if epochs else [self.experiment.config.train.epochs]
        max_epochs = max(end for end in ends if isinstance(end, int))
        study.sampler, study.pruner = make_sampler(self.plan), make_pruner(self.plan, max_epochs)


def resolve_search(plan: SearchPlan, machine: Mapping[str, Any], display: Display) -> ResolvedSearch:
    """Load and check everything in a plan. Raises `BenchError`."""
    space = build_space(plan.space)
    experiment = resolve(configure(*plan.base, machine), only=plan.fold, watch=display)
    if experiment.leaky:
        raise BadSetting(
            f"split={experiment.config.split.name} leaks: its scores cannot choose settings. Use split=patients."
        )
    plan = plan.check(experiment.task.primary, experiment.task.name)
    resolved = ResolvedSearch(plan, machine, space, experiment)
    space.check(resolved.configure)
    if plan.sampler == "grid":
        space.grid()  # raises where a range has no step
    return resolved
