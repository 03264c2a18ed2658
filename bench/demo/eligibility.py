"""Which fold models of a run may be shown for a patient, and what a viewer must know about their prediction.

A patient who took part in a cross-validation is shown only by the model of the fold that tested this patient.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.config import RunConfig
from bench.demo.scans import Scan
from bench.errors import DataError
from bench.formatting import join_and
from bench.tracking.tags import Tag
from bench.types import RunRecord


@dataclass(frozen=True)
class EligibleModels:
    """The folds whose models may be shown for a scan; `tested` if these folds tested the patient."""

    folds: tuple[int, ...]
    tested: bool


def find_eligible_models(split: pd.DataFrame, cases: Collection[str], available: Sequence[int]) -> EligibleModels:
    """Return which of the `available` folds may be shown for a patient, by the split table of the run.

    `cases` are the ids that the run may know the patient by; files have none. A patient of the run is shown by
    the folds that tested it under all of its ids, any other patient by all available folds. Raises `DataError` if
    every available model was trained or validated on the patient.
    """
    parts = split[split["case"].isin(cases)]
    if parts.empty:
        return EligibleModels(tuple(available), tested=False)
    seen = parts.loc[parts["part"] != "test", "fold"]
    tested = sorted(set(parts.loc[parts["part"] == "test", "fold"]) - set(seen))
    if folds := tuple(fold for fold in tested if fold in available):
        return EligibleModels(folds, tested=True)
    reason = f"fold {join_and(tested)}, which tests it, was not run" if tested else "no fold tested it"
    one = len(available) == 1
    models = f"the model of fold {available[0]} was" if one else f"the models of folds {join_and(available)} were"
    raise DataError(
        f"{join_and(sorted(cases))} took part in this run, but {reason}: {models} trained or validated on this "
        "patient. Choose another patient, or a run of all folds."
    )


def describe_models(scan: Scan, models: EligibleModels) -> str:
    """Return a sentence that says which models made a prediction."""
    first, *others = models.folds
    if models.tested and not others:
        return f"Out of fold: the model of fold {first}, which was not trained on this patient."
    if models.tested:
        folds = join_and(models.folds)
        return f"Out of fold: the mean of the models of folds {folds}, none trained on this patient."
    shown = f"the mean of all {len(models.folds)} fold models" if others else f"the model of fold {first} alone"
    if scan.case is not None:
        return f"New patient: {scan.case} took no part in this run, so this is {shown}."
    return f"Dropped files: {shown}. Without a truth there is no Dice."


def describe_threshold(config: RunConfig, models: EligibleModels) -> str:
    """Say how a run's own threshold was set."""
    if config.evaluate.threshold != "validation":
        return "the run's own, fixed in advance"
    chosen = "the run's own, chosen on validation patients"
    return chosen if len(models.folds) == 1 else f"{chosen}, mean of {len(models.folds)} folds"


def list_warnings(
    run: RunRecord,
    config: RunConfig,
    split: pd.DataFrame,
    available: Sequence[int],
    scan: Scan,
    same_images: Collection[str] = (),
) -> Iterator[str]:
    """Yield sentences that a viewer must know before trusting a run's prediction of a scan.

    `same_images` are the patients of the run that share an image with the scan.
    """
    if run.tags.get(Tag.SYNTHETIC) == "true":
        yield "This run was trained on synthetic phantoms: it says nothing about patients."
    if scan.case is not None:
        if same_images and scan.case not in same_images:
            names = join_and(sorted(same_images))
            yield f"These are the same images as those of {names}, who took part in this run under that name."
        elif not same_images and (split["case"] == scan.case).any() and run.tags.get(Tag.DATA) != scan.data:
            yield "The run used other images than this folder holds, so patients are matched by their ids alone."
        return
    for case in sorted(split["case"].unique()):
        exposure = _describe_exposure(split, case, available)
        pattern = rf"(?<![A-Za-z0-9]){re.escape(case)}(?![A-Za-z0-9])"  # 'p1' is not in 'p12_3'
        if case in same_images:
            yield f"These are the same images as those of {case}, who took part in this run: {exposure}."
        elif any(re.search(pattern, name, re.IGNORECASE) for name in scan.names):
            yield f"A file name contains {case}, who took part in this run. If it is that patient, {exposure}."
    if config.input.normalise == "patient":
        count = len(scan.images)
        yield (
            "This slice is normalised by its own grey levels, but in training whole patients were. "
            "Drop all slices of the patient together."
            if count == 1
            else f"The {count} slices are treated as one patient: their grey levels are normalised together."
        )


def _describe_exposure(split: pd.DataFrame, case: str, available: Sequence[int]) -> str:
    """Say how many of the available models were trained or validated on a patient."""
    folds = set(split.loc[(split["case"] == case) & (split["part"] != "test"), "fold"])
    seen = sum(fold in folds for fold in available)
    if not seen:
        return "no model here was trained on it"
    return f"{seen} of the {len(available)} models here were trained or validated on it, so this is not a test"
