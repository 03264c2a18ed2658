"""Reading runs: records for the leaderboard, one run by name, its tables, masks and models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import pandas as pd
from mlflow.entities import Run as Run  # others import it from here, because only this package knows MLflow
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from bench.config import RunConfig
from bench.errors import BadSetting, StoreError, UnknownName, did_you_mean
from bench.files import FULL
from bench.formatting import join_and, join_first
from bench.masks import Masks, Probabilities, load_masks, load_probabilities
from bench.overrides import configure, parse_assignment
from bench.registry import loaded_plugins
from bench.tracking.store import Store, quoted, root_cause, to_stderr
from bench.tracking.tags import FOLD, PARENT, Tag, scored_by_slice
from bench.types import RunRecord

T = TypeVar("T")
NOT_SETTINGS = (
    "plan.",
    "cascade.",
    "ensemble.",
    "guest.",
    "rescore.",
    "search.",
)  # prefixes of the other params of runs


class UnreadableTable(StoreError):
    """A table that is not where the store says, or is not a table."""


def read_records(
    store: Store,
    *,
    tags: Mapping[str, str] | None = None,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> list[RunRecord]:
    """Return all finished cross-validations with these tags, and their tables of patients. Raises `StoreError`.

    A run whose tables cannot be read is left out, and a line on the error output names it. `tick(done, of)`
    follows each run.
    """
    records = []
    runs = [run for run in search_runs(store, {Tag.KIND: PARENT, **(tags or {})}) if is_finished(run)]
    for number, run in enumerate(runs, 1):
        try:
            records.append(_read_record(store, run))
        except UnreadableTable as error:
            to_stderr(f"left out: {error}")
        tick(number, len(runs))
    return records


def _read_record(store: Store, run: Run) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        cases=read_table(store, run, "cases"),
        settings=run.data.params,
        metrics=run.data.metrics,
        tags=dict(run.data.tags),
        slices=read_table(store, run, "slices") if scored_by_slice(run.data.tags) else None,
    )


def search_runs(store: Store, tags: Mapping[str, str]) -> list[Run]:
    """Return all runs with these tags, whatever their status, the newest first."""
    where = " and ".join(f"tags.`{tag}` = {quoted(value)}" for tag, value in tags.items())
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    page = store.client.search_runs(experiments, where, max_results=1000)
    runs = list(page)
    while page.token:
        page = store.client.search_runs(experiments, where, max_results=1000, page_token=page.token)
        runs += page
    return runs


def is_finished(run: Run) -> bool:
    """Return whether a run has ended without an error."""
    return str(run.info.status) == "FINISHED"


def find_run(store: Store, name_or_id: str, wanted: Callable[[Run], bool] = is_finished) -> Run:
    """Return the run with this name, or whose id starts with it. Raises `UnknownName`.

    Of several, it is the newest one that is `wanted`, cross-validations first; a line on the error output names
    it and the others.
    """
    if runs := search_runs(store, {"mlflow.runName": name_or_id}):
        return _choose(runs, name_or_id, wanted)
    runs = search_runs(store, {})
    for ids in ([(r, r.info.run_id) for r in runs], [(r, r.data.tags.get(Tag.IMPORTED, "")) for r in runs]):
        if len(name_or_id) >= 6 and (found := [run for run, run_id in ids if run_id.startswith(name_or_id)]):
            return _choose(found, name_or_id, wanted)
    names = {run.info.run_name for run in runs}
    raise UnknownName(
        f"no run '{name_or_id}' in {store.address}.{did_you_mean(name_or_id, names)} "
        "`bench leaderboard` shows names and ids."
    )


def _choose(runs: Sequence[Run], name_or_id: str, wanted: Callable[[Run], bool]) -> Run:
    chosen = max(runs, key=lambda run: (wanted(run), run.data.tags.get(Tag.KIND) == PARENT))  # runs: newest first
    if len(runs) > 1:
        used = f"{chosen.info.run_id[:8]} ({chosen.info.status})"
        others = join_first(f"{r.info.run_id[:8]} ({r.info.status})" for r in runs if r is not chosen)
        to_stderr(f"note: {len(runs)} runs are called '{name_or_id}'. {used} is used. Give an id to use {others}.")
    return chosen


def run_values(store: Store, run_id: str) -> dict[str, Any]:
    """Return what a run has logged as plain values: who it is, its scores, ranks, costs and settings."""
    run = store.client.get_run(run_id)
    tags, logged = run.data.tags, run.data.metrics
    scores = {name: value for name, value in logged.items() if "/" not in name}
    return {
        "run_id": run_id,
        "name": run.info.run_name,
        "kind": tags.get(Tag.KIND),
        "dataset": tags.get(Tag.DATASET),
        "data": tags.get(Tag.DATA),
        "split": tags.get(Tag.SPLIT),
        "synthetic": tags.get(Tag.SYNTHETIC) == "true",
        "scores": {name: value for name, value in scores.items() if not name.startswith("rank")},
        "ranks": {name: value for name, value in scores.items() if name.startswith("rank")},
        "costs": {name.removeprefix("cost/"): v for name, v in logged.items() if name.startswith("cost/")},
        "settings": run.data.params,
    }


def run_label(run: Run) -> str:
    """Return the name of a run and the start of its id, such as 'unet (1a2b3c4d)'."""
    return f"{run.info.run_name} ({run.info.run_id[:8]})"


def find_parent(store: Store, run: Run) -> Run:
    """Return the run that a fold belongs to; any other run is returned itself."""
    parent = run.data.tags.get("mlflow.parentRunId")
    return store.client.get_run(parent) if parent else run


def find_folds(store: Store, run: Run) -> dict[int, Run]:
    """Return the finished fold runs of a run by number. A fold run is its own only fold."""
    if run.data.tags.get(Tag.KIND) == FOLD:
        return {int(run.data.tags[Tag.FOLD]): run}
    where = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.`{Tag.KIND}` = '{FOLD}'"
    children = store.client.search_runs([run.info.experiment_id], where)
    folds = {int(r.data.tags[Tag.FOLD]): r for r in children if is_finished(r)}
    return dict(sorted(folds.items()))


def whole_folds(store: Store, run: Run) -> dict[int, Run]:
    """Return the fold runs of a run as `find_folds` does; none if it never had any.

    Raises `StoreError` if some are missing, so that a part of the folds is never taken for all of them.
    """
    folds = find_folds(store, run)
    if not folds or run.data.tags.get(Tag.KIND) == FOLD:
        return folds
    if not is_finished(run):
        raise StoreError(
            f"run {run_label(run)} is not finished. Repeat its command to resume it, or name one fold."
        )
    if missing := sorted(set(read_table(store, run, "cases")["fold"]) - folds.keys()):
        raise StoreError(
            f"run {run_label(run)} has lost its run of fold {join_and(missing)}. If it was deleted in MLflow's "
            "UI, restore it there; otherwise name one of the other folds."
        )
    return folds


def read_config(run: Run, *layers: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a run, changed by `layers`.

    Code is never loaded because a store names it: others may have written it. Raises `BadSetting` if the run used
    a plugin that was not loaded, under whatever path.
    """
    logged = {k.removeprefix("run."): v for k, v in run.data.params.items() if not k.startswith(NOT_SETTINGS)}
    settings = dict(parse_assignment(f"{key}={value}") for key, value in logged.items())
    used, loaded = [Path(str(p)).name for p in settings.get("plugins") or ()], loaded_plugins()
    if missing := [name for name in used if name not in loaded]:
        raise BadSetting(
            f"run {run_label(run)} used {join_and(missing)}, and a store may not load code. If you trust the "
            f"file, give --plugin {missing[0]}."
        )
    return configure(settings, {"plugins": [loaded[name] for name in used]}, *layers)


