"""The gallery on the page: its controls, and as JSON the patients that they choose from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from bench.formatting import decimal, plain
from bench.reports.html.gallery import Portrait


def order(several: bool) -> str:
    """Which patients come first, and which slices of them are shown."""
    first = (
        "Patients on whom models disagree most come first: disagreement is 1 - the mean Dice between the masks "
        "of each two of them, over the whole stack."
        if several
        else "Patients with the lowest Dice come first."
    )
    return (
        f"{first} Shown are the slices {'on which most pixels differ between models, ' if several else ''}with "
        "the most errors and with the largest tumour. Below each mask is its Dice on that slice, and on the "
        "whole patient. Outlines run along the edges of pixels."
    )


def stage(name: str, rows: Sequence[str], portraits: Sequence[Portrait]) -> str:
    """The controls, an empty stage, and a script of data for each patient, read when it is chosen."""
    listed = [
        f"{p.data['case']} · "
        + (f"disagreement {p.data['disagreement']} · " if p.disagreement is not None else "")
        + f"mean Dice {decimal(float(np.mean(p.dice)))}"
        for p in portraits
    ]
    index = {
        "rows": [plain(row) for row in rows],
        "cases": [p.data["case"] for p in portraits],
        "patients": listed,
    }
    data = "".join(_json(f"{name}-{at}", p.data) for at, p in enumerate(portraits))
    return f"""
<div class="gallery" id="{name}">
<div class="controls">
<label>patient <select></select></label>
<span><button type="button" class="back">← back</button> <button type="button" class="on">next →</button></span>
<label><input type="checkbox" name="truth" checked> <span class="truth-key">truth</span></label>
<label><input type="checkbox" name="prediction" checked> <span class="prediction-key">prediction</span></label>
<label><input type="checkbox" name="outline" checked> outlines</label>
<label>fill <input type="range" name="fill" min="0" max="100" value="0"></label>
<label><input type="checkbox" name="near"> close up</label>
</div>
<div class="stage" aria-live="polite"></div>
</div>
{_json(f"{name}-index", index)}{data}"""


def _json(name: str, data: object) -> str:
    """Data for the page's script, without `<`, so that no name in it can end it."""
    told = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{told}</script>\n'
