"""`bench run`: cross-validate one configuration, log it and rank it, or only plan it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.board import Board
from bench.analysis.run_summary import headline, model_card
from bench.config import RunConfig, flatten
from bench.console import Display, console
from bench.derived.base import update_ranks
from bench.device import bfloat16_slowdown, has_bfloat16
from bench.environment import environment_tags
from bench.errors import BadSetting
from bench.experiments.expected_time import say_expected_time
from bench.formatting import LEAKY_WARNING, SYNTHETIC_WARNING, duration
from bench.overrides import written
from bench.reports.tables import LEADERBOARD, print_board
from bench.tracking import (
    LEAKY,
    PARENT,
    MlflowRecorder,
    Run,
    Store,
    connect,
    connect_to_write,
    find_run,
    is_finished,
    open_run,
    read_config,
    run_label,
)
from bench.tracking.resume import (
    abandon_matching,
    check_name,
    digest,
    find_resumable,
    hash_code,
    is_ranked,
    remove_workspace,
    run_lock,
    save_code_hashes,
    workspace_folder,
)
from bench.tracking.tags import Tag, data_tags
from bench.training.cross_validation import cross_validate, estimate_time
from bench.training.experiment import Experiment, resolve


@dataclass(frozen=True, repr=False)
class FinishedRun:
    """A finished run: its id and name, its scores by logged name, and the board that it is ranked on.

    A run with a leaky split is on no board.
    """

    run_id: str
    name: str
    scores: Mapping[str, float]
    board: Board | None

    def __repr__(self) -> str:
        warning = "" if self.board else f"\n{LEAKY_WARNING}"
        return f"{self.name} ({self.run_id[:8]}): {headline(self.scores)}{warning}"


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
) -> FinishedRun:
    """Run one configuration, log it with these tags, and rank it.

    An interrupted run of the same configuration, data and code is resumed, or abandoned if `fresh`. `resume` is
    the id of the run that must be resumed. `only` is the number of a fold to run alone. Raises `BenchError`.
    """
    store = connect_to_write(uri)
    with Display(quiet=quiet, verbose=verbose) as display:
        experiment = resolve(config, only=only, watch=display)
        _announce(experiment, display)
        code = hash_code(experiment.config)
        own = _tags(experiment, only, code) | dict(tags or {})
        if fresh:
            abandon_matching(store, own, None if Tag.SUITE in own else experiment.config.name)
        earlier = None if fresh else _resumable(store, own, code, experiment.config, resume)
        if earlier is not None and is_finished(earlier):
            display.say(
                f"run {earlier.info.run_id[:8]} was interrupted after its end: only its ranks are computed"
            )
            return _rank(store, experiment, earlier.info.run_id, earlier.data.metrics, display)
        if earlier is not None:
            display.say(f"resuming the interrupted run {earlier.info.run_id[:8]}")
        elif not (quiet or experiment.pack.manifest.synthetic or Tag.SUITE in own):
            say_expected_time(experiment, only, display)
        title = experiment.config.title
        with tracked_run(store, title, experiment, own, display, earlier) as (recorder, workspace):
            save_code_hashes(workspace, code)
            recorder.settings(experiment.config.flat())
            try:
                result = cross_validate(experiment, recorder, only=only, watch=display, workspace=workspace)
            except KeyboardInterrupt:
                display.say("interrupted: finished folds are kept; repeat the command to continue")
                raise
            card = model_card(title, _card(experiment, only), {**result.values, **result.costs})
            recorder.tags({"mlflow.note.content": card})
        return _rank(store, experiment, recorder.run_id, result.values, display)


@contextmanager
def tracked_run(
    store: Store, title: str, experiment: Experiment, tags: Mapping[str, str], display: Display, resume: Run | None
) -> Iterator[tuple[MlflowRecorder, Path]]:
    """Yield the recorder of the run and its workspace, a folder for checkpoints.

    Raises `BadSetting` if another process has the run. The lock is held until the store knows how the run ended.
    """
    manifest = experiment.pack.manifest
    with ExitStack() as lock, ExitStack() as stack:
        if resume is not None:  # locked before it is opened, as another process may want to resume it too
            lock.enter_context(run_lock(workspace_folder(store, resume.info.run_id)))
        recorder = stack.enter_context(
            open_run(store, title, manifest.dataset, tags, say=display.say, resume=resume)
        )
        workspace = workspace_folder(store, recorder.run_id)
        if resume is None:
            lock.enter_context(run_lock(workspace))
        recorder.tags(environment_tags(experiment.device))
        recorder.data(manifest.dataset, manifest.key, experiment.pack.profile())
        yield recorder, workspace


def settings_to_resume(name_or_id: str, *, uri: str | None = None) -> tuple[RunConfig, int | None, str]:
    """Return the configuration of an interrupted run, its only fold if it has one, and its id.

    Raises `BadSetting` if the run cannot be resumed.
    """
    store = connect(uri)
    run = find_run(store, name_or_id, lambda run: not is_ranked(store, run) and Tag.GIVEN_UP not in run.data.tags)
    name = f"run {run_label(run)}"
    if is_ranked(store, run):
        raise BadSetting(f"{name} is finished. Name another run.")
    if Tag.GIVEN_UP in run.data.tags:
        raise BadSetting(
            f"{name} was abandoned by --fresh, and its checkpoints are gone. Name another run, or start it again."
        )
    only = run.data.tags.get(Tag.ONLY)
    config = read_config(run)
    if config.fingerprint() != run.data.tags.get(Tag.FINGERPRINT):
        raise BadSetting(f"the settings of {name} have another meaning in this version. Start it again.")
    return config, None if only is None else int(only), run.info.run_id


def _rank(
    store: Store, experiment: Experiment, run_id: str, values: Mapping[str, float], display: Display
) -> FinishedRun:
    """Rank a finished run and remove its checkpoints.

    The workspace is removed last: while it exists, the same command repeats these steps.
    """
    board = None if experiment.leaky else update_ranks(store, run_id, display)
    remove_workspace(workspace_folder(store, run_id))
    return FinishedRun(run_id, experiment.config.title, values, board)


def print_finished(run: FinishedRun) -> None:
    """Print the board of a finished run, or the scores of a leaky one with a warning."""
    if run.board is None:
        text = f"{run.name}: LEAKY, on no leaderboard\n{headline(run.scores)}\n{LEAKY_WARNING}"
        console().print(text, markup=False)
    else:
        print_board(console(), run.board, more=LEADERBOARD)


def dry_run(config: RunConfig, *, only: int | None = None, quiet: bool = False) -> None:
    """Print the resolved configuration, the folds and an estimate of the time; train nothing."""
    with Display(quiet=quiet) as display:
        experiment = resolve(config, only=only, watch=display)
        _announce(experiment, display)
        config = experiment.config
        lines = [f"{key} = {written(value)}" for key, value in flatten(config.model_dump(mode="json"))]
        for fold in experiment.folds:
            parts = (("train", fold.train), ("validation", fold.val), ("test", fold.test))
            sizes = ", ".join(f"{name} {_size(experiment, cases)}" for name, cases in parts)
            lines.append(f"fold {fold.number}: {sizes}")
        parameters = f"{experiment.parameters / 1e6:.1f} M parameters"
        lines.append(f"split {experiment.split_hash} · {parameters} · fingerprint {config.fingerprint()}")
        console().print("\n".join(lines), markup=False)
        time = estimate_time(experiment, only)
    console().print(
        f"estimated time on {experiment.device}: {duration(time.seconds)}, from the time of "
        f"{time.images} training image{'s' * (time.images != 1)} and "
        f"{time.slices} predicted slice{'s' * (time.slices != 1)}",
        markup=False,
    )


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


def _announce(experiment: Experiment, display: Display) -> None:
    """Say warnings about the data, then one line on data, folds and model."""
    manifest, index = experiment.pack.manifest, experiment.pack.index
    warnings = ((manifest.synthetic, SYNTHETIC_WARNING), (experiment.leaky, LEAKY_WARNING))
    for line in (*(text for holds, text in warnings if holds), *(f"note: {note}" for note in manifest.notes)):
        display.say(line)
    if experiment.config.train.precision == "bfloat16" and not has_bfloat16(experiment.device):
        display.say(
            f"warning: this {experiment.device.type} has no bfloat16 and emulates it: a convolution takes "
            f"{bfloat16_slowdown(experiment.device):.0f} times as long as in float32. Set train.precision=auto."
        )
    display.say(
        f"{experiment.config.title}: {_patients(experiment)} patients, {len(index)} slices "
        f"({index['positive'].mean():.0%} with {experiment.pack.structures.noun}), {len(experiment.folds)} folds, "
        f"{experiment.parameters / 1e6:.1f} M parameters, on {experiment.device}"
    )


def _card(experiment: Experiment, only: int | None) -> dict[str, object]:
    """Return the facts for the model card, by heading."""
    manifest, config = experiment.pack.manifest, experiment.config
    rule = "epoch chosen on validation patients, test patients scored once"
    folds = f"{len(experiment.folds)} folds" + ("" if only is None else f", only fold {only}")
    return {
        "Data": f"{manifest.dataset}, {_patients(experiment)} patients, key {manifest.key}"
        + (", SYNTHETIC" if manifest.synthetic else ""),
        "Protocol": f"{config.split.name}, {folds}, split {experiment.split_hash}; "
        + (LEAKY_WARNING if experiment.leaky else rule),
        "Budget": f"{config.train.epochs} epochs of batch {config.train.batch_size}, seed {config.seed}",
        "Model": f"{config.model.name} {config.model.params}, {experiment.parameters / 1e6:.1f} M parameters",
        "Licence of the data": manifest.licence,
        "Limits": f"research software, not for clinical use; one seed, {_patients(experiment)} patients, one data "
        "set, nothing known about other scanners or sites; distances are in pixels, in 2D",
    }


def _patients(experiment: Experiment) -> int:
    """Return the number of patients; the cases of a leaky split are single slices."""
    return int(experiment.pack.index["patient" if experiment.leaky else "case"].nunique())


def _size(experiment: Experiment, cases: Set[str]) -> str:
    """Return the number of patients and slices of one side of a fold."""
    slices = experiment.pack.index.iloc[experiment.pack.rows(cases)]
    patients = slices["patient" if experiment.leaky else "case"].nunique()
    share = f"{slices['positive'].mean():.0%} with {experiment.pack.structures.noun}"
    return f"{patients} patients / {len(slices)} slices ({share})"
