"""The data of logged runs: finding the data set that a run was trained on, and checking that it is unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.console import Display
from bench.data.pack import Pack
from bench.errors import DataError
from bench.overrides import configure
from bench.tracking import Run, Store, Tag, read_settings
from bench.tracking.tags import is_derived
from bench.training.experiment import raw_pack


def load_run_pack(run: Run, data: Path | None, display: Display) -> Pack:
    """Return the raw pack of a trained run, from the folder `data` or the one that the run used.

    Raises `DataError` if the data have changed.
    """
    config = configure(read_settings(run), {} if data is None else {"dataset.folder": str(data)})
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
