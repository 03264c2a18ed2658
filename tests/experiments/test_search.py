"""Search: chosen by inner folds alone, with the same budget whatever breaks, and judged by patients held back."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import sqlalchemy
import torch
import yaml
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

from bench.analysis.leaderboard import trials_behind
from bench.cli import app
from bench.data.loader import SliceLoader
from bench.errors import BadSetting, BenchError, StoreError, TrainingError, UnknownName
from bench.experiments import search as searching
from bench.experiments.search.command import KEY, OUTER, STUDY, resolve_search
from bench.experiments.search.objective import EpochScore, InnerFold, Objective, inner_folds, validated
from bench.experiments.search.outcome import TRIAL, best_trial, figures, table, verdict
from bench.experiments.search.space import read_space
from bench.experiments.search.study import (
    COUNTED,
    SearchPlan,
    Surplus,
    fail_unclaimed,
    load_study,
    open_study,
    pruner_of,
    queue_grid,
    sampler_of,
    search_plan,
    storage_at,
    work,
)
from bench.overrides import configure, load_settings
from bench.stats import paired
from bench.tracking import KIND, PARENT, connect, find_run, read_table, runs_with
from bench.tracking.participants import participants_of_run
from bench.training.experiment import resolve

BASE = {
    "dataset": {"name": "phantom", "patients": 9, "size": 32, "slices": 6, "institutions": 2},
    "split": {"name": "patients", "folds": 3},
    "model": {"name": "unet", "base": 4, "depth": 2},
    "train": {"epochs": 1, "batch_size": 4},
}
SPACE = {"train.lr": "1e-4..1e-2 log", "loss": ["bce_dice", "dice"]}
X = {"x": {"low": 0.0, "high": 1.0}}


def a_plan(**changes: object) -> SearchPlan:
    return search_plan(**{"base": [BASE], "space": SPACE, "inner": 2, "trials": 3, "sampler": "random", **changes})


def x_of(trial: optuna.Trial) -> tuple[float, ...]:
    return (trial.suggest_float("x", 0, 1),)


def counted(study: optuna.Study) -> int:
    return len(study.get_trials(states=COUNTED))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Optuna storage without a study: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    with storage_at(f"sqlite:///{path}"):
        pass
    return path


@pytest.fixture
def url(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path / "optuna.db")
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture
def begin(url: str) -> Iterator[Callable[[SearchPlan], optuna.Study]]:
    """Open the study 's' as a process of its own would."""
    with ExitStack() as stack:

        def one(plan: SearchPlan) -> optuna.Study:
            storage = stack.enter_context(storage_at(url))
            named = plan.model_copy(update={"objectives": plan.objectives or ("dice",)})
            study = open_study(storage, "s", named, {"data": "d"}, higher=True)
            study.sampler, study.pruner = sampler_of(plan), pruner_of(plan, 9)
            return study

        yield one


# What may be searched


def test_a_range_in_words_is_the_range_in_full() -> None:
    short = read_space({"a": "1e-4..1e-2 log", "b": "4..32 step 4", "c": "0.0..0.5", "d": "1..3"})
    full = {
        "a": {"low": 1e-4, "high": 1e-2, "log": True},
        "b": {"low": 4, "high": 32, "step": 4},
        "c": {"low": 0.0, "high": 0.5},
        "d": {"low": 1, "high": 3},
    }
    assert short == read_space(full)
    trial = optuna.trial.FixedTrial({"a": 1e-3, "b": 8, "c": 0.25, "d": 2})
    assert [type(v) for v in short.suggest(trial).values()] == [float, int, float, int]


def test_a_setting_with_a_when_is_drawn_only_then() -> None:
    space = read_space({"loss": ["dice", "bce_dice"], "loss.w": {"values": [1, 2], "when": {"loss": "bce_dice"}}})
    assert space.suggest(optuna.trial.FixedTrial({"loss": "dice"})) == {"loss": "dice"}
    assert space.grid() == [
        {"loss": "dice"},
        {"loss": "bce_dice", "loss.w": 1},
        {"loss": "bce_dice", "loss.w": 2},
    ]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "nothing to search"),
        ({"train.lr": {"low": 1e-2, "high": 1e-4}}, "low must be below high"),
        ({"train.lr": {"low": 0, "high": 1, "log": True}}, "starts above 0"),
        ({"train.batch_size": "4..9 step 4"}, "whole number of steps"),
        ({"train.lr": 0.1}, "Write a list of values, or a range"),
        ({"train.lrr": "1e-4..1e-2"}, r"train.lrr.*Did you mean 'lr'"),
        ({"train.lr": "-1.0..1.0"}, "greater than 0"),
        ({"model": ["unet", "unnet"]}, "Did you mean 'unet'"),
        ({"split.folds": "2..5"}, "cannot be searched"),
        ({"evaluate.primary": ["dice", "iou"]}, "cannot be searched"),
        ({"seed": "0..9"}, "cannot be searched"),
        ({"model": ["unet", "classifier"]}, "judged by auroc"),
        ({"loss": ["dice", "bce_dice"], "loss.bce_weight": "0.1..0.9"}, "with loss: dice; a 'when' says"),
        ({"train.lr": {"low": 0.1, "high": 1, "when": {"loss": "dice"}}}, "no list of values above it"),
    ],
)
def test_what_cannot_be_searched_is_said_before_any_trial(space, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        resolve_search(a_plan(space=space), {}, SimpleNamespace(packing=lambda done, of: None))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": ["dice", "flops"], "pruner": "median"}, "nothing can be pruned"),
        ({"objectives": ["flops"]}, "objectives are the score"),
        ({"objectives": ["dice", "beauty"]}, "objectives are the score"),
        ({"objectives": ["dice", "flops"], "sampler": "cmaes"}, "one objective only"),
        ({"sampler": "grid"}, "a grid needs a list of values"),
        ({"fold": 7}, "no fold 7"),
        ({"base": [BASE, {"split": "leaky_slices"}]}, "leaks"),
        ({"base": [BASE, {"model": "classifier"}], "pruner": "wilcoxon", "space": X}, "patients one by one"),
    ],
)
def test_a_plan_that_does_not_hold_together_is_refused(changes, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        resolve_search(a_plan(**changes), {}, SimpleNamespace(packing=lambda done, of: None))


def test_a_word_that_is_no_sampler_is_refused_in_a_sentence() -> None:
    with pytest.raises(BadSetting, match="sampler = 'annealing' is refused"):
        a_plan(sampler="annealing")


# A study keeps its budget


def test_the_budget_is_kept_exactly_over_an_interruption_and_nothing_is_drawn_twice(begin) -> None:
    plan, calls = a_plan(trials=6, sampler="random"), []

    def breaks_at_the_third(trial: optuna.Trial) -> tuple[float, ...]:
        calls.append(trial.number)
        value = x_of(trial)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        work(begin(plan), plan, breaks_at_the_third, stay=True)
    study = begin(plan)
    assert counted(study) == 2
    work(study, plan, x_of, stay=True)
    done = study.get_trials(states=COUNTED)
    assert len(done) == 6
    assert len({t.params["x"] for t in done}) == 6
    broken = next(t for t in study.trials if t.state == TrialState.FAIL)
    assert broken.params in [t.params for t in done]  # what was broken off is made up for
    work(study, plan, x_of, stay=True)
    assert counted(study) == 6
    work(study, plan.model_copy(update={"trials": 8}), x_of, stay=True)
    assert len({t.params["x"] for t in study.get_trials(states=COUNTED)}) == 8


class Overtaken:
    """A study in which another worker begins a trial just after ours has looked whether there is room for one."""

    def __init__(self, study: optuna.Study, url: str) -> None:
        self.study, self.url, self.others = study, url, []

    def __getattr__(self, name: str):
        return getattr(self.study, name)

    def optimize(self, *args, **more) -> None:
        with storage_at(self.url) as storage:
            self.others.append(storage.create_new_trial(storage.get_study_id_from_name("s")))
        self.study.optimize(*args, **more)


def test_of_two_workers_that_both_see_room_for_one_more_the_first_trains(begin, url: str) -> None:
    plan, trained = a_plan(trials=1), []
    study = Overtaken(begin(plan), url)
    work(study, plan, lambda trial: (trained.append(trial.number), x_of(trial))[1], stay=False)
    assert (len(study.others), trained) == (1, [])
    with storage_at(url) as storage:
        storage.set_trial_state_values(study.others[0], TrialState.COMPLETE, [0.5])
    work(begin(plan), plan, x_of, stay=True)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]


class Outrun(Overtaken):
    """A study in which the other worker has queued a trial just before ours begins, and is about to begin it."""

    def optimize(self, one, **more) -> None:
        self.study.add_trial(optuna.create_trial(state=TrialState.WAITING))
        with storage_at(self.url) as storage:
            ours = storage.create_new_trial(storage.get_study_id_from_name("s"))
        one(optuna.Trial(self.study, ours))


def test_a_trial_that_is_queued_and_about_to_begin_is_of_the_budget(begin, url: str) -> None:
    with pytest.raises(Surplus):
        work(Outrun(begin(a_plan(trials=1)), url), a_plan(trials=1), pytest.fail, stay=False)


def test_a_waiting_trial_is_begun_by_one_worker_alone(begin, url: str) -> None:
    study, begun = begin(a_plan()), []
    study.add_trial(optuna.create_trial(state=TrialState.WAITING))

    def take(storage: RDBStorage) -> None:
        begun.append(storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.RUNNING))

    with storage_at(url) as one, storage_at(url) as another:
        other = Thread(target=take, args=(another,))

        @sqlalchemy.event.listens_for(one.engine, "after_cursor_execute")
        def between_looking_and_taking(*_: object) -> None:
            if other.ident is None:
                other.start()
                other.join(1)  # if it waits for us, in vain

        take(one)
        other.join()
    assert sorted(begun) == [False, True]


def points(study: optuna.Study) -> list[dict[str, float]]:
    return [t.params for t in study.get_trials(states=COUNTED)]


def calm(plan: SearchPlan) -> optuna.Study:
    """A study that nothing has disturbed."""
    study = optuna.create_study(direction="maximize", sampler=sampler_of(plan))
    work(study, plan, x_of, stay=True)
    return study


@pytest.fixture
def leave_behind(url: str) -> Callable[[], int]:
    """A trial of the study 's' as a worker leaves it that is killed while it asks what to try."""

    def one() -> int:
        with storage_at(url) as storage:
            return storage.create_new_trial(storage.get_study_id_from_name("s"))

    return one


class Deadly(RandomSampler):
    """Its process ends as it is asked, and Optuna leaves the trial as a kill does."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        raise SystemExit


