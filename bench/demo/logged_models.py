"""The models of logged runs: lists the runs of a store, loads their fold models and predicts scans with them."""

from __future__ import annotations

import copy
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import pandas as pd

from bench.demo.eligibility import describe_models, describe_threshold, find_eligible_models, list_warnings
from bench.demo.predictions import Prediction, quantize
from bench.demo.scans import Patients, Scan
from bench.errors import DataError, StoreError, UnknownName
from bench.formatting import join_and
from bench.inference.fold_models import FoldModels, mean_thresholds
from bench.tracking import Store, Tag, download_models, find_folds, find_parent, find_run, read_records, read_table
from bench.tracking.participants import read_image_table
from bench.tracking.tags import task_name
from bench.types import RunRecord

CACHED_PREDICTIONS = 12  # each takes one or two bytes for each pixel and structure
TEST_FOLD_NOT_RUN = "its test fold was not run"


@dataclass(frozen=True)
class LoadedRun:
    """The fold models of a run, its split table, and its patients' image fingerprints (None: not logged)."""

    models: FoldModels
    split: pd.DataFrame
    images: pd.DataFrame | None

    def cases_with(self, fingerprints: frozenset[str]) -> tuple[str, ...]:
        """Return the patients of the run with one of these images, even if renamed, rotated or mirrored."""
        if self.images is None:
            return ()
        return tuple(sorted(self.images["case"][self.images["image"].isin(fingerprints)].unique()))


class LoggedModels:
    """The runs of a store, and the patients of a folder. Caches loaded models and the last predictions."""

    def __init__(self, store: Store, patients: Patients | None, device: str = "cpu") -> None:
        self.store, self.patients, self.device = store, patients, device
        self._loaded: dict[str, LoadedRun] = {}
        self._predictions: OrderedDict[tuple[str, str], Prediction] = OrderedDict()
        self._records: dict[str, RunRecord] = {}
        self._lock = RLock()  # browser pages are served by several threads

    def list_runs(self) -> list[RunRecord]:
        """Return finished segmentation runs, newest first. Raises `StoreError` if there is none.

        A cascade is left out: it is made of the masks of other runs and has no model.
        """
        finished = (r for r in read_records(self.store) if task_name(r.tags) == "segmentation")
        runs = [r for r in finished if r.run_id in self._records or self._has_models(r.run_id)]
        if not runs:
            where = self.store.address
            raise StoreError(f"no finished segmentation run with models in {where}. `bench run` makes one.")
        self._records |= {r.run_id: r for r in runs}
        return runs

    def find(self, wanted: str) -> str:
        """Return the id of the run with this name or id; a fold stands for its run. Raises `BenchError`."""
        run = find_parent(self.store, find_run(self.store, wanted))
        if run.info.run_id not in {r.run_id for r in self.list_runs()}:
            problem = f"run '{wanted}' is not a finished segmentation run with models."
            raise UnknownName(f"{problem} `bench leaderboard` shows all runs.")
        return str(run.info.run_id)

    def describe_patients(self, run_id: str) -> dict[str, str]:
        """Return for each patient of the folder 'tested in fold 3', 'new to the run', or `TEST_FOLD_NOT_RUN`."""
        run = self.load(run_id)
        texts: dict[str, str] = {}
        if self.patients is None:
            return texts
        for case in self.patients.cases:
            ids = run.cases_with(self.patients.fingerprints(case)) or (case,)
            try:
                models = find_eligible_models(run.split, ids, available_folds(run.models))
                texts[case] = f"tested in fold {join_and(models.folds)}" if models.tested else "new to the run"
            except DataError:
                texts[case] = TEST_FOLD_NOT_RUN
        return texts

    def load(self, run_id: str) -> LoadedRun:
        """Load the models of a run. Raises `StoreError`."""
        with self._lock:
            if run_id not in self._loaded:
                run = self.store.client.get_run(run_id)
                with tempfile.TemporaryDirectory() as folder:
                    models = FoldModels(download_models(self.store, run, Path(folder)), self.device)
                split, images = read_table(self.store, run, "split"), read_image_table(self.store, run)
                self._loaded[run_id] = LoadedRun(models, split, images)
            return self._loaded[run_id]

    def predict(self, run_id: str, scan: Scan) -> Prediction:
        """Predict a scan with the models of a run that may be shown for it. Raises `BenchError`."""
        with self._lock:
            key = run_id, scan.key
            if key not in self._predictions:
                self._predictions[key] = self._predict(self._record(run_id), self.load(run_id), scan)
                while len(self._predictions) > CACHED_PREDICTIONS:
                    self._predictions.popitem(last=False)
            self._predictions.move_to_end(key)
            return self._predictions[key]

    def _has_models(self, run_id: str) -> bool:
        folds = find_folds(self.store, self.store.client.get_run(run_id))
        return any(fold.outputs and fold.outputs.model_outputs for fold in folds.values())

    def _record(self, run_id: str) -> RunRecord:
        if run_id not in self._records:
            self.list_runs()
        if run_id not in self._records:
            raise UnknownName(f"there is no finished segmentation run {run_id}. Choose one of the list.")
        return self._records[run_id]

    def _predict(self, record: RunRecord, run: LoadedRun, scan: Scan) -> Prediction:
        config, folds = run.models.config, available_folds(run.models)
        if scan.channels != run.models.channels:
            raise DataError(
                f"{record.name} was trained on the channels {', '.join(run.models.channels)}; "
                f"this scan has {', '.join(scan.channels)}. Choose another run."
            )
        structures = run.models.structures
        if scan.structures != structures.names and len(scan.structures + structures.names) > 2:
            raise DataError(
                f"{record.name} was trained on the structures {', '.join(structures.names)}; "
                f"this scan has {', '.join(scan.structures)}. Choose another run."
            )
        same_images = run.cases_with(scan.fingerprints)
        ids = () if scan.case is None else same_images or (scan.case,)
        eligible = find_eligible_models(run.split, ids, folds)
        models = select_folds(run.models, eligible.folds)
        probability = models.probabilities(scan.images)
        return Prediction(
            run=record,
            structures=structures,
            thresholds=models.thresholds,
            **quantize(probability, models.thresholds, exclusive=structures.exclusive),
            threshold_text=describe_threshold(config, eligible),
            models_text=describe_models(scan, eligible),
            warnings=tuple(list_warnings(record, config, run.split, folds, scan, same_images)),
            logged_dice=_logged_dice(record, scan) if eligible.tested else None,
        )


def available_folds(models: FoldModels) -> list[int]:
    """Return the folds that have a model."""
    return [int(d["fold"]) for d in models.descriptions]


def select_folds(models: FoldModels, folds: Sequence[int]) -> FoldModels:
    """Return a copy with the models of some folds only; the weights are shared."""
    at = [available_folds(models).index(fold) for fold in folds]
    selected = copy.copy(models)
    selected.models = [models.models[i] for i in at]
    selected.descriptions = [models.descriptions[i] for i in at]
    selected.thresholds = mean_thresholds(selected.descriptions)
    return selected


def _logged_dice(record: RunRecord, scan: Scan) -> float | None:
    """Return the Dice of a patient in the run's table, or None if it is missing or of other images."""
    rows = record.cases.loc[record.cases["case"] == scan.case, "dice"]
    return float(rows.iloc[0]) if len(rows) == 1 and record.tags.get(Tag.DATA) == scan.data else None
