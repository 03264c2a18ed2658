"""A search plan, and the sampler and pruner that it asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError

from bench.config import Settings
from bench.errors import BadSetting
from bench.experiments.search.objective import COSTS
from bench.experiments.search.storage import ignore_experimental_warnings
from bench.training.fold import derive_seed

RETRY_HISTORY = "retry_history"  # Optuna's name of the attribute: numbers of the trials that a trial repeats


class SearchPlan(Settings):
    """Everything that decides the trials of a study: `base` in layers of settings, `space` as in a search file."""

    base: tuple[dict[str, Any], ...] = ()
    space: dict[str, Any]
    trials: int = Field(20, ge=1)
    fold: int = 0
    inner: int = Field(3, ge=2)
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "wilcoxon"] = "none"
    objectives: tuple[str, ...] = ()  # empty: the primary score alone
    seed: int = Field(0, ge=0)  # of the sampler

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

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        trials = study.get_trials(deepcopy=False)
        original = trial.system_attrs.get(RETRY_HISTORY, [trial.number])[0]
        place = sum(t.number < original and RETRY_HISTORY not in t.system_attrs for t in trials)
        self._sampler = self._make(derive_seed(self._seed, place) % 2**32)
        self._sampler.before_trial(study, trial)

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

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def make_sampler(plan: SearchPlan) -> BaseSampler:
    """Return the sampler of a plan. For a grid, all values are queued and the sampler is never asked."""
    kinds: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(seed=seed),
        "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
        "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda seed: RandomSampler(seed=seed),
        "grid": lambda seed: RandomSampler(seed=seed),
    }
    return PlaceSeededSampler(kinds[plan.sampler], plan.seed)


def make_pruner(plan: SearchPlan, max_epochs: int) -> BasePruner:
    """Return the pruner of a plan; `max_epochs` is the longest that a trial may train."""
    kinds: dict[str, Callable[[], BasePruner]] = {
        "none": NopPruner,
        "median": MedianPruner,
        "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=max_epochs),
        "wilcoxon": WilcoxonPruner,
    }
    with ignore_experimental_warnings():
        return kinds[plan.pruner]()
