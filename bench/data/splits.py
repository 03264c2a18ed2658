"""Who trains, who chooses, who is tested: three disjoint sets of patients in every fold.

A split scheme is a function of a pack's index (case, slice, institution, positive). A scheme of your own
is one decorated function that returns folds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from bench.errors import DataError
from bench.registry import split
from bench.types import Fold

Share = Annotated[float, Field(gt=0, le=0.5)]


@split
def patients(
    index: pd.DataFrame, *, folds: Annotated[int, Field(ge=2)] = 5, validation: Share = 0.2, seed: int = 0
) -> list[Fold]:
    """Grouped k-fold over patients, balanced by the share of slices with tumour (StratifiedGroupKFold).

    `validation` is the share of the patients outside the test set that choose, rounded to one part in k. Every
    patient is tested once.
    """
    cases = index["case"].unique()
    if len(cases) < max(folds, 3):
        raise DataError(
            f"{_count(len(cases), 'patient')} cannot make {folds} folds of train, validation and test patients. "
            + (f"Give --folds {len(cases)} or fewer." if len(cases) >= 3 else "At least three are needed.")
        )
    made = []
    for number, (rest, test) in enumerate(_stratified(index, folds, seed)):
        train, val = _choosers(index.iloc[rest], validation, seed)
        made.append(Fold(number, train, val, frozenset(index["case"].iloc[test])))
    return made


@split
def institutions(index: pd.DataFrame, *, validation: Share = 0.2, seed: int = 0) -> list[Fold]:
    """Leave one institution out: each is the test set once, so scores tell how a model travels."""
    names = sorted(index["institution"].unique())
    if len(names) < 2:
        raise DataError(f"all patients come from one institution ({names[0]}). Use --set split=patients.")
    made = []
    for number, name in enumerate(names):
        inside = index["institution"] == name
        if index.loc[~inside, "case"].nunique() < 2:
            raise DataError(
                f"without institution {name}, fewer than two patients are left. Use --set split=patients."
            )
        train, val = _choosers(index[~inside], validation, seed)
        made.append(Fold(number, train, val, frozenset(index.loc[inside, "case"])))
    return made


@split(leaky=True)
def leaky_slices(
    index: pd.DataFrame, *, folds: Annotated[int, Field(ge=2)] = 5, validation: Share = 0.2, seed: int = 0
) -> list[Fold]:
    """LEAKY: slices at random, whoever they are of, as many notebooks split them. To show the leak, never to rank.

    Each slice counts as a patient of its own, so that nearly every test slice has its neighbour in the training
    set. Such a run is scored patient by patient like any other, marked, and kept off every leaderboard.
    """
    return patients(index, folds=folds, validation=validation, seed=seed)


def split_hash(folds: Sequence[Fold]) -> str:
    """The content of a split as 12 hex digits: equal exactly when the same patients play the same parts."""
    content = [[f.number, sorted(f.train), sorted(f.val), sorted(f.test)] for f in folds]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def split_table(index: pd.DataFrame, folds: Sequence[Fold]) -> pd.DataFrame:
    """One row a patient and fold: which part it plays, its institution and its slices."""
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
    if "patient" in index:  # a leaky split: said of the patients that there really are
        table["case"] = table["case"].map(index.set_index("case")["patient"])
    return table


def _stratified(index: pd.DataFrame, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    positive = index["positive"].to_numpy()
    # scikit-learn warns when a class has fewer slices than folds; then the balance has nothing to balance.
    stratum = positive if min(positive.sum(), (~positive).sum()) >= folds else np.zeros(len(index), bool)
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(index, stratum, index["case"]))


def _choosers(rest: pd.DataFrame, share: float, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Training and validation patients out of the rest, balanced like the folds."""
    if rest["case"].nunique() < 2:
        raise DataError("a fold leaves a single patient, but one must train and another choose. Add patients.")
    parts = min(round(1 / share), rest["case"].nunique())
    train, val = _stratified(rest, parts, seed)[0]
    return frozenset(rest["case"].iloc[train]), frozenset(rest["case"].iloc[val])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
