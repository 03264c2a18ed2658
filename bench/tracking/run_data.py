from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.console import Display
from bench.data.pack import Pack
from bench.errors import DataError
from bench.overrides import configure
from bench.tracking import Run, Store, settings_of
from bench.tracking.selection import SOURCE
from bench.training.experiment import raw_pack


def pack_of(run: Run, data: Path | None, display: Display) -> Pack:
    """The data of a logged run, in `data` or where the run found them. Raises `DataError` if they have changed."""
    config = configure(settings_of(run), {} if data is None else {"dataset.folder": str(data)})
    pack = raw_pack(config, tick=display.packing)
    if pack.manifest.key != run.data.tags["bench.data"]:
        raise DataError(
            f"the data are not those of run {run.info.run_name}. Give --data the folder it was run on."
        )
    return pack


def shared_pack(store: Store, runs: Sequence[Run], data: Path | None, display: Display) -> Pack:
    """The data that these runs share, by the first that knows them, itself or through the run it was made of."""
    known = [store.client.get_run(r.data.tags[SOURCE]) if SOURCE in r.data.tags else r for r in runs]
    for run in known:
        if "dataset.name" in run.data.params:
            return pack_of(run, data, display)
    raise DataError("none of these runs knows its data: all are made of others. Name one that was trained.")
