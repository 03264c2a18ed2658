"""A study: what is searched and how, kept in Optuna's storage, where any process may go on with it or join it."""

from __future__ import annotations

import importlib.util
import json
import platform
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal
from urllib.parse import urlparse

import optuna
from filelock import FileLock
from optuna import Study, Trial
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, _CachedStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field, ValidationError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bench.config import Settings
from bench.errors import BadSetting, BenchError, StoreError, UnknownName, did_you_mean
from bench.experiments.search.objective import COSTS
from bench.experiments.search.space import Space
from bench.tracking import Store, check_reachable, without_password
from bench.training.fold import derive_seed

HEARTBEAT, GRACE = 15, 120  # seconds: a worker's sign of life, and how long its trial is waited for without one


RETRIES = 2  # of a trial whose worker was lost


BEFORE = "retry_history"  # Optuna's own name: numbers of the trials that one is tried in place of


POLL = 5.0  # seconds between two looks at what other workers do


HERE = platform.node()  # a mark of the trials of who has begun a study; those who join leave none


COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


class SearchPlan(Settings):
    """All that decides a study. `base` are layers of settings, `space` is as in a search file."""

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
        """The plan with its objectives named. Raises `BadSetting` for what does not go together."""
        objectives = self.objectives or (primary,)
        if objectives[0] != primary or not set(objectives[1:]) <= set(COSTS):
            raise BadSetting(
                f"objectives are the score that validation chooses by, here {primary}, and then costs: "
                f"{', '.join(COSTS)}. Another score is chosen by --set evaluate.primary=..."
            )
        if len(objectives) > 1 and self.pruner != "none":
            raise BadSetting("nothing can be pruned by several objectives at once. Leave out --pruner.")
        if len(objectives) > 1 and self.sampler == "cmaes":
            raise BadSetting("CMA-ES knows one objective only. Give --sampler tpe.")
        if self.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise BadSetting("the sampler cmaes needs the package of this name: pip install cmaes.")
        if self.pruner == "wilcoxon" and task != "segmentation":
            raise BadSetting(
                "the pruner wilcoxon compares patients one by one, and a presence model is judged over all of "
                "their slices. Give --pruner median."
            )
        return self.model_copy(update={"objectives": objectives})


def search_plan(**given: Any) -> SearchPlan:
    """A plan of plain values. Raises `BadSetting`."""
    try:
        return SearchPlan.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadSetting(f"{first['loc'][0]} = {first['input']!r} is refused: {first['msg']}.") from None


class SeededByPlace(BaseSampler):
    """A sampler made anew for every trial, seeded by the trial's place among those that are no second try.

    Places are given once, whoever asks: no worker draws what another has drawn, and what was broken off is drawn
    again, so that a study which one worker goes on with comes to the trials that it would have had.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._own = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        every = study.get_trials(deepcopy=False)
        first = trial.system_attrs.get(BEFORE, [trial.number])[0]
        place = sum(t.number < first and BEFORE not in t.system_attrs for t in every)
        self._own = self._make(derive_seed(self._seed, place) % 2**32)
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._own.after_trial(study, trial, state, values)


def sampler_of(plan: SearchPlan) -> BaseSampler:
    """A grid is a queue of trials, and nobody is asked for a value."""
    kinds: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(seed=seed),
        "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
        "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda seed: RandomSampler(seed=seed),
        "grid": lambda seed: RandomSampler(seed=seed),
    }
    return SeededByPlace(kinds[plan.sampler], plan.seed)


def pruner_of(plan: SearchPlan, epochs: int) -> BasePruner:
    """`epochs` is the longest that a trial may train."""
    with without_experimental_warnings():
        kinds: dict[str, Callable[[], BasePruner]] = {
            "none": NopPruner,
            "median": MedianPruner,
            "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=epochs),
            "wilcoxon": WilcoxonPruner,
        }
        return kinds[plan.pruner]()


def storage_url(given: str | None, store: Store) -> str:
    """The storage given, else `optuna.db` beside a SQLite store. Raises `BadSetting`."""
    if given is not None:
        return given
    if store.folder is None:
        raise BadSetting("the tracking store is a server: say where the study is kept, --storage postgresql://...")
    return f"sqlite:///{store.folder / 'optuna.db'}"


class SqliteStorage(RDBStorage):
    """Optuna's storage in SQLite, which locks no rows: two workers would begin the same waiting trial."""

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        with _lock(self.url):
            return super().set_trial_state_values(trial_id, state, values)