def read_table(store: Store, run: Run, name: str) -> pd.DataFrame:
    """Return a table that a run has logged. Raises `UnreadableTable`."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = pd.read_csv(_find_file(store, run, f"{name}.csv", folder), dtype={"case": str, "image": str})
        patients = run.data.metrics.get("patients", len(table)) if name == "cases" else len(table)
        if len(table) != patients:
            raise ValueError(f"it has {len(table)} of {patients:.0f} patients")
        return table
    except (MlflowException, OSError, ValueError) as error:
        if getattr(error, "errno", None) in FULL:  # the folder of temporary files
            raise
        raise UnreadableTable(
            f"{name}.csv of run {run_label(run)} cannot be read in {run.info.artifact_uri} ({root_cause(error)}). "
            "Put the artifacts of the store back there, or beside its database."
        ) from error


def _find_file(store: Store, run: Run, path: str, folder: str) -> Path:
    """Return where a file of a run is on this machine, or the copy of it that is downloaded into `folder`."""
    place = run.info.artifact_uri
    if is_local_uri(place):  # type: ignore[no-untyped-call]  # MLflow would read the run twice more, and copy the file
        return Path(local_file_uri_to_path(place), path)  # type: ignore[no-untyped-call]
    return Path(store.client.download_artifacts(run.info.run_id, path, folder))


def download_models(store: Store, run: Run, into: Path, *, fold: int | None = None) -> list[Path]:
    """Download the models of a run, one per fold, as folders that `bench.models.io.load_model` reads.

    Raises `StoreError` if one of them is missing.
    """
    folds = whole_folds(store, run) if fold is None else find_folds(store, run)
    logged = {
        number: owner.outputs.model_outputs if owner.outputs else []
        for number, owner in folds.items()
        if fold in (None, number)
    }
    if not any(logged.values()):
        raise _nothing_logged(run, "model" if fold is None else f"model of fold {fold}")
    if lost := [number for number, outputs in logged.items() if not outputs]:
        raise StoreError(
            f"run {run_label(run)} has lost its model of fold {join_and(lost)}. Name one of the other folds."
        )
    folders = []
    for number, outputs in logged.items():
        local = download_model(store, outputs[0].model_id, into / str(number))
        folders.append(next(local.rglob("model.json")).parent)
    return folders


def download_model(store: Store, model_id: str, into: Path) -> Path:
    """Download a logged MLflow model into a new folder, from which `mlflow.pyfunc.load_model` also loads it."""
    into.mkdir(parents=True)
    source = store.client.get_logged_model(model_id).artifact_location  # models:/ would ignore the store's address
    return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(into), tracking_uri=store.uri))


def read_masks(store: Store, run: Run) -> Masks:
    """Return the out-of-fold masks of a run by patient, slices in their order. Raises `StoreError`."""
    return Masks.joined(
        Masks((str(case), masks[at]) for case, at in index.groupby("case").indices.items())
        for index, masks in _load_from_folds(store, run, "masks", load_masks)
    )


def read_probabilities(store: Store, run: Run) -> Probabilities:
    """Return the out-of-fold probabilities of a run by patient, in hundredths. Raises `StoreError`."""
    return Probabilities.joined(p for _, p in _load_from_folds(store, run, "probabilities", load_probabilities))


def _load_from_folds(
    store: Store, run: Run, name: str, load: Callable[[Path], tuple[pd.DataFrame, T]]
) -> Iterator[tuple[pd.DataFrame, T]]:
    folds = whole_folds(store, run)
    if not folds:
        raise _nothing_logged(run, name)
    for fold in folds.values():
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = store.client.download_artifacts(fold.info.run_id, f"masks/{name}.npz", folder)
            except (MlflowException, OSError) as error:
                raise StoreError(
                    f"run {run_label(run)} has no {name} of {fold.info.run_name}: they "
                    "are lost, or the version that ran it did not keep them. Run it again."
                ) from error
            yield load(Path(path))


def _nothing_logged(run: Run, what: str) -> StoreError:
    imported = Tag.IMPORTED in run.data.tags
    way_out = "It was imported: only its scores are here" if imported else "Choose a finished run"
    return StoreError(f"run {run_label(run)} holds no {what}. {way_out}.")