def dies(trial: optuna.Trial) -> tuple[float, ...]:
    x_of(trial)
    raise SystemExit


@pytest.mark.parametrize("when", ["asked", "drawn"])
def test_a_killed_command_given_again_waits_for_nobody_and_comes_to_the_same_trials(when: str, begin) -> None:
    plan = a_plan(trials=12, sampler="tpe")  # ten are drawn at random before TPE looks at them
    study = begin(plan)
    work(study, plan.model_copy(update={"trials": 10}), x_of, stay=True)
    if when == "asked":
        study.sampler = Deadly()
    with pytest.raises(SystemExit):
        work(study, plan, dies, stay=True)
    study = begin(plan)
    work(study, plan, x_of, stay=True, say=pytest.fail)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 10 + ["FAIL"] + ["COMPLETE"] * 2
    assert points(study) == points(calm(plan))


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_a_trial_whose_worker_is_lost_is_made_up_for(how: str, begin, url: str, leave_behind) -> None:
    plan = a_plan(trials=3)
    study = begin(plan)
    lost = leave_behind()
    with storage_at(url) as storage:
        if how == "lost":
            storage.record_heartbeat(lost)
        else:  # and the process that did so was killed before it could queue another
            storage.set_trial_state_values(lost, TrialState.FAIL)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")
    database.close()
    work(study, plan.model_copy(update={"trials": 1}), x_of, stay=False)  # who joins leaves this to who began
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    work(study, plan, x_of, stay=True)
    assert [t.state.name for t in study.trials] == ["FAIL"] + ["COMPLETE"] * 3
    assert sorted(p["x"] for p in points(study)) == sorted(p["x"] for p in points(calm(plan)))


