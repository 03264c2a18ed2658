"""`bench search`: choose settings by inner folds, then score them once on patients outside of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.analysis.run_summary import headline
from bench.config import RunConfig
from bench.console import Display, console, frame_table
from bench.experiments.search.objective import TrialEvaluator, train_and_validate
from bench.experiments.search.outcome import describe_counts, describe_trial, trial_table
from bench.experiments.search.outer_fold import log_best, score_best, train_outer_fold
from bench.experiments.search.plan import SearchPlan
from bench.experiments.search.resolve import ResolvedSearch, resolve_search
from bench.experiments.search.storage import choose_storage_url, open_storage
from bench.experiments.search.study import check_dependencies, finished_trials, load_study
from bench.experiments.search.study_run import Session, complete_study, open_study_run, study_settings, study_tags
from bench.experiments.search.workers import run_trials
from bench.tracking import FOLD, PARENT, Tag, connect, search_runs, without_password
from bench.tracking.resume import digest
from bench.training.cross_validation import record_patients, record_summary
from bench.training.experiment import resolve


def search(
    plan: SearchPlan,
    *,
    name: str,
    machine: Mapping[str, Any],
    storage: str | None = None,
    uri: str | None = None,
    against_default: bool = False,
    out: Path | None = None,
    quiet: bool = False,
    evaluator: TrialEvaluator = train_and_validate,
) -> str:
    """Start or resume a study, and score its best trial once on the held-out fold. Return the id of the run."""
    with _open_session(storage, uri, quiet, evaluator) as session:
        resolved = resolve_search(plan, machine, session.display)
        with complete_study(session, resolved, name) as (study, run):
            best, config = log_best(resolved, study, run.recorder, out)
            lines = [
                f"{name}: {describe_counts(study)}",
                f"best: {describe_trial(best, resolved.plan)}",
                f"(mean over {plan.inner} inner folds, optimistic: the same patients chose settings and epochs)",
                *score_best(resolved, run, best.number, config, against_default=against_default),
                f"the study in a browser: optuna-dashboard {without_password(session.storage.url)}",
            ]
            table = frame_table(name, trial_table(study, resolved.plan))
    console().print(table)
    console().print("\n".join(lines), markup=False)
    return run.recorder.run_id


def search_nested(
    plan: SearchPlan,
    *,
    name: str,
    machine: Mapping[str, Any],
    storage: str | None = None,
    uri: str | None = None,
    quiet: bool = False,
    evaluator: TrialEvaluator = train_and_validate,
) -> str:
    """Run a study inside each outer fold and test its winner on that fold: the score of searching and training.

    It is logged as a cross-validation, so it is ranked on the board of its split. Return the id of the run.
    """
    with _open_session(storage, uri, quiet, evaluator) as session:
        resolved = resolve_search(plan, machine, session.display)
        winners, seconds = [], 0.0
        for fold in resolved.experiment.folds:
            inner = resolve_search(plan.model_copy(update={"fold": fold.number}), machine, session.display)
            with complete_study(session, inner, f"{name} fold {fold.number}") as (study, run):
                winners.append((inner, log_best(inner, study, run.recorder, None)[1]))
                seconds += sum(t.duration.total_seconds() for t in study.trials if t.duration is not None)
        run_id, values = _test_winners(session, resolved, name, winners, seconds)
    console().print(
        f"{name}: nested search, {plan.trials} trials inside each of {len(winners)} folds; every patient is "
        f"tested once, by settings that were chosen without it\n{headline(values)}",
        markup=False,
    )
    return run_id


def join_study(
    name: str,
    *,
    machine: Mapping[str, Any],
    storage: str | None = None,
    uri: str | None = None,
    quiet: bool = False,
    evaluator: TrialEvaluator = train_and_validate,
) -> None:
    """Run trials of a study that another process has started, until its budget is used. That process logs them."""
    with _open_session(storage, uri, quiet, evaluator) as session:
        study, plan = load_study(session.storage, name)
        folder = {k: v for k, v in study.user_attrs["here"].items() if k == "dataset.folder"}
        resolved = resolve_search(plan, folder | dict(machine), session.display)
        check_dependencies(study, resolved.plan, resolved.dependencies)
        resolved.set_sampler_and_pruner(study)
        known = {trial.number for trial in finished_trials(study, set())}

        def describe_new_trials() -> None:
            for trial in finished_trials(study, known):
                known.add(trial.number)
                session.display.say(describe_trial(trial, resolved.plan))

        objective = resolved.make_objective(evaluator, session.display)
        run_trials(study, resolved.plan, objective, owner=False, after_trial=describe_new_trials)
        counts = describe_counts(study)
    console().print(f"{name}: {counts}; the process that started the study continues it", markup=False)


@contextmanager
def _open_session(
    storage: str | None, uri: str | None, quiet: bool, evaluator: TrialEvaluator
) -> Iterator[Session]:
    store = connect(uri)
    with Display(quiet=quiet) as display, open_storage(choose_storage_url(storage, store)) as opened:
        yield Session(store, opened, display, evaluator)


def _test_winners(
    session: Session,
    resolved: ResolvedSearch,
    name: str,
    winners: list[tuple[ResolvedSearch, RunConfig]],
    search_seconds: float,
) -> tuple[str, Mapping[str, float]]:
    """Log a cross-validation that trains each fold with its winner's settings; return its run id and scores."""
    plan = resolved.plan.model_dump_json(exclude={"fold", "base"})
    fingerprint = digest({"base": resolved.experiment.config.fingerprint(), "plan": plan})
    tags = study_tags(resolved, name) | {Tag.KIND: PARENT, Tag.FINGERPRINT: fingerprint}
    identity = {key: tags[key] for key in (Tag.KIND, Tag.STUDY, Tag.FINGERPRINT)}
    resume = next(iter(search_runs(session.store, identity)), None)
    with open_study_run(session, name, resolved.experiment, tags, resume) as run:
        run.recorder.settings(study_settings(resolved) | {"search.nested": True})
        folds = [
            train_outer_fold(inner, config, f"fold {inner.plan.fold}", run, FOLD) for inner, config in winners
        ]
        record_patients(resolved.experiment, run.recorder)
        parameters = max(resolve(config).parameters for _, config in winners)
        costs = {"search_seconds": search_seconds, "parameters": parameters}
        summary = record_summary(resolved.experiment, run.recorder, folds, costs)
    return run.recorder.run_id, summary.values
