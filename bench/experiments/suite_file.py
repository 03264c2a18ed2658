"""A benchmark file: base settings, entries with their changes, budgets, and scores that others have published.

A cell is one entry at one budget with one seed; an entry with `seeds: [0, 1]` has a cell per seed, and one row on
the leaderboard. The changes of a budget under `entries` apply to these entries only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from bench.config import RunConfig
from bench.errors import BadSetting, UnknownName, did_you_mean
from bench.overrides import check_data_folder, configure, read_yaml
from bench.settings import Name, Settings

if TYPE_CHECKING:  # slow: a refused file answers without torch and MLflow
    from bench.data.pack import Manifest

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
        from bench.tracking.tags import Tag

        return {Tag.SUITE: self.title, Tag.ENTRY: cell.name, Tag.BUDGET: self.budget}


def read_suite(path: Path, *, budget: str = FULL, given: Mapping[str, Any] | None = None) -> Suite:
    """Read a benchmark file, configure every cell, then pack their data. Raises `BenchError`.

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
    configs: dict[str, dict[str, RunConfig]] = {}  # by entry, then by cell: one per seed
    for name, changes in file.entries.items():
        if "cascade" in changes:
            continue
        try:
            configs[name] = {
                cell: configure(file.base, own, layer, own_layers.get(name, {}), given or {}, {"name": name})
                for cell, own in _per_seed(path, name, changes)
            }
            for config in configs[name].values():
                config.completed()  # refuses wrong settings of components, too
        except (BadSetting, UnknownName) as error:
            raise type(error)(f"{path}: entries: {name}: {error}") from None
    cascades = {
        name: _read_parts(path, name, changes, configs)
        for name, changes in file.entries.items()
        if "cascade" in changes
    }
    for published in file.published:
        _check_entry(published.entry, file.entries, f"{path}: published")
    for config in (config for own in configs.values() for config in own.values()):
        check_data_folder(config)
    cells = _pack_cells(configs)
    cells |= {name: [_cascade_cell(name, parts, cells)] for name, parts in cascades.items()}
    every = [cells[name] for name in file.entries]  # each entry once before any second seed
    ordered = (*(own[0] for own in every), *(cell for own in every for cell in own[1:]))
    return Suite(file.title, budget, ordered, file.published)


def _pack_cells(configs: Mapping[str, Mapping[str, RunConfig]]) -> dict[str, list[Cell]]:
    """Pack each data set once, and return the cells of every entry."""
    from bench.training.experiment import raw_pack

    manifests: dict[str, Manifest] = {}
    cells: dict[str, list[Cell]] = {}
    for entry, own in configs.items():
        cells[entry] = []
        for name, config in own.items():
            source = config.dataset.model_dump_json()
            if source not in manifests:
                manifests[source] = raw_pack(config).manifest
            cells[entry].append(Cell(name, config, config.fingerprint(), manifests[source]))
    return cells


def _check_entry(name: str, entries: Iterable[str], where: str) -> None:
    if name not in entries:
        raise UnknownName(f"{where}: no entry '{name}'.{did_you_mean(name, entries)}")


def _read_parts(path: Path, name: str, changes: Mapping[str, Any], entries: Iterable[str]) -> Parts:
    try:
        parts = Parts.model_validate(changes["cascade"])
    except ValidationError:
        raise BadSetting(f"{path}: {name}: write a cascade as {{presence: ENTRY, segmentation: ENTRY}}.") from None
    for part in parts.model_dump().values():
        if part not in entries:
            raise UnknownName(
                f"{path}: the cascade {name} names an unknown entry '{part}'.{did_you_mean(part, entries)}"
            )
    return parts


def _cascade_cell(name: str, parts: Parts, cells: Mapping[str, Sequence[Cell]]) -> Cell:
    from bench.derived.cascade import cascade_fingerprint

    gate, model = cells[parts.presence][0], cells[parts.segmentation][0]
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