def test_a_trial_that_takes_its_worker_with_it_three_times_is_given_up(begin) -> None:
    plan = a_plan(trials=2)
    for _ in range(3):
        with pytest.raises(SystemExit):
            work(begin(plan), plan, dies, stay=True)
    study = begin(plan)
    work(study, plan, x_of, stay=True)
    first, *others = points(calm(a_plan(trials=3)))
    assert [t.params for t in study.get_trials(states=[TrialState.FAIL])] == [first] * 3
    assert points(study) == others


def test_a_trial_lost_before_its_first_sign_of_life_is_not_waited_for_for_ever(begin, leave_behind) -> None:
    study = begin(a_plan())
    for _ in range(2):
        leave_behind()
    since = {0: -math.inf}
    fail_unclaimed(study, since)
    assert [t.state.name for t in study.trials] == ["FAIL", "RUNNING"]
    assert since.keys() == {0, 1}


def test_a_trial_that_was_taken_up_has_given_a_sign_of_life(url: str, begin) -> None:
    begin(a_plan())
    storage = RDBStorage(url)  # without the thread that gives them
    study = optuna.load_study(study_name="s", storage=storage)
    with pytest.raises(SystemExit):
        work(study, a_plan(), dies, stay=False)
    storage.engine.dispose()
    fail_unclaimed(study, {0: -math.inf})
    assert study.trials[0].state == TrialState.RUNNING
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from trial_heartbeats").fetchone() == (1,)
    database.close()


