"""`bench run`: one configuration, trained, logged and ranked, or only planned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from contextlib import ExitStack

from bench.analysis.run_summary import headline, model_card
from bench.config import RunConfig
from bench.console import Display, console
from bench.derived.ranks import update_ranks
from bench.environment import environment_tags
from bench.errors import BadSetting
from bench.formatting import LEAKY_WARNING, SYNTHETIC_WARNING, duration
from bench.overrides import configure
from bench.reports.tables import board_table
from bench.tracking import (
    KIND,
    LEAKY,
    PARENT,
    Run,
    Store,
    connect,
    find_run,
    open_run,
    settings_of,
)
from bench.tracking.resume import (
    CODE,
    GIVEN_UP,
    abandon_matching,
    check_name,
    code_of,
    digest,
    find_resumable,
    remove_workspace,
    run_lock,
    save_code_hashes,
    workspace_of,
)
from bench.tracking.tags import data_tags
from bench.training.cross_validation import cross_validate, estimate_seconds
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
    """Run one configuration, log it with these tags, print the board it stands on. Gives the run's id.

    Goes on with an interrupted run of the same configuration, data and code, or gives it up where a `fresh` one is
    wanted; `resume` is the id of the one that it must be.
    """
    store = connect(uri)
    with Display(quiet=quiet, verbose=verbose) as display:
        experiment = resolve(config, only=only, watch=display)
        _announce(experiment, display)
        title, manifest, settings = experiment.config.title, experiment.pack.manifest, experiment.config.flat()
        code = code_of(experiment.config)
        own = _tags(experiment) | ({} if only is None else {"bench.only": str(only)}) | dict(tags or {})
        own |= {CODE: digest(code)}
        if fresh:
            abandon_matching(store, own, None if "bench.suite" in own else experiment.config.name)
        before = None if fresh else _before(store, own, code, experiment.config, resume)
        if before is not None:
            display.say(f"going on with run {before.info.run_id[:8]}, which was broken off")
        with ExitStack() as lock, ExitStack() as stack:  # the lock is held until the store knows how the run ended
            if before is not None:  # before it is opened: another process may want to go on with it as well
                lock.enter_context(run_lock(workspace_of(store, before.info.run_id)))
            recorder = stack.enter_context(
                open_run(store, title, manifest.dataset, own, say=display.say, again=before)
            )
            workspace = workspace_of(store, recorder.run_id)
            if before is None:
                lock.enter_context(run_lock(workspace))
            save_code_hashes(workspace, code)
            recorder.settings(settings)
            recorder.tags(environment_tags(experiment.device))
            recorder.data(manifest.dataset, manifest.key, experiment.pack.profile())
            try:
                outcome = cross_validate(experiment, recorder, only=only, watch=display, workspace=workspace)
            except KeyboardInterrupt:
                display.say("interrupted: the folds that were finished are kept, and the same command goes on")
                raise
            card = model_card(title, _card(experiment, only), {**outcome.values, **outcome.costs})
            recorder.tags({"mlflow.note.content": card})
        remove_workspace(workspace)
    if experiment.leaky:
        said = f"{title}: LEAKY, on no leaderboard\n{headline(outcome.values)}\n{LEAKY_WARNING}"
        console().print(said, markup=False)
        return recorder.run_id
    console().print(board_table(update_ranks(store, recorder.run_id)))
    return recorder.run_id


def resumed(run: str, *, uri: str | None = None) -> tuple[RunConfig, int | None, str]:
    """Configuration of a run that was broken off, its fold if it was one alone, its id. Raises `BadSetting`."""
    store = connect(uri)
    found = find_run(store, run)
    if found.info.status == "FINISHED":
        raise BadSetting(f"run {found.info.run_name} ({found.info.run_id[:8]}) is finished: give another.")
    if GIVEN_UP in found.data.tags:
        raise BadSetting(
            f"run {found.info.run_name} ({found.info.run_id[:8]}) was given up by --fresh, and its checkpoints "
            "are gone: give another, or start it anew."
        )
    only = found.data.tags.get("bench.only")
    config = configure(settings_of(found))
    if config.fingerprint() != found.data.tags.get("bench.fingerprint"):
        raise BadSetting(
            f"the settings of run {found.info.run_name} mean something else to this version. Start it anew."
        )
    return config, None if only is None else int(only), found.info.run_id


def dry_run(config: RunConfig, *, only: int | None = None, quiet: bool = False) -> None:
    """Print the resolved configuration, the folds and what they would cost; train nothing."""
    with Display(quiet=quiet) as display:
        experiment = resolve(config, only=only, watch=display)
        _announce(experiment, display)
        out = console()
        for key, value in experiment.config.flat().items():
            out.print(f"{key} = {value}", markup=False)
        for fold in experiment.folds:
            sizes = ", ".join(
                f"{part} {_counted(experiment, cases)}"
                for part, cases in (("train", fold.train), ("validation", fold.val), ("test", fold.test))
            )
            out.print(f"fold {fold.number}: {sizes}", markup=False)
        seconds = estimate_seconds(experiment, only)
    out.print(
        f"split {experiment.split_hash} · {experiment.parameters / 1e6:.1f} M parameters · fingerprint "
        f"{experiment.config.fingerprint()}\nestimated time on {experiment.device}: {duration(seconds)}",
        markup=False,
    )


def _before(
    store: Store, own: Mapping[str, str], code: Mapping[str, str], config: RunConfig, resume: str | None
) -> Run | None:
    """The interrupted run that is gone on with; none where `mlflow run` has opened one for us."""
    if resume is None:
        if "MLFLOW_RUN_ID" in os.environ:
            return None
        if config.name is not None and "bench.suite" not in own:  # entries of suites have one at every budget
            check_name(store, own, {k: str(v) for k, v in config.flat().items()}, config.name)
    return find_resumable(store, own, code, run_id=resume)


def _announce(experiment: Experiment, display: Display) -> None:
    manifest, index = experiment.pack.manifest, experiment.pack.index
    if manifest.synthetic:
        display.say(SYNTHETIC_WARNING)
    if experiment.leaky:
        display.say(LEAKY_WARNING)
    for note in manifest.notes:
        display.say(f"note: {note}")
    display.say(
        f"{experiment.config.title}: {_patients(experiment)} patients, {len(index)} slices "
        f"({index['positive'].mean():.0%} with tumour), {len(experiment.folds)} folds, "
        f"{experiment.parameters / 1e6:.1f} M parameters, on {experiment.device}"
    )


def _tags(experiment: Experiment) -> dict[str, str]:
    own = {
        "bench.split": experiment.split_hash,
        "bench.fingerprint": experiment.config.fingerprint(),
        "bench.task": experiment.task.name,
        KIND: LEAKY if experiment.leaky else PARENT,
    }
    return data_tags(experiment.pack.manifest) | own


def _patients(experiment: Experiment) -> int:
    return int(experiment.pack.index["patient" if experiment.leaky else "case"].nunique())


def _counted(experiment: Experiment, cases: Set[str]) -> str:
    """The patients of a part, and their slices; the cases of a leaky split are slices themselves."""
    rows = experiment.pack.rows(cases)
    slices = experiment.pack.index.iloc[rows]
    patients = slices["patient" if experiment.leaky else "case"].nunique()
    return f"{patients} patients / {len(rows)} slices ({slices['positive'].mean():.0%} with tumour)"


def _card(experiment: Experiment, only: int | None) -> dict[str, object]:
    manifest, config = experiment.pack.manifest, experiment.config
    return {
        "Data": f"{manifest.dataset}, {_patients(experiment)} patients, key {manifest.key}"
        + (", SYNTHETIC" if manifest.synthetic else ""),
        "Protocol": f"{config.split.name}, {len(experiment.folds)} folds"
        + ("" if only is None else f", only fold {only}")
        + f", split {experiment.split_hash}; "
        + (
            LEAKY_WARNING if experiment.leaky else "epoch chosen on validation patients, test patients scored once"
        ),
        "Budget": f"{config.train.epochs} epochs of batch {config.train.batch_size}, seed {config.seed}",
        "Model": f"{config.model.name} {config.model.params}, {experiment.parameters / 1e6:.1f} M parameters",
        "Licence of the data": manifest.licence,
        "Limits": f"research software, not for clinical use; one seed, {_patients(experiment)} patients of one data "
        "set, no word on other scanners or sites; distances are in pixels, in 2D",
    }
