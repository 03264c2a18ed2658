"""A search plan: its sampler and pruner, and everything that it names, loaded and checked before any trial."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from pydantic import Field, ValidationError

from bench.config import RunConfig
from bench.console import Display
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.errors import BadSetting
from bench.experiments.search.objective import COSTS, Objective, TrialEvaluator, inner_folds
from bench.experiments.search.space import Space, Value, build_space
from bench.overrides import configure
from bench.settings import Settings
from bench.tracking.resume import digest, hash_code
from bench.training.execution import choose_execution
from bench.training.experiment import Experiment, resolve, task_of
from bench.training.fold import derive_seed
from bench.types import Fold

RETRY_HISTORY = "retry_history"  # Optuna's name of the attribute: numbers of the trials that a trial repeats


class SearchPlan(Settings):
    """Everything that decides the trials of a study: `base` in layers of settings, `space` as in a search file."""

    base: tuple[dict[str, Any], ...] = ()
    space: dict[str, Any]
    trials: int = Field(20, ge=1, le=10**6)
    fold: int = 0
    inner: int = Field(3, ge=2, le=10_000)
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "wilcoxon"] = "none"
    objectives: tuple[str, ...] = ()  # empty: the primary score alone
    seed: int = Field(0, ge=0, lt=2**32)  # of the sampler

    @property
    def costs(self) -> tuple[str, ...]:
        return self.objectives[1:]

    def check(self, primary: str, task: str) -> SearchPlan:
        """Return the plan with its objectives filled in. Raises `BadSetting` for conflicting options."""
        objectives = self.objectives or (primary,)
        if objectives[0] != primary or not set(objectives[1:]) <= set(COSTS):
            raise BadSetting(
                f"--objectives {','.join(objectives)} is not valid: the first must be {primary}, the validation "
                f"score; the others are costs: {', '.join(COSTS)}. Choose another by --set evaluate.primary=..."
            )
        if len(objectives) > 1 and self.pruner != "none":
            raise BadSetting("trials with several objectives cannot be pruned. Leave out --pruner.")
        if len(objectives) > 1 and self.sampler == "cmaes":
            raise BadSetting("the sampler cmaes supports one objective only. Give --sampler tpe.")
        if self.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise BadSetting("the sampler cmaes needs the package cmaes: pip install cmaes.")
        if self.pruner == "wilcoxon" and task != "segmentation":
            raise BadSetting(
                "the pruner wilcoxon compares the scores of single patients, and a presence model has none: it is "
                "scored over the slices of all patients. Give --pruner median."
            )
        return self.model_copy(update={"objectives": objectives})


def make_plan(**settings: Any) -> SearchPlan:
    """Return a plan of plain values. Raises `BadSetting`."""
    try:
        return SearchPlan.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadSetting(f"{first['loc'][0]} = {first['input']!r} is not valid: {first['msg']}.") from None


class PlaceSeededSampler(BaseSampler):
    """Create the sampler again for every trial, seeded by the trial's place among those that repeat no other.

    A place belongs to one trial, whichever worker runs it: no two workers draw the same values, and a trial that
    repeats an interrupted one draws its values again. A resumed study with one worker therefore runs the same
    trials as an uninterrupted one.
    """

    def __init__(self, make: Callable[..., BaseSampler], seed: int) -> None:
        self._make, self._seed, self._sampler = make, seed, make(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        trials = study.get_trials(deepcopy=False)
        original = trial.system_attrs.get(RETRY_HISTORY, [trial.number])[0]
        place = sum(t.number < original and RETRY_HISTORY not in t.system_attrs for t in trials)
        self._sampler = self._make(seed=derive_seed(self._seed, place) % 2**32)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def make_sampler(plan: SearchPlan) -> BaseSampler:
    """Return the sampler of a plan. For a grid, all values are queued and the sampler is never asked."""
    gp, cmaes = (partial(kind, warn_independent_sampling=False) for kind in (GPSampler, CmaEsSampler))
    kinds: dict[str, Callable[..., BaseSampler]] = {"tpe": TPESampler, "gp": gp, "cmaes": cmaes}
    kinds |= {"random": RandomSampler, "grid": RandomSampler}
    return PlaceSeededSampler(kinds[plan.sampler], plan.seed)


def make_pruner(plan: SearchPlan, max_epochs: int) -> BasePruner:
    """Return the pruner of a plan; `max_epochs` is the longest that a trial may train."""
    hyperband = partial(HyperbandPruner, min_resource=1, max_resource=max_epochs)
    kinds: dict[str, Callable[[], BasePruner]] = {"none": NopPruner, "median": MedianPruner}
    kinds |= {"hyperband": hyperband, "wilcoxon": WilcoxonPruner}
    with ignore_experimental_warnings():
        return kinds[plan.pruner]()


@contextmanager
def ignore_experimental_warnings() -> Iterator[None]:
    """Ignore that Optuna calls heartbeats, plots and other features experimental at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


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
