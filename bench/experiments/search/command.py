"""`bench search`: choose settings by inner folds, then score them once on patients outside of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from bench.analysis.pairs import ALPHA
from bench.analysis.run_summary import headline
from bench.config import RunConfig
from bench.console import console
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.errors import BadSetting
from bench.experiments.search import study_run
from bench.experiments.search.objective import TrialEvaluator, train_and_validate
from bench.experiments.search.plan import ResolvedSearch, SearchPlan, resolve_search
from bench.experiments.search.storage import best_trial, check_dependencies, finished_trials, load_study
from bench.experiments.search.workers import run_trials
from bench.masks import Masks
from bench.outputs import check_outputs, write_output
from bench.stats import compare_paired
from bench.text_table import print_frame
from bench.tracking import FOLD, PARENT, MlflowRecorder, Tag, search_runs, without_password
from bench.tracking.resume import digest
from bench.training.cross_validation import record_patients, record_summary
from bench.training.execution import choose_execution
from bench.training.experiment import Experiment, resolve
from bench.training.fold import FoldWorkspace, run_fold
from bench.training.fold_records import case_table, fold_means
from bench.types import FoldResult

OUTER = "outer"  # kind of a run: settings tested on the outer fold


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
    check_outputs([out] if out else [])
    with study_run.open_session(storage, uri, quiet, evaluator) as session:
        resolved = resolve_search(plan, machine, session.display)
        with study_run.complete_study(session, resolved, name) as (study, run):
            best, config = log_best(resolved, study, run.recorder, out)
            lines = [
                f"{name}: {study_run.describe_counts(study)}",
                f"best: {study_run.describe_trial(best, resolved.plan)}",
                *study_run.describe_ties(study, resolved.plan),
                f"(mean over {plan.inner} inner folds, optimistic: the same patients chose settings and epochs)",
                *score_best(resolved, run, best.number, config, against_default=against_default),
                f"the study in a browser: optuna-dashboard {without_password(session.storage.url)}",
            ]
            table = study_run.trial_table(study, resolved.plan)
    print_frame(console(), name, table, fixed=2, wide=True)
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
    with study_run.open_session(storage, uri, quiet, evaluator) as session:
        resolved = resolve_search(plan, machine, session.display)
        winners, seconds = [], 0.0
        for fold in resolved.experiment.folds:
            inner = resolve_search(plan.model_copy(update={"fold": fold.number}), machine, session.display)
            with study_run.complete_study(session, inner, f"{name} fold {fold.number}") as (study, run):
                winners.append((inner, log_best(inner, study, run.recorder, None)[1]))
                seconds += sum(t.duration.total_seconds() for t in study.trials if t.duration is not None)
        # Log a cross-validation that trains each fold with its winner's settings.
        experiment, options = resolved.experiment, resolved.plan.model_dump_json(exclude={"fold", "base"})
        fingerprint = digest({"base": experiment.config.fingerprint(), "plan": options})
        tags = study_run.study_tags(resolved, name) | {Tag.KIND: PARENT, Tag.FINGERPRINT: fingerprint}
        identity = {key: tags[key] for key in (Tag.KIND, Tag.STUDY, Tag.FINGERPRINT)}
        resume = next(iter(search_runs(session.store, identity)), None)
        with study_run.open_study_run(session, name, experiment, tags, resume) as run:
            run.recorder.settings(study_run.study_settings(resolved) | {"search.nested": True})
            chosen = [resolve(best, only=inner.plan.fold) for inner, best in winners]
            tested = [
                train_outer_fold(inner, one, f"fold {inner.plan.fold}", run, FOLD)
                for (inner, _), one in zip(winners, chosen, strict=True)
            ]
            record_patients(experiment, run.recorder)
            costs = {"search_seconds": seconds, "parameters": max(one.parameters for one in chosen)}
            summary = record_summary(experiment, run.recorder, tested, costs)
    console().print(
        f"{name}: nested search, {plan.trials} trials inside each of {len(winners)} folds; every patient is "
        f"tested once, by settings that were chosen without it\n{headline(summary.values)}",
        markup=False,
    )
    return run.recorder.run_id


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
    with study_run.open_session(storage, uri, quiet, evaluator) as session:
        study, plan = load_study(session.storage, name)
        folder = {k: v for k, v in study.user_attrs["here"].items() if k == "dataset.folder"}
        resolved = resolve_search(plan, folder | dict(machine), session.display)
        check_dependencies(study, resolved.plan, resolved.dependencies)
        resolved.set_sampler_and_pruner(study)
        before = {trial.number for trial in finished_trials(study, set())}
        known = set(before)

        def describe_new_trials() -> None:
            for trial in finished_trials(study, known):
                known.add(trial.number)
                session.display.say(study_run.describe_trial(trial, resolved.plan))

        objective = resolved.make_objective(evaluator, session.display)
        run_trials(study, resolved.plan, objective, owner=False, after_trial=describe_new_trials)
        counts = study_run.describe_counts(study)
    new = len(known - before)
    did = f"{new} of them since this worker joined" if new else "no trial was left for this worker"
    console().print(f"{name}: {counts}; {did}; the process that started the study continues it", markup=False)


def log_best(
    resolved: ResolvedSearch, study: Study, recorder: MlflowRecorder, out: Path | None
) -> tuple[FrozenTrial, RunConfig]:
    """Log the best trial and its settings, also to the file `out`; return both.

    Raises `BadSetting` if no trial is complete.
    """
    best = best_trial(study)
    if best is None:
        raise BadSetting(
            f"no trial of study '{study.study_name}' is complete. Give more --trials, or --pruner none."
        )
    config = resolved.configure(best.params)
    text = study_run.config_file(config, study, resolved.plan)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "best.yaml").write_text(text)
        recorder.files(Path(folder), "best")
    if out is not None:
        write_output(out, text)
    recorder.tags({Tag.BEST_TRIAL: str(best.number), Tag.TRIALS: study_run.describe_counts(study)})
    names = [f"best/{name}" for name in resolved.plan.objectives]
    recorder.metrics(dict(zip(names, best.values, strict=True)), best.number)
    return best, config


def train_outer_fold(
    resolved: ResolvedSearch, experiment: Experiment, label: str, run: study_run.StudyRun, kind: str = OUTER
) -> tuple[FoldResult, Masks]:
    """Train `experiment` on the outer fold and score its test patients, or load the result of doing so."""
    fold, config = resolved.outer_fold, experiment.config
    workspace = FoldWorkspace(run.workspace / label.replace(" ", "-"), config.checkpoint_every, run.display)
    if (done := workspace.load_result()) is not None:
        return done
    configure_torch(experiment.device, deterministic=config.train.deterministic, threads=config.threads)
    loader = SliceLoader(experiment.pack, experiment.config.input, experiment.device)
    how, watch = choose_execution(experiment, loader).execution, run.display
    with run.recorder.child(label, {Tag.KIND: kind, Tag.FOLD: str(fold.number)}) as child:
        done = run_fold(experiment, fold, loader, child, execution=how, watch=watch, workspace=workspace)
    workspace.save_result(*done)  # once the child run has ended
    return done


def score_best(
    resolved: ResolvedSearch, run: study_run.StudyRun, number: int, config: RunConfig, *, against_default: bool
) -> list[str]:
    """Score the best trial, and if asked the base settings, on the outer test patients; return lines to print."""
    experiment, task = resolved.experiment, resolved.experiment.task
    only = resolved.outer_fold.number
    best = train_outer_fold(resolved, resolve(config, only=only), f"test of trial {number}", run)
    score = fold_means(experiment, *best)[task.primary]
    run.recorder.metrics({f"test/{task.primary}": score}, number)
    patients = f"{len(best[0].scores)} held-out patients of fold {only}, scored once"
    lines = [f"trial {number} on {patients}: {task.primary} {score:.3f}"]
    if against_default:
        settings = resolve(resolved.configure({}), only=only)
        default = train_outer_fold(resolved, settings, "test of default", run)
        lines.append(f"the default: {task.primary} {fold_means(experiment, *default)[task.primary]:.3f}")
        ours, theirs = (
            case_table(experiment, [result], masks).set_index("case") for result, masks in (best, default)
        )
        if task.primary in ours:
            verdict, gain = compare_with_default(ours[task.primary], theirs[task.primary], task.sign, task.primary)
            lines.append(verdict)
            run.recorder.metrics({"test/gain": gain}, number)
    return lines


def compare_with_default(
    best: pd.Series[float], default: pd.Series[float], sign: int, score: str
) -> tuple[str, float]:
    """Say whether the best beats the default on the same held-out patients, and by how much; NaN is left out.

    It does if the interval of the mean gain, the signed ranks and most patients agree, as in `bench compare`.
    """
    both = pd.concat([best, default], axis=1, join="inner").dropna().to_numpy(np.float64) * sign
    gain = compare_paired(both[:, 0], both[:, 1])
    text = (
        f"{score} {gain.difference * sign:+.3f} (95% interval of the gain {gain.interval.low:+.3f} to "
        f"{gain.interval.high:+.3f}, better in {gain.wins:.0%} of {gain.n} held-out patients, "
        f"Wilcoxon p = {gain.p:.2g})"
    )
    beats = gain.interval.low > 0 and gain.p < ALPHA and gain.wins > np.mean(both[:, 0] < both[:, 1])
    return f"it {'beats' if beats else 'does not beat'} the default: {text}", gain.difference
