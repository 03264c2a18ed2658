"""The description of a data set as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from bench import __version__
from bench.data.describe import Description, median_over_patients
from bench.data.pack import Pack
from bench.reports.dataset.figures import choose_example_patients
from bench.reports.html_document import definition_list, escaped, html_document

DPI = 220  # two dots for each pixel of the page
UNSTATED = "not stated"
SOURCES = {
    "lgg": "Brain MRI of lower-grade glioma in The Cancer Genome Atlas with masks of the FLAIR abnormality "
    "(Mazurowski et al. 2017; Buda, Saha and Mazurowski 2019), Kaggle: mateuszbuda/lgg-mri-segmentation",
    "phantom": "synthetic phantoms of this package",
}
CAPTIONS = {  # title and explanation of each figure
    "class_balance": (
        "Class balance by institution",
        "Slices of each institution by class: a slice is positive if its mask has one tumour pixel or more. The "
        "number at the end of a bar is the share of positive slices (red).",
    ),
    "patient_balance": (
        "Class balance by patient",
        "Each bar is a patient, grouped by institution: red is the share of slices with tumour, grey the share "
        "without. The black line is the share over all slices of the institution.",
    ),
    "tumour_area": (
        "Tumour size",
        "Tumour size in one slice (left) and summed over all slices of a patient (right). The axes are "
        "logarithmic: bars of equal width span equal ratios. Lines are the median and, dashed, the 5th and 95th "
        "percentile.",
    ),
    "tumour_location": (
        "Tumour location",
        "Left: percentage of positive slices with tumour at each pixel. White outlines enclose the pixels that "
        "belong to the head in half of all slices and, dotted, in 5%. Right: percentage of patients with tumour "
        "at each depth, with all stacks scaled to one length.",
    ),
    "tumour_levels": (
        "Grey levels of tumour and head",
        "Grey levels of tumour pixels (red) and of the rest of the head (grey); every patient weighs the same. "
        "Top: as stored. Bottom: scaled to mean 0 and standard deviation 1 over the head of each patient. The "
        "less the two overlap, the better a single pixel separates them. The AUROC is how often a tumour pixel is "
        "brighter than another pixel of the same head (median over patients): 0.5 is no separation, and below 0.5 "
        "the tumour is darker.",
    ),
    "intensity": (
        "Brightness of patients by institution",
        "Each dot is a patient, at the mean grey level of the head without its tumour. The line is the median of "
        "the institution. If patients differ a lot, normalise them before comparing their pixels.",
    ),
    "examples": (
        "Examples",
        "The slice with the largest tumour area, for patients at the 10th, 50th and 90th percentile of tumour "
        "pixels in all slices ({patients}). From left to right: the scan in grey, the scan in a colour map that "
        "makes faint edges visible (both from 0 to the patient's 99.5th percentile), the mask, and its outline on "
        "the scan.",
    ),
}
CHANNELS = "Medians over patients: first of whole stacks, then of tumour and of the rest of the head."
METHODS = (
    "A slice is positive if its mask has one tumour pixel or more. All class counts use this definition.",
    "Areas are in pixels of the packed images.",
    "Grey levels are those of the files, 0 to 255, before any normalisation, unless stated otherwise.",
)


REGIONS = {
    "head": "The head of a slice is every pixel that is brighter in some channel than Otsu's threshold of that "
    "channel over the patient's stack (Otsu 1979), and everything that these pixels enclose. The rest of the head "
    "is the head without tumour pixels.",
    "slice": "The slices are cut so close that Otsu's threshold finds bright tissue instead of the head. Pixels "
    "of tumour are therefore compared with all others of the slice.",
}


def render_page(pack: Pack, description: Description, figures: Mapping[str, Figure]) -> str:
    """Return the complete page; style and figures are inside it, and text from the data is escaped."""
    manifest, patients = pack.manifest, f"{len(description.patients):,} patients"
    institutions = f"{len(description.institutions):,}"
    noun, region = description.noun, description.pixel_counts.region
    worded = partial(_worded, noun=noun, region=region)
    counts = {"institutions": institutions, **format_cells(description.counts, noun).iloc[0]}
    tiles = "".join(f"<li><b>{escaped(v)}</b><span>{escaped(k)}</span></li>" for k, v in counts.items())
    sizes = cast(pd.DataFrame, format_cells(description.tumours, noun).stack().unstack("quantile", sort=False))
    contrast, intensity = (median_over_patients(each) for each in (description.contrast, description.intensity))
    channels = contrast.join(intensity)[[*intensity, *contrast]]
    chosen, places = choose_example_patients(description.patients), description.patients["institution"]
    examples = ", ".join(f"{size}: {case} of {places[case]}" for size, case in chosen.items())
    html = {
        name: _figure(
            f"Figure {number}. {worded(CAPTIONS[name][0])}",
            worded(CAPTIONS[name][1]).format(patients=examples),
            figure,
        )
        for number, (name, figure) in enumerate(figures.items(), start=1)
    }
    parts = [
        f"<h1>The data set {escaped(manifest.dataset)}</h1>",
        f'<p class="lead">{patients}, {len(pack.index):,} slices. Nothing here depends on a model.</p>',
        '<p class="warning">Synthetic: drawn phantoms, not patients.</p>' if manifest.synthetic else "",
        _facts(pack),
        "<h2>Notes from the loader</h2>",
        _list(manifest.notes or ("None.",)),
        "<h2>Counts</h2>",
        f'<ul class="tiles">{tiles}</ul>',
        _table(format_cells(description.counts, noun)) if len(pack.structures) > 1 else "",
        _table(format_cells(description.institutions, noun)),
        "<h2>Class balance</h2>",
        html["class_balance"],
        html["patient_balance"],
        f"<h2>{worded('Tumour')} size</h2>",
        _table(sizes, "Quantiles over positive slices and over patients."),
        html["tumour_area"],
        f"<h2>{worded('Tumour')} location</h2>",
        html["tumour_location"],
        "<h2>Grey levels</h2>",
        _table(format_cells(channels, noun), worded(CHANNELS)),
        html["tumour_levels"],
        html["intensity"],
        f"<h2>Examples</h2>{html['examples']}" if "examples" in html else "",
        "<h2>Every patient</h2>",
        f"<details><summary>{patients}</summary>{_table(format_cells(description.patients, noun))}</details>",
        "<h2>Methods</h2>",
        _list(_worded(method, noun) for method in (*METHODS, REGIONS[region])),
        f"<footer>Made by medseg-bench {escaped(__version__)}, <code>bench data describe</code>.</footer>",
    ]
    return html_document(f"The data set {manifest.dataset}", parts)


def _worded(text: str, noun: str, region: str = "head") -> str:
    """Return a text about tumours in heads as one about what the data set shows, in what."""
    return text.replace("head", region).replace("tumour", noun).replace("Tumour", noun.capitalize())


def _facts(pack: Pack) -> str:
    """Source, licence, image format and content key."""
    manifest = pack.manifest
    _, height, width, _ = pack.images.shape
    known = manifest.licence != UNSTATED and SOURCES.get(manifest.dataset)
    facts = {"Source": known or UNSTATED, "Licence": manifest.licence}
    facts |= {
        "Images": f"{height} × {width} pixels (rows × columns) of 8 bits",
        "Channels": ", ".join(manifest.channels),
    }
    return definition_list(facts | {"Content key": manifest.key})


def format_cells(frame: pd.DataFrame, noun: str) -> pd.DataFrame:
    """Return a table of a `Description` as texts with readable headings."""
    headings = {
        "positive_share": f"share of slices with {noun}",
        f"{noun}_share": f"share of pixels with {noun}",
        f"median_{noun}_area": f"median {noun} area (pixels)",
        "slice_area": f"{noun} area of a positive slice (pixels)",
        "slice_share": "its share of the image",
        "patient_pixels": f"{noun} of a patient, all slices (pixels)",
        "largest_area": "largest area (pixels)",
        "auroc": "AUROC",
        "sd": "SD",
        "p1": "1st percentile",
        "p99": "99th percentile",
        "rest_mean": "mean of the rest",
        f"{noun}_mean": f"mean of {noun}",
    }
    cells = {column: [_format_cell(str(column), value) for value in frame[column]] for column in frame.columns}
    table = pd.DataFrame(cells, index=frame.index, dtype=object)
    return table.rename(columns=lambda name: headings.get(name, name.replace("_", " ")))


def _format_cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    if column.endswith("share") or column == "zeros":
        return f"{value:.1%}" if value == 0 or value >= 0.01 else f"{value:.2%}"
    if column == "auroc":
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}".removesuffix(".0")


def _table(frame: pd.DataFrame, caption: str = "") -> str:
    """Return a table of texts as HTML; each level of the index is a column, before the others."""
    title = f"<caption>{escaped(caption)}</caption>" if caption else ""
    names = [name or "" for name in frame.index.names]
    heading = "".join(f'<th scope="col">{escaped(name)}</th>' for name in (*names, *frame.columns))
    rows = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{escaped(key)}</th>' for key in keys)
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row)
        + "</tr>"
        for keys, row in zip(frame.index.to_frame().to_numpy(), frame.to_numpy(), strict=True)
    )
    return f'<div class="wide"><table>{title}<thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table></div>'


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>"


def _figure(title: str, caption: str, figure: Figure) -> str:
    """Return the figure as a PNG inside the page, with its caption below."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    image = base64.b64encode(png.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="{escaped(title)}">'
        f"<figcaption><b>{escaped(title)}.</b> {escaped(caption)}</figcaption></figure>"
    )
