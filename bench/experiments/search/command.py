"""`bench search`: choose settings by inner folds, then let patients judge that had no part in the choice."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.storages import RDBStorage

from bench.analysis.run_summary import headline
from bench.config import RunConfig
from bench.console import Display, console, frame_table
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.environment import environment_tags
from bench.errors import BadSetting
from bench.experiments.search.objective import Objective, TrialEvaluator, inner_folds, validated
from bench.experiments.search.outcome import (
    TRIAL,
    as_file,
    best_trial,
    describe_counts,
    describe_trial,
    figures,
    finished_trials,
    log_trial,
    table,
    verdict,
)
from bench.experiments.search.space import Space, Value, read_space
from bench.experiments.search.study import (
    SearchPlan,
    check_dependencies,
    load_study,
    open_study,
    pruner_of,
    queue_grid,
    sampler_of,
    storage_at,
    storage_url,
    work,
)
from bench.masks import Masks
from bench.overrides import configure
from bench.tracking import (
    FOLD,
    KIND,
    PARENT,
    MlflowRecorder,
    Run,
    Store,
    connect,
    open_run,
    runs_with,
    without_password,
)
from bench.tracking.resume import code_of, digest, run_lock, workspace_of
from bench.tracking.tags import data_tags
from bench.training.cross_validation import record_patients, record_together
from bench.training.execution import choose_execution
from bench.training.experiment import Experiment, resolve, task_of
from bench.training.fold import FoldWorkspace, case_table, run_fold, slice_table
from bench.types import Fold, FoldResult

STUDY, OUTER = "study", "outer"  # kinds of runs: a search, and a model of it judged by held-out patients


NAME, KEY = "bench.study", "bench.study_key"


@dataclass(frozen=True)
class ResolvedSearch:
    """A plan with everything in it found and checked. `here` is what differs between machines: folder, device."""

    plan: SearchPlan
    here: Mapping[str, Any]
    space: Space
    experiment: Experiment

    @property
    def outer(self) -> Fold:
        return next(f for f in self.experiment.folds if f.number == self.plan.fold)

    @property
    def marks(self) -> dict[str, str]:
        """What trials depend on beside the plan."""
        return {
            "data": self.experiment.pack.manifest.key,
            "split": self.experiment.split_hash,
            "code": digest(code_of(self.experiment.config, besides="search/")),
        }

    def config(self, chosen: Mapping[str, Value]) -> RunConfig:
        """The settings of a trial. Raises `BadSetting` where they ask for another score than the base."""
        config = configure(*self.plan.base, self.here, chosen)
        task, own = task_of(config), self.experiment.task
        if (task.name, task.primary) != (own.name, own.primary):
            raise BadSetting(f"it is judged by {task.primary}, and the base by {own.primary}. Search one of them.")
        return config

    def objective(self, judge: TrialEvaluator, display: Display) -> Objective:
        """With inner folds for its only folds."""
        config = self.experiment.config
        configure_torch(self.experiment.device, deterministic=config.train.deterministic, threads=config.threads)
        seed = int(config.split.params.get("seed", 0))
        folds = inner_folds(self.experiment.pack.index, self.outer, self.plan.inner, seed)
        inner = replace(self.experiment, folds=folds)
        execution = choose_execution(inner, SliceLoader(inner.pack, config.input, inner.device)).execution
        return Objective(
            space=self.space,
            resolved=lambda chosen: resolve(self.config(chosen)),
            folds=folds,
            pruner=self.plan.pruner,
            costs=self.plan.costs,
            execution=execution,
            judge=judge,
            watch=display,
        )

    def equip(self, study: Study) -> None:
        """Give a study its sampler and pruner, which the storage does not keep."""
        epochs = self.space.parts.get("train.epochs")
        longest = (
            [e for e in epochs.ends if isinstance(e, int)] if epochs else [self.experiment.config.train.epochs]
        )
        study.sampler, study.pruner = sampler_of(self.plan), pruner_of(self.plan, max(longest))


def resolve_search(plan: SearchPlan, here: Mapping[str, Any], display: Display) -> ResolvedSearch:
    """Check all of a plan before any trial. Raises `BenchError`."""
    space = read_space(plan.space)
    experiment = resolve(configure(*plan.base, here), only=plan.fold, watch=display)
    if experiment.leaky:
        raise BadSetting(
            f"split={experiment.config.split.name} leaks: nothing can be chosen by it. Use split=patients."
        )
    problem = ResolvedSearch(plan.check(experiment.task.primary, experiment.task.name), here, space, experiment)
    space.check(problem.config)
    if plan.sampler == "grid":
        space.grid()
    return problem


def search(
    plan: SearchPlan,
    *,
    name: str,
    here: Mapping[str, Any],
    storage: str | None = None,
    uri: str | None = None,
    against_default: bool = False,
    out: Path | None = None,
    quiet: bool = False,
    judge: TrialEvaluator = validated,
) -> str:
    """Begin a study or go on with it; its best trial is judged by the held-out fold, once. Gives the run's id."""
    store = connect(uri)
    with Display(quiet=quiet) as display, storage_at(storage_url(storage, store)) as kept:
        problem = resolve_search(plan, here, display)
        with _study(store, kept, problem, name, display, judge) as (study, recorder, workspace):
            number, config = _best(problem, study, recorder, out)
            said = _said(problem, study)
            task = problem.experiment.task
            result, _ = _judged(problem, config, f"test of trial {number}", recorder, workspace, display)
            score = _score(problem, result)
            recorder.metrics({f"test/{task.primary}": score}, number)
            of = f"{len(result.scores)} held-out patients of fold {problem.outer.number}, scored once"
            said.append(f"trial {number} on {of}: {task.primary} {score:.3f}")
            if against_default:
                default, _ = _judged(problem, problem.config({}), "test of default", recorder, workspace, display)
                said.append(f"the default: {task.primary} {_score(problem, default):.3f}")
                ours, theirs = (case_table([r]).set_index("case") for r in (result, default))
                if task.primary in ours:
                    text, gain = verdict(ours[task.primary], theirs[task.primary], task.sign, task.primary)
                    said.append(text)
                    recorder.metrics({"test/gain": gain}, number)
            said.append(f"the study in a browser: optuna-dashboard {without_password(kept.url)}")
    console().print(frame_table(name, table(study, problem.plan)))
    console().print("\n".join(said), markup=False)
    return recorder.run_id


