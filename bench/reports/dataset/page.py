"""The exploratory analysis of a data set as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench import __version__
from bench.data.describe import Description
from bench.data.pack import Pack
from bench.reports.dataset.figures import example_patients

DPI = 150


UNSTATED = "not stated"  # the licence of data that only its owner knows


SOURCES = {
    "lgg": "Brain MRI of lower-grade glioma in The Cancer Genome Atlas with masks of the FLAIR abnormality "
    "(Mazurowski et al. 2017; Buda, Saha and Mazurowski 2019), Kaggle: mateuszbuda/lgg-mri-segmentation",
    "phantom": "drawn by the phantom of this package",
}


STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c2430; font: 16px/1.55 system-ui, Helvetica, Arial, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #d9dee6; }
.lead { color: #5b6472; margin: 0 0 1.5rem; }
.warning { background: #fdecea; border-left: 4px solid #b2182b; padding: .75rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0; }
dt { color: #5b6472; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; padding: 0; }
.tiles { margin: 1.5rem 0; list-style: none; }
.tiles li { background: #f4f6f9; border-radius: 6px; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles span { color: #5b6472; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #5b6472; padding-bottom: .4rem; }
th, td { padding: .3rem 0 .3rem 1rem; text-align: right; border-bottom: 1px solid #e6eaf0; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #3a4453; font-size: .9rem; margin-top: .4rem; overflow-wrap: anywhere; }
figcaption b { color: #1c2430; }
summary { cursor: pointer; color: #4477aa; }
footer { margin-top: 3rem; color: #5b6472; font-size: .85rem; }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  .wide, tr { break-inside: avoid; }
  details .wide { break-inside: auto; }
  .tiles li { print-color-adjust: exact; }
}
"""


# Title and sentence of each figure.
WORDS = {
    "class_balance": (
        "Class balance by institution",
        "Slices of each institution by their diagnosis, which a slice has from its mask (positive with one pixel "
        "of tumour or more): the number at the end of a bar is the share of its red part.",
    ),
    "patient_balance": (
        "Class balance by patient",
        "Each bar is a patient, sorted within institutions: red is the share of slices with tumour, grey of those "
        "without, and the black line the share in all slices of the institution.",
    ),
    "tumour_area": (
        "Tumour size",
        "How large tumours are in a slice (left) and summed over a patient's slices (right), on logarithmic axes, "
        "so that bars of one width span one ratio: lines are the median and, dashed, 5th and 95th percentile.",
    ),
    "tumour_location": (
        "Tumour location",
        "Where tumours lie: on the left, how many of the positive slices have tumour at a pixel (white outlines "
        "hold the pixels that are head in half of all slices and, dotted, in 5%), and on the right, how many "
        "patients have tumour at a depth, every stack drawn out to one length.",
    ),
    "tumour_levels": (
        "Grey levels of tumour and head",
        "Grey levels of tumour pixels (red) against the rest of the head (grey), every patient weighing the same, "
        "as they are (above) and with the mean of each patient's head at 0 and its standard deviation at 1 "
        "(below): the less the two overlap, the more a pixel tells by itself, and the AUROC says how often a "
        "pixel of tumour is brighter than another one of the same head (median over patients; 0.5 tells nothing, "
        "less is darker).",
    ),
    "intensity": (
        "Brightness of patients by institution",
        "Each dot is a patient, at the mean grey level of the head without its tumour, by institution with a line "
        "at the median: what lies far apart must be normalised before pixels of two patients are compared.",
    ),
    "examples": (
        "Examples",
        "The slice with the largest area of tumour of patients at the 10th, 50th and 90th percentile by tumour "
        "pixels in all slices ({patients}): the scan in grey, the same in a colour map that makes faint edges "
        "visible (both from 0 to the patient's 99.5th percentile), its mask, and the mask's outline on the scan.",
    ),
}


METHODS = (
    "A slice is positive when its mask has one pixel of tumour or more; that is its diagnosis, wherever slices "
    "are counted by class.",
    "Areas are in pixels of the packed images, which carry no spacing.",
    "The head of a slice is what any channel shows brighter than Otsu's threshold of that channel in the "
    "patient's stack (Otsu 1979), with all that this encloses; its rest is the head without pixels of tumour.",
    "Grey levels are those of the files, 0 to 255, before any normalisation, where nothing else is said.",
)


NAMES = {
    "positive_share": "share of slices with tumour",
    "tumour_pixels": "tumour pixels",
    "tumour_share": "share of pixels with tumour",
    "median_tumour_area": "median tumour area (pixels)",
    "slice_area": "tumour area of a positive slice (pixels)",
    "slice_share": "its share of the image",
    "patient_pixels": "tumour of a patient, all slices (pixels)",
    "largest_area": "largest area (pixels)",
    "auroc": "AUROC",
    "sd": "SD",
    "p1": "1st percentile",
    "p99": "99th percentile",
    "rest_mean": "mean of the rest",
    "tumour_mean": "mean of tumour",
}


