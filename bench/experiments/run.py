"""`bench run`: cross-validate one configuration, log it and rank it, or only plan it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bench.analysis.run_summary import headline, model_card
from bench.config import RunConfig
from bench.console import Display, console
from bench.derived.base import update_ranks
from bench.errors import BadSetting
from bench.experiments import run_texts
from bench.experiments.tracked_run import tracked_run
from bench.formatting import LEAKY_WARNING, duration
from bench.overrides import configure
from bench.reports.tables import board_table
from bench.tracking import LEAKY, PARENT, Run, Store, connect, find_run, read_settings
from bench.tracking.resume import (
    abandon_matching,
    check_name,
    digest,
    find_resumable,
    hash_code,
    remove_workspace,
    save_code_hashes,
)
from bench.tracking.tags import Tag, data_tags
from bench.training.cross_validation import CrossValidationResult, cross_validate, estimate_seconds
from bench.training.experiment import Experiment, resolve


def execute(
    config: RunConfig,
    *,
    only: int | None = None,
    uri: str | None = None,
    tags: Mapping[str, str] | None = None,
    fresh: bool = False,
    resume: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> str:
    """Run one configuration, log it with these tags, print its board, and return the run's id.

    An interrupted run of the same configuration, data and code is resumed, or abandoned if `fresh`. `resume` is
    the id of the run that must be resumed. `only` is the number of a fold to run alone. Raises `BenchError`.
    """
    store = connect(uri)
    with Display(quiet=quiet, verbose=verbose) as display:
        experiment = resolve(config, only=only, watch=display)
        for line in run_texts.announcement(experiment):
            display.say(line)
        code = hash_code(experiment.config)
        own = _tags(experiment, only, code) | dict(tags or {})
        if fresh:
            abandon_matching(store, own, None if Tag.SUITE in own else experiment.config.name)
        earlier = None if fresh else _resumable(store, own, code, experiment.config, resume)
        if earlier is not None:
            display.say(f"resuming the interrupted run {earlier.info.run_id[:8]}")
        run_id, result = _train(store, experiment, only, own, code, display, earlier)
    if experiment.leaky:
        title = experiment.config.title
        text = f"{title}: LEAKY, on no leaderboard\n{headline(result.values)}\n{LEAKY_WARNING}"
        console().print(text, markup=False)
    else:
        console().print(board_table(update_ranks(store, run_id)))
    return run_id


def _train(
    store: Store,
    experiment: Experiment,
    only: int | None,
    tags: Mapping[str, str],
    code: Mapping[str, str],
    display: Display,
    earlier: Run | None,
) -> tuple[str, CrossValidationResult]:
    """Cross-validate inside a run of the store; return its id and the result."""
    title = experiment.config.title
    with tracked_run(store, title, experiment, tags, display, earlier) as (recorder, workspace):
        save_code_hashes(workspace, code)
        recorder.settings(experiment.config.flat())
        try:
            result = cross_validate(experiment, recorder, only=only, watch=display, workspace=workspace)
        except KeyboardInterrupt:
            display.say("interrupted: finished folds are kept; repeat the command to continue")
            raise
        card = model_card(title, run_texts.card(experiment, only), {**result.values, **result.costs})
        recorder.tags({"mlflow.note.content": card})
    remove_workspace(workspace)
    return recorder.run_id, result


def settings_to_resume(name_or_id: str, *, uri: str | None = None) -> tuple[RunConfig, int | None, str]:
    """Return the configuration of an interrupted run, its only fold if it has one, and its id.

    Raises `BadSetting` if the run cannot be resumed.
    """
    run = find_run(connect(uri), name_or_id)
    name = f"run {run.info.run_name} ({run.info.run_id[:8]})"
    if run.info.status == "FINISHED":
        raise BadSetting(f"{name} is finished. Name another run.")
    if Tag.GIVEN_UP in run.data.tags:
        raise BadSetting(
            f"{name} was abandoned by --fresh, and its checkpoints are gone. Name another run, or start it again."
        )
    only = run.data.tags.get(Tag.ONLY)
    config = configure(read_settings(run))
    if config.fingerprint() != run.data.tags.get(Tag.FINGERPRINT):
        raise BadSetting(f"the settings of {name} have another meaning in this version. Start it again.")
    return config, None if only is None else int(only), run.info.run_id


def dry_run(config: RunConfig, *, only: int | None = None, quiet: bool = False) -> None:
    """Print the resolved configuration, the folds and an estimate of the time; train nothing."""
    with Display(quiet=quiet) as display:
        experiment = resolve(config, only=only, watch=display)
        for line in run_texts.announcement(experiment):
            display.say(line)
        for line in run_texts.plan(experiment):
            console().print(line, markup=False)
        seconds = estimate_seconds(experiment, only)
    console().print(f"estimated time on {experiment.device}: {duration(seconds)}", markup=False)


def _resumable(
    store: Store, own: Mapping[str, str], code: Mapping[str, str], config: RunConfig, resume: str | None
) -> Run | None:
    """Return the interrupted run to resume; None if `mlflow run` has already opened one."""
    if resume is None:
        if "MLFLOW_RUN_ID" in os.environ:
            return None
        if config.name is not None and Tag.SUITE not in own:  # an entry of a suite has one run per budget
            check_name(store, own, {k: str(v) for k, v in config.flat().items()}, config.name)
    return find_resumable(store, own, code, run_id=resume)


def _tags(experiment: Experiment, only: int | None, code: Mapping[str, str]) -> dict[str, str]:
    tags = data_tags(experiment.pack.manifest) | {
        Tag.SPLIT: experiment.split_hash,
        Tag.FINGERPRINT: experiment.config.fingerprint(),
        Tag.TASK: experiment.task.name,
        Tag.KIND: LEAKY if experiment.leaky else PARENT,
        Tag.CODE: digest(code),
    }
    return tags if only is None else tags | {Tag.ONLY: str(only)}