def test_what_others_end_last_is_told_as_well(begin) -> None:
    plan, told = a_plan(trials=2), []
    study = begin(plan)

    def after() -> None:
        told.append(counted(study))
        if len(told) == 1:
            study.add_trial(optuna.create_trial(state=TrialState.COMPLETE, value=0.5))

    work(study, plan, x_of, stay=True, after=after)
    assert told == [1, 2]


def test_every_point_of_a_grid_is_tried_once_even_if_it_was_interrupted(begin) -> None:
    space = read_space({"a": ["u", "v"], "b": "1..3"})
    plan = a_plan(trials=10, sampler="grid")
    study, calls = begin(plan), []
    assert queue_grid(study, plan, space) == 6

    def breaks_at_the_second(trial: optuna.Trial) -> tuple[float, ...]:
        calls.append(space.suggest(trial))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (float(calls[-1]["b"]),)

    with pytest.raises(KeyboardInterrupt):
        work(study, plan, breaks_at_the_second, stay=True)
    assert queue_grid(study, plan, space) == 6
    work(study, plan, breaks_at_the_second, stay=True)
    done = [(t.params["a"], t.params["b"]) for t in study.get_trials(states=COUNTED)]
    assert sorted(done) == [("u", 1), ("u", 2), ("u", 3), ("v", 1), ("v", 2), ("v", 3)]


def test_a_trial_that_fails_costs_nothing_and_the_study_goes_on(begin) -> None:
    plan, calls = a_plan(trials=3), []

    def second_fails(trial: optuna.Trial) -> tuple[float, ...]:
        calls.append(trial.number)
        if len(calls) == 2:
            raise TrainingError("the loss is not a number.")
        return x_of(trial)

    study = begin(plan)
    work(study, plan, second_fails, stay=True)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].user_attrs["problem"] == "the loss is not a number."


def test_three_failures_at_the_start_end_a_study_in_a_sentence(begin) -> None:
    def fails(trial: optuna.Trial) -> tuple[float, ...]:
        raise TrainingError("too large.")

    study = begin(a_plan(trials=5))
    with pytest.raises(BadSetting, match="3 trials failed and 0 did not; the last one said: too large"):
        work(study, a_plan(trials=5), fails, stay=True)
    assert len(study.trials) == 3


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_every_sampler_draws_and_draws_again_after_a_restart(sampler: str, begin) -> None:
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        with pytest.raises(BadSetting, match="pip install cmaes"):
            a_plan(sampler=sampler).check("dice", "segmentation")
        return
    plan = a_plan(trials=11, sampler=sampler)  # ten are drawn at random before a model is asked

    def bowl(trial: optuna.Trial) -> tuple[float, ...]:
        return (-((trial.suggest_float("x", 0, 1) - 0.3) ** 2) - (trial.suggest_float("y", 0, 1) - 0.6) ** 2,)

    work(begin(plan), plan, bowl, stay=True)
    study = begin(plan)
    work(study, plan.model_copy(update={"trials": 13}), bowl, stay=True)
    assert len({tuple(t.params.values()) for t in study.get_trials(states=COUNTED)}) == 13


