"""`bench suite`: a benchmark file, its cells, and which of them are done, failed or missing.

A file names a base of settings, entries with what each changes, budgets that shrink the whole, and figures that
others have published. A cell is one entry at one budget; it is found again in the store by its fingerprint and
data, so that adding an entry runs that entry alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from bench import registry
from bench.cascade import cascade, joined
from bench.config import RunConfig, Settings, configure, read_yaml
from bench.console import console
from bench.errors import BadSetting, BenchError, UnknownName, did_you_mean
from bench.leaderboard import Board, boards
from bench.pack import Manifest, Source, packed
from bench.session import execute
from bench.tracking import Run, Store, connect, note_failure, records, runs_with

FULL = "full"  # the budget of the file as it stands
DONE, FAILED, MISSING, RUNNING = "done", "failed", "missing", "running"


class Figure(Settings):
    """What somebody has published for an entry, and the metric of ours with the same definition, if any."""

    entry: str
    what: str  # the score as its authors call it
    value: float
    metric: str | None = None
    where: str  # data, split and where it is printed


class Parts(Settings):
    """A cascade: the names of two other entries."""

    presence: str
    segmentation: str


class SuiteFile(Settings):
    """A benchmark file, as it is written."""

    title: str
    base: Mapping[str, Any] = MappingProxyType({})
    entries: dict[str, dict[str, Any]]
    budgets: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    published: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One entry at one budget: a configuration to run, or two others to put together."""

    name: str
    what: RunConfig | Parts
    fingerprint: str
    data: Manifest


@dataclass(frozen=True)
class State:
    """A cell, what became of it, and the run that says so."""

    cell: Cell
    state: str
    run: Run | None


@dataclass(frozen=True)
class Suite:
    """A benchmark file at one budget, all of its cells resolved."""

    title: str
    budget: str
    cells: tuple[Cell, ...]
    published: tuple[Figure, ...]

    def tags(self, cell: Cell) -> dict[str, str]:
        return {"bench.suite": self.title, "bench.entry": cell.name, "bench.budget": self.budget}


