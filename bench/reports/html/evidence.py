"""What stands behind a board: scores of every patient, training histories, masks and probabilities, read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis.board import Board
from bench.analysis.calibration import Trust, confidence, pixels_around, trust
from bench.analysis.ranking import distinguishable_models
from bench.analysis.score_facts import higher_is_better
from bench.analysis.strata import groups_of, sizes
from bench.console import Display
from bench.data.pack import Pack
from bench.data.readers.patient_folders import identify
from bench.errors import BenchError, StoreError
from bench.metrics.classification import reliability
from bench.reports.html.gallery import Portrait, portrait
from bench.tracking import Run, Store, folds_of, masks_of, probabilities_of, read_table
from bench.tracking.run_data import shared_pack
from bench.types import RunRecord

T = TypeVar("T", bound=Mapping[str, Any])


Floats = NDArray[np.float64]


VERSIONS = ("bench", "python", "torch", "device")


Records = Mapping[str, RunRecord]  # by run id


@dataclass(frozen=True)
class Pictured:
    """What only masks and data show: the rows whose masks were kept, their patients, hardest first, and by row how
    far the probabilities that were kept can be trusted.
    """

    rows: tuple[int, ...]
    portraits: tuple[Portrait, ...]
    trust: Mapping[int, Trust]


@dataclass(frozen=True)
class BoardData:
    """A board and what its chapter is made of. Rows are counted as the board's; what cannot be averaged over the
    runs of a row is that of the newest.

    seeds      by row (runs, cases) of the board's primary metric; NaN where not defined
    groups     what patients have in common, a column a kind
    histories  of every fold of a row's runs: epoch and val/<score>
    versions   with what the runs were made
    counts     what a run has said of its data: slices, positive_slices, licence
    slices     by row, the reliability curve of a presence run
    pictured   None for presence, and where the data are not at hand
    """

    board: Board
    cases: list[str]
    seeds: tuple[Floats, ...]
    groups: pd.DataFrame
    histories: tuple[tuple[pd.DataFrame, ...], ...]
    versions: Mapping[str, str]
    counts: Mapping[str, Any]
    slices: Mapping[int, pd.DataFrame]
    pictured: Pictured | None

    @property
    def higher(self) -> bool:
        return higher_is_better(self.board.task, self.board.primary)

    @property
    def homes(self) -> list[str]:
        """The institution of each patient."""
        return [str(home) for home in self.groups["institution"]]

    @cached_property
    def scores(self) -> Floats:
        """(rows, cases) of the board's primary metric, means over the runs of a row."""
        return np.stack([runs.mean(0) for runs in self.seeds])

    @property
    def defined(self) -> Floats:
        """Scores of the patients for whom they are defined in all rows."""
        return self.scores[:, self._known]

    @property
    def told(self) -> NDArray[np.bool_]:
        """Which rows (rows, rows) those patients tell apart."""
        return distinguishable_models([runs[:, self._known] for runs in self.seeds])

    @property
    def _known(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.scores).all(0))


def gather(store: Store, board: Board, records: Records, data: Path | None, display: Display) -> BoardData:
    """Read what was logged of the runs on a board; their data, in `data` or where they found them, if they can."""
    runs = [store.client.get_run(row.run_id) for row in board.rows]
    newest = [records[row.run_id] for row in board.rows]
    cases = sorted(map(str, newest[0].cases["case"]))
    pack = None if board.task == "presence" else _pack(store, runs, data, display)
    return BoardData(
        board=board,
        cases=cases,
        seeds=tuple(_scores(board, [records[r] for r in row.runs], cases) for row in board.rows),
        groups=_groups(newest[0], cases, pack),
        histories=tuple(tuple(_histories(store, row.runs)) for row in board.rows),
        versions=_versions(newest),
        counts=_counts(runs),
        slices={at: reliability(r.slices) for at, r in enumerate(newest) if r.slices is not None},
        pictured=None if pack is None else _pictured(store, runs, cases, pack, display),
    )


