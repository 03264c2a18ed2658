"""The held-out test of a search: train the best settings on the outer fold, and score its test patients once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from bench.analysis.ranking import ALPHA
from bench.config import RunConfig
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.errors import BadSetting
from bench.experiments.search.outcome import config_file, describe_counts
from bench.experiments.search.resolve import ResolvedSearch
from bench.experiments.search.study import best_trial
from bench.experiments.search.study_run import StudyRun
from bench.masks import Masks
from bench.stats import compare_paired
from bench.tracking import MlflowRecorder, Tag
from bench.training.execution import choose_execution
from bench.training.experiment import resolve
from bench.training.fold import FoldWorkspace, run_fold
from bench.training.fold_records import case_table, fold_means
from bench.types import FoldResult

OUTER = "outer"  # kind of a run: settings tested on the outer fold


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
    text = config_file(config, study, resolved.plan)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "best.yaml").write_text(text)
        recorder.files(Path(folder), "best")
    if out is not None:
        out.write_text(text)
    recorder.tags({Tag.BEST_TRIAL: str(best.number), Tag.TRIALS: describe_counts(study)})
    names = [f"best/{name}" for name in resolved.plan.objectives]
    recorder.metrics(dict(zip(names, best.values, strict=True)), best.number)
    return best, config


def train_outer_fold(
    resolved: ResolvedSearch, config: RunConfig, label: str, run: StudyRun, kind: str = OUTER
) -> tuple[FoldResult, Masks]:
    """Train on the outer fold with these settings and score its test patients, or load the result of doing so."""
    fold = resolved.outer_fold
    experiment = resolve(config, only=fold.number)
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
    resolved: ResolvedSearch, run: StudyRun, number: int, config: RunConfig, *, against_default: bool
) -> list[str]:
    """Score the best trial, and if asked the base settings, on the outer test patients; return lines to print."""
    experiment, task = resolved.experiment, resolved.experiment.task
    best = train_outer_fold(resolved, config, f"test of trial {number}", run)
    score = fold_means(experiment, *best)[task.primary]
    run.recorder.metrics({f"test/{task.primary}": score}, number)
    patients = f"{len(best[0].scores)} held-out patients of fold {resolved.outer_fold.number}, scored once"
    lines = [f"trial {number} on {patients}: {task.primary} {score:.3f}"]
    if against_default:
        default = train_outer_fold(resolved, resolved.configure({}), "test of default", run)
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
