"""Logged runs, asked about one patient: which of a run's models may speak about it, and what they say.

Whoever took part in a cross-validation is shown by the model of the fold that tested them and by no other.
"""

from __future__ import annotations

import copy
import io
import re
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

from bench.demo.honesty import cautions, describe_models, eligible_models, listed, origin
from bench.demo.scans import Patients, Scan
from bench.errors import DataError, StoreError, UnknownName
from bench.inference.fold_models import FoldModels
from bench.masks import THRESHOLDS, Mask
from bench.metrics import confusion as counts
from bench.tracking import Store, find_run, folds_of, model_folders, parent_of, read_table, records
from bench.tracking.participants import images_of
from bench.types import RunRecord

KEPT = 12  # predictions that stay at hand, a byte a pixel


TASK = "bench.task"


IMPOSSIBLE = "its test fold was not run"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says about a scan. `levels` are uint8 (S, H, W): k is edges[k - 1] <= probability < edges[k].

    The edges are those of the threshold slider and the run's own threshold, so a mask made of levels is, pixel
    by pixel, the mask of the probabilities. `said` tells which models spoke, `cautions` what to be wary of.
    """

    run: RunRecord
    levels: NDArray[np.uint8]
    edges: NDArray[np.float64]
    threshold: float
    origin: str  # of the threshold, in words
    said: str
    cautions: tuple[str, ...]
    logged: float | None = None  # Dice of this patient in the run's own table, of the same pixels

    def nearest(self, threshold: float) -> float:
        """The threshold that is meant: the run's own if it is as near as two decimals tell, else an edge."""
        if abs(threshold - self.threshold) < 0.005:
            return self.threshold
        return float(self.edges[np.abs(self.edges - threshold).argmin()])

    def mask(self, threshold: float) -> Mask:
        """Where the probability reaches a threshold, one of the edges: bool (S, H, W)."""
        return self.levels > np.searchsorted(self.edges, threshold)

    def probability(self, at: int) -> NDArray[np.float64]:
        """Slice `at`, (H, W), rounded down to the edges."""
        floors: NDArray[np.float64] = np.concatenate(([0.0], self.edges))[self.levels[at]]
        return floors


@dataclass(frozen=True)
class Score:
    """Pixels of truth and prediction, and Dice: NaN where both are empty, None where there is no truth."""

    truth: int | None
    prediction: int
    dice: float | None


@dataclass(frozen=True)
class Loaded:
    """The models of a run, who played which part in it, and by which images they are known (None: not kept)."""

    segmenter: FoldModels
    split: pd.DataFrame
    images: pd.DataFrame | None

    def alike(self, prints: frozenset[str]) -> tuple[str, ...]:
        """Who has one of these images in the run, whatever the name, and however it was turned or mirrored."""
        if self.images is None:
            return ()
        return tuple(sorted(self.images["case"][self.images["image"].isin(prints)].unique()))


class Studio:
    """Runs of a store and patients of a folder. Models are loaded once, the last predictions kept."""

    def __init__(self, store: Store, patients: Patients | None, device: str = "cpu") -> None:
        self.store, self.patients, self.device = store, patients, device
        self._loaded: dict[str, Loaded] = {}
        self._predictions: OrderedDict[tuple[str, str], Prediction] = OrderedDict()
        self._records: dict[str, RunRecord] = {}
        self._lock = RLock()  # pages ask from several threads

    def offers(self) -> list[RunRecord]:
        """Finished cross-validations that outline tumours, the newest first. Raises `StoreError` when none is.

        A cascade is left out: it is made of other runs' masks and holds no model.
        """
        outlines = (r for r in records(self.store) if r.tags.get(TASK, "segmentation") == "segmentation")
        found = [r for r in outlines if r.run_id in self._records or self._holds_models(r.run_id)]
        if not found:
            raise StoreError(
                f"no finished segmentation run with models in {self.store.address}. `bench run` makes one."
            )
        self._records |= {r.run_id: r for r in found}
        return found

    def find(self, wanted: str) -> str:
        """The id of the run with this name or id; a fold stands for its run. Raises `BenchError`."""
        run = parent_of(self.store, find_run(self.store, wanted))
        offered = {r.run_id for r in self.offers()}
        if run.info.run_id not in offered:
            raise UnknownName(
                f"run '{wanted}' is no finished segmentation run with models. `bench leaderboard` shows all runs."
            )
        return str(run.info.run_id)

    def tested(self, run_id: str) -> dict[str, str]:
        """For each patient of the folder: 'tested in fold 3', 'new to the run', or `IMPOSSIBLE`."""
        loaded = self.load(run_id)
        said: dict[str, str] = {}
        if self.patients is None:
            return said
        for case in self.patients.cases:
            try:
                known = loaded.alike(self.patients.prints(case)) or (case,)
                who = eligible_models(loaded.split, known, held(loaded.segmenter))
                said[case] = f"tested in fold {listed(who.folds)}" if who.tested else "new to the run"
            except DataError:
                said[case] = IMPOSSIBLE
        return said

    def load(self, run_id: str) -> Loaded:
        """The models of a run. Raises `StoreError`."""
        with self._lock:
            if run_id not in self._loaded:
                run = self.store.client.get_run(run_id)
                with tempfile.TemporaryDirectory() as workspace:
                    segmenter = FoldModels(model_folders(self.store, run, Path(workspace)), self.device)
                self._loaded[run_id] = Loaded(
                    segmenter, read_table(self.store, run, "split"), images_of(self.store, run)
                )
            return self._loaded[run_id]

    def predict(self, run_id: str, scan: Scan) -> Prediction:
        """What the models of a run that may speak about a scan say of it. Raises `BenchError`."""
        with self._lock:
            key = run_id, scan.key
            if key not in self._predictions:
                self._predictions[key] = self._predict(self._record(run_id), self.load(run_id), scan)
                while len(self._predictions) > KEPT:
                    self._predictions.popitem(last=False)
            self._predictions.move_to_end(key)
            return self._predictions[key]

    def _holds_models(self, run_id: str) -> bool:
        folds = folds_of(self.store, self.store.client.get_run(run_id))
        return any(fold.outputs and fold.outputs.model_outputs for fold in folds.values())

    def _record(self, run_id: str) -> RunRecord:
        if run_id not in self._records:
            self.offers()
        if run_id not in self._records:
            raise UnknownName(f"there is no finished segmentation run {run_id}. Choose one of the list.")
        return self._records[run_id]

    def _predict(self, run: RunRecord, loaded: Loaded, scan: Scan) -> Prediction:
        whole = loaded.segmenter
        if scan.channels != whole.channels:
            raise DataError(
                f"{run.name} was trained on the channels {', '.join(whole.channels)}; "
                f"this scan has {', '.join(scan.channels)}. Choose another run."
            )
        alike = loaded.alike(scan.prints)
        known = () if scan.case is None else alike or (scan.case,)
        who = eligible_models(loaded.split, known, held(whole))
        chosen = of_folds(whole, who.folds)
        levels, edges = graded(chosen.predict(scan.images), chosen.threshold)
        return Prediction(
            run=run,
            levels=levels,
            edges=edges,
            threshold=chosen.threshold,
            origin=origin(whole.config, who),
            said=describe_models(scan, who),
            cautions=tuple(cautions(run, whole.config, loaded.split, held(whole), scan, alike)),
            logged=_logged(run, scan) if who.tested else None,
        )


