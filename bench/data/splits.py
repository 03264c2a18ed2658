"""Cross-validation splits: disjoint training, validation and test patients in every fold.

A split is a registered function of the index of a pack (case, slice, institution, positive) that returns folds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from bench.errors import DataError
from bench.registry import split
from bench.types import Fold

Share = Annotated[
    float, Field(ge=1e-3, le=0.5, description="share of the patients outside the test set that validate")
]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="seed that draws the folds")]
Folds = Annotated[int, Field(ge=2, le=10_000, description="number of folds")]


@split
def patients(index: pd.DataFrame, *, folds: Folds = 5, validation: Share = 0.2, seed: Seed = 0) -> list[Fold]:
    """Grouped k-fold over patients, balanced by the share of slices with tumour (StratifiedGroupKFold).

    `validation` is the share of the patients outside the test set that are used for validation, rounded to one
    part in k. Every patient is tested once.
    """
    cases = index["case"].unique()
    if len(cases) < max(folds, 3):
        count = f"{len(cases)} patient{'s' * (len(cases) != 1)}"
        raise DataError(
            f"{count} cannot be split into {folds} folds of train, validation and test patients. "
            + (f"Set --folds to {len(cases)} or fewer." if len(cases) >= 3 else "At least three are needed.")
        )
    result = []
    for number, (outside, test) in enumerate(_stratified_folds(index, folds, seed)):
        rest = split_off_validation(index.iloc[outside], validation, seed)
        result.append(Fold(number, *rest, frozenset(index["case"].iloc[test])))
    return result


@split
def institutions(index: pd.DataFrame, *, validation: Share = 0.2, seed: Seed = 0) -> list[Fold]:
    """Leave one institution out: each is the test set once, so scores show how a model generalises."""
    names = sorted(index["institution"].unique())
    if len(names) < 2:
        raise DataError(f"all patients come from one institution ({names[0]}). Use --set split=patients.")
    result = []
    for number, name in enumerate(names):
        inside = index["institution"] == name
        if index.loc[~inside, "case"].nunique() < 2:
            raise DataError(
                f"without institution {name}, fewer than two patients are left. Use --set split=patients."
            )
        rest = split_off_validation(index[~inside], validation, seed)
        result.append(Fold(number, *rest, frozenset(index.loc[inside, "case"])))
    return result


@split
def file(index: pd.DataFrame, *, path: Path, validation: Share = 0.2, seed: Seed = 0) -> list[Fold]:
    """The folds of a file, such as those that another tool was trained on.

    `path` is a CSV or JSON of `bench split export`, or nnU-Net's splits_final.json. `validation` and `seed` choose
    validation patients among the training patients of a file of nnU-Net, whose validation patients are tested.
    """
    from bench.data.split_files import read_split  # which writes the splits made here

    return read_split(path, index, validation=validation, seed=seed)


@split(leaky=True)
def leaky_slices(index: pd.DataFrame, *, folds: Folds = 5, validation: Share = 0.2, seed: Seed = 0) -> list[Fold]:
    """LEAKY: slices at random, regardless of the patient, as many notebooks do. To show the leak, never to rank.

    Each slice counts as a patient, so nearly every test slice has its neighbour in the training set. Such a run is
    scored per patient like any other, marked, and kept off every leaderboard.
    """
    return patients(index, folds=folds, validation=validation, seed=seed)


def split_hash(folds: Sequence[Fold]) -> str:
    """Hash a split to 12 hex digits, which are equal only if the same patients have the same parts."""
    content = [[f.number, sorted(f.train), sorted(f.val), sorted(f.test)] for f in folds]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def split_table(index: pd.DataFrame, folds: Sequence[Fold]) -> pd.DataFrame:
    """Return one row per patient and fold: part, institution and numbers of slices."""
    facts = index.groupby("case").agg(
        institution=("institution", "first"), slices=("slice", "size"), positive=("positive", "sum")
    )
    rows = [
        {"fold": f.number, "part": part, "case": case, **facts.loc[case].to_dict()}
        for f in folds
        for part in ("train", "val", "test")
        for case in sorted(getattr(f, part))
    ]
    table = pd.DataFrame(rows)
    if "patient" in index:  # a leaky split: name the real patients
        table["case"] = table["case"].map(index.set_index("case")["patient"])
    return table


def _stratified_folds(index: pd.DataFrame, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows outside and inside of the test set of each fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    positive = index["positive"].to_numpy()
    # scikit-learn warns if a class has fewer slices than folds; such a class cannot be balanced anyway.
    stratum = positive if min(positive.sum(), (~positive).sum()) >= folds else np.zeros(len(index), bool)
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(index, stratum, index["case"]))


def split_off_validation(rest: pd.DataFrame, share: float, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Divide the patients outside the test set into training and validation patients, balanced like the folds."""
    if rest["case"].nunique() < 2:
        raise DataError(
            "a fold has a single patient outside its test set, but training and validation need one each. "
            "Add patients."
        )
    parts = min(round(1 / share), rest["case"].nunique())
    train, val = _stratified_folds(rest, parts, seed)[0]
    return frozenset(rest["case"].iloc[train]), frozenset(rest["case"].iloc[val])