def _pack(store: Store, runs: Sequence[Run], data: Path | None, display: Display) -> Pack | None:
    """The data of a board: in `data`, or where a run found them, as `data` may be meant for another board."""
    problem: BenchError | None = None
    for folder in dict.fromkeys((data, None)):
        try:
            return shared_pack(store, runs, folder, display)
        except BenchError as error:
            problem = error
    display.say(f"no gallery and no missing sequences, as the data are not at hand: {problem}")
    return None


def _scores(board: Board, runs: Sequence[RunRecord], cases: list[str]) -> Floats:
    tables = [run.cases.set_index("case").reindex(cases) for run in runs]
    if not all(board.primary in table for table in tables):
        return np.full((1, len(cases)), np.nan)
    return np.stack([table[board.primary].to_numpy(np.float64) for table in tables])


def _groups(run: RunRecord, cases: list[str], pack: Pack | None) -> pd.DataFrame:
    table = run.cases.set_index("case").reindex(cases)
    homes = [identify(Path(case))[1] for case in cases]
    known = pd.DataFrame({"institution": homes}, index=cases) if pack is None else groups_of(pack)
    return known.reindex(cases).assign(**{"tumour size": sizes(table["tp"] + table["fn"])})


def _histories(store: Store, runs: Sequence[str]) -> Iterator[pd.DataFrame]:
    for run in runs:
        for fold in folds_of(store, store.client.get_run(run)).values():
            try:
                yield read_table(store, fold, "history")
            except StoreError:  # made of other runs, or lost: the page names rows without a curve
                continue


def _versions(runs: Sequence[RunRecord]) -> dict[str, str]:
    told = {name: sorted({r.tags[f"env.{name}"] for r in runs if f"env.{name}" in r.tags}) for name in VERSIONS}
    return {name: ", ".join(values) for name, values in told.items() if values}


def _counts(runs: Sequence[Run]) -> dict[str, Any]:
    logged = [given.dataset for run in runs if run.inputs for given in run.inputs.dataset_inputs]
    return next((json.loads(dataset.profile) for dataset in logged if dataset.profile), {})


def _pictured(store: Store, runs: Sequence[Run], cases: Sequence[str], pack: Pack, display: Display) -> Pictured:
    """All that takes pixels, patient by patient."""
    masks = _kept(masks_of, store, runs, cases)
    kept = {at: p for at, p in _kept(probabilities_of, store, runs, cases).items() if at in masks}
    pixels = {at: np.zeros((2, 100), np.int64) for at in kept}
    sure: dict[int, list[float]] = {at: [] for at in kept}
    portraits = []
    for done, case in enumerate(cases if masks else (), 1):
        truth = pack.masks[pack.rows([case])].astype(bool)
        drawn = {at: mine[case] for at, mine in masks.items()}
        portraits.append(portrait(pack, case, list(drawn.values())))
        for at, probabilities in kept.items():
            mine = probabilities[case]
            pixels[at] += pixels_around(mine, truth, drawn[at])
            sure[at].append(confidence(mine, drawn[at]))
        display.bar(done, len(cases), "looking at patients", "patients")
    dice = {at: np.array([p.dice[place] for p in portraits]) for place, at in enumerate(masks)}
    return Pictured(
        rows=tuple(masks),
        portraits=tuple(sorted(portraits, key=lambda p: p.hardness)),
        trust={at: trust(pixels[at], np.array(sure[at]), dice[at]) for at in kept if np.isfinite(dice[at]).any()},
    )


def _kept(
    read: Callable[[Store, Run], T], store: Store, runs: Sequence[Run], cases: Sequence[str]
) -> dict[int, T]:
    """What was kept of all these patients, by row; the page names the other rows."""
    found = {}
    for at, run in enumerate(runs):
        try:
            whole = read(store, run)
        except StoreError:
            continue
        if all(case in whole for case in cases):
            found[at] = whole
    return found
