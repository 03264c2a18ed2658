"""Which models of a run may speak about a patient, and what a viewer has to be told before believing a picture.

Whoever took part in a cross-validation is shown by the model of the fold that tested them and by no other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.config import RunConfig
from bench.demo.scans import Scan
from bench.errors import DataError
from bench.types import RunRecord


@dataclass(frozen=True)
class EligibleModels:
    """The folds whose models speak about a scan, and those that the run holds models of.

    `tested`: they speak since they tested this patient, who took part in the run; else all of them speak.
    """

    folds: tuple[int, ...]
    held: tuple[int, ...]
    tested: bool


def eligible_models(split: pd.DataFrame, cases: Collection[str], held: Sequence[int]) -> EligibleModels:
    """Who may speak about a patient whom a run may know by these ids, none for files, given its split table.

    About a patient who took part: the folds that tested it, under all of its ids. About anyone else: all that are
    `held`. Raises `DataError` when every model that is held was trained on the patient or chosen by it.
    """
    parts = split[split["case"].isin(cases)]
    if parts.empty:
        return EligibleModels(tuple(held), tuple(held), tested=False)
    learnt = parts.loc[parts["part"] != "test", "fold"]
    tested = sorted(set(parts.loc[parts["part"] == "test", "fold"]) - set(learnt))
    if may := tuple(fold for fold in tested if fold in held):
        return EligibleModels(may, tuple(held), tested=True)
    where = f"fold {listed(tested)}, which tested it, was not run" if tested else "no fold tested it"
    models = f"the model of fold {held[0]} was" if len(held) == 1 else f"the models of folds {listed(held)} were"
    raise DataError(
        f"{listed(sorted(cases))} took part in this run, and {where}: {models} trained on this patient or chosen "
        "by it. Choose another patient, or a run of all folds."
    )


def describe_models(scan: Scan, who: EligibleModels) -> str:
    """Which models a prediction is of, as a sentence for the page."""
    if who.tested and len(who.folds) == 1:
        return f"Out of fold: the model of fold {who.folds[0]}, which was not trained on this patient."
    if who.tested:
        return f"Out of fold: the mean of the models of folds {listed(who.folds)}, none trained on this patient."
    only = len(who.folds) == 1
    models = f"the model of fold {who.folds[0]} alone" if only else f"the mean of all {len(who.folds)} fold models"
    if scan.case is not None:
        return f"New patient: {scan.case} took no part in this run, so this is {models}."
    return f"Dropped files: {models}. There is no truth, so there is no Dice."


def origin(config: RunConfig, who: EligibleModels) -> str:
    """Where a run's own threshold is from."""
    if config.evaluate.threshold != "validation":
        return "the run's own, fixed in advance"
    chosen = "the run's own, chosen on validation patients"
    return chosen if len(who.folds) == 1 else f"{chosen}, mean of {len(who.folds)} folds"


def cautions(
    run: RunRecord,
    config: RunConfig,
    split: pd.DataFrame,
    held: Sequence[int],
    scan: Scan,
    alike: Collection[str] = (),
) -> Iterator[str]:
    """Sentences of warning about what a run that holds the models of some folds says of a scan.

    `alike` are those who took part with an image of the scan.
    """
    if run.tags.get("bench.synthetic") == "true":
        yield "This run was trained on synthetic phantoms: it says nothing about patients."
    if scan.case is None:
        yield from _about_files(config, split, held, scan, alike)
    elif alike and scan.case not in alike:
        yield f"These are the very pixels of {listed(sorted(alike))}, who took part in this run under that name."
    elif not alike and (split["case"] == scan.case).any() and run.tags.get("bench.data") != scan.data:
        yield "The run was made on other pixels than this folder holds; who is who is judged by ids alone."


def _about_files(
    config: RunConfig, split: pd.DataFrame, held: Sequence[int], scan: Scan, alike: Collection[str]
) -> Iterator[str]:
    for case in sorted(split["case"].unique()):
        if case in alike:
            yield f"These are the very pixels of {case}, who took part in this run: {_met(split, case, held)}."
        elif any(_contains(name, case) for name in scan.names):
            yield (
                f"A file name contains {case}, who took part in this run; if it is that patient, "
                f"{_met(split, case, held)}."
            )
    if config.input.normalise == "patient":
        count = len(scan.images)
        yield (
            "One slice: its grey levels are normalised alone, in training a whole patient's were. "
            "Drop all slices of the patient together."
            if count == 1
            else f"{count} slices, taken as one patient: their grey levels are normalised together."
        )


def _met(split: pd.DataFrame, case: str, held: Sequence[int]) -> str:
    """How many of the models have seen a patient, and what that makes of their prediction."""
    parts = split[(split["case"] == case) & (split["part"] != "test")]
    seen = sum(fold in set(parts["fold"]) for fold in held)
    if not seen:
        return "no model here was trained on it"
    return f"{seen} of the {len(held)} models here were trained on it or chosen by it, so this is no test"


def _contains(name: str, case: str) -> bool:
    """Whether a file name contains a patient's id as a word of its own: 'p1' is not in 'p12_3'."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(case)}(?![A-Za-z0-9])", name, re.IGNORECASE) is not None


def listed(numbers: Sequence[object]) -> str:
    """[0, 2, 3] as '0, 2 and 3'."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} and {last}" if rest else last