def test_a_study_begun_otherwise_is_not_gone_on_with(begin) -> None:
    begin(a_plan())
    begin(a_plan(trials=9))
    with pytest.raises(BadSetting, match="begun with another inner and another seed"):
        begin(a_plan(inner=3, seed=1))


def test_an_unknown_study_and_a_storage_that_is_not_there_are_sentences(url: str, begin) -> None:
    begin(a_plan())
    with storage_at(url) as storage, pytest.raises(UnknownName, match=r"no study 'ss'.*Did you mean 's'"):
        load_study(storage, "ss")
    with pytest.raises(StoreError, match="cannot be used"), storage_at("nosuch://host/db"):
        pass


# What a trial is judged by


def passes(*values: float) -> list[EpochScore]:
    return [EpochScore(n, value, value > max(values[: n - 1], default=-1)) for n, value in enumerate(values, 1)]


def saying(given: dict[int, list[EpochScore]]):
    """Stands in for training: says this of each inner fold."""
    return lambda experiment, part, loader, **more: iter(given[part.number])


@pytest.fixture(scope="module")
def experiment():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent)
        return resolve(configure(BASE, {"train.epochs": 2}))


def objective_of(experiment, judge, inner: int = 2, **changes) -> Objective:
    folds = inner_folds(experiment.pack.index, experiment.folds[0], inner, 0)
    given = {"pruner": "none", "costs": (), "execution": "eager", "judge": judge, **changes}

    def resolved(chosen):
        return replace(experiment, config=configure(experiment.config.model_dump(), chosen))

    return Objective(space=read_space({"train.lr": "1e-3..1e-2 log"}), resolved=resolved, folds=folds, **given)


def test_inner_folds_hold_every_development_patient_once_and_no_test_patient(experiment) -> None:
    outer = experiment.folds[0]
    folds = inner_folds(experiment.pack.index, outer, 3, 0)
    judging = [case for fold in folds for case in sorted(fold.test)]
    assert sorted(judging) == sorted(outer.train | outer.val)
    assert all(not (f.train | f.val | f.test) & outer.test for f in folds)


def test_the_objective_is_the_mean_of_the_best_epochs(experiment, begin) -> None:
    given = {0: passes(0.2, 0.6, 0.4), 1: passes(0.3, 0.1, 0.2)}
    study = begin(a_plan())
    study.optimize(objective_of(experiment, saying(given)), n_trials=1)
    assert study.best_value == pytest.approx(0.45)
    assert study.trials[0].user_attrs["folds"] == [0.6, 0.3]


def test_a_score_that_is_not_defined_is_no_trial(experiment, begin) -> None:
    study, judge = begin(a_plan()), saying({0: [EpochScore(1, math.nan, True)]})
    with pytest.raises(TrainingError, match="dice of inner fold 0 is not defined"):
        study.optimize(objective_of(experiment, judge), n_trials=1)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_by_epochs_see_the_first_inner_fold_under_its_epochs(pruner: str, experiment, begin) -> None:
    study, judge = begin(a_plan(pruner=pruner)), saying({0: passes(0.1, 0.2), 1: passes(1.1, 1.2)})
    study.optimize(objective_of(experiment, judge, pruner=pruner), n_trials=1)
    assert study.trials[0].intermediate_values == pytest.approx({1: 0.1, 2: 0.2})


def test_a_trial_below_the_median_of_five_is_pruned_and_counts(experiment, begin) -> None:
    plan = a_plan(trials=6, pruner="median")
    study, asked = begin(plan), []

    def judge(experiment, part, loader, **more):
        asked.append(part.number)
        yield from passes(0.1 if len(study.trials) == 6 else 0.5)

    work(study, plan, objective_of(experiment, judge, pruner="median"), stay=True)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    assert asked == [0, 1] * 5 + [0]


