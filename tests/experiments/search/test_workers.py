"""The worker loop keeps the exact budget, repeats no point and loses no trial, whatever is interrupted."""

from __future__ import annotations

import importlib.util
import math
import sqlite3
from collections.abc import Callable
from datetime import datetime
from threading import Thread

import optuna
import pytest
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from bench.errors import BadSetting, StoreError, TrainingError, UnknownName
from bench.experiments.search.plan import SearchPlan, make_sampler
from bench.experiments.search.space import build_space
from bench.experiments.search.storage import PROBLEM, load_study, open_storage
from bench.experiments.search.study_run import describe_ties, is_logged, log_trial, open_session
from bench.experiments.search.workers import SurplusTrial, fail_unclaimed, queue_grid, run_trials
from bench.tracking import open_run, search_runs
from tests.experiments.search.fakes import draw_x, points, scripted, small_plan


def states(study: optuna.Study) -> list[str]:
    return [t.state.name for t in study.trials]


def run_undisturbed(plan: SearchPlan) -> optuna.Study:
    """Run the plan in one go, in memory."""
    study = optuna.create_study(direction="maximize", sampler=make_sampler(plan))
    run_trials(study, plan, draw_x, owner=True)
    return study


def die(trial: optuna.Trial) -> tuple[float, ...]:
    """An objective that ends its process after drawing; Optuna leaves the trial as a kill would."""
    draw_x(trial)
    raise SystemExit


