"""`bench report`: the whole leaderboard as one HTML page that opens from disk and needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from bench import __version__
from bench.analysis.leaderboard import build_boards
from bench.console import Display, console
from bench.errors import BadSetting, StoreError
from bench.formatting import SYNTHETIC_WARNING
from bench.inference.overlays import PREDICTION, TRUTH
from bench.outputs import check_outputs, write_output
from bench.reports.html import board_page
from bench.reports.html.board_data import BoardData, read_board_data
from bench.reports.html.chapter import render_chapter
from bench.reports.html.gallery import structure_style
from bench.reports.html_document import definition_list, escaped, html_document
from bench.tracking import connect, open_run, read_records
from bench.tracking.tags import Tag

REPORT = "report"  # kind of the run that holds the page; such runs are on no leaderboard
COLOURS = f":root {{ --truth: {TRUTH}; --prediction: {PREDICTION}; }}\n"
STYLE = COLOURS + board_page.STYLE + structure_style()
GUIDE = {
    "Out of fold": "each patient is scored once, by models that have not seen it in training or validation.",
    "Dice": "2 TP / (2 TP + FP + FN) over all slices of a patient as one volume, then the mean over patients. A "
    "missed tumour counts as 0. Pooling the pixels of all patients gives a different number, usually a higher "
    "one.",
    "Structures": "the Dice of a patient is the mean over the structures for which it is defined: one that is "
    "neither there nor predicted is left out, one that is predicted where there is none counts as 0.",
    "95% interval": "bias-corrected bootstrap interval of the mean, over patients, or over patients and seeds if "
    "a row has several seeds.",
    "Verdict": "a row is tied with the leader if the 95% interval of its difference, over resampled patients, "
    "contains 0, which does not prove that they are equal. Otherwise it is behind, or behind in the mean only if "
    "the test does not confirm it: p is that of the Wilcoxon signed-rank test of the differences per patient, "
    "Holm corrected over all pairs of rows. For presence, p is a bootstrap over patients.",
    "Letters": "rows without a common letter can be distinguished by both, and so can all rows that are farther "
    "apart.",
    "P(1st), ranks": "share of bootstrap samples of the patients in which a row leads, and 95% interval of its "
    "rank.",
    "HD95": "95th percentile of the distances between both outlines, in pixels and in 2D. A missed slice counts "
    "as the image diagonal and is never dropped.",
    "Seeds": "a row with one seed describes these fitted models, not how training them again would turn out. "
    "Scores of a row with several seeds are means over its runs; masks and probabilities are those of its newest "
    "run.",
}


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
    check_outputs([out])
    store = connect(uri)
    with Display() as display:
        runs = {record.run_id: record for record in read_records(store, tick=display.reading)}
    boards = build_boards(list(runs.values()), primary=primary, where=where)
    if not boards:
        condition = f" for which {' and '.join(where)}" if where else ""
        raise StoreError(f"there is no finished run in {store.address}{condition}. `bench run` makes one.")
    largest = boards[0]
    with Display() as display:
        data_of_boards = [read_board_data(store, board, runs, data, display) for board in boards]
        with display.doing("drawing the page"):
            page = render_report(title or f"Leaderboard: {largest.dataset}", data_of_boards)
        write_output(out, page)
        console().print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False, soft_wrap=True)
        if store.refusal:
            display.say(f"the page is not logged: {store.refusal}")
            return out
        experiment_id = store.client.get_run(largest.rows[0].run_id).info.experiment_id
        experiment = store.client.get_experiment(experiment_id).name
        with open_run(store, REPORT, experiment, {Tag.KIND: REPORT}, say=display.say) as recorder:
            store.client.log_artifact(recorder.run_id, str(out))
    return out


def render_report(title: str, boards: Sequence[BoardData]) -> str:
    """Return the complete page, with one chapter per board."""
    created = f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}"
    titles = (escaped(data.board.title) for data in boards)
    contents = "".join(f'<li><a href="#board-{at}">{title}</a></li>' for at, title in enumerate(titles))
    several = any(data.board.structures for data in boards)
    guide = {term: text for term, text in GUIDE.items() if several or term != "Structures"}
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="lead">Made {created} by medseg-bench {escaped(__version__)}, <code>bench report</code>. '
        "Research software, not for clinical use.</p>",
        f'<p class="warning">{escaped(SYNTHETIC_WARNING)}</p>' if any(b.board.synthetic for b in boards) else "",
        "<noscript><p>Without scripts, tables cannot be sorted and there is no gallery.</p></noscript>",
        f"<nav><ul>{contents}</ul></nav>" if len(boards) > 1 else "",
        *(render_chapter(number, data) for number, data in enumerate(boards)),
        f"<h2>How to read this page</h2>\n{definition_list(guide)}",
        '<div id="tip" hidden></div>',
    ]
    return html_document(title, parts, style=STYLE, script=board_page.SCRIPT)
