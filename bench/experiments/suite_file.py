"""A benchmark file: base settings, entries with their changes, budgets, and scores that others have published.

A cell is one entry at one budget with one seed; an entry with `seeds: [0, 1]` has a cell per seed, and one row on
the leaderboard. The changes of a budget under `entries` apply to these entries only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bench.config import RunConfig
from bench.data.pack import Manifest
from bench.derived.cascade import cascade_fingerprint
from bench.errors import BadSetting, UnknownName, did_you_mean
from bench.overrides import configure, read_yaml
from bench.settings import Name, Settings
from bench.tracking.tags import Tag
from bench.training.experiment import raw_pack

FULL = "full"  # the budget of the file without changes


class PublishedScore(Settings):
    """A published score of an entry, and our metric with the same definition, if there is one."""

    entry: str
    what: str  # the name that its authors give the score
    value: float
    metric: str | None = None
    where: str  # data, split and source


class Parts(Settings):
    """The parts of a cascade: the names of two other entries."""

    presence: str
    segmentation: str


class SuiteFile(Settings):
    """The content of a benchmark file."""

    title: Name
    base: Mapping[str, Any] = Field(default_factory=dict)
    entries: dict[Name, dict[str, Any]]
    budgets: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    published: tuple[PublishedScore, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One entry at one budget: a configuration to run, or two others to combine."""

    name: str
    what: RunConfig | Parts
    fingerprint: str
    data: Manifest


@dataclass(frozen=True)
class Suite:
    """A benchmark file at one budget, with all of its cells."""

    title: Name
    budget: str
    cells: tuple[Cell, ...]
    published: tuple[PublishedScore, ...]

    def tags(self, cell: Cell) -> dict[str, str]:
        return {Tag.SUITE: self.title, Tag.ENTRY: cell.name, Tag.BUDGET: self.budget}


def read_suite(path: Path, *, budget: str = FULL, given: Mapping[str, Any] | None = None) -> Suite:
    """Read a benchmark file and configure every cell. Raises `BenchError`.

    `given` are settings that override the file, such as the folder of the data.
    """
    try:
        file = SuiteFile.model_validate({"title": path.stem, **read_yaml(path, "benchmark")})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(f"{path}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}.") from None
    if budget != FULL and budget not in file.budgets:
        budgets = ", ".join((FULL, *file.budgets))
        raise UnknownName(
            f"{path} has no budget '{budget}'; it has {budgets}.{did_you_mean(budget, file.budgets)}"
        )
    layer = dict(file.budgets.get(budget, {}))
    own_layers = layer.pop("entries", {})
    for name in own_layers:
        _check_entry(name, file.entries, f"{path}: budgets: {budget}")
    cells: dict[str, list[Cell]] = {}  # by entry, one per seed
    manifests: dict[str, Manifest] = {}
    # Cascades last, as their parts must be known.
    for name, changes in sorted(file.entries.items(), key=lambda entry: "cascade" in entry[1]):
        if "cascade" in changes:
            cells[name] = [_cascade_cell(path, name, changes, {entry: own[0] for entry, own in cells.items()})]
            continue
        cells[name] = []
        for cell, own in _per_seed(path, name, changes):
            try:
                config = configure(file.base, own, layer, own_layers.get(name, {}), given or {}, {"name": name})
                fingerprint = config.fingerprint()
            except (BadSetting, UnknownName) as error:
                raise type(error)(f"{path}: entries: {name}: {error}") from None
            source = config.dataset.model_dump_json()
            if source not in manifests:
                manifests[source] = raw_pack(config).manifest
            cells[name].append(Cell(cell, config, fingerprint, manifests[source]))
    for published in file.published:
        _check_entry(published.entry, cells, f"{path}: published")
    every = [cells[name] for name in file.entries]  # each entry once before any second seed
    ordered = (*(own[0] for own in every), *(cell for own in every for cell in own[1:]))
    return Suite(file.title, budget, ordered, file.published)


def _check_entry(name: str, entries: Iterable[str], where: str) -> None:
    if name not in entries:
        raise UnknownName(f"{where}: no entry '{name}'.{did_you_mean(name, entries)}")


def _cascade_cell(path: Path, name: str, changes: Mapping[str, Any], cells: Mapping[str, Cell]) -> Cell:
    try:
        parts = Parts.model_validate(changes["cascade"])
    except ValidationError:
        raise BadSetting(f"{path}: {name}: write a cascade as {{presence: ENTRY, segmentation: ENTRY}}.") from None
    for part in parts.model_dump().values():
        if part not in cells:
            raise UnknownName(
                f"{path}: the cascade {name} names an unknown entry '{part}'.{did_you_mean(part, cells)}"
            )
    gate, model = cells[parts.presence], cells[parts.segmentation]
    return Cell(name, parts, cascade_fingerprint(gate.fingerprint, model.fingerprint), model.data)


def _per_seed(path: Path, name: str, changes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of each cell of an entry, and its changes."""
    if "seeds" not in changes:
        yield name, changes
        return
    seeds = changes["seeds"]
    if not isinstance(seeds, list) or not seeds or len({str(seed) for seed in seeds}) < len(seeds):
        raise BadSetting(f"{path}: {name}: seeds must be a list of different numbers, such as [0, 1].")
    rest = {k: v for k, v in changes.items() if k != "seeds"}
    for place, seed in enumerate(seeds):
        yield f"{name} seed {seed}" if place else name, rest | {"seed": seed}