def _lock(url: str) -> FileLock:
    return FileLock(f"{url.removeprefix('sqlite:///')}.lock")


@contextmanager
def storage_at(url: str) -> Iterator[RDBStorage]:
    """Optuna's storage with signs of life, by which a trial is failed whose worker is lost."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what a trial came to, we say ourselves
    local = urlparse(url).scheme == "sqlite"
    check_reachable(url, "--storage")
    made = partial(
        SqliteStorage if local else RDBStorage,
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if local else {"pool_pre_ping": True},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
    )
    try:
        with without_experimental_warnings(), _lock(url) if local else nullcontext():
            try:
                storage = made()
            except DBAPIError:  # another process was making the tables of a new database
                time.sleep(2)
                storage = made()
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StoreError(
            f"the storage {without_password(url)} cannot be used: {reason}. Give another --storage."
        ) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(
    storage: RDBStorage, name: str, plan: SearchPlan, marks: Mapping[str, Any], *, higher: bool
) -> Study:
    """The study of this name, made if it is not there.

    `marks` is what its trials depend on beside the plan. Raises `BadSetting` where it was begun otherwise.
    """
    best, least = StudyDirection.MAXIMIZE if higher else StudyDirection.MINIMIZE, StudyDirection.MINIMIZE
    directions = [best, *(least for _ in plan.costs)]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    if "key" not in study.user_attrs:
        study.set_user_attr("key", uuid.uuid4().hex)  # by which its run is found
    if "plan" in study.user_attrs:
        check_dependencies(study, plan, marks)
        study.set_user_attr("trials", plan.trials)
        return study
    with without_experimental_warnings():
        study.set_metric_names(list(plan.objectives))
    for key, value in {**marks, "trials": plan.trials}.items():
        study.set_user_attr(key, value)
    study.set_user_attr("plan", plan.model_dump(mode="json"))  # the last: who joins looks for it
    return study


def load_study(storage: RDBStorage, name: str) -> tuple[Study, SearchPlan]:
    """A study that another process has begun. Raises `UnknownName`."""
    names = [s.study_name for s in storage.get_all_studies()]
    if name not in names:
        there = f" There are {', '.join(names)}." if names else " There is none yet."
        where = without_password(storage.url)
        raise UnknownName(f"no study '{name}' in {where}.{did_you_mean(name, names)}{there}")
    study = optuna.load_study(study_name=name, storage=storage)
    if "plan" not in study.user_attrs:
        raise BadSetting(f"the study {name} is being made, or is none of bench search. Try again in a moment.")
    return study, SearchPlan.model_validate(study.user_attrs["plan"] | {"trials": study.user_attrs["trials"]})


def check_dependencies(study: Study, plan: SearchPlan, marks: Mapping[str, Any]) -> None:
    """Raise `BadSetting` where plan, data or code are not those that the study was begun with."""
    told = study.user_attrs
    now = json.loads(plan.model_dump_json()) | dict(marks)
    before = told["plan"] | {key: told.get(key) for key in marks}
    changed = sorted(key for key in now if key != "trials" and now[key] != before.get(key))
    if changed:
        raise BadSetting(
            f"the study {study.study_name} was begun with another {' and another '.join(changed)}: its trials "
            "would not be comparable. Put it back, or give another --name."
        )


class Surplus(Exception):
    """A trial that another worker was faster to begin; it is never trained."""


def work(
    study: Study,
    plan: SearchPlan,
    objective: Callable[[Trial], tuple[float, ...]],
    *,
    stay: bool,
    after: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Trials until the study has `plan.trials` that are complete or pruned, exactly, whoever else works on it.

    `after` is called when a trial has ended. Who is to `stay` has the study to itself, but for workers that have
    joined it: waits for them, and has tried again what was broken off. Raises `BadSetting` when more fail than
    finish.
    """

    def one(trial: Trial) -> tuple[float, ...]:
        if isinstance(study._storage, _CachedStorage):  # a database
            study._storage.record_heartbeat(trial._trial_id)  # a thread of Optuna's does so, a moment later
        trial.set_user_attr("worker", HERE if stay else None)
        # Numbers only grow, so that of all workers that saw room for one more, the same are right for everyone.
        there = trials_of(study, *COUNTED, TrialState.RUNNING, TrialState.WAITING)
        if sum(t.number < trial.number for t in there) >= plan.trials:
            trial.set_user_attr("spared", "surplus")
            raise Surplus
        try:
            return objective(trial)
        except KeyboardInterrupt:
            trial.set_user_attr("spared", "interrupted")
            raise
        except BenchError as error:
            trial.set_user_attr("problem", str(error))
            raise

    waited = False
    unclaimed: dict[int, float] = {}
    with without_experimental_warnings():
        for trial in trials_of(study, TrialState.RUNNING):
            whose = trial.user_attrs.get("worker", trial.user_attrs.get("queued"))
            if stay and whose == HERE:  # that process is gone, or we would not be here
                study.tell(trial.number, state=TrialState.FAIL)
        fail_stale_trials(study)
        while True:
            there = [t.state for t in trials_of(study, *COUNTED, TrialState.RUNNING)]  # at one moment
            begun = there.count(TrialState.RUNNING)
            finished = len(there) - begun
            if finished >= plan.trials:
                break
            _refuse_hopeless(study, finished)
            room = finished + begun < plan.trials
            if room and stay:
                _queue(study, more=plan.sampler != "grid")
            if room and (plan.sampler != "grid" or trials_of(study, TrialState.WAITING)):
                # A pruned or failed trial is held by its own traceback, and with it what it has on the device.
                study.optimize(one, n_trials=1, catch=(BenchError, Surplus), gc_after_trial=True)
            elif stay and begun:
                if not waited:
                    say(f"waiting for {begun} trials of other workers")
                waited = True
                time.sleep(POLL)
                fail_stale_trials(study)
                fail_unclaimed(study, unclaimed)
            else:
                break
            after()
        after()  # others may have ended some since


