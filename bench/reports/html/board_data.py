"""The data behind a board: scores of each patient, training histories, masks and probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis.board import Board
from bench.analysis.calibration import Trust, assess_trust, count_pixels, soft_dice_confidence
from bench.analysis.ranking import distinguish_models, mean_interval
from bench.analysis.strata import groups_of, size_groups
from bench.console import Display
from bench.data.pack import Pack
from bench.data.readers.patient_folders import parse_case_name
from bench.errors import BenchError, StoreError
from bench.metrics.classification import reliability_curve
from bench.reports.html.gallery import PatientView, view_patient
from bench.stats import Interval
from bench.structures import structure_column
from bench.tracking import Run, Store, find_folds, read_masks, read_probabilities, read_table
from bench.tracking.selection import load_shared_pack
from bench.tracking.tags import Tag
from bench.types import RunRecord

T = TypeVar("T", bound=Mapping[str, Any])
Floats = NDArray[np.float64]
VERSIONS = ("bench", "python", "torch", "device")
Records = Mapping[str, RunRecord]  # by run id


@dataclass(frozen=True)
class MaskData:
    """What needs the logged masks and the images of the data set.

    `rows` are the rows with logged masks, `patients` their patients, hardest first. `trust` describes, by row, how
    reliable the logged probabilities are.
    """

    rows: tuple[int, ...]
    patients: tuple[PatientView, ...]
    trust: Mapping[int, Trust]


@dataclass(frozen=True)
class BoardData:
    """A board and everything that its chapter shows. Rows are numbered as on the board.

    What cannot be averaged over the runs of a row is taken from the newest run.

    seed_scores  by row, the board's primary metric (runs, cases); NaN if undefined
    groups       what patients have in common, one column per kind
    histories    of every fold of a row's runs: epoch and val/<score>
    versions     software and device that the runs used
    counts       logged facts of the data: slices, positive_slices, licence
    slices       by row, the reliability curve of a presence run
    by_structure by structure, the primary metric (rows, cases); empty if there is only one
    dice_intervals  by structure and row, of the mean Dice
    masks        None for presence and if the data set is not available
    """

    board: Board
    cases: list[str]
    seed_scores: tuple[Floats, ...]
    groups: pd.DataFrame
    histories: tuple[tuple[pd.DataFrame, ...], ...]
    versions: Mapping[str, str]
    counts: Mapping[str, Any]
    slices: Mapping[int, pd.DataFrame]
    masks: MaskData | None
    by_structure: Mapping[str, Floats] = field(default_factory=dict)
    dice_intervals: Mapping[str, Sequence[Interval]] = field(default_factory=dict)

    @cached_property
    def scores(self) -> Floats:
        """The primary metric (rows, cases), averaged over the runs of a row."""
        return np.stack([runs.mean(0) for runs in self.seed_scores])

    @property
    def defined_scores(self) -> Floats:
        """Scores of the patients that have a score in every row."""
        return self.scores[:, self._defined_in_all]

    @property
    def distinguishable(self) -> NDArray[np.bool_]:
        """Which rows (rows, rows) these patients distinguish."""
        return distinguish_models([runs[:, self._defined_in_all] for runs in self.seed_scores])

    @property
    def _defined_in_all(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.scores).all(0))


def read_board_data(
    store: Store, board: Board, records: Records, data: Path | None, display: Display
) -> BoardData:
    """Read what the runs of a board have logged, and their data set if it is available.

    The data set is searched in the folder `data` and where the runs read it.
    """
    runs = [store.client.get_run(row.run_id) for row in board.rows]
    newest = [records[row.run_id] for row in board.rows]
    cases = sorted(map(str, newest[0].cases["case"]))
    pack = None if board.task == "presence" else _find_pack(store, runs, data, display)
    own = [[records[r] for r in row.runs] for row in board.rows]
    return BoardData(
        board=board,
        cases=cases,
        seed_scores=tuple(_scores(board.primary, of_row, cases) for of_row in own),
        by_structure={
            s: np.stack([_scores(structure_column(board.primary, s), of_row, cases).mean(0) for of_row in own])
            for s in board.structures
        },
        dice_intervals={
            s: [mean_interval(_scores(structure_column("dice", s), of_row, cases)) for of_row in own]
            for s in board.structures
        },
        groups=_groups(newest[0], cases, pack, board.noun),
        histories=tuple(tuple(_histories(store, row.runs)) for row in board.rows),
        versions=_versions(newest),
        counts=_counts(runs),
        slices={row: reliability_curve(r.slices) for row, r in enumerate(newest) if r.slices is not None},
        masks=None if pack is None else _mask_data(store, runs, cases, pack, display),
    )


def _find_pack(store: Store, runs: Sequence[Run], data: Path | None, display: Display) -> Pack | None:
    """Return the data set of a board: in `data`, or where a run read it, as `data` may belong to another board."""
    problem: BenchError | None = None
    for folder in dict.fromkeys((data, None)):
        try:
            return load_shared_pack(store, runs, folder, display)
        except BenchError as error:
            problem = error
    display.say(f"gallery and missing sequences are left out, because the data set is not available: {problem}")
    return None


def _scores(score: str, runs: Sequence[RunRecord], cases: list[str]) -> Floats:
    tables = [run.cases.set_index("case").reindex(cases) for run in runs]
    if not all(score in table for table in tables):
        return np.full((1, len(cases)), np.nan)
    return np.stack([table[score].to_numpy(np.float64) for table in tables])


def _groups(run: RunRecord, cases: list[str], pack: Pack | None, noun: str) -> pd.DataFrame:
    table = run.cases.set_index("case").reindex(cases)
    institutions = [parse_case_name(Path(case))[1] for case in cases]
    groups = pd.DataFrame({"institution": institutions}, index=cases) if pack is None else groups_of(pack)
    return groups.reindex(cases).assign(**{f"{noun} size": size_groups(table["tp"] + table["fn"], noun)})


def _histories(store: Store, runs: Sequence[str]) -> Iterator[pd.DataFrame]:
    for run in runs:
        for fold in find_folds(store, store.client.get_run(run)).values():
            try:
                yield read_table(store, fold, "history")
            except StoreError:  # a derived run, or a lost file: the page names rows without a curve
                continue


def _versions(runs: Sequence[RunRecord]) -> dict[str, str]:
    used = {name: {r.tags.get(f"{Tag.ENVIRONMENT}{name}") for r in runs} - {None} for name in VERSIONS}
    return {name: ", ".join(sorted(map(str, values))) for name, values in used.items() if values}


def _counts(runs: Sequence[Run]) -> dict[str, Any]:
    logged = [data.dataset for run in runs if run.inputs for data in run.inputs.dataset_inputs]
    return next((json.loads(dataset.profile) for dataset in logged if dataset.profile), {})


def _mask_data(store: Store, runs: Sequence[Run], cases: Sequence[str], pack: Pack, display: Display) -> MaskData:
    """Read masks, probabilities and images one patient at a time."""
    masks = _read_complete(read_masks, store, runs, cases)
    probabilities = _read_complete(read_probabilities, store, runs, cases)
    probabilities = {row: by_case for row, by_case in probabilities.items() if row in masks}
    pixels = {row: np.zeros((2, 100), np.int64) for row in probabilities}
    confidences: dict[int, list[float]] = {row: [] for row in probabilities}
    patients = []
    for done, case in enumerate(cases if masks else (), 1):
        truth = pack.truth(pack.rows([case]))
        predictions = {row: by_case[case] for row, by_case in masks.items()}
        patients.append(view_patient(pack, case, list(predictions.values())))
        for row, by_case in probabilities.items():
            each = list(
                zip(*(np.moveaxis(a, 1, 0) for a in (by_case[case], truth, predictions[row])), strict=True)
            )
            pixels[row] += sum(count_pixels(*structure) for structure in each)
            confidences[row].append(float(np.mean([soft_dice_confidence(p, mask) for p, _, mask in each])))
        display.bar(done, len(cases), "reading masks", "patients")
    dice = {row: np.array([patient.dice[at] for patient in patients]) for at, row in enumerate(masks)}
    return MaskData(
        rows=tuple(masks),
        patients=tuple(sorted(patients, key=lambda patient: patient.sort_key)),
        trust={
            row: assess_trust(pixels[row], np.array(confidences[row]), dice[row])
            for row in probabilities
            if np.isfinite(dice[row]).any()
        },
    )


def _read_complete(
    read: Callable[[Store, Run], T], store: Store, runs: Sequence[Run], cases: Sequence[str]
) -> dict[int, T]:
    """Read what each run has logged of its patients, by row. Rows that lack a patient are left out."""
    complete = {}
    for row, run in enumerate(runs):
        try:
            by_case = read(store, run)
        except StoreError:
            continue
        if all(case in by_case for case in cases):
            complete[row] = by_case
    return complete
