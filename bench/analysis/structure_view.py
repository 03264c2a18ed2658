"""Runs as if one of their structures were the only one, so that every analysis of one structure applies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.structures import select_structure, structure_column, structures_in, unknown_structure
from bench.types import RunRecord


def view_structure(records: Sequence[RunRecord], structure: str | None) -> list[RunRecord]:
    """Return the runs that have `structure`, with its scores alone; for None all runs, unchanged.

    Raises `UnknownName` if no run has it.
    """
    if structure is None or not records:
        return list(records)
    known = list(dict.fromkeys(name for record in records for name in structures_in(record.cases.columns)))
    if structure not in known:
        raise unknown_structure(structure, known, "every run has only one")
    return [
        replace(
            record,
            cases=select_structure(record.cases, structure),
            metrics={n.removesuffix(f"/{structure}"): v for n, v in record.metrics.items() if "/" in n},
        )
        for record in records
        if structure in structures_in(record.cases.columns)
    ]


def score_names(record: RunRecord) -> dict[str, str]:
    """Return the logged names of scores over all patients, by column: `dice[core]` was logged as `dice/core`."""
    structures = structures_in(record.cases.columns)
    parts = ((name, *name.partition("/")[::2]) for name in record.metrics)
    return {
        structure_column(plain, structure) if structure else name: name
        for name, plain, structure in parts
        if not structure or structure in structures
    }
