"""The controls of the gallery, and its patients as JSON for the page's script."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from bench.formatting import decimal, plain
from bench.reports.html.gallery import PatientView


def explain_order(several: bool) -> str:
    """Explain the order of the patients, and which of their slices are shown."""
    first = (
        "Patients on whom the models disagree most come first: disagreement is 1 - Dice between two models over "
        "the whole stack, averaged over all pairs of models."
        if several
        else "Patients with the lowest Dice come first."
    )
    return (
        f"{first} The slices shown have {'the most pixels on which models differ, ' if several else ''}the most "
        "errors and the largest tumour. Below each mask is its Dice on that slice and on the whole patient. "
        "Outlines follow the edges of pixels."
    )


def gallery_html(name: str, rows: Sequence[str], patients: Sequence[PatientView]) -> str:
    """Return the controls, an empty stage, and one JSON script per patient, which is read when it is chosen."""
    labels = [
        f"{p.data['case']} · "
        + (f"disagreement {p.data['disagreement']} · " if p.disagreement is not None else "")
        + f"mean Dice {decimal(float(np.mean(p.dice)))}"
        for p in patients
    ]
    index = {"rows": [plain(row) for row in rows], "cases": [p.data["case"] for p in patients], "patients": labels}
    data = "".join(_json(f"{name}-{at}", p.data) for at, p in enumerate(patients))
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
    """Return data for the page's script, without `<`, so that no name in it can close the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'
