"""`bench report`: the whole leaderboard as one HTML file that opens from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.analysis.leaderboard import build_boards
from bench.console import Display, console
from bench.errors import BadSetting, StoreError
from bench.reports.html.board_data import read_board_data
from bench.reports.html.page import render_report
from bench.tracking import connect, open_run, read_records
from bench.tracking.tags import Tag

REPORT = "report"  # kind of the run that holds the page; such runs are on no leaderboard


def write_report(
    out: Path,
    *,
    data: Path | None = None,
    where: Sequence[str] = (),
    primary: str | None = None,
    title: str | None = None,
    uri: str | None = None,
) -> Path:
    """Write the page of all finished runs to `out`, log it as a run of its own, and print its path.

    `where` and `primary` filter and rank as on the leaderboard. `data` is the folder of the data set, by default
    where the runs read it; without it there is no gallery. Raises `BenchError`.
    """
    if out.is_dir():
        raise BadSetting(f"{out} is a folder. Give the name of a file, such as {out / 'report.html'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    store = connect(uri)
    runs = {record.run_id: record for record in read_records(store)}
    boards = build_boards(list(runs.values()), primary=primary, where=where)
    if not boards:
        condition = f" for which {' and '.join(where)}" if where else ""
        raise StoreError(f"there is no finished run in {store.address}{condition}. `bench run` makes one.")
    largest = boards[0]
    with Display() as display:
        data_of_boards = [read_board_data(store, board, runs, data, display) for board in boards]
        out.write_text(render_report(title or f"Leaderboard: {largest.dataset}", data_of_boards), encoding="utf-8")
        console().print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False, soft_wrap=True)
        experiment_id = store.client.get_run(largest.rows[0].run_id).info.experiment_id
        experiment = store.client.get_experiment(experiment_id).name
        with open_run(store, REPORT, experiment, {Tag.KIND: REPORT}, say=display.say) as recorder:
            store.client.log_artifact(recorder.run_id, str(out))
    return out