def test_wilcoxon_sees_every_patient_under_its_number_and_prunes_after_an_inner_fold(experiment, begin) -> None:
    plan = a_plan(trials=2, pruner="wilcoxon")
    study, outer = begin(plan), experiment.folds[0]
    numbers = {case: number for number, case in enumerate(sorted(outer.train | outer.val))}
    asked = []

    def judge(experiment, part, loader, *, each, **more):
        assert each
        asked.append(part.number)
        level = 0.8 if len(study.trials) == 1 else 0.1
        scores = {case: level + numbers[case] / 100 for case in part.val}
        yield EpochScore(1, float(np.mean(list(scores.values()))), True, scores)

    work(study, plan, objective_of(experiment, judge, inner=3, pruner="wilcoxon"), stay=True)
    assert study.trials[0].intermediate_values == pytest.approx({n: 0.8 + n / 100 for n in range(6)})
    # Of two differences of one sign p = 1/4, of four 1/16, which is below 0.1.
    assert asked == [0, 1, 2, 0, 1]
    assert study.trials[1].state == TrialState.PRUNED


def test_training_as_a_trial_does_gives_the_mean_of_its_patients_and_marks_the_best(experiment) -> None:
    fold = inner_folds(experiment.pack.index, experiment.folds[0], 2, 0)[0]
    part = InnerFold(0, fold.train | fold.val, fold.test)
    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    found = list(validated(experiment, part, loader, execution="eager", each=True))
    assert [p.epoch for p in found] == [1, 2]
    for one in found:
        assert set(one.patients) == (set(part.val) if one.best else set())
        if one.best:
            assert np.mean(list(one.patients.values())) == pytest.approx(one.value)
    assert found[0].best
    assert found[1].best == (found[1].value > found[0].value)


@pytest.mark.parametrize(("whose", "same"), [("test", True), ("train", False)])
def test_what_test_patients_show_changes_no_objective(whose: str, same: bool, experiment, begin) -> None:
    rows = experiment.pack.rows(getattr(experiment.folds[0], whose))
    images, masks = np.array(experiment.pack.images), np.array(experiment.pack.masks)
    images[rows], masks[rows] = 255 - images[rows], 1 - masks[rows]
    spoilt = replace(experiment, pack=replace(experiment.pack, images=images, masks=masks))
    values = []
    for number, one in enumerate((experiment, spoilt)):
        study = begin(a_plan()) if number == 0 else optuna.create_study(direction="maximize")
        study.sampler = RandomSampler(seed=0)
        study.optimize(objective_of(one, validated), n_trials=1)
        values.append(study.trials[0].values)
    assert (values[0] == values[1]) == same


def test_a_pareto_front_by_hand(begin, experiment) -> None:
    plan = a_plan(trials=4, objectives=["dice", "parameters"])
    values = [(0.5, 10.0), (0.6, 20.0), (0.4, 5.0), (0.5, 12.0)]  # the last is beaten by the first
    study = begin(plan)
    work(study, plan, lambda trial: (trial.suggest_float("x", 0, 1), values[trial.number])[1], stay=True)
    assert table(study, plan)["trial"].tolist() == ["1", "0", "2"]
    assert best_trial(study).number == 1
    assert "plots/pareto" in figures(study, plan, pytest.fail)
    costed = objective_of(experiment, saying({0: passes(0.5), 1: passes(0.5)}), costs=("parameters", "flops"))
    found = costed(optuna.create_study(directions=["maximize", "minimize", "minimize"]).ask())
    assert found[:2] == (0.5, sum(p.numel() for p in experiment.model(0).parameters()))
    assert found[2] > 32 * 32


def test_a_verdict_says_beats_only_where_the_interval_is_above_nothing() -> None:
    cases = list("abcdefgh")
    default = pd.Series([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, math.nan], cases)
    gain = np.array([0.1, 0.12, 0.08, 0.11, 0.1, 0.09, 0.1, 0.0])
    expected = paired(gain[:7], np.zeros(7))
    said, by = verdict(default + gain, default, 1, "dice")
    assert said.startswith("it beats the default: dice +0.100")
    assert f"of {expected.n} held-out patients" in said
    assert by == pytest.approx(gain[:7].mean())
    assert verdict(default + gain, default, -1, "hd95")[0].startswith("it does not beat the default: hd95 +0.100")
    assert verdict(default, default, 1, "dice")[0].startswith("it does not beat")


