"""The report as one HTML page that needs nothing beside it, and in which no name can do anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime

from bench import __version__
from bench.formatting import SYNTHETIC_WARNING
from bench.reports.html.assets import SCRIPT, STYLE
from bench.reports.html.chapter import chapter, definitions
from bench.reports.html.evidence import BoardData
from bench.reports.html.svg import said

READING = {
    "Out of fold": "every patient is scored once, by models that have not seen it in training or validation.",
    "Dice": "2 TP / (2 TP + FP + FN) over all slices of a patient as one stack, then the mean over patients; a "
    "missed tumour counts 0. Pixels pooled over all patients would give another figure, usually a higher one.",
    "95% interval": "where the mean would lie, were other patients drawn (bias-corrected bootstrap over patients, "
    "or of patients and seeds where a row has several seeds).",
    "p, tie": "Wilcoxon's signed-rank test of differences patient by patient, corrected over all pairs of rows "
    "(Holm). Rows of one letter cannot be told from the best row of that letter at 5%, no proof that they are "
    "equal. Where presence was asked for, p is of the draws of patients.",
    "P(1st), ranks": "how often a row leads, and between which ranks it lies in 95% of draws of patients.",
    "HD95": "95th percentile of the distances between both outlines, in pixels and in 2D; a missed slice counts "
    "the image diagonal and is never dropped.",
    "Seeds": "a row with one seed speaks of these fitted models, not of training them again. Of a row with "
    "several, scores are means over its runs; masks and probabilities are those of its newest run.",
}


def document(title: str, chapters: Sequence[BoardData]) -> str:
    """The page, complete. A policy inside it lets no script run but its own, and nothing be fetched."""
    made = f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}"
    contents = "".join(
        f'<li><a href="#board-{at}">{said(found.board.title)}</a></li>' for at, found in enumerate(chapters)
    )
    parts = [
        f"<h1>{said(title)}</h1>",
        f'<p class="lead">Made {made} by medseg-bench {said(__version__)}, <code>bench report</code>. '
        "Research software, not for clinical use.</p>",
        f'<p class="warning">{said(SYNTHETIC_WARNING)}</p>' if any(c.board.synthetic for c in chapters) else "",
        "<noscript><p>Without scripts, tables cannot be sorted and there is no gallery.</p></noscript>",
        f"<nav><ul>{contents}</ul></nav>" if len(chapters) > 1 else "",
        *(chapter(at, found) for at, found in enumerate(chapters)),
        f"<h2>How to read it</h2>\n{definitions(READING)}",
        '<div id="tip" hidden></div>',
    ]
    own = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{own}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(part for part in parts if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{said(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
