"""The gallery: for each patient the slices to show, the scan once, and outlines as SVG paths; and its controls."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.pack import Pack, display_channel
from bench.data.readers.patient_folders import UNKNOWN
from bench.data.source import Pixels
from bench.formatting import decimal, plain
from bench.masks import Mask
from bench.metrics.confusion import dice_of
from bench.reports.html_document import escaped
from bench.structures import COLOURS

LONGEST = 384  # pixels of the longer side of a scan; larger scans are scaled down
QUALITY = 80  # of WebP
CLOSE_UP = 1.8  # side of a close-up, as a multiple of the tumour's
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PatientView:
    """One patient as the page shows it. `disagreement` is None if there is only one model."""

    case: str
    disagreement: float | None
    dice: tuple[float, ...]
    data: Mapping[str, Any]  # input of the page's script

    @property
    def sort_key(self) -> tuple[float, float, str]:
        """The most disagreement between models comes first, then the lowest Dice."""
        return -(self.disagreement or 0), float(np.nansum(self.dice)), self.case


def view_patient(pack: Pack, case: str, masks: Sequence[Mask]) -> PatientView:
    """Return the view of a patient: the masks of several models, bool (S, K, H, W) each, on at most three slices.

    Pixels are counted over all structures; Dice is their mean. Padding is not shown.
    """
    rows = pack.rows([case])
    height, width = pack.own_grid(rows)
    truth, masks = pack.truth(rows)[..., height, width], [mask[..., height, width] for mask in masks]
    bits = np.stack([_packed(mask) for mask in masks])
    hits, size = _count(bits & _packed(truth)), _count(bits)  # (models, slices, structures)
    area = truth.sum((2, 3))
    errors = size + area - 2 * hits
    differing = {(a, b): _count(bits[a] ^ bits[b]).sum(1) for a, b in combinations(range(len(bits)), 2)}
    losses = [_dice_loss(count, size[[a, b]]) for (a, b), count in differing.items()]
    disagreement = float(np.mean(losses)) if losses else None
    noun = pack.structures.noun.removeprefix("a ")
    chosen = choose_slices(
        sum(differing.values(), np.zeros(len(rows), int)), area.sum(1), errors.sum((0, 2)), noun
    )
    numbers, images = pack.index["slice"].to_numpy()[rows], pack.images[rows][:, height, width]
    channel = display_channel(pack.manifest.channels)
    white = max(float(np.percentile(images[..., channel], 99.5)), 1)
    slice_dice = dice_of(hits, size - hits, area - hits)
    dice = dice_of(hits.sum(1), (size - hits).sum(1), (area - hits).sum(1))  # (models, structures)
    names = pack.structures.names
    slices = [
        {
            "number": int(numbers[at]),
            "why": why,
            "scan": encode_scan(images[at, ..., channel], white),
            "truth": [outlines(mask) for mask in truth[at]],
            "masks": [[outlines(own) for own in mask[at]] for mask in masks],
            "dice": [decimal(value) for value in mean_defined(slice_dice[:, at])],
            "near": close_up(truth[at].any(0)),
        }
        for at, why in sorted(chosen.items())
    ]
    institution = pack.index["institution"].to_numpy()[rows[0]]
    facts = [f"institution {institution}"] if institution != UNKNOWN else []
    for name, own in zip(names, area.T, strict=True):
        facts += [f"{name} on {np.count_nonzero(own)} of {len(rows)} slices, {own.sum():,} pixels"]
    means = mean_defined(dice)
    data = {
        "case": plain(case),
        "about": plain(" · ".join(facts)),
        "disagreement": None if disagreement is None else f"{disagreement:.2f}",
        "dice": [decimal(value) for value in means],
        "structures": [
            " · ".join(f"{name} {decimal(float(value))}" for name, value in zip(names, own, strict=True))
            for own in dice
            if len(names) > 1
        ],
        "size": [truth.shape[3], truth.shape[2]],
        "slices": slices,
    }
    return PatientView(case, disagreement, tuple(means), data)


def mean_defined(values: Floats) -> list[float]:
    """Return the mean of each row (..., K) over the structures that have a value; NaN if none has."""
    return [float(row[~np.isnan(row)].mean()) if not np.isnan(row).all() else np.nan for row in values]


def choose_slices(differing: Counts, tumour: Counts, errors: Counts, noun: str = "tumour") -> dict[int, str]:
    """Choose the slices with the most pixels of disagreement, error and tumour (`noun`), each with the reason."""
    reasons: dict[int, list[str]] = {}
    for pixels, reason in (
        (differing, "models differ most"),
        (errors, "most errors"),
        (tumour, f"largest {noun}"),
    ):
        if pixels.any():
            reasons.setdefault(int(pixels.argmax()), []).append(reason)
    return {at: ", ".join(texts) for at, texts in reasons.items()} or {len(tumour) // 2: f"no {noun}, no errors"}


def outlines(mask: Mask) -> str:
    """Return an SVG path along the pixel edges of a mask and of its holes, in pixels from the upper left."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ""
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # OpenCV traces pixel centres. In a pixel enlarged to 3 x 3, these lie a third of a pixel inside its edges.
    contours, _ = cv2.findContours(part.repeat(3, 0).repeat(3, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join(_path((contour[:, 0] + 1) // 3 + (left, top)) for contour in contours)


def _path(points: Counts) -> str:
    """Return a closed path through corners; each step is along one axis."""
    (x, y), *steps = points[0], *np.diff(points, axis=0)
    parts = [f"M{x} {y}"]
    for across, down in steps:
        parts += [f"h{across}"] * bool(across) + [f"v{down}"] * bool(down)
    return "".join(parts) + "z"


def encode_scan(image: Pixels, white: float) -> str:
    """Return a slice as a WebP data URI in which the level `white` is white."""
    grey = np.clip(image * (255 / white), 0, 255).astype(np.uint8)
    if (longer := max(grey.shape)) > LONGEST:
        grey = cv2.resize(grey, None, fx=LONGEST / longer, fy=LONGEST / longer, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".webp", grey, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1].tobytes()
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"


def close_up(truth: Mask) -> list[float] | None:
    """Return a square around the tumour as x, y, width and height; None without tumour."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    if not len(rows):
        return None
    side = float(min(max(CLOSE_UP * max(np.ptp(rows), np.ptp(columns)), 48), *truth.shape))
    starts = [
        float(np.clip((tumour[0] + tumour[-1] + 1 - side) / 2, 0, length - side))
        for tumour, length in ((columns, truth.shape[1]), (rows, truth.shape[0]))
    ]
    return [*starts, side, side]


def _dice_loss(differing: Counts, sizes: Counts) -> float:
    """Return 1 - Dice between two masks; 0 if both are empty."""
    return float(differing.sum() / max(int(sizes.sum()), 1))


def _packed(mask: Mask) -> Pixels:
    return np.packbits(mask.reshape(*mask.shape[:2], -1), axis=2)


def _count(bits: Pixels) -> Counts:
    return np.asarray(np.bitwise_count(bits).sum(-1, dtype=np.int64))


def explain_order(several: bool, structures: Sequence[str] = ()) -> str:
    """Explain the order of the patients, which of their slices are shown, and the colours of `structures`."""
    noun = "structure" if structures else "tumour"
    colours = (
        " Dice is the mean over structures. Each has a colour, and its truth is dotted." if structures else ""
    )
    first = "Patients with the lowest Dice come first."
    if several:
        first = "Patients on whom the models disagree most come first: disagreement is 1 - Dice between two "
        first += "models over the whole stack, averaged over all pairs of models."
    return (
        f"{first} The slices shown have {'the most pixels on which models differ, ' if several else ''}the most "
        f"errors and the largest {noun}. Below each mask is its Dice on that slice and on the whole patient. "
        f"Outlines follow the edges of pixels.{colours}"
    )


def structure_style() -> str:
    """Return the style of several structures: a colour each, and dots for their truth."""
    return "".join(
        f".several .s{k} {{ stroke: {colour}; fill: {colour}; border-color: {colour}; }}\n"
        for k, colour in enumerate(COLOURS)
    )


def gallery_html(
    name: str, rows: Sequence[str], patients: Sequence[PatientView], structures: Sequence[str] = ()
) -> str:
    """Return the controls, an empty stage, and one JSON script per patient, which is read when it is chosen.

    Several `structures` have a box each.
    """
    boxes = "".join(
        f'<label><input type="checkbox" name="structure" checked> '
        f'<span class="key s{k % len(COLOURS)}">{escaped(structure)}</span></label>\n'
        for k, structure in enumerate(structures)
    )
    several = " several" if structures else ""
    labels = []
    for p in patients:
        disagreement = "" if p.disagreement is None else f"disagreement {p.data['disagreement']} · "
        labels.append(f"{p.data['case']} · {disagreement}mean Dice {decimal(float(np.mean(p.dice)))}")
    index = {"rows": [plain(row) for row in rows], "cases": [p.data["case"] for p in patients], "patients": labels}
    data = "".join(_json(f"{name}-{at}", p.data) for at, p in enumerate(patients))
    return f"""
<div class="gallery{several}" id="{name}">
<div class="controls">
<label>patient <select></select></label>
<span><button type="button" class="back">← back</button> <button type="button" class="on">next →</button></span>
<label><input type="checkbox" name="truth" checked> <span class="truth-key">truth</span></label>
<label><input type="checkbox" name="prediction" checked> <span class="prediction-key">prediction</span></label>
{boxes}<label><input type="checkbox" name="outline" checked> outlines</label>
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
