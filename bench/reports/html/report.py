"""`bench report`: a whole leaderboard as one HTML file that opens from disk and asks nobody for anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.analysis.leaderboard import build_boards
from bench.console import Display, console
from bench.errors import BadSetting, StoreError
from bench.reports.html.evidence import gather
from bench.reports.html.page import document
from bench.tracking import KIND, connect, open_run, records

REPORT = "report"  # the kind of the run that holds the page: it stands on no leaderboard


def report(
    out: Path,
    *,
    data: Path | None = None,
    where: Sequence[str] = (),
    primary: str | None = None,
    title: str | None = None,
    uri: str | None = None,
) -> Path:
    """Write the page of all finished runs to `out`, log it as a run of its own, and print where it is.

    `where` and `primary` choose and rank as on the leaderboard. `data` is the folder of the data set, by default
    where the runs found it; without it there is no gallery. Raises `BenchError`.
    """
    if out.is_dir():
        raise BadSetting(f"{out} is a folder. Give the name of a file, such as {out / 'report.html'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    store = connect(uri)
    found = {record.run_id: record for record in records(store)}
    made = build_boards(list(found.values()), primary=primary, where=where)
    if not made:
        kept = f" for which {' and '.join(where)}" if where else ""
        raise StoreError(f"there is no finished run in {store.address}{kept}. `bench run` makes one.")
    largest = made[0]
    with Display() as display:
        page = document(
            title or f"Leaderboard: {largest.dataset}",
            [gather(store, board, found, data, display) for board in made],
        )
        out.write_text(page, encoding="utf-8")
        console().print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False, soft_wrap=True)
        home = store.client.get_run(largest.rows[0].run_id).info.experiment_id
        experiment = store.client.get_experiment(home).name
        with open_run(store, REPORT, experiment, {KIND: REPORT}, say=display.say) as recorder:
            store.client.log_artifact(recorder.run_id, str(out))
    return out