def graded(probability: NDArray[np.float32], own: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Levels and edges of a `Prediction` whose own threshold is `own`, a quarter of the memory."""
    edges = np.union1d(THRESHOLDS, [own])
    return np.digitize(probability, edges.astype(np.float32)).astype(np.uint8), edges


def held(segmenter: FoldModels) -> list[int]:
    """The folds whose models a segmenter holds."""
    return [int(d["fold"]) for d in segmenter.descriptions]


def of_folds(segmenter: FoldModels, folds: Sequence[int]) -> FoldModels:
    """The same segmenter with the models of some folds alone; weights are shared."""
    at = [held(segmenter).index(fold) for fold in folds]
    some = copy.copy(segmenter)
    some.models = [segmenter.models[i] for i in at]
    some.descriptions = [segmenter.descriptions[i] for i in at]
    some.threshold = float(np.mean([d["threshold"] for d in some.descriptions]))
    return some


def _logged(run: RunRecord, scan: Scan) -> float | None:
    """The Dice of a patient in the run's table, if it was of these very pixels and there is one."""
    rows = run.cases.loc[run.cases["case"] == scan.case, "dice"]
    return float(rows.iloc[0]) if len(rows) == 1 and run.tags.get("bench.data") == scan.data else None


def score(prediction: Mask, truth: Mask | None) -> Score:
    """Areas and Dice of a slice or of a whole stack."""
    called = int(prediction.sum())
    if truth is None:
        return Score(None, called, None)
    there, hits = int(truth.sum()), int((prediction & truth).sum())
    return Score(there, called, float(counts.dice_of(hits, called - hits, there - hits)))


def busiest(scan: Scan, prediction: Prediction | None) -> int:
    """The slice to open with: that with the largest tumour, else with the largest prediction, else the middle."""
    areas = np.zeros(len(scan.images)) if scan.truth is None else scan.truth.sum((1, 2))
    if not areas.any() and prediction is not None:
        areas = prediction.mask(prediction.threshold).sum((1, 2))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def mask_file(scan: Scan, prediction: Prediction, threshold: float) -> tuple[str, bytes]:
    """Name and content of what is downloaded: masks as `bench predict` writes them, 0 and 255.

    One slice is `<name>_mask.tif`; several are such files in a zip, with a note of what made them.
    """
    pages = [_tiff(mask) for mask in prediction.mask(threshold)]
    if len(pages) == 1:
        return f"{scan.names[0]}_mask.tif", pages[0]
    stem = _plain(f"{scan.case or scan.names[0]}_{prediction.run.name}")
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
        for name, page in zip(scan.names, pages, strict=True):
            file.writestr(f"{stem}/{name}_mask.tif", page)
        file.writestr(f"{stem}/about.txt", _about(scan, prediction, threshold))
    return f"{stem}.zip", whole.getvalue()


def _tiff(mask: Mask) -> bytes:
    page = io.BytesIO()
    tifffile.imwrite(page, mask.astype(np.uint8) * 255, photometric="minisblack")
    return page.getvalue()


def _about(scan: Scan, prediction: Prediction, threshold: float) -> str:
    run = prediction.run
    moved = prediction.origin if threshold == prediction.threshold else "moved by hand: not the run's own"
    lines = (
        f"Masks of {scan.title} by the run {run.name} ({run.run_id}).",
        prediction.said,
        f"Threshold {threshold:.4g}, {moved}.",
        *prediction.cautions,
        "Research software, not for clinical use.",
    )
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
