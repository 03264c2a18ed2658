"""Checks that runs are finished, and that their scores may be compared or combined."""

from __future__ import annotations

from collections.abc import Sequence

from bench.errors import BadSetting
from bench.tracking import PARENT, Run, Store, Tag, find_run

SHARED = (Tag.DATA, Tag.SPLIT, Tag.CONVENTION)  # tags that comparable runs have in common


def require_finished(run: Run, task: str, way_out: str) -> None:
    """Raise `BadSetting` unless the run is a finished cross-validation of this task."""
    own_task = run.data.tags.get(Tag.TASK, "segmentation")
    if run.data.tags.get(Tag.KIND) != PARENT or own_task != task or run.info.status != "FINISHED":
        raise BadSetting(
            f"run {run.info.run_name} ({run.info.run_id[:8]}) is not a finished {task} cross-validation. {way_out}"
        )


def comparable_pair(store: Store, first: str, second: str, way_out: str) -> tuple[Run, Run]:
    """Return two finished segmentation runs by name or id. Raises `BenchError` unless they may be compared."""
    runs = find_run(store, first), find_run(store, second)
    for run in runs:
        require_finished(run, "segmentation", way_out)
    if runs[0].info.run_id == runs[1].info.run_id:
        raise BadSetting(
            f"'{first}' and '{second}' are one run ({runs[0].info.run_id[:8]}). Name two, by id if necessary."
        )
    require_comparable(runs)
    return runs


def require_comparable(runs: Sequence[Run]) -> None:
    """Raise `BadSetting` unless all runs share data, split and metric convention."""
    first, *others = runs
    for other in others:
        for tag in SHARED:
            if first.data.tags[tag] != other.data.tags[tag]:
                raise BadSetting(
                    f"{first.info.run_name} and {other.info.run_name} differ in {tag.removeprefix(Tag.BENCH)} "
                    f"({first.data.tags[tag]} and {other.data.tags[tag]}), so they cannot be compared or "
                    "combined. Run both on the same data, with the same split and version."
                )
