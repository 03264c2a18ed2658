"""Reading runs back: records for the leaderboard, one run by name, its tables and models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import pandas as pd
from mlflow.entities import Run as Run  # so that others can name it without knowing MLflow
from mlflow.exceptions import MlflowException

from bench.errors import StoreError, UnknownName, did_you_mean
from bench.masks import Masks, Probabilities, load_masks, load_probabilities
from bench.overrides import parse_assignment
from bench.tracking.store import Store, quoted
from bench.tracking.tags import FOLD, IMPORTED, KIND, PARENT
from bench.types import RunRecord

T = TypeVar("T")


DERIVED = ("plan.", "cascade.", "ensemble.", "rescore.", "search.")  # what is logged beside settings


def records(store: Store, *, tags: Mapping[str, str] | None = None) -> list[RunRecord]:
    """All finished cross-validations that carry these tags, with their per-patient tables. Raises `StoreError`."""
    runs = runs_with(store, {KIND: PARENT, **(tags or {})})
    return [_record(store, run) for run in runs if run.info.status == "FINISHED"]


def find_run(store: Store, wanted: str) -> Run:
    """The run with this name (the newest), this id, or the start of one. Raises `UnknownName`."""
    if named := runs_with(store, {"mlflow.runName": wanted}):
        return named[0]
    runs = runs_with(store, {})
    for run in runs if len(wanted) >= 6 else ():
        if any(one.startswith(wanted) for one in (run.info.run_id, run.data.tags.get(IMPORTED, ""))):
            return run
    names = {run.info.run_name for run in runs}
    raise UnknownName(
        f"no run '{wanted}' in {store.address}.{did_you_mean(wanted, names)} "
        "`bench leaderboard` shows names and ids."
    )


def model_folders(store: Store, run: Run, into: Path, *, fold: int | None = None) -> list[Path]:
    """Download the models of a run, one a fold, as folders that `checkpoint.load_model` reads."""
    owners = folds_of(store, run)
    if fold is not None:
        owners = {n: r for n, r in owners.items() if n == fold}
    folders = []
    for number, owner in owners.items():
        outputs = owner.outputs.model_outputs if owner.outputs else []
        if outputs:
            local = download_model(store, outputs[0].model_id, into / str(number))
            folders.append(next(local.rglob("model.json")).parent)
    if not folders:
        which = "" if fold is None else f" of fold {fold}"
        raise _lacks(run, f"model{which}")
    return folders


def folds_of(store: Store, run: Run) -> dict[int, Run]:
    """The finished folds of a run by number; a fold is its own."""
    if run.data.tags.get(KIND) == FOLD:
        return {int(run.data.tags["bench.fold"]): run}
    where = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.`{KIND}` = '{FOLD}'"
    children = store.client.search_runs([run.info.experiment_id], where)
    found = {int(r.data.tags["bench.fold"]): r for r in children if r.info.status == "FINISHED"}
    return dict(sorted(found.items()))


def download_model(store: Store, model_id: str, into: Path) -> Path:
    """Copy a logged MLflow model into a new folder, where `mlflow.pyfunc.load_model` finds it too."""
    into.mkdir(parents=True)
    where = store.client.get_logged_model(model_id).artifact_location  # models:/ would ignore the store's address
    return Path(mlflow.artifacts.download_artifacts(where, dst_path=str(into), tracking_uri=store.uri))


def settings_of(run: Run) -> dict[str, Any]:
    """The settings that a run has logged, as `bench.overrides.override` takes them."""
    own = {k.removeprefix("run."): v for k, v in run.data.params.items() if not k.startswith(DERIVED)}
    return dict(parse_assignment(f"{key}={value}") for key, value in own.items())


def masks_of(store: Store, run: Run) -> Masks:
    """The out-of-fold masks of a run, patient by patient, slices in their order. Raises `StoreError`."""
    parts = []
    for index, masks in _of_folds(store, run, "masks", load_masks):
        parts.append(Masks((str(case), masks[at]) for case, at in index.groupby("case").indices.items()))
    return Masks.joined(parts)


def probabilities_of(store: Store, run: Run) -> Probabilities:
    """The out-of-fold probabilities of a run in hundredths, patient by patient. Raises `StoreError`."""
    return Probabilities.joined(found for _, found in _of_folds(store, run, "probabilities", load_probabilities))


def _of_folds(
    store: Store, run: Run, name: str, load: Callable[[Path], tuple[pd.DataFrame, T]]
) -> Iterator[tuple[pd.DataFrame, T]]:
    folds = folds_of(store, run)
    if not folds:
        raise _lacks(run, name)
    for fold in folds.values():
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = store.client.download_artifacts(fold.info.run_id, f"masks/{name}.npz", folder)
            except (MlflowException, OSError) as error:
                raise StoreError(
                    f"run {run.info.run_name} ({run.info.run_id[:8]}) has no {name} of {fold.info.run_name}: they "
                    "are lost, or were not kept by the version that ran it. Run it again."
                ) from error
            yield load(Path(path))


def _lacks(run: Run, what: str) -> StoreError:
    way = "It was imported: only its scores are here" if IMPORTED in run.data.tags else "Choose a finished run"
    return StoreError(f"run {run.info.run_name} ({run.info.run_id[:8]}) holds no {what}. {way}.")


def runs_with(store: Store, tags: Mapping[str, str]) -> list[Run]:
    """All runs that carry these tags, in whatever state, the newest first."""
    where = " and ".join(f"tags.`{tag}` = {quoted(value)}" for tag, value in tags.items())
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    found: list[Run] = []
    token = None
    while token != "":
        page = store.client.search_runs(experiments, where, max_results=1000, page_token=token)
        found += page
        token = page.token or ""
    return found


def parent_of(store: Store, run: Run) -> Run:
    """The run itself, or for a fold the run it belongs to."""
    parent = run.data.tags.get("mlflow.parentRunId")
    return store.client.get_run(parent) if parent else run


def read_table(store: Store, run: Run, name: str) -> pd.DataFrame:
    """A table that a run has logged. Raises `StoreError`."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = store.client.download_artifacts(run.info.run_id, f"{name}.csv", folder)
            return pd.read_csv(path, dtype={"case": str, "image": str})
    except (MlflowException, OSError) as error:
        raise StoreError(
            f"run {run.info.run_name} ({run.info.run_id[:8]}) has lost its table {name}.csv. "
            "Delete the run in the UI, or put its artifacts back."
        ) from error


def _record(store: Store, run: Run) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        cases=read_table(store, run, "cases"),
        settings=run.data.params,
        metrics=run.data.metrics,
        tags=dict(run.data.tags),
        slices=read_table(store, run, "slices") if run.data.tags.get("bench.task") == "presence" else None,
    )
