"""What a packed data set looks like, as tables and figures: counts, institutions, tumours, intensities.

Everything is computed from the pack: the index, the histograms (no image is read) and the masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.pack import Pack

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
HUES = (
    "#4477AA",
    "#EE6677",
    "#228833",
    "#CCBB44",
    "#66CCEE",
    "#AA3377",
    "#BBBBBB",
)  # Tol's bright, colour-blind safe
EMPTY, TUMOUR = "#C9CED6", "#B2182B"


@dataclass(frozen=True)
class Description:
    """Tables of a data set. Areas are in pixels of the packed grid; shares lie between 0 and 1.

    counts        one row: patients, slices, positive and empty slices, positive share, tumour pixels and share
    institutions  a row an institution: patients, slices, positive slices, positive share, median tumour area
    patients      a row a patient: institution, slices, positive slices, tumour pixels, largest tumour area
    tumours       quantiles of the tumour area of positive slices, and of tumour pixels of patients
    intensity     a row a patient and channel: mean, sd, p1, median and p99 of all its pixels, share of zeros
    """

    counts: pd.DataFrame
    institutions: pd.DataFrame
    patients: pd.DataFrame
    tumours: pd.DataFrame
    intensity: pd.DataFrame


def describe(pack: Pack) -> Description:
    """The tables of `pack`."""
    index, area = pack.index, pack.masks[0].size
    patients = _patients(index)
    positive = index[index["positive"]]
    pixels = int(index["pixels"].sum())
    counts = pd.DataFrame(
        {
            "patients": [len(patients)],
            "slices": [len(index)],
            "positive_slices": [len(positive)],
            "empty_slices": [len(index) - len(positive)],
            "positive_share": [len(positive) / len(index)],
            "tumour_pixels": [pixels],
            "tumour_share": [pixels / (len(index) * area)],
        }
    )
    members = patients.groupby("institution")
    institutions = pd.DataFrame(
        {
            "patients": members.size(),
            "slices": members["slices"].sum(),
            "positive_slices": members["positive_slices"].sum(),
            "positive_share": members["positive_slices"].sum() / members["slices"].sum(),
            "median_tumour_area": positive.groupby("institution")["pixels"].median(),
        }
    )
    tumours = pd.DataFrame(
        {
            "slice_area": positive["pixels"].quantile(list(QUANTILES.values())).to_numpy(),
            "slice_share": positive["pixels"].quantile(list(QUANTILES.values())).to_numpy() / area,
            "patient_pixels": patients["tumour_pixels"].quantile(list(QUANTILES.values())).to_numpy(),
        },
        index=pd.Index(QUANTILES, name="quantile"),
    )
    return Description(counts, institutions, patients, tumours, _intensity(pack))


def _patients(index: pd.DataFrame) -> pd.DataFrame:
    return index.groupby("case", sort=False).agg(
        institution=("institution", "first"),
        slices=("slice", "size"),
        positive_slices=("positive", "sum"),
        tumour_pixels=("pixels", "sum"),
        largest_area=("pixels", "max"),
    )


def _intensity(pack: Pack) -> pd.DataFrame:
    """Moments and quantiles of each patient's volume, from its 256 exact bins."""
    rows = [
        {"case": case, "channel": channel, **_moments(histogram)}
        for case in pack.cases
        for channel, histogram in zip(
            pack.manifest.channels, pack.histograms[pack.rows([case])].sum(0, dtype=np.int64), strict=True
        )
    ]
    return pd.DataFrame(rows).set_index(["case", "channel"])


def _moments(histogram: NDArray[np.int64]) -> dict[str, float]:
    values, count = np.arange(256), histogram.sum()
    mean = float(histogram @ values / count)
    below = np.cumsum(histogram)

    def quantile(share: float) -> float:
        """The smallest value that at least this share of pixels does not exceed."""
        return float(np.searchsorted(below, share * count))

    return {
        "mean": mean,
        "sd": float(np.sqrt(histogram @ (values - mean) ** 2 / count)),
        "p1": quantile(0.01),
        "median": quantile(0.5),
        "p99": quantile(0.99),
        "zeros": float(histogram[0] / count),
    }