# All of it


class Judging:
    """Stands in for training: remembers all patients that it was given, and likes a rate of 1e-3."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.calls = 0

    def __call__(self, experiment, part, loader, **more) -> Iterator[EpochScore]:
        self.calls += 1
        for fold in (*experiment.folds, SimpleNamespace(train=part.train, val=part.val, test=set())):
            self.seen |= fold.train | fold.val | fold.test
        yield EpochScore(1, 1 - abs(math.log10(experiment.config.train.lr) + 3), True)


@pytest.fixture(scope="module")
def searched(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """A study of three trials judged by a stand-in; its best is then trained and tested in earnest."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(template, folder / "mlruns")
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        judge = Judging()
        out = folder / "best.yaml"
        run = searching.search(
            a_plan(), name="one", here={}, uri=uri, against_default=True, out=out, quiet=True, judge=judge
        )
        yield SimpleNamespace(folder=folder, uri=uri, judge=judge, run=run, out=out, store=connect(uri))


def test_no_test_patient_reaches_an_objective(searched, experiment) -> None:
    outer = experiment.folds[0]
    assert searched.judge.calls == 6  # three trials of two inner folds
    assert searched.judge.seen == outer.train | outer.val


def test_trials_are_child_runs_and_plots_are_logged(searched) -> None:
    run = find_run(searched.store, "one")
    assert (run.data.tags[KIND], run.info.status) == (STUDY, "FINISHED")
    children = runs_with(searched.store, {"mlflow.parentRunId": searched.run})
    kinds = sorted(r.data.tags[KIND] for r in children)
    assert kinds == [OUTER] * 2 + [TRIAL] * 3
    trial = next(r for r in children if r.info.run_name == "trial 1")
    expected = 1 - abs(math.log10(float(trial.data.params["train.lr"])) + 3)
    assert trial.data.metrics["dice"] == pytest.approx(expected)
    plots = {f.path for f in searched.store.client.list_artifacts(searched.run, "plots")}
    assert plots == {f"plots/{n}.png" for n in ("history", "importance", "slices", "parallel")}


def test_the_held_back_patients_alone_judge_the_best_and_the_default(searched, experiment) -> None:
    children = runs_with(searched.store, {"mlflow.parentRunId": searched.run, KIND: OUTER})
    assert len(children) == 2
    for child in children:
        assert set(read_table(searched.store, child, "cases")["case"]) == experiment.folds[0].test


def test_the_best_is_a_file_that_bench_run_takes(searched, monkeypatch) -> None:
    children = runs_with(searched.store, {"mlflow.parentRunId": searched.run, KIND: TRIAL})
    best = max(children, key=lambda r: r.data.metrics["dice"]).data.params
    config = configure(load_settings(searched.out))
    assert config.train.lr == float(best["train.lr"])
    wanted = configure(BASE, {"train.lr": float(best["train.lr"]), "loss": best["loss"]})
    assert config.fingerprint() == wanted.fingerprint()
    assert "3 trials (3 complete, 0 pruned)" in searched.out.read_text()
    monkeypatch.chdir(searched.folder)
    result = CliRunner().invoke(app, ["run", "--config", str(searched.out), "--dry-run", "--quiet"])
    assert result.exit_code == 0, result.output
    assert config.fingerprint() in result.output


def test_the_same_command_again_neither_tries_nor_tests_again(searched, monkeypatch) -> None:
    monkeypatch.chdir(searched.folder)
    before = {r.info.run_id for r in runs_with(searched.store, {"mlflow.parentRunId": searched.run})}
    file = searched.folder / "one.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "space": {"train.lr": "1..2", "loss": SPACE["loss"]}}))
    words = ["search", file, "--space", f"train.lr={SPACE['train.lr']}", "--trials", 3, "--inner", 2]
    words += ["--sampler", "random", "--against-default", "--quiet", "--tracking-uri", searched.uri]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "one: 3 trials (3 complete, 0 pruned)" in result.output
    assert "on 3 held-out patients of fold 0, scored once" in result.output
    assert f"optuna-dashboard sqlite:///{searched.folder / 'mlruns' / 'optuna.db'}" in result.output
    assert "the default:" in result.output
    assert {r.info.run_id for r in runs_with(searched.store, {"mlflow.parentRunId": searched.run})} == before


