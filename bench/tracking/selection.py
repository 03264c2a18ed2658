from __future__ import annotations

from collections.abc import Sequence

from bench.errors import BadSetting
from bench.tracking import KIND, PARENT, Run, Store, find_run

SOURCE = "bench.source"  # of a run made of others: the one that was run on the data


SHARED = ("bench.data", "bench.split", "bench.convention")  # what runs must have in common to be put together


def require_finished(run: Run, task: str, wanted: str) -> None:
    """Raise `BadSetting` unless the run is a finished cross-validation of this task; `wanted` is the way out."""
    found = run.data.tags.get("bench.task", "segmentation")
    if run.data.tags.get(KIND) != PARENT or found != task or run.info.status != "FINISHED":
        raise BadSetting(
            f"run {run.info.run_name} ({run.info.run_id[:8]}) is no finished {task} cross-validation. {wanted}"
        )


def comparable_pair(store: Store, first: str, second: str, takes: str) -> tuple[Run, Run]:
    """Two finished segmentation runs that may be compared. Raises `BenchError`; `takes` is the way out."""
    runs = find_run(store, first), find_run(store, second)
    for run in runs:
        require_finished(run, "segmentation", takes)
    if runs[0].info.run_id == runs[1].info.run_id:
        raise BadSetting(
            f"'{first}' and '{second}' are one run ({runs[0].info.run_id[:8]}). Name two, by id if need be."
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
                    f"{first.info.run_name} and {other.info.run_name} differ in {tag.removeprefix('bench.')} "
                    f"({first.data.tags[tag]} and {other.data.tags[tag]}): what one has learnt from, the other "
                    "would be tested on. Run both alike."
                )
