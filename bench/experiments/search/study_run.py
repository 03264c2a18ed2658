"""A study in its tracked run: run all trials, log each as a child run, and the plots at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from bench.console import Display
from bench.errors import BadSetting
from bench.experiments.search.objective import TrialEvaluator
from bench.experiments.search.outcome import describe_trial, plot_study, trial_table
from bench.experiments.search.plan import SearchPlan
from bench.experiments.search.resolve import ResolvedSearch
from bench.experiments.search.study import PROBLEM, finished_trials, open_study
from bench.experiments.search.workers import queue_grid, run_trials
from bench.experiments.tracked_run import tracked_run
from bench.tracking import MlflowRecorder, Run, Store, Tag, search_runs
from bench.tracking.tags import data_tags
from bench.training.experiment import Experiment

STUDY, TRIAL = "study", "trial"  # kinds of runs


@dataclass(frozen=True)
class Session:
    """What a search command works with: its stores, its display, and how it scores trials."""

    store: Store
    storage: RDBStorage
    display: Display
    evaluator: TrialEvaluator


@dataclass(frozen=True)
class StudyRun:
    """The tracked run of a study; `workspace` is its folder for unfinished folds."""

    recorder: MlflowRecorder
    workspace: Path
    display: Display


@contextmanager
def open_study_run(
    session: Session, name: str, experiment: Experiment, tags: Mapping[str, str], resume: Run | None
) -> Iterator[StudyRun]:
    """Open the tracked run, new or resumed. Raises `BadSetting` if another process has it."""
    with ExitStack() as stack:
        try:
            recorder, workspace = stack.enter_context(
                tracked_run(session.store, name, experiment, tags, session.display, resume)
            )
        except BadSetting:
            raise BadSetting(
                f"another process is running study '{name}'. Help it by `bench search --join '{name}'`."
            ) from None
        yield StudyRun(recorder, workspace, session.display)


@contextmanager
def complete_study(session: Session, resolved: ResolvedSearch, name: str) -> Iterator[tuple[Study, StudyRun]]:
    """Run all trials of a study, new or resumed, and yield it inside its tracked run."""
    plan, experiment, say = resolved.plan, resolved.experiment, session.display.say
    study = open_study(session.storage, name, plan, resolved.dependencies, maximize=experiment.task.sign > 0)
    study.set_user_attr("here", dict(resolved.machine))
    resolved.set_sampler_and_pruner(study)
    identity = {Tag.KIND: STUDY, Tag.STUDY_KEY: study.user_attrs["key"]}
    resume = next(iter(search_runs(session.store, identity)), None)
    with open_study_run(session, name, experiment, study_tags(resolved, name) | identity, resume) as run:
        run.recorder.settings(study_settings(resolved))
        if plan.sampler == "grid" and (points := queue_grid(study, plan, resolved.space)) < plan.trials:
            say(f"the grid has {points} points, so there will be {points} trials")
        children = search_runs(session.store, {Tag.KIND: TRIAL, "mlflow.parentRunId": run.recorder.run_id})
        logged = {int(r.data.tags[Tag.TRIAL]) for r in children if r.info.status == "FINISHED"}

        def log_new_trials() -> None:
            for trial in finished_trials(study, logged):
                log_trial(run.recorder, trial, plan)
                logged.add(trial.number)
                say(describe_trial(trial, plan))

        log_new_trials()
        objective = resolved.make_objective(session.evaluator, session.display)
        try:
            run_trials(study, plan, objective, owner=True, after_trial=log_new_trials, say=say)
        except KeyboardInterrupt:
            say("interrupted: the same command resumes the study")
            raise
        for title, pixels in plot_study(study, plan, say).items():
            run.recorder.image(title, pixels)
        run.recorder.table("trials", trial_table(study, plan))
        yield study, run


def log_trial(recorder: MlflowRecorder, trial: FrozenTrial, plan: SearchPlan) -> None:
    """Log a trial as a child run of the study's run."""
    tags = {Tag.KIND: TRIAL, Tag.TRIAL: str(trial.number), Tag.STATE: trial.state.name.lower()}
    tags |= {Tag.ERROR: str(trial.user_attrs[PROBLEM])} if PROBLEM in trial.user_attrs else {}
    with recorder.child(f"trial {trial.number}", tags) as child:
        child.settings(trial.params)
        values = {f"inner/{number}": value for number, value in enumerate(trial.user_attrs.get("folds", []))}
        if trial.state == TrialState.COMPLETE:
            values |= dict(zip(plan.objectives, trial.values, strict=True))
        if trial.duration is not None:
            values["cost/seconds"] = trial.duration.total_seconds()
        child.metrics(values)
        for step, value in trial.intermediate_values.items():
            child.metrics({f"reported/{plan.objectives[0]}": value}, step)


def study_tags(resolved: ResolvedSearch, name: str) -> dict[str, str]:
    experiment = resolved.experiment
    tags = {Tag.SPLIT: experiment.split_hash, Tag.TASK: experiment.task.name, Tag.STUDY: name}
    return data_tags(experiment.pack.manifest) | tags


def study_settings(resolved: ResolvedSearch) -> dict[str, Any]:
    plan = resolved.plan.model_dump(mode="json", exclude={"base", "fold"})
    return resolved.experiment.config.flat() | {f"search.{key}": value for key, value in plan.items()}
