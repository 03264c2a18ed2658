"""Optuna studies and their storage: a SQLite file beside the tracking store, or a database server."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import optuna
from filelock import FileLock
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bench.errors import BadSetting, StoreError, UnknownName, did_you_mean
from bench.experiments.search.plan import SearchPlan, ignore_experimental_warnings
from bench.tracking import check_reachable, sqlite_file, without_password

HEARTBEAT = 15  # seconds between two heartbeats of a worker
GRACE = 120  # seconds without a heartbeat after which a trial is failed
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)  # states of the trials that the budget counts
PROBLEM = "problem"  # attribute of a failed trial: its error message


class ServerStorage(RDBStorage):
    """Optuna's storage on a database server. A heartbeat may be lost with its connection: the next one follows."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(StorageInternalError):
            super().record_heartbeat(trial_id)


class SqliteStorage(RDBStorage):
    """Optuna's storage in SQLite with a file lock: SQLite locks no rows, so two workers could take one trial."""

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        with _lock(self.url):
            return super().set_trial_state_values(trial_id, state, values)


@contextmanager
def open_storage(url: str) -> Iterator[RDBStorage]:
    """Open Optuna's storage with heartbeats, so that the trial of a lost worker is failed.

    Raises `StoreError` if it cannot be opened, or no longer answers.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search prints the results of trials itself
    local = sqlite_file(url, "--storage") is not None
    check_reachable(url, "--storage")
    connect = partial(
        SqliteStorage if local else ServerStorage,
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if local else {"pool_pre_ping": True},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
    )
    try:
        with ignore_experimental_warnings(), _lock(url) if local else nullcontext():
            try:
                storage = connect()
            except DBAPIError:  # another process was creating the tables of a new database
                time.sleep(2)
                storage = connect()
    except (SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StoreError(
            f"the storage {without_password(url)} cannot be used: {reason}. Give another --storage."
        ) from error
    try:
        yield storage
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise StoreError(
            f"the storage {without_password(url)} no longer answers: {reason}. Start it again, then repeat the "
            "command: it continues the study."
        ) from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _lock(url: str) -> FileLock:
    return FileLock(f"{sqlite_file(url, '--storage')}.lock")


def open_study(
    storage: RDBStorage, name: str, plan: SearchPlan, dependencies: Mapping[str, Any], *, maximize: bool
) -> Study:
    """Return the study of this name; create it if it does not exist.

    `dependencies` are what its trials depend on beside the plan. Raises `BadSetting` if one differs from the
    study's.
    """
    score = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
    directions = [score, *(StudyDirection.MINIMIZE for _ in plan.costs)]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    if "key" not in study.user_attrs:
        study.set_user_attr("key", uuid.uuid4().hex)  # identifies its tracked run
    if "plan" in study.user_attrs:
        check_dependencies(study, plan, dependencies)
        study.set_user_attr("trials", plan.trials)
        return study
    with ignore_experimental_warnings():
        study.set_metric_names(list(plan.objectives))
    for key, value in {**dependencies, "trials": plan.trials}.items():
        study.set_user_attr(key, value)
    study.set_user_attr("plan", plan.model_dump(mode="json"))  # the last one: it shows helpers a complete study
    return study


def load_study(storage: RDBStorage, name: str) -> tuple[Study, SearchPlan]:
    """Return a study that another process has started, and its plan. Raises `UnknownName`."""
    names = [s.study_name for s in storage.get_all_studies()]
    if name not in names:
        existing = f" The studies are {', '.join(names)}." if names else " It has no studies yet."
        url = without_password(storage.url)
        raise UnknownName(f"no study '{name}' in {url}.{did_you_mean(name, names)}{existing}")
    study = optuna.load_study(study_name=name, storage=storage)
    if "plan" not in study.user_attrs:
        raise BadSetting(
            f"study '{name}' is still being created, or bench search did not create it. Try again in a moment."
        )
    return study, SearchPlan.model_validate(study.user_attrs["plan"] | {"trials": study.user_attrs["trials"]})


def check_dependencies(study: Study, plan: SearchPlan, dependencies: Mapping[str, Any]) -> None:
    """Raise `BadSetting` if the plan, data or code differ from those that the study was started with."""
    stored = study.user_attrs
    before = stored["plan"] | {key: stored.get(key) for key in dependencies}
    now = json.loads(plan.model_dump_json()) | dict(dependencies)
    changed = sorted(key for key in now if key != "trials" and now[key] != before.get(key))
    if changed:
        raise BadSetting(
            f"study '{study.study_name}' was started with a different {' and a different '.join(changed)}, so its "
            "trials would not be comparable. Change it back, or give another --name."
        )


def trials_of(study: Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def failed_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that failed with an error of their own."""
    return [t for t in trials_of(study, TrialState.FAIL) if PROBLEM in t.user_attrs]


def finished_trials(study: Study, known: set[int]) -> Iterator[FrozenTrial]:
    """Yield and make `known` the trials that have ended, without those stopped before they drew any value."""
    new = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and t.number not in known]
    for trial in new:
        if trial.params or PROBLEM in trial.user_attrs:
            yield trial
            known.add(trial.number)


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the complete trial with the best first objective, or None before any is complete."""
    return next(iter(ranked(study, trials_of(study, TrialState.COMPLETE))), None)


def ranked(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Sort trials by their first objective, the best first."""
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return sorted(trials, key=lambda t: (sign * t.values[0], t.number))