def figures(pack: Pack) -> dict[str, Figure]:
    """Figures by name: tumour_area, tumour_location, intensity, class_balance."""
    tables = describe(pack)
    return {
        "tumour_area": _tumour_area(pack),
        "tumour_location": _tumour_location(pack),
        "intensity": _levels(pack, tables),
        "class_balance": _class_balance(tables),
    }


def _canvas(title: str, *, size: tuple[float, float] = (7, 4)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _tumour_area(pack: Pack) -> Figure:
    areas = pack.index.loc[pack.index["positive"], "pixels"].to_numpy()
    figure, axes = _canvas(f"Tumour area in {len(areas):,} positive slices of {len(pack.index):,}")
    axes.set(xscale="log", xlabel="tumour area (pixels, logarithmic)", ylabel="slices")
    if len(areas):
        axes.hist(
            areas, bins=list(np.geomspace(areas.min(), areas.max() + 1, 31)), color=HUES[0], edgecolor="white"
        )
        middle = float(np.median(areas))
        axes.axvline(middle, color=TUMOUR, linewidth=1.2)
        axes.text(
            middle, 1, f" median {middle:,.0f}", color=TUMOUR, va="top", transform=axes.get_xaxis_transform()
        )
    return figure


def _tumour_location(pack: Pack) -> Figure:
    share = np.zeros(pack.masks.shape[1:])
    rows = np.flatnonzero(pack.index["positive"])
    for row in rows:  # one slice at a time: the masks stay on disk
        share += pack.masks[row]
    figure, axes = _canvas(f"Where the tumours of {len(rows):,} positive slices lie", size=(5.4, 4.6))
    drawn = axes.imshow(100 * share / max(len(rows), 1), cmap="magma", vmin=0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, label="positive slices with tumour here (%)", shrink=0.85)
    return figure


def _levels(pack: Pack, tables: Description) -> Figure:
    channels = pack.manifest.channels
    channel = "flair" if "flair" in channels else channels[0]
    level = tables.intensity.xs(channel, level="channel")["mean"]
    order = pd.DataFrame({"level": level, "institution": tables.patients["institution"]})
    order = order.sort_values(["institution", "level"])
    ratio = f", {level.max() / level.min():.1f}-fold apart" if level.min() > 0 else ""
    figure, axes = _canvas(f"Mean {channel} level of {len(level)} patients{ratio}", size=(8, 4))
    start, ticks = 0, []
    for hue, (_, members) in enumerate(order.groupby("institution")):
        stop = start + len(members)
        axes.bar(range(start, stop), members["level"], width=0.85, color=HUES[hue % len(HUES)])
        axes.hlines(members["level"].median(), start - 0.5, stop - 0.5, color="0.15", linewidth=1.2)
        ticks.append((start + stop - 1) / 2)
        start = stop + 1  # a gap between institutions
    axes.set(ylabel=f"mean {channel} value (0 to 255)", xlabel="patients by institution; the line is the median")
    axes.set_xticks(ticks, [str(name) for name in tables.institutions.index])
    axes.tick_params(axis="x", length=0)
    return figure


def _class_balance(tables: Description) -> Figure:
    rows = tables.institutions.iloc[::-1]
    share = float(tables.counts["positive_share"].iloc[0])
    figure, axes = _canvas(f"Slices with tumour: {share:.1%} of all", size=(7, 1.4 + 0.45 * len(rows)))
    names = [f"{name} ({patients})" for name, patients in rows["patients"].items()]
    empty = rows["slices"] - rows["positive_slices"]
    axes.barh(names, rows["positive_slices"], color=TUMOUR, label="tumour")
    axes.barh(names, empty, left=rows["positive_slices"], color=EMPTY, label="no tumour")
    for at, (slices, part) in enumerate(zip(rows["slices"], rows["positive_share"], strict=True)):
        axes.annotate(f"{part:.0%}", (slices, at), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set(xlabel="slices", ylabel="institution (patients)")
    axes.margins(x=0.08)
    axes.legend(frameon=False, loc="lower right")
    return figure