def nested(
    plan: SearchPlan,
    *,
    name: str,
    here: Mapping[str, Any],
    storage: str | None = None,
    uri: str | None = None,
    quiet: bool = False,
    judge: TrialEvaluator = validated,
) -> str:
    """A study inside each outer fold, whose winner is tested on it: what searching and training give together.

    Logged as a cross-validation, so that it stands on the board of its split. Gives the run's id.
    """
    store = connect(uri)
    with Display(quiet=quiet) as display, storage_at(storage_url(storage, store)) as kept:
        first = resolve_search(plan, here, display)
        winners, seconds = [], 0.0
        for fold in first.experiment.folds:
            problem = resolve_search(plan.model_copy(update={"fold": fold.number}), here, display)
            with _study(store, kept, problem, f"{name} fold {fold.number}", display, judge) as (study, inner, _):
                winners.append((problem, _best(problem, study, inner, None)[1]))
                seconds += sum(t.duration.total_seconds() for t in study.trials if t.duration is not None)
        what = first.plan.model_dump_json(exclude={"fold", "base"})
        fingerprint = digest({"base": first.experiment.config.fingerprint(), "plan": what})
        tags = _tags(first, name) | {KIND: PARENT, "bench.fingerprint": fingerprint}
        before = next(iter(runs_with(store, {k: tags[k] for k in (KIND, NAME, "bench.fingerprint")})), None)
        with _run(store, name, first.experiment, tags, display, before) as (recorder, workspace):
            recorder.settings(_settings(first) | {"search.nested": True})
            done = [
                _judged(p, config, f"fold {p.outer.number}", recorder, workspace, display, FOLD)
                for p, config in winners
            ]
            record_patients(first.experiment, recorder)
            parameters = max(resolve(config).parameters for _, config in winners)
            costs = {"search_seconds": seconds, "parameters": parameters}
            values = record_together(first.experiment, recorder, done, costs).values
    console().print(
        f"{name}: nested search, {plan.trials} trials inside each of {len(winners)} folds; every patient is "
        f"tested once, by a winner that was chosen without it\n{headline(values)}",
        markup=False,
    )
    return recorder.run_id


def join(
    name: str,
    *,
    here: Mapping[str, Any],
    storage: str | None = None,
    uri: str | None = None,
    quiet: bool = False,
    judge: TrialEvaluator = validated,
) -> None:
    """Work on a study that another process has begun, until its trials are used up. That process logs them."""
    with Display(quiet=quiet) as display, storage_at(storage_url(storage, connect(uri))) as kept:
        study, plan = load_study(kept, name)
        folder = {k: v for k, v in study.user_attrs["here"].items() if k == "dataset.folder"}
        problem = resolve_search(plan, folder | dict(here), display)
        check_dependencies(study, problem.plan, problem.marks)
        problem.equip(study)
        known = {trial.number for trial in finished_trials(study, set())}

        def after() -> None:
            for trial in finished_trials(study, known):
                known.add(trial.number)
                display.say(describe_trial(trial, problem.plan))

        work(study, problem.plan, problem.objective(judge, display), stay=False, after=after)
        said = describe_counts(study)
    console().print(f"{name}: {said}; the process that began it goes on from here", markup=False)