class DyingSampler(RandomSampler):
    """A sampler that ends its process before drawing."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        raise SystemExit


@pytest.fixture
def abandon_trial(url: str) -> Callable[[], int]:
    """Leave a trial of the study 's' as a worker does that is killed before drawing; return its id."""

    def abandon() -> int:
        with open_storage(url) as storage:
            return storage.create_new_trial(storage.get_study_id_from_name("s"))

    return abandon


def test_the_budget_is_exact_and_no_point_repeats_after_an_interruption(connect) -> None:
    plan, calls = small_plan(trials=6, sampler="random"), []

    def interrupt_the_third(trial: optuna.Trial) -> tuple[float, ...]:
        calls.append(trial.number)
        value = draw_x(trial)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        run_trials(connect(plan), plan, interrupt_the_third, owner=True)
    study = connect(plan)
    assert len(points(study)) == 2
    run_trials(study, plan, draw_x, owner=True)
    assert len(points(study)) == 6
    assert len({p["x"] for p in points(study)}) == 6
    interrupted = next(t for t in study.trials if t.state == TrialState.FAIL)
    assert interrupted.params in points(study)
    run_trials(study, plan, draw_x, owner=True)
    assert len(points(study)) == 6
    run_trials(study, plan.model_copy(update={"trials": 8}), draw_x, owner=True)
    assert len({p["x"] for p in points(study)}) == 8


class OvertakenStudy:
    """A study in which another worker begins a trial just after ours has seen room for one."""

    def __init__(self, study: optuna.Study, url: str) -> None:
        self.study, self.url, self.others = study, url, []

    def __getattr__(self, name: str):
        return getattr(self.study, name)

    def optimize(self, *args, **more) -> None:
        with open_storage(self.url) as storage:
            self.others.append(storage.create_new_trial(storage.get_study_id_from_name("s")))
        self.study.optimize(*args, **more)


def test_when_two_workers_see_room_for_one_trial_only_the_first_trains(connect, url: str) -> None:
    plan, trained = small_plan(trials=1), []
    study = OvertakenStudy(connect(plan), url)
    run_trials(study, plan, lambda trial: (trained.append(trial.number), draw_x(trial))[1], owner=False)
    assert (len(study.others), trained) == (1, [])
    with open_storage(url) as storage:
        storage.set_trial_state_values(study.others[0], TrialState.COMPLETE, [0.5])
    run_trials(connect(plan), plan, draw_x, owner=True)
    assert states(study) == ["COMPLETE", "FAIL"]


class OutrunStudy(OvertakenStudy):
    """A study in which another worker has queued a trial just before ours begins, and is about to begin it."""

    def optimize(self, run_one, **more) -> None:
        self.study.add_trial(optuna.create_trial(state=TrialState.WAITING))
        with open_storage(self.url) as storage:
            ours = storage.create_new_trial(storage.get_study_id_from_name("s"))
        run_one(optuna.Trial(self.study, ours))


def test_the_budget_counts_a_queued_trial_that_is_about_to_begin(connect, url: str) -> None:
    with pytest.raises(SurplusTrial):
        run_trials(OutrunStudy(connect(small_plan(trials=1)), url), small_plan(trials=1), pytest.fail, owner=False)


def test_only_one_worker_begins_a_waiting_trial(connect, url: str) -> None:
    study, begun = connect(small_plan()), []
    study.add_trial(optuna.create_trial(state=TrialState.WAITING))

    def take(storage: RDBStorage) -> None:
        begun.append(storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.RUNNING))

    with open_storage(url) as one, open_storage(url) as another:
        other = Thread(target=take, args=(another,))

        @sqlalchemy.event.listens_for(one.engine, "after_cursor_execute")
        def between_looking_and_taking(*_: object) -> None:
            if other.ident is None:
                other.start()
                other.join(1)  # in vain, as it must wait for us

        take(one)
        other.join()
    assert sorted(begun) == [False, True]


@pytest.mark.parametrize("when", ["before drawing", "after drawing"])
def test_a_killed_command_that_is_repeated_runs_the_same_trials_at_once(when: str, connect) -> None:
    plan = small_plan(trials=12, sampler="tpe")  # TPE draws the first ten at random
    study = connect(plan)
    run_trials(study, plan.model_copy(update={"trials": 10}), draw_x, owner=True)
    if when == "before drawing":
        study.sampler = DyingSampler()
    with pytest.raises(SystemExit):
        run_trials(study, plan, die, owner=True)
    study = connect(plan)
    run_trials(study, plan, draw_x, owner=True, say=pytest.fail)  # it would say that it waits
    assert states(study) == ["COMPLETE"] * 10 + ["FAIL"] + ["COMPLETE"] * 2
    assert points(study) == points(run_undisturbed(plan))


def age_heartbeats(url: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")
    database.close()


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_the_owner_alone_repeats_a_trial_of_a_lost_worker(how: str, connect, url: str, abandon_trial) -> None:
    plan = small_plan(trials=3)
    study = connect(plan)
    lost = abandon_trial()
    with open_storage(url) as storage:
        if how == "lost":
            storage.record_heartbeat(lost)
        else:  # by a process that was killed before it could queue the next attempt
            storage.set_trial_state_values(lost, TrialState.FAIL)
    age_heartbeats(url)
    run_trials(study, plan.model_copy(update={"trials": 1}), draw_x, owner=False)
    assert states(study) == ["FAIL", "COMPLETE"]
    run_trials(study, plan, draw_x, owner=True)
    assert states(study) == ["FAIL"] + ["COMPLETE"] * 3
    assert sorted(p["x"] for p in points(study)) == sorted(p["x"] for p in points(run_undisturbed(plan)))


def test_a_trial_that_kills_its_worker_three_times_is_not_repeated(connect) -> None:
    plan = small_plan(trials=2)
    for _ in range(3):
        with pytest.raises(SystemExit):
            run_trials(connect(plan), plan, die, owner=True)
    study = connect(plan)
    run_trials(study, plan, draw_x, owner=True)
    first, *others = points(run_undisturbed(small_plan(trials=3)))
    assert [t.params for t in study.get_trials(states=[TrialState.FAIL])] == [first] * 3
    assert points(study) == others


def test_a_trial_whose_worker_dies_before_its_first_heartbeat_fails(connect, abandon_trial) -> None:
    study = connect(small_plan())
    for _ in range(2):
        abandon_trial()
    first_seen = {0: -math.inf}
    fail_unclaimed(study, first_seen)
    assert states(study) == ["FAIL", "RUNNING"]
    assert first_seen.keys() == {0, 1}


def test_a_worker_sends_a_heartbeat_before_it_claims_its_trial(url: str, connect) -> None:
    connect(small_plan())
    storage = RDBStorage(url)  # without the thread that sends heartbeats
    study = optuna.load_study(study_name="s", storage=storage)
    with pytest.raises(SystemExit):
        run_trials(study, small_plan(), die, owner=False)
    storage.engine.dispose()
    fail_unclaimed(study, {0: -math.inf})
    assert states(study) == ["RUNNING"]
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from trial_heartbeats").fetchone() == (1,)
    database.close()


def test_trials_that_other_workers_end_last_are_reported(connect) -> None:
    plan, reported = small_plan(trials=2), []
    study = connect(plan)

    def after_trial() -> None:
        reported.append(len(points(study)))
        if len(reported) == 1:
            study.add_trial(optuna.create_trial(state=TrialState.COMPLETE, value=0.5))

    run_trials(study, plan, draw_x, owner=True, after_trial=after_trial)
    assert reported == [1, 2]


def test_a_grid_tries_every_point_once_even_after_an_interruption(connect) -> None:
    space = build_space({"a": ["u", "v"], "b": "1..3"})
    plan = small_plan(trials=10, sampler="grid")
    study, calls = connect(plan), []
    assert queue_grid(study, plan, space) == 6

    def interrupt_the_second(trial: optuna.Trial) -> tuple[float, ...]:
        calls.append(space.suggest(trial))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (float(calls[-1]["b"]),)

    with pytest.raises(KeyboardInterrupt):
        run_trials(study, plan, interrupt_the_second, owner=True)
    assert queue_grid(study, plan, space) == 6
    run_trials(study, plan, interrupt_the_second, owner=True)
    tried = sorted((p["a"], p["b"]) for p in points(study))
    assert tried == [("u", 1), ("u", 2), ("u", 3), ("v", 1), ("v", 2), ("v", 3)]


def test_a_failed_trial_does_not_count_and_the_study_continues(connect) -> None:
    plan, calls = small_plan(trials=3), []

    def fail_the_second(trial: optuna.Trial) -> tuple[float, ...]:
        calls.append(trial.number)
        if len(calls) == 2:
            raise TrainingError("the loss is not a number.")
        return draw_x(trial)

    study = connect(plan)
    run_trials(study, plan, fail_the_second, owner=True)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].user_attrs["problem"] == "the loss is not a number."


def test_three_failures_at_the_start_stop_the_study(connect) -> None:
    def fail(trial: optuna.Trial) -> tuple[float, ...]:
        raise TrainingError("too large.")

    study = connect(small_plan(trials=5))
    with pytest.raises(BadSetting, match="3 trials failed and 0 finished; the last error was: too large"):
        run_trials(study, small_plan(trials=5), fail, owner=True)
    assert len(study.trials) == 3


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_every_sampler_draws_new_points_after_a_restart(sampler: str, connect) -> None:
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        with pytest.raises(BadSetting, match="pip install cmaes"):
            small_plan(sampler=sampler).check("dice", "segmentation")
        return
    plan = small_plan(trials=11, sampler=sampler)  # the first ten are drawn at random

    def bowl(trial: optuna.Trial) -> tuple[float, ...]:
        return (-((trial.suggest_float("x", 0, 1) - 0.3) ** 2) - (trial.suggest_float("y", 0, 1) - 0.6) ** 2,)

    run_trials(connect(plan), plan, bowl, owner=True)
    study = connect(plan)
    run_trials(study, plan.model_copy(update={"trials": 13}), bowl, owner=True)
    assert len({tuple(p.values()) for p in points(study)}) == 13


def test_a_study_is_not_resumed_with_another_plan(connect) -> None:
    connect(small_plan())
    connect(small_plan(trials=9))
    with pytest.raises(BadSetting, match="started with a different inner and a different seed"):
        connect(small_plan(inner=3, seed=1))


def test_an_unknown_study_or_storage_is_refused_by_name(url: str, connect) -> None:
    connect(small_plan())
    with open_storage(url) as storage, pytest.raises(UnknownName, match=r"no study 'ss'.*Did you mean 's'"):
        load_study(storage, "ss")
    with pytest.raises(StoreError, match="cannot be used"), open_storage("nosuch://host/db"):
        pass


def test_runs_and_studies_may_not_share_a_database(store) -> None:
    with (
        pytest.raises(BadSetting, match="need databases of their own"),
        open_session(store.uri, store.uri, quiet=True, evaluator=scripted({})),
    ):
        pass


@pytest.mark.parametrize(
    ("state", "attributes", "status"),
    [
        (TrialState.PRUNED, {}, "FINISHED"),
        (TrialState.FAIL, {"spared": "interrupted"}, "KILLED"),
        (TrialState.FAIL, {PROBLEM: "the loss is not a number"}, "FAILED"),
    ],
)
def test_the_run_of_a_trial_says_how_the_trial_ended(store, state, attributes, status) -> None:
    trial = optuna.trial.create_trial(state=state, user_attrs=attributes)
    trial.datetime_start, trial.datetime_complete = datetime(2026, 1, 1), datetime(2026, 1, 2)
    with open_run(store, "study", "lgg", {}) as run:
        log_trial(run, trial, small_plan())
    (logged,) = search_runs(store, {"bench.kind": "trial"})
    assert (logged.info.status, is_logged(logged)) == (status, True)


@pytest.mark.parametrize(
    ("scores", "lines"),
    [
        ([0.5, 0.5], ["all 2 complete trials have the same dice: that trial 0 is called best is arbitrary"]),
        ([0.1, 0.5, 0.5], ["trials 1, 2 have the same dice: that trial 1 is called best is arbitrary"]),
        ([0.1, 0.5], []),
        ([0.5], []),
        ([], []),
    ],
)
def test_a_study_says_when_its_best_trial_is_arbitrary(scores, lines):
    study = optuna.create_study(direction="maximize")
    for score in scores:
        study.add_trial(optuna.trial.create_trial(value=score))
    assert describe_ties(study, small_plan(objectives=["dice"])) == lines