def page(pack: Pack, about: Description, drawn: Mapping[str, Figure]) -> str:
    """The page, complete: style and figures are in it, and whatever came from the data is escaped."""
    manifest, patients = pack.manifest, f"{len(about.patients):,} patients"
    counts = {"institutions": f"{len(about.institutions):,}", **readable(about.counts).iloc[0]}
    sizes = readable(about.tumours).T.rename_axis("")
    channels = about.intensity.join(about.contrast).groupby(level="channel", sort=False).median()
    examples = _names(about)
    figure = {
        name: _figure(f"Figure {number}. {WORDS[name][0]}", WORDS[name][1].format(patients=examples), picture)
        for number, (name, picture) in enumerate(drawn.items(), start=1)
    }
    parts = [
        f"<h1>The data set {escape(manifest.dataset)}</h1>",
        f'<p class="lead">{patients}, {len(pack.index):,} slices: what is in them, before any model.</p>',
        '<p class="warning">Synthetic: drawn phantoms, not patients.</p>' if manifest.synthetic else "",
        _facts(pack),
        "<h2>Notes from the loader</h2>",
        _list(manifest.notes or ("None.",)),
        "<h2>Counts</h2>",
        _tiles(counts),
        _table(readable(about.institutions)),
        "<h2>Class balance</h2>",
        figure["class_balance"],
        figure["patient_balance"],
        "<h2>Tumour size</h2>",
        _table(sizes, "Quantiles over positive slices, and over patients."),
        figure["tumour_area"],
        "<h2>Tumour location</h2>",
        figure["tumour_location"],
        "<h2>Grey levels</h2>",
        _table(
            readable(channels),
            "Medians over patients: of whole stacks, then of tumour and of the rest of the head.",
        ),
        figure["tumour_levels"],
        figure["intensity"],
        f"<h2>Examples</h2>{figure['examples']}" if "examples" in figure else "",
        "<h2>Every patient</h2>",
        f"<details><summary>{patients}</summary>{_table(readable(about.patients))}</details>",
        "<h2>How it was computed</h2>",
        _list(METHODS),
        f"<footer>Made by medseg-bench {escape(__version__)}, <code>bench data describe</code>.</footer>",
    ]
    return _document(f"The data set {manifest.dataset}", parts)


def _facts(pack: Pack) -> str:
    """Where the data is from, and what may be done with it."""
    manifest = pack.manifest
    _, height, width, _ = pack.images.shape
    known = manifest.licence != UNSTATED and SOURCES.get(manifest.dataset)
    facts = {
        "Source": known or UNSTATED,
        "Licence": manifest.licence,
        "Images": f"{width} × {height} pixels of 8 bits",
        "Channels": ", ".join(manifest.channels),
        "Content key": manifest.key,
    }
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{escape(value)}</dd>' for name, value in facts.items())}</dl>"


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as people write it: every cell a text, every heading words."""
    written = {column: [_written(str(column), value) for value in frame[column]] for column in frame.columns}
    table = pd.DataFrame(written, index=frame.index, dtype=object)
    return table.rename(columns=lambda name: NAMES.get(name, name.replace("_", " ")))


def _written(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    if column.endswith("share") or column == "zeros":
        return f"{value:.1%}" if value == 0 or value >= 0.01 else f"{value:.2%}"
    if column == "auroc":
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}".removesuffix(".0")


def _tiles(values: Mapping[str, str]) -> str:
    tiles = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in values.items()
    )
    return f'<ul class="tiles">{tiles}</ul>'


def _table(frame: pd.DataFrame, caption: str = "") -> str:
    """A table of texts; its index is the first column."""
    about = f"<caption>{escape(caption)}</caption>" if caption else ""
    heading = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in (frame.index.name, *frame.columns))
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    )
    return f'<div class="wide"><table>{about}<thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table></div>'


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _figure(title: str, sentence: str, figure: Figure) -> str:
    """The figure as a PNG inside the page, and its sentence below."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    image = base64.b64encode(png.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="{escape(title)}">'
        f"<figcaption><b>{escape(title)}.</b> {escape(sentence)}</figcaption></figure>"
    )


def _names(about: Description) -> str:
    """Whose slices are the examples."""
    homes = about.patients["institution"]
    return ", ".join(f"{size}: {case} of {homes[case]}" for size, case in example_patients(about.patients).items())


def _document(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