@contextmanager
def _study(
    store: Store, kept: RDBStorage, problem: ResolvedSearch, name: str, display: Display, judge: TrialEvaluator
) -> Iterator[tuple[Study, MlflowRecorder, Path]]:
    """A study with all of its trials, inside its run."""
    plan, experiment = problem.plan, problem.experiment
    study = open_study(kept, name, plan, problem.marks, higher=experiment.task.sign > 0)
    study.set_user_attr("here", dict(problem.here))
    problem.equip(study)
    own = {KIND: STUDY, KEY: study.user_attrs["key"]}
    before = next(iter(runs_with(store, own)), None)
    with _run(store, name, experiment, _tags(problem, name) | own, display, before) as (recorder, workspace):
        recorder.settings(_settings(problem))
        if plan.sampler == "grid" and (points := queue_grid(study, plan, problem.space)) < plan.trials:
            display.say(f"the grid has {points} points: there will be no more trials")
        children = runs_with(store, {KIND: TRIAL, "mlflow.parentRunId": recorder.run_id})
        known = {int(r.data.tags["bench.trial"]) for r in children if r.info.status == "FINISHED"}

        def after() -> None:
            for trial in finished_trials(study, known):
                log_trial(recorder, trial, plan)
                known.add(trial.number)
                display.say(describe_trial(trial, plan))

        after()
        try:
            work(study, plan, problem.objective(judge, display), stay=True, after=after, say=display.say)
        except KeyboardInterrupt:
            display.say("interrupted: the same command goes on with the study")
            raise
        for title, pixels in figures(study, plan, display.say).items():
            recorder.image(title, pixels)
        recorder.table("trials", table(study, plan))
        yield study, recorder, workspace


@contextmanager
def _run(
    store: Store, name: str, experiment: Experiment, tags: Mapping[str, str], display: Display, before: Run | None
) -> Iterator[tuple[MlflowRecorder, Path]]:
    """A run, new or gone on with, and the folder where it keeps what it has done. No other process has it."""
    dataset = experiment.pack.manifest.dataset
    with ExitStack() as stack:
        if before is not None:
            stack.enter_context(_alone(store, before.info.run_id, name))
        recorder = stack.enter_context(open_run(store, name, dataset, tags, say=display.say, again=before))
        if before is None:
            stack.enter_context(_alone(store, recorder.run_id, name))
        recorder.tags(environment_tags(experiment.device))
        recorder.data(dataset, experiment.pack.manifest.key, experiment.pack.profile())
        yield recorder, workspace_of(store, recorder.run_id)


@contextmanager
def _alone(store: Store, run_id: str, name: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(run_lock(workspace_of(store, run_id)))
        except BadSetting:
            raise BadSetting(
                f"the study {name} is at work in another process. `bench search --join '{name}'` helps it."
            ) from None
        yield


def _best(
    problem: ResolvedSearch, study: Study, recorder: MlflowRecorder, out: Path | None
) -> tuple[int, RunConfig]:
    """The number and configuration of the best trial, which is also left as a file. Raises `BadSetting`."""
    best = best_trial(study)
    if best is None:
        raise BadSetting(f"no trial of {study.study_name} is complete. Give more --trials, or --pruner none.")
    config = problem.config(best.params)
    text = as_file(config, study, problem.plan)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "best.yaml").write_text(text)
        recorder.files(Path(folder), "best")
    if out is not None:
        out.write_text(text)
    recorder.tags({"bench.best_trial": str(best.number), "bench.trials": describe_counts(study)})
    names = [f"best/{name}" for name in problem.plan.objectives]
    recorder.metrics(dict(zip(names, best.values, strict=True)), best.number)
    return best.number, config


def _judged(
    problem: ResolvedSearch,
    config: RunConfig,
    label: str,
    recorder: MlflowRecorder,
    workspace: Path,
    display: Display,
    kind: str = OUTER,
) -> tuple[FoldResult, Masks]:
    """Train on the outer fold with these settings and score its test patients, once: what is kept, is kept."""
    experiment = resolve(config, only=problem.outer.number)
    kept = FoldWorkspace(workspace / label.replace(" ", "-"), config.checkpoint_every, display)
    done = kept.result()
    if done is None:
        configure_torch(experiment.device, deterministic=config.train.deterministic, threads=config.threads)
        loader = SliceLoader(experiment.pack, experiment.config.input, experiment.device)
        how = choose_execution(experiment, loader).execution
        with recorder.child(label, {KIND: kind, "bench.fold": str(problem.outer.number)}) as child:
            done = run_fold(experiment, problem.outer, loader, child, execution=how, watch=display, kept=kept)
        kept.finish(*done)
    return done


def _score(problem: ResolvedSearch, result: FoldResult) -> float:
    task = problem.experiment.task
    cases, slices = case_table([result]), slice_table(result.scores)
    return task.summarise(cases, slices, with_interval=False)[task.primary]


def _said(problem: ResolvedSearch, study: Study) -> list[str]:
    plan, best = problem.plan, best_trial(study)
    assert best is not None
    return [
        f"{study.study_name}: {describe_counts(study)}",
        f"best: {describe_trial(best, plan)}",
        f"(mean of the best epochs of {plan.inner} inner folds, chosen on the same patients: optimistic)",
    ]


def _tags(problem: ResolvedSearch, name: str) -> dict[str, str]:
    own = {"bench.split": problem.experiment.split_hash, "bench.task": problem.experiment.task.name, NAME: name}
    return data_tags(problem.experiment.pack.manifest) | own


def _settings(problem: ResolvedSearch) -> dict[str, Any]:
    plan = problem.plan.model_dump(mode="json", exclude={"base", "fold"})
    return problem.experiment.config.flat() | {f"search.{key}": value for key, value in plan.items()}
