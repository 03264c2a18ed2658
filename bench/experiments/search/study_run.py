"""A study in its tracked run: run all trials, log each as a child run, and what the study shows at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from optuna import Study
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from bench.config import RunConfig
from bench.console import Display
from bench.errors import BadSetting
from bench.experiments.run import tracked_run
from bench.experiments.search.objective import TrialEvaluator
from bench.experiments.search.plan import ResolvedSearch, SearchPlan
from bench.experiments.search.plots import plot_study
from bench.experiments.search.storage import (
    COUNTED,
    PROBLEM,
    failed_trials,
    finished_trials,
    open_storage,
    open_study,
    ranked,
    trials_of,
)
from bench.experiments.search.workers import queue_grid, run_trials
from bench.formatting import join_first
from bench.tracking import MlflowRecorder, Run, Store, Tag, connect_to_write, is_finished, search_runs
from bench.tracking.tags import data_tags
from bench.training.experiment import Experiment

STUDY, TRIAL = "study", "trial"  # kinds of runs
LAST_METRIC = "cost/seconds"  # of a trial: it is logged after all others


@dataclass(frozen=True)
class Session:
    """What a search command works with: its stores, its display, and how it scores trials."""

    store: Store
    storage: RDBStorage
    display: Display
    evaluator: TrialEvaluator


@contextmanager
def open_session(
    storage: str | None, uri: str | None, quiet: bool, evaluator: TrialEvaluator
) -> Iterator[Session]:
    """Connect to the stores; without `storage`, studies are in `optuna.db` beside a SQLite tracking store."""
    store = connect_to_write(uri)
    if storage is None:
        if store.folder is None:
            raise BadSetting(
                "the tracking store is a server, so the study needs a storage of its own. "
                "Give --storage postgresql://..."
            )
        storage = f"sqlite:///{store.folder / 'optuna.db'}"
    if storage == store.uri:
        raise BadSetting("runs and studies need databases of their own. Give another --storage.")
    with Display(quiet=quiet) as display, open_storage(storage) as opened:
        yield Session(store, opened, display, evaluator)


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
        logged = {int(r.data.tags[Tag.TRIAL]) for r in children if is_logged(r)}

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
    fault = "FAILED" if PROBLEM in trial.user_attrs else "KILLED"
    ended = fault if trial.state == TrialState.FAIL else "FINISHED"
    with recorder.child(f"trial {trial.number}", tags, ended=ended) as child:
        child.settings(trial.params)
        values = {f"inner/{number}": value for number, value in enumerate(trial.user_attrs.get("folds", []))}
        if trial.state == TrialState.COMPLETE:
            values |= dict(zip(plan.objectives, trial.values, strict=True))
        for step, value in trial.intermediate_values.items():
            child.metrics({f"reported/{plan.objectives[0]}": value}, step)
        if trial.duration is not None:
            values[LAST_METRIC] = trial.duration.total_seconds()
        child.metrics(values)


def is_logged(run: Run) -> bool:
    """Return whether a trial's run is complete, even if the trial was interrupted or failed."""
    ended_early = run.info.status in ("KILLED", "FAILED")
    return is_finished(run) or (ended_early and LAST_METRIC in run.data.metrics)


def study_tags(resolved: ResolvedSearch, name: str) -> dict[str, str]:
    experiment = resolved.experiment
    tags = {Tag.SPLIT: experiment.split_hash, Tag.TASK: experiment.task.name, Tag.STUDY: name}
    return data_tags(experiment.pack.manifest) | tags


def study_settings(resolved: ResolvedSearch) -> dict[str, Any]:
    plan = resolved.plan.model_dump(mode="json", exclude={"base", "fold"})
    return resolved.experiment.config.flat() | {f"search.{key}": value for key, value in plan.items()}


def describe_counts(study: Study) -> str:
    """Return '12 trials (9 complete, 3 pruned), 1 failed'."""
    complete, pruned = (len(trials_of(study, state)) for state in COUNTED)
    failed = f", {count} failed" if (count := len(failed_trials(study))) else ""
    return f"{complete + pruned} trials ({complete} complete, {pruned} pruned){failed}"


def describe_ties(study: Study, plan: SearchPlan) -> list[str]:
    """Return a line if several complete trials share the best score: the choice among them is arbitrary."""
    trials = ranked(study, trials_of(study, TrialState.COMPLETE))
    tied = [str(trial.number) for trial in trials if trial.values[0] == trials[0].values[0]]
    if len(tied) < 2:
        return []
    which = f"all {len(tied)} complete trials" if len(tied) == len(trials) else f"trials {join_first(tied)}"
    return [f"{which} have the same {plan.objectives[0]}: that trial {tied[0]} is called best is arbitrary"]


def describe_trial(trial: FrozenTrial, plan: SearchPlan) -> str:
    """Return one line: number, objectives or how the trial ended, and settings."""
    if trial.state == TrialState.COMPLETE:
        pairs = zip(plan.objectives, trial.values, strict=True)
        outcome = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
    else:
        end = "pruned" if trial.state == TrialState.PRUNED else "interrupted"
        outcome = str(trial.user_attrs.get(PROBLEM, end))
    settings = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
    return f"trial {trial.number}: {outcome} · {settings}"


def trial_table(study: Study, plan: SearchPlan) -> pd.DataFrame:
    """Return the best ten trials, or with several objectives all on the Pareto front."""
    trials = ranked(study, study.best_trials if plan.costs else trials_of(study, TrialState.COMPLETE))
    rows = [
        {"trial": str(t.number)}
        | dict(zip(plan.objectives, t.values, strict=True))
        | {name: _short(value) for name, value in t.params.items()}
        for t in (trials if plan.costs else trials[:10])
    ]
    return pd.DataFrame(rows).fillna("")


def config_file(config: RunConfig, study: Study, plan: SearchPlan) -> str:
    """Return the settings as the text of a file for `bench run --config`, without the folder of the data."""
    flat: dict[str, Any] = {k: v for k, v in config.completed().flat().items() if not k.startswith("run.")}
    flat.pop("dataset.folder", None)
    settings = {
        "name": f"{study.study_name}-best",
        "seed": config.seed,
        "searched": len(trials_of(study, *COUNTED)),
        "plugins": list(config.plugins),
        "augment": list(config.augment),
        "input.preprocess": list(config.input.preprocess),
    }
    lines = (
        f"# The best of {describe_counts(study)} of the study {study.study_name}, chosen by the validation",
        f"# {plan.objectives[0]} of {plan.inner} inner folds without the test patients of fold {plan.fold}.",
        "# Test it on that fold only: test patients of the other folds took part in the choice.",
        "#",
        f"#   bench run --config FILE --fold {plan.fold}",
        *(f"{key}: {json.dumps(value)}" for key, value in (settings | flat).items()),
    )
    return "".join(f"{line}\n" for line in lines)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
