"""`bench publish` and `bench import`: finished runs as a folder of files that another store can read.

The files hold what ranking needs: scores of every patient, settings, costs and folds, but no masks, models or
curves. Imported runs count as done in a suite, and are ranked with the runs of the store without training.
The files are described in `bench.derived.published_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.analysis.filters import filter_records
from bench.console import Display, console
from bench.derived.base import update_ranks
from bench.derived.published_files import BOARD, RUNS, Published, read_published, write_published
from bench.errors import BadSetting
from bench.tracking import (
    PARENT,
    Tag,
    connect,
    connect_to_write,
    is_finished,
    open_run,
    read_records,
    read_table,
    search_runs,
)
from bench.types import RunRecord

SOURCE = "bench import"  # what MLflow's UI names as the source of an imported run
PATHS = ("dataset.folder", "run.plugins")  # settings that are paths on the machine of the run


def publish_runs(out: Path, *, where: Sequence[str] = (), uri: str | None = None) -> None:
    """Write the finished runs that meet these conditions to `out`; runs in it are kept. Raises `BenchError`."""
    store = connect(uri)
    with Display() as display:
        found = filter_records(read_records(store, tick=display.reading), where)[::-1]
    if not found:
        raise BadSetting(f"no finished run in {store.address} matches. `bench leaderboard` shows all runs.")
    before = read_published(out) if (out / RUNS).exists() else Published((), {})
    splits = dict(before.splits)
    for record in found:
        if record.tags[Tag.SPLIT] not in splits:
            run = store.client.get_run(record.run_id)
            splits[record.tags[Tag.SPLIT]] = read_table(store, run, "split")
    new = [_public(record) for record in found]
    ids = {record.run_id for record in new}
    runs = (*(record for record in before.runs if record.run_id not in ids), *new)
    write_published(out, Published(runs, splits))
    patients = len({case for record in runs for case in record.cases["case"]})
    console().print(f"{_runs(len(runs))} in {out}, and the tables name {patients} patients", markup=False)


def import_runs(folder: Path, *, uri: str | None = None) -> None:
    """Log the runs of a published folder as finished runs of this store, except those that it already has.

    Each run is ranked, and tagged with the id under which it was published. Raises `BenchError`.
    """
    published, store = read_published(folder), connect_to_write(uri)
    runs = [run for run in search_runs(store, {Tag.KIND: PARENT}) if is_finished(run)]
    there = {run.info.run_id for run in runs} | {run.data.tags.get(Tag.IMPORTED) for run in runs}
    new = [record for record in published.runs if record.run_id not in there]
    boards: dict[tuple[object, ...], str] = {}
    with Display() as display:
        for done, record in enumerate(new, 1):
            tags = {**record.tags, Tag.KIND: PARENT, Tag.IMPORTED: record.run_id, "mlflow.source.name": SOURCE}
            with open_run(store, record.name, tags[Tag.DATASET], tags, say=display.say) as recorder:
                recorder.settings(record.settings)
                recorder.data(tags[Tag.DATASET], tags[Tag.DATA], _profile(record))
                recorder.metrics(record.metrics)
                recorder.table("cases", record.cases)
                recorder.table("split", published.splits[tags[Tag.SPLIT]])
                if record.slices is not None:
                    recorder.table("slices", record.slices)
            if Tag.POST_HOC not in tags:  # a choice made after test scores were seen has no rank
                boards[(*map(tags.get, BOARD), frozenset(record.cases["case"]))] = recorder.run_id
            display.bar(done, len(new), "importing", "runs")
        for run_id in boards.values():
            update_ranks(store, run_id, display)
    known = len(published.runs) - len(new)
    before = f"; {_runs(known)} already there" * bool(known)
    console().print(f"{_runs(len(new))} imported into {store.address}{before}", markup=False)


def _runs(count: int) -> str:
    return "1 run is" if count == 1 else f"{count} runs are"


def _profile(record: RunRecord) -> dict[str, object]:
    """Return what is known of the data set of a published run, which does not hold the data itself."""
    licence = {"licence": record.tags[Tag.LICENCE]} if Tag.LICENCE in record.tags else {}
    return {"patients": len(record.cases), "synthetic": record.tags.get(Tag.SYNTHETIC) == "true", **licence}


def _public(record: RunRecord) -> RunRecord:
    """Return the run with its first id, without its rank and everything specific to its machine or store."""
    tags = {k: v for k, v in record.tags.items() if k.startswith((Tag.BENCH, Tag.ENVIRONMENT, Tag.PLAN))}
    for own in (Tag.PLATFORM, Tag.KEY, Tag.HEARTBEAT):  # of this store and machine
        tags.pop(own, None)
    if "mlflow.note.content" in record.tags:
        tags["mlflow.note.content"] = record.tags["mlflow.note.content"]
    first = tags.pop(Tag.IMPORTED, record.run_id)
    tags.pop(Tag.SOURCE, None)
    return replace(
        record,
        run_id=first,
        settings={k: v for k, v in record.settings.items() if k not in PATHS},
        metrics={k: v for k, v in record.metrics.items() if not k.startswith(("rank", "system/"))},
        tags=tags,
    )
