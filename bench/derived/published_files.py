"""The files of a published folder: writing them, and reading them with checks that they are consistent.

runs.json          id, name, settings, mean scores, costs and tags of every run
cases.csv          one row per run and patient
slices.csv         one row per run and slice, only of presence runs
split-<hash>.csv   the part (train, val or test) of each patient in each fold
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from bench import registry
from bench.data.splits import split_hash
from bench.errors import DataError, LeakageError
from bench.files import read_small, write_atomically
from bench.metrics.aggregate import COUNTS, NOT_METRICS, summarise
from bench.metrics.classification import CALL_COLUMNS, summarise_calls
from bench.metrics.confusion import dice_of
from bench.outputs import check_outputs
from bench.settings import first_problem
from bench.tracking.tags import SHARED, Tag, scored_by_slice
from bench.types import Fold, RunRecord

FORMAT = 1
RUNS, CASES, SLICES = "runs.json", "cases.csv", "slices.csv"
BOARD = (Tag.TASK, *SHARED)  # runs of one board have these in common
NEEDED = (*BOARD, Tag.DATASET, Tag.FINGERPRINT)
TOLERANCE = 1e-4  # relative difference of scores: other programs write tables with six digits
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # JSON has no NaN


class _Run(BaseModel):
    """A run in the file RUNS."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    name: str
    settings: dict[str, str]
    metrics: dict[str, Number]
    tags: dict[str, str]


class _File(BaseModel):
    """The content of the file RUNS."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    runs: tuple[_Run, ...]


@dataclass(frozen=True)
class Published:
    """Runs, the oldest first, and their splits by hash, with one row per fold and patient."""

    runs: tuple[RunRecord, ...]
    splits: Mapping[str, pd.DataFrame]


def write_published(folder: Path, published: Published) -> None:
    """Write the files that `read_published` reads, with full precision, `RUNS` last: it makes the others count.

    A published folder has been read, so its files may be replaced; in any other folder nothing is. Raises
    `BadSetting`.
    """
    files = {
        name: pd.concat(tables, names=["run_id", ""]).droplevel(1).to_csv()
        for name, tables in (
            (CASES, {run.run_id: run.cases for run in published.runs}),
            (SLICES, {run.run_id: run.slices for run in published.runs if run.slices is not None}),
        )
        if tables
    }
    files |= {f"split-{split}.csv": table.to_csv(index=False) for split, table in published.splits.items()}
    runs = tuple(_Run.model_validate(run, from_attributes=True) for run in published.runs)
    content = _File(format=FORMAT, runs=runs).model_dump(mode="json")
    files[RUNS] = f"{json.dumps(content, indent=1, sort_keys=True)}\n"
    if not (folder / RUNS).exists():
        check_outputs(folder / name for name in files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(folder / name, text.encode())


def read_published(folder: Path) -> Published:
    """Return the runs of a published folder. Raises `DataError` if files are missing or contradict each other."""
    try:
        file = read_small(folder / RUNS, "the published file", "Give a folder that `bench publish` wrote.")
        content = _File.model_validate_json(file)
    except ValidationError as error:
        raise DataError(f"{folder / RUNS} does not have format {FORMAT}: {first_problem(error)}.") from None
    cases, slices = _tables(folder / CASES), _tables(folder / SLICES)
    runs: dict[str, RunRecord] = {}
    splits: dict[str, pd.DataFrame] = {}
    for one in content.runs:
        called = f"{folder}: run {one.name} ({one.run_id[:8]})"
        if one.run_id in runs:
            raise DataError(f"{called} appears twice.")
        missing = [tag for tag in NEEDED if tag not in one.tags] or [CASES] * (one.run_id not in cases)
        if scored_by_slice(one.tags) and one.run_id not in slices:
            missing.append(SLICES)
        if missing:
            raise DataError(f"{called} has no {' and no '.join(missing)}.")
        if not re.fullmatch(r"\w[\w.-]*", one.tags[Tag.DATASET]):  # it becomes the name of a folder in the store
            raise DataError(
                f"{called} names its data set '{one.tags[Tag.DATASET]}', which is not allowed as a name."
            )
        split = one.tags[Tag.SPLIT]
        if split not in splits:
            splits[split] = _split(folder / f"split-{split}.csv", split)
        record = RunRecord(**one.model_dump(), cases=cases[one.run_id], slices=slices.get(one.run_id))
        try:
            problem = _contradiction(record, splits[split])
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{called} cannot be read, because its tables hold values that are not numbers: {error}."
            ) from None
        if problem:
            raise DataError(f"{called} contradicts itself: {problem}.")
        runs[record.run_id] = record
    return Published(tuple(runs.values()), splits)


def _tables(path: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of each run in a table, without the columns that are empty for this run."""
    if not path.exists():
        return {}
    try:
        whole = pd.read_csv(path, dtype={"case": str, "run_id": str})
        parts = whole.groupby("run_id", sort=False)
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    return {
        str(run_id): part.drop(columns="run_id").dropna(axis=1, how="all").reset_index(drop=True)
        for run_id, part in parts
    }


def _split(path: Path, expected: str) -> pd.DataFrame:
    """Return the table of a split. Raises `DataError` if its hash is not the expected one."""
    try:
        table = pd.read_csv(path, dtype={"case": str})
        rows = {number: table[table["fold"] == number] for number in sorted({*map(int, table["fold"])})}
        folds = [
            Fold(number, *(frozenset(r["case"][r["part"] == part]) for part in ("train", "val", "test")))
            for number, r in rows.items()
        ]
    except (OSError, ValueError, KeyError, LeakageError) as error:
        raise DataError(f"{path} does not hold the folds of a split: {error}") from None
    if (found := split_hash(folds)) != expected:
        raise DataError(f"{path} holds the folds of split {found}. Replace it by the file of split {expected}.")
    return table


def _contradiction(record: RunRecord, split: pd.DataFrame) -> str | None:
    """Return how mean scores, patients, pixel counts and folds of a run disagree; None if they agree."""
    cases, slices = record.cases, record.slices
    needed: list[tuple[str, pd.DataFrame, tuple[str, ...]]] = [(CASES, cases, ("case", "fold"))]
    needed.append((CASES, cases, COUNTS) if slices is None else (SLICES, slices, ("case", *CALL_COLUMNS)))
    for name, table, columns in needed:
        if missing := [column for column in columns if column not in table]:
            return f"its rows in {name} have no {' and no '.join(missing)}"
    if cases["case"].duplicated().any():
        return f"a patient appears twice in {CASES}"
    tested = split[split["part"] == "test"]
    if not {*zip(cases["case"], cases["fold"], strict=True)} <= {
        *zip(tested["case"], tested["fold"], strict=True)
    }:
        return f"its patients are not the test patients of split {record.tags[Tag.SPLIT]}"
    if slices is not None:
        expected = summarise_calls(slices, with_interval=False)
    else:
        known = [name for name in cases if name in NOT_METRICS or name in registry.metric]
        expected = summarise(cases[known], with_interval=False)
        counted = dice_of(*cases[["tp", "fp", "fn"]].to_numpy().T)
        if "dice" in cases and not np.allclose(cases["dice"], counted, rtol=TOLERANCE, equal_nan=True):
            return f"the Dice of some patients in {CASES} does not match their pixel counts"
    for name, value in expected.items():
        logged = record.metrics.get(name, value)
        if not np.isclose(logged, value, rtol=TOLERANCE, equal_nan=True):
            return f"{name} is {logged:g} in {RUNS}, but {value:g} by its patients"
    return None
