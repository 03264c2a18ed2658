"""Checks of runs before they are used together: finished, comparable, and trained on unchanged data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.console import Display
from bench.data.pack import Pack
from bench.errors import BadSetting, DataError
from bench.tracking import PARENT, Run, Store, Tag, find_run, is_finished, read_config, run_label
from bench.tracking.tags import SHARED, is_derived, task_name
from bench.training.experiment import raw_pack


def require_finished(run: Run, task: str, way_out: str) -> None:
    """Raise `BadSetting` unless the run is a finished cross-validation of this task."""
    if run.data.tags.get(Tag.KIND) != PARENT or task_name(run.data.tags) != task or not is_finished(run):
        raise BadSetting(f"run {run_label(run)} is not a finished {task} cross-validation. {way_out}")


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


def load_run_pack(run: Run, data: Path | None, display: Display) -> Pack:
    """Return the raw pack of a trained run, from the folder `data` or the one that the run used.

    Raises `DataError` if the data have changed.
    """
    config = read_config(run, {} if data is None else {"dataset.folder": str(data)})
    pack = raw_pack(config, tick=display.packing)
    if pack.manifest.key != run.data.tags[Tag.DATA]:
        raise DataError(
            f"these are not the data of run {run.info.run_name}. Give --data the folder that it was run on."
        )
    return pack


def load_shared_pack(store: Store, runs: Sequence[Run], data: Path | None, display: Display) -> Pack:
    """Return the raw pack that these runs share. A run that was made from others shares that of its source."""
    sources = [store.client.get_run(r.data.tags[Tag.SOURCE]) if Tag.SOURCE in r.data.tags else r for r in runs]
    for run in sources:
        if not is_derived(run.data.tags, run.data.params):
            return load_run_pack(run, data, display)
    raise DataError("none of these runs knows its data: all were made from other runs. Name one that was trained.")
