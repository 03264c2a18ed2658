"""The leaderboard report as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bench import __version__
from bench.formatting import SYNTHETIC_WARNING
from bench.reports.html.assets import SCRIPT, STYLE
from bench.reports.html.board_data import BoardData
from bench.reports.html.chapter import render_chapter
from bench.reports.html_document import definition_list, escaped, html_document

GUIDE = {
    "Out of fold": "each patient is scored once, by models that have not seen it in training or validation.",
    "Dice": "2 TP / (2 TP + FP + FN) over all slices of a patient as one volume, then the mean over patients. A "
    "missed tumour counts as 0. Pooling the pixels of all patients gives a different number, usually a higher "
    "one.",
    "95% interval": "bias-corrected bootstrap interval of the mean, over patients, or over patients and seeds if "
    "a row has several seeds.",
    "p, tie": "Wilcoxon signed-rank test of the differences per patient, Holm corrected over all pairs of rows. "
    "Rows with the same letter cannot be distinguished from the best of them at 5%, which does not prove that "
    "they are equal. For presence, p is a bootstrap over patients.",
    "P(1st), ranks": "share of bootstrap samples of the patients in which a row leads, and 95% interval of its "
    "rank.",
    "HD95": "95th percentile of the distances between both outlines, in pixels and in 2D. A missed slice counts "
    "as the image diagonal and is never dropped.",
    "Seeds": "a row with one seed describes these fitted models, not how training them again would turn out. "
    "Scores of a row with several seeds are means over its runs; masks and probabilities are those of its newest "
    "run.",
}


def render_report(title: str, boards: Sequence[BoardData]) -> str:
    """Return the complete page, with one chapter per board."""
    created = f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}"
    contents = "".join(
        f'<li><a href="#board-{number}">{escaped(data.board.title)}</a></li>' for number, data in enumerate(boards)
    )
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="lead">Made {created} by medseg-bench {escaped(__version__)}, <code>bench report</code>. '
        "Research software, not for clinical use.</p>",
        f'<p class="warning">{escaped(SYNTHETIC_WARNING)}</p>' if any(b.board.synthetic for b in boards) else "",
        "<noscript><p>Without scripts, tables cannot be sorted and there is no gallery.</p></noscript>",
        f"<nav><ul>{contents}</ul></nav>" if len(boards) > 1 else "",
        *(render_chapter(number, data) for number, data in enumerate(boards)),
        f"<h2>How to read this page</h2>\n{definition_list(GUIDE)}",
        '<div id="tip" hidden></div>',
    ]
    return html_document(title, parts, style=STYLE, script=SCRIPT)
