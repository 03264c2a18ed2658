"""What a fold leaves in the tracking store: tables, metrics, curves, masks and its model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from bench.masks import Masks, save_masks, save_probabilities
from bench.models.io import save_model
from bench.structures import per_structure
from bench.training.experiment import Experiment
from bench.training.plots import curves
from bench.training.tasks.segmentation import Segmentation
from bench.types import CaseScore, FoldResult, Recorder


def record_fold(
    experiment: Experiment,
    result: FoldResult,
    masks: Masks,
    model: nn.Module,
    history: pd.DataFrame,
    recorder: Recorder,
) -> None:
    """Log everything of one fold; `history` has one row per epoch."""
    primary = experiment.task.primary
    recorder.table("cases", case_table(experiment, [result], masks))
    recorder.table("slices", slice_table(result.scores))
    recorder.table("history", history)
    recorder.metrics(
        {f"test/{name}": value for name, value in fold_means(experiment, result, masks).items()}
        | {
            f"best/val_{primary}": result.best_score,
            "best/epoch": result.best_epoch,
            "cost/train_seconds": result.seconds,
        }
        | per_structure("best/threshold", experiment.structures, result.thresholds)
    )
    recorder.image("curves", curves(history, primary))
    if masks:
        record_masks(recorder, masks, result.scores)
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace) / "segmenter"
        save_model(folder, model, describe_model(experiment, result))
        recorder.model(folder, experiment.pack.images.shape[-1])


def record_masks(recorder: Recorder, masks: Masks, scores: Sequence[CaseScore]) -> None:
    """Log masks, and the probabilities that they were thresholded from, under `masks/`."""
    numbers = {s.case: s.slices["slice"].tolist() for s in scores}
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace)
        save_masks(folder / "masks.npz", masks, numbers)
        if masks.probabilities:
            save_probabilities(folder / "probabilities.npz", masks.probabilities, numbers)
        recorder.files(folder, "masks")


def case_table(experiment: Experiment, results: Sequence[FoldResult], masks: Masks) -> pd.DataFrame:
    """Return one row per test patient: case, fold, threshold, every metric, pixel counts.

    With a leaky split, whose cases are single slices, `masks` are joined and scored by patient.
    """
    if experiment.leaky:
        return _patient_table(experiment, masks)
    names = experiment.structures
    rows = [
        row
        for r in results
        for row in patient_rows(r.scores, fold=r.fold, **per_structure("threshold", names, r.thresholds))
    ]
    return pd.DataFrame(rows)


def patient_rows(scores: Sequence[CaseScore], **columns: float) -> list[dict[str, Any]]:
    """Return one row per patient: case, these columns, every metric, pixel counts."""
    return [{"case": s.case, **columns, **s.values, **s.counts} for s in scores]


def slice_table(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """Return one row per test slice, with the columns of the task."""
    return pd.concat([s.slices for s in scores], ignore_index=True)


def fold_means(experiment: Experiment, result: FoldResult, masks: Masks) -> dict[str, float]:
    """Return the scores over the test patients of one fold, without intervals."""
    cases = case_table(experiment, [result], masks)
    return experiment.task.summarise(cases, slice_table(result.scores), with_interval=False)


def describe_model(experiment: Experiment, result: FoldResult) -> dict[str, Any]:
    """Return what `bench.models.io.load_model` and a reader need to use the weights again."""
    manifest = experiment.pack.manifest
    config = experiment.config.model_dump(mode="json")
    config["dataset"].pop("folder", None)  # a path of the training machine is private
    return {
        "config": config,
        "channels": experiment.channels,
        "channel_names": list(manifest.channels),
        "threshold": result.thresholds[0] if len(result.thresholds) == 1 else list(result.thresholds),
        "structures": asdict(manifest.structures),
        "activation": experiment.activation,
        "axis": manifest.axis,
        "padded_to": list(experiment.pack.masks.shape[1:]) if experiment.pack.padded else None,
        "fold": result.fold,
        "best_epoch": result.best_epoch,
        "split_hash": experiment.split_hash,
        "data": {k: v for k, v in asdict(manifest).items() if k in ("dataset", "key", "synthetic", "licence")},
    }


def _patient_table(experiment: Experiment, masks: Masks) -> pd.DataFrame:
    assert isinstance(experiment.task, Segmentation)
    pack, index = experiment.pack, experiment.pack.index
    scores = []
    for patient, slices in index[index["case"].isin(set(masks))].groupby("patient", sort=False):
        rows, numbers = slices.index.to_numpy(), slices["slice"].tolist()
        own = ..., *pack.own_grid(rows)
        mask = np.concatenate([masks[case] for case in slices["case"]])
        of_rows = str(patient), numbers, experiment.structures
        scores.append(experiment.task.score_mask(*of_rows, pack.truth(rows)[own], mask[own], pack.spacing(rows)))
    return pd.DataFrame(patient_rows(scores))