def test_a_command_killed_as_its_run_was_opened_leaves_no_second_one(searched, monkeypatch) -> None:
    monkeypatch.chdir(searched.folder)
    with storage_at(f"sqlite:///{searched.folder / 'mlruns' / 'optuna.db'}") as storage:
        study = optuna.create_study(study_name="cut", storage=storage, direction="maximize")
        study.set_user_attr("key", "its own")
    opened = searched.store.client.create_run("0", tags={KIND: STUDY, KEY: "its own"})
    run = searching.search(a_plan(trials=1), name="cut", here={}, uri=searched.uri, quiet=True, judge=Judging())
    assert run == opened.info.run_id


def test_who_joins_needs_the_name_alone(searched, monkeypatch, experiment) -> None:
    monkeypatch.chdir(searched.folder)
    judge = Judging()
    url = f"sqlite:///{searched.folder / 'mlruns' / 'optuna.db'}"
    searching.join("one", here={}, uri=searched.uri, quiet=True, judge=judge)
    assert judge.calls == 0  # the budget is used up
    with storage_at(url) as storage:
        load_study(storage, "one")[0].set_user_attr("trials", 4)
    searching.join("one", here={}, uri=searched.uri, quiet=True, judge=judge)
    assert judge.calls == 2
    assert judge.seen == experiment.folds[0].train | experiment.folds[0].val
    with storage_at(url) as storage:
        study, plan = load_study(storage, "one")
        assert counted(study) == plan.trials == 4
        assert len({t.params["train.lr"] for t in study.trials}) == 4
    with pytest.raises(BadSetting, match="begun with another data"):
        searching.join("one", here={"dataset.patients": 10}, uri=searched.uri, quiet=True, judge=judge)


def test_nested_search_tests_every_patient_once_by_a_winner_chosen_without_it(
    searched, monkeypatch, experiment
) -> None:
    monkeypatch.chdir(searched.folder)

    class ByFold(Judging):
        """Which patients each study saw, in the order of the studies."""

        def __init__(self) -> None:
            super().__init__()
            self.by_study: list[set[str]] = []

        def __call__(self, experiment, part, loader, **more) -> Iterator[EpochScore]:
            if self.calls % 2 == 0:
                self.seen = set()
                self.by_study.append(self.seen)
            return super().__call__(experiment, part, loader, **more)

    judge = ByFold()
    run = searching.nested(a_plan(trials=1), name="deep", here={}, uri=searched.uri, quiet=True, judge=judge)
    found = find_run(searched.store, run)
    assert (found.data.tags[KIND], found.data.params["search.nested"]) == (PARENT, "True")
    assert trials_behind(found.data.params) == 1, "its row says how long was searched"
    assert found.data.params["search.trials"] == "1"
    cases = read_table(searched.store, found, "cases")
    assert sorted(cases["case"]) == sorted(experiment.pack.cases)
    renamed = replace(experiment.raw, index=experiment.raw.index.assign(case="who", patient="who"))
    assert participants_of_run(searched.store, found).among(renamed) == ["who"]
    costs = found.data.metrics
    assert costs["cost/device_seconds"] == pytest.approx(costs["cost/train_seconds"] * torch.get_num_threads())
    assert found.data.tags["env.device"] == "cpu"
    assert len(judge.by_study) == 3
    for fold, seen in zip(experiment.folds, judge.by_study, strict=True):
        assert set(cases.loc[cases["fold"] == fold.number, "case"]) == fold.test
        assert seen == fold.train | fold.val


@pytest.mark.parametrize("name", ["unet", "leaderboard", "cpu"])
def test_the_spaces_in_the_repository_fit_what_they_name(name: str) -> None:
    read = searching.read_file(Path(__file__).parents[2] / f"benchmarks/search/{name}.yaml")
    space = read_space(read.space)
    space.check(lambda chosen: configure(read.base, {"dataset.folder": "anywhere"}, chosen))
    assert {"loss.bce_weight", "train.lr", "augment.warp.rotate"} <= set(space.parts)
