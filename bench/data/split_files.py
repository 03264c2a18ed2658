"""Splits as files: those of the suite for other tools, and those of other tools for the suite.

csv      one row per fold and patient: fold, part (train, val or test), case; other columns are ignored
json     {"folds": [{"fold": 0, "train": [...], "val": [...], "test": [...]}, ...]}
nnunet   nnU-Net's splits_final.json: [{"train": [...], "val": [...]}, ...]. nnU-Net chooses nothing by its "val"
         patients; they are those of our test set, and it trains on our training and validation patients.

Files of the first two kinds may state the hash of the split, as those that the suite writes do.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from bench.data.splits import split_hash, split_off_validation, split_table
from bench.errors import DataError
from bench.formatting import file_stem
from bench.settings import first_problem
from bench.types import Fold

SplitFormat: TypeAlias = Literal["csv", "json", "nnunet"]
PARTS = ("train", "val", "test")
NNUNET_NOTE = (
    "In this file 'val' has the patients of our test set, and 'train' those of our training and validation set: "
    "nnU-Net trains for a fixed number of epochs and chooses nothing by its validation patients. Predict with "
    "checkpoint_final.pth; checkpoint_best.pth was chosen by the test patients."
)


class _FoldFile(BaseModel):
    """A fold as a file states it; `test` is None in nnU-Net's."""

    fold: int
    train: list[str]
    val: list[str]
    test: list[str] | None = None


def split_text(
    index: pd.DataFrame, folds: Sequence[Fold], how: SplitFormat, images: Mapping[str, Sequence[str]]
) -> str:
    """Return a split as the text of a file; `images` are the names of each patient's images in nnU-Net."""
    if how == "nnunet":
        sides = [{"train": f.train | f.val, "val": f.test} for f in folds]
        named = [{side: sorted(n for c in own for n in images[c]) for side, own in of.items()} for of in sides]
        return json.dumps(named, indent=1)
    if how == "json":
        each = [{"fold": f.number, **{part: sorted(getattr(f, part)) for part in PARTS}} for f in folds]
        return json.dumps({"split": split_hash(folds), "folds": each}, indent=1)
    return split_table(index, folds).assign(split=split_hash(folds)).to_csv(index=False)


def read_split(path: Path, index: pd.DataFrame, *, validation: float, seed: int) -> list[Fold]:
    """Read the split of the patients of an index from a file of any of the formats.

    `validation` and `seed` choose validation patients among the training patients of a file of nnU-Net, which has
    none. Raises `DataError`, and `LeakageError` for a patient on two sides of a fold.
    """
    stated, given = _parse(path)
    case_of = {file_stem(case): case for case in index["case"].unique()} | {c: c for c in index["case"].unique()}
    folds = []
    for fold in given:
        parts = {name: _cases(path, fold.fold, getattr(fold, name) or [], case_of) for name in PARTS}
        if fold.test is None:
            outside = index[index["case"].isin(parts["train"])]
            train, val = split_off_validation(outside, validation, seed)
            parts = {"train": train, "val": val, "test": parts["val"]}
        folds.append(Fold(fold.fold, **parts))
    if stated and (found := split_hash(folds)) != stated:
        raise DataError(
            f"{path} states the split {stated}, but its patients are those of split {found}: it was changed, or "
            "the patients of the data are others. Export it again, or remove the hash from the file."
        )
    return folds


def _cases(path: Path, fold: int, names: Sequence[str], case_of: Mapping[str, str]) -> frozenset[str]:
    """Return the patients of the data by their names or file names. Raises `DataError`."""
    if unknown := [name for name in names if name not in case_of]:
        raise DataError(
            f"{path} names {len(unknown)} patient(s) in fold {fold} that the data do not have, such as "
            f"{unknown[0]}. The data have names such as {next(iter(case_of.values()))}."
        )
    return frozenset(case_of[name] for name in names)


def _parse(path: Path) -> tuple[str, list[_FoldFile]]:
    """Return the hash that a file states, or "", and its folds. Raises `DataError`."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip()[:1] in ("[", "{") else _rows_of_csv(text)
        stated = str(rows.get("split", "")) if isinstance(rows, dict) else ""
        each = rows["folds"] if isinstance(rows, dict) else [{"fold": n, **row} for n, row in enumerate(rows)]
        folds = TypeAdapter(list[_FoldFile]).validate_python(each)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Give the file of a split.") from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else error
        raise DataError(
            f"{path} is no split ({what}). Give a CSV with the columns fold, part and case, the JSON of `bench "
            "split export --format json`, or nnU-Net's splits_final.json."
        ) from None
    if not folds:
        raise DataError(f"{path} has no fold.")
    return stated, folds


def _rows_of_csv(text: str) -> dict[str, Any]:
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    if missing := [name for name in ("fold", "part", "case") if name not in table]:
        raise ValueError(f"it has no column {missing[0]}")
    if wrong := sorted(set(table["part"]) - set(PARTS)):
        raise ValueError(f"the part {wrong[0]!r} is none of {', '.join(PARTS)}")
    folds = [
        {"fold": number, **{part: rows.loc[rows["part"] == part, "case"].tolist() for part in PARTS}}
        for number, rows in table.groupby("fold", sort=False)
    ]
    hashes = set(table["split"]) if "split" in table else set()
    return {"folds": folds, "split": hashes.pop() if len(hashes) == 1 else ""}