def _queue(study: Study, *, more: bool) -> None:
    """Queue again what was broken off; where there is nothing to do, and `more` is wanted, a trial of our own.

    It bears our mark before it runs. One process alone does this, or a trial would be made up for twice.
    """
    every = study.get_trials(deepcopy=False)
    replaced = {number for t in every for number in t.system_attrs.get(BEFORE, ())}
    there = any(t.state == TrialState.WAITING for t in every)
    for trial in every:
        history = [*trial.system_attrs.get(BEFORE, ()), trial.number]
        surplus = trial.user_attrs.get("spared") == "surplus" and "fixed_params" not in trial.system_attrs
        to_blame = [number for number in history if "spared" not in every[number].user_attrs]
        broken_off = trial.state == TrialState.FAIL and "problem" not in trial.user_attrs and not surplus
        if broken_off and trial.number not in replaced and len(to_blame) <= RETRIES:
            _add(study, {**trial.system_attrs, BEFORE: history})
            there = True
    if more and not there:
        _add(study, {})


def _add(study: Study, system_attrs: dict[str, Any]) -> None:
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"queued": HERE}, system_attrs=system_attrs))


def fail_unclaimed(study: Study, since: dict[int, float]) -> None:
    """Fail trials whose worker was lost before its first sign of life: Optuna takes them for running for ever."""
    now = time.monotonic()
    for trial in trials_of(study, TrialState.RUNNING):
        if "worker" not in trial.user_attrs and now - since.setdefault(trial.number, now) > GRACE:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def queue_grid(study: Study, plan: SearchPlan, space: Space) -> int:
    """Queue every point of the grid, once, in an order of the study's own. Gives their number."""
    points = space.grid()
    if not study.user_attrs.get("queued"):
        with without_experimental_warnings():
            for at in sorted(range(len(points)), key=lambda at: derive_seed(plan.seed, at)):
                study.enqueue_trial(points[at], user_attrs={"queued": HERE}, skip_if_exists=True)
        study.set_user_attr("queued", True)
    return len(points)


def failed(study: Study) -> list[FrozenTrial]:
    """Trials that failed by themselves."""
    return [t for t in trials_of(study, TrialState.FAIL) if "problem" in t.user_attrs]


def _refuse_hopeless(study: Study, finished: int) -> None:
    problems = [t.user_attrs["problem"] for t in failed(study)]
    if len(problems) >= 3 and len(problems) > finished:
        raise BadSetting(
            f"{len(problems)} trials failed and {finished} did not; the last one said: {problems[-1]} "
            "Change the space, and give another --name."
        )


def trials_of(study: Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


@contextmanager
def without_experimental_warnings() -> Iterator[None]:
    """Optuna calls heartbeats, plots and others experimental, at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
