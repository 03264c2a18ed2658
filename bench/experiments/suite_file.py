"""A benchmark file: a base of settings, entries with what each changes, budgets, and what others have published.

A cell is one entry at one budget with one seed; an entry with `seeds: [0, 1]` has a cell for each, and one row on
the leaderboard. What a budget says under `entries` is for these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bench.config import RunConfig, Settings
from bench.data.pack import Manifest
from bench.derived.cascade import cascade_fingerprint
from bench.errors import BadSetting, UnknownName, did_you_mean
from bench.overrides import configure, read_yaml
from bench.training.experiment import raw_pack

FULL = "full"  # the budget of the file as it stands


class PublishedScore(Settings):
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
    base: Mapping[str, Any] = Field(default_factory=dict)
    entries: dict[str, dict[str, Any]]
    budgets: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    published: tuple[PublishedScore, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One entry at one budget: a configuration to run, or two others to put together."""

    name: str
    what: RunConfig | Parts
    fingerprint: str
    data: Manifest


@dataclass(frozen=True)
class Suite:
    """A benchmark file at one budget, all of its cells resolved."""

    title: str
    budget: str
    cells: tuple[Cell, ...]
    published: tuple[PublishedScore, ...]

    def tags(self, cell: Cell) -> dict[str, str]:
        return {"bench.suite": self.title, "bench.entry": cell.name, "bench.budget": self.budget}


def read_suite(path: Path, *, budget: str = FULL, given: Mapping[str, Any] | None = None) -> Suite:
    """Read a benchmark file; every cell is configured and every name in it looked up. Raises `BenchError`.

    `given` are settings that win over the file, such as the folder of the data.
    """
    try:
        file = SuiteFile.model_validate({"title": path.stem, **read_yaml(path, "benchmark")})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(f"{path}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}.") from None
    if budget != FULL and budget not in file.budgets:
        there = ", ".join((FULL, *file.budgets))
        raise UnknownName(f"{path} has no budget '{budget}'; it has {there}.{did_you_mean(budget, file.budgets)}")
    made: dict[str, list[Cell]] = {}  # by entry, one a seed
    manifests: dict[str, Manifest] = {}
    layer = dict(file.budgets.get(budget, {}))
    shrunk = layer.pop("entries", {})
    for name in shrunk:
        if name not in file.entries:
            said = did_you_mean(name, file.entries)
            raise UnknownName(f"{path}: budgets: {budget}: no entry '{name}'.{said}")
    # Cascades last: their parts are known by then.
    for name, changes in sorted(file.entries.items(), key=lambda entry: "cascade" in entry[1]):
        if "cascade" in changes:
            made[name] = [_cascade_cell(path, name, changes, {entry: own[0] for entry, own in made.items()})]
            continue
        made[name] = []
        for cell, own in _per_seed(path, name, changes):
            config = configure(file.base, own, layer, shrunk.get(name, {}), given or {}, {"name": name})
            source = config.dataset.model_dump_json()
            if source not in manifests:
                manifests[source] = raw_pack(config).manifest
            made[name].append(Cell(cell, config, config.fingerprint(), manifests[source]))
    for figure in file.published:
        if figure.entry not in made:
            raise UnknownName(f"{path}: published: no entry '{figure.entry}'.{did_you_mean(figure.entry, made)}")
    every = [made[name] for name in file.entries]  # each entry once before any is repeated
    cells = (*(own[0] for own in every), *(cell for own in every for cell in own[1:]))
    return Suite(file.title, budget, cells, file.published)


def _cascade_cell(path: Path, name: str, changes: Mapping[str, Any], cells: Mapping[str, Cell]) -> Cell:
    try:
        parts = Parts.model_validate(changes["cascade"])
    except ValidationError:
        raise BadSetting(f"{path}: {name}: a cascade is {{presence: ENTRY, segmentation: ENTRY}}.") from None
    for part in parts.model_dump().values():
        if part not in cells:
            raise UnknownName(f"{path}: the cascade {name} names no entry '{part}'.{did_you_mean(part, cells)}")
    gate, model = cells[parts.presence], cells[parts.segmentation]
    return Cell(name, parts, cascade_fingerprint(gate.fingerprint, model.fingerprint), model.data)


def _per_seed(path: Path, name: str, changes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name of each cell of an entry, and what it changes."""
    if "seeds" not in changes:
        yield name, changes
        return
    seeds = changes["seeds"]
    if not isinstance(seeds, list) or not seeds or len({str(seed) for seed in seeds}) < len(seeds):
        raise BadSetting(f"{path}: {name}: seeds is a list of different numbers, such as [0, 1].")
    rest = {k: v for k, v in changes.items() if k != "seeds"}
    for place, seed in enumerate(seeds):
        yield f"{name} seed {seed}" if place else name, rest | {"seed": seed}