def read_suite(path: Path, *, budget: str = FULL, given: Mapping[str, Any] | None = None) -> Suite:
    """Read a benchmark file; every cell is configured and every name in it looked up. Raises `BenchError`.

    `given` are settings that win over the file, such as the folder of the data.
    """
    try:
        file = SuiteFile.model_validate({"title": path.stem, **read_yaml(path)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(f"{path}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}.") from None
    if budget != FULL and budget not in file.budgets:
        there = ", ".join((FULL, *file.budgets))
        raise UnknownName(f"{path} has no budget '{budget}'; it has {there}.{did_you_mean(budget, file.budgets)}")
    cells: dict[str, Cell] = {}
    manifests: dict[str, Manifest] = {}
    layers = file.budgets.get(budget, {}), dict(given or {})
    # Cascades last: their parts are known by then.
    for name, changes in sorted(file.entries.items(), key=lambda entry: "cascade" in entry[1]):
        if "cascade" in changes:
            cells[name] = _cascade_cell(path, name, changes, cells)
            continue
        config = configure(file.base, changes, *layers, {"name": name})
        source = config.dataset.model_dump_json()
        if source not in manifests:
            found: Source = registry.dataset[config.dataset.name].bind(config.dataset.params)()
            manifests[source] = packed(found).manifest
        cells[name] = Cell(name, config, config.fingerprint(), manifests[source])
    for figure in file.published:
        if figure.entry not in cells:
            raise UnknownName(f"{path}: published: no entry '{figure.entry}'.{did_you_mean(figure.entry, cells)}")
    ordered = tuple(cells[name] for name in file.entries)
    return Suite(file.title, budget, ordered, file.published)


def states(suite: Suite, store: Store) -> list[State]:
    """What the store says of each cell, by fingerprint and data."""
    return [_state(cell, store) for cell in suite.cells]


def run_suite(
    suite: Suite, *, uri: str | None = None, retry: bool = False, quiet: bool = False, verbose: bool = False
) -> list[State]:
    """Run what is missing (and with `retry` what has failed), cell by cell; a bad one does not stop the rest."""
    store = connect(uri)
    todo = [s.cell for s in states(suite, store) if s.state == MISSING or (retry and s.state == FAILED)]
    todo.sort(key=lambda cell: isinstance(cell.what, Parts))
    for number, cell in enumerate(todo, 1):
        console().print(f"[{number}/{len(todo)}] {suite.title}: {cell.name}", markup=False)
        before = len(runs_with(store, _identity(cell)))
        try:
            _run(suite, cell, store, uri, quiet=quiet, verbose=verbose)
        except Exception as error:  # whatever it is, the other cells are not to blame; it is logged and said
            said = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            console().print(f"{cell.name} failed: {said}", markup=False)
            if len(runs_with(store, _identity(cell))) == before:  # refused before a run was opened
                own = _identity(cell) | suite.tags(cell)
                note_failure(store, cell.name, cell.data.dataset, own, said)
    return states(suite, store)


def board_of(found: Sequence[State], store: Store) -> list[Board]:
    """The leaderboards of a suite's own runs; a leaky one is on none."""
    ids = {s.run.info.run_id for s in found if s.run is not None and s.state == DONE}
    keys = {s.cell.data.key for s in found}
    wanted = [r for key in keys for r in records(store, tags={"bench.data": key}) if r.run_id in ids]
    return boards(wanted)


def _run(suite: Suite, cell: Cell, store: Store, uri: str | None, *, quiet: bool, verbose: bool) -> None:
    tags = suite.tags(cell)
    if isinstance(cell.what, RunConfig):
        execute(cell.what, uri=uri, tags=tags, quiet=quiet, verbose=verbose)
        return
    parts = {c.name: _state(c, store) for c in suite.cells}
    runs = {}
    for task, name in cell.what.model_dump().items():
        run = parts[name].run
        if parts[name].state != DONE or run is None:
            raise BadSetting(f"the cascade {cell.name} needs its part {name}, which is {parts[name].state}.")
        runs[task] = run.info.run_id
    config = next(c.what for c in suite.cells if c.name == cell.what.segmentation)
    assert isinstance(config, RunConfig)
    folder = config.dataset.params.get("folder")
    data = Path(folder) if folder else None
    cascade(runs["presence"], runs["segmentation"], data=data, name=cell.name, tags=tags, uri=uri)


def _cascade_cell(path: Path, name: str, changes: Mapping[str, Any], cells: Mapping[str, Cell]) -> Cell:
    try:
        parts = Parts.model_validate(changes["cascade"])
    except ValidationError:
        raise BadSetting(f"{path}: {name}: a cascade is {{presence: ENTRY, segmentation: ENTRY}}.") from None
    for part in parts.model_dump().values():
        if part not in cells:
            raise UnknownName(f"{path}: the cascade {name} names no entry '{part}'.{did_you_mean(part, cells)}")
    gate, model = cells[parts.presence], cells[parts.segmentation]
    return Cell(name, parts, joined(gate.fingerprint, model.fingerprint), model.data)


def _identity(cell: Cell) -> dict[str, str]:
    return {"bench.fingerprint": cell.fingerprint, "bench.data": cell.data.key}


def _state(cell: Cell, store: Store) -> State:
    """Done if any run of the whole cross-validation has finished, else what the newest says.

    One that was interrupted is missing: nothing is wrong with it.
    """
    runs = [r for r in runs_with(store, _identity(cell)) if "bench.only" not in r.data.tags]
    for run in runs:
        if run.info.status == "FINISHED":
            return State(cell, DONE, run)
    if not runs:
        return State(cell, MISSING, None)
    return State(cell, {"RUNNING": RUNNING, "KILLED": MISSING}.get(runs[0].info.status, FAILED), runs[0])
