"""Tables that describe a packed dataset: counts, institutions, patients, tumours and grey levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.pack import Pack
from bench.data.source import Pixels
from bench.structures import Structures, structure_column

REST, TUMOUR = 0, 1
TUMOUR_NOUN = Structures().noun
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class PixelCounts:
    """Counts of pixels and slices.

    levels  (P, C, 1 + K, 256): pixels of each patient, channel and class at each grey level: first the REST of the
            head, then each structure, from TUMOUR
    areas   (N, K): pixels of each structure in each slice
    tumour  (H, W): slices with any structure at a pixel
    head    (H, W): slices with the head at a pixel
    region  "head", or "slice" where slices are cut so close that Otsu's threshold finds no head but bright tissue:
            most of the structures is outside, and the whole slice counts as the head
    """

    levels: NDArray[np.int64]
    areas: NDArray[np.int64]
    tumour: NDArray[np.int64]
    head: NDArray[np.int64]
    region: str = "head"


@dataclass(frozen=True)
class Description:
    """Tables of a dataset. Areas are in pixels of the packed grid without padding; shares are between 0 and 1.

    With several structures, `noun` is 'structure' instead of the name of the only one, tumour; a slice is positive
    if it shows any of them; and `counts`, `tumours` and `contrast` have rows for each.

    counts        one row: patients, slices, positive and empty slices, positive share, tumour pixels and share
    institutions  one row per institution: patients, slices, positive slices and share, median tumour area
    patients      one row per patient: institution, slices, positive slices and share, tumour pixels, largest area
    tumours       quantiles of the tumour area over positive slices, and of tumour pixels over patients
    intensity     one row per patient and channel: mean, sd, p1, median and p99 of all pixels, share of zeros
    contrast      one row per patient and channel: mean of the tumour and of the rest of the head, and the AUROC
                  of the two: how often a tumour pixel is brighter than one of the rest; a tie counts half
    pixel_counts  the counts that figures are drawn from
    """

    counts: pd.DataFrame
    institutions: pd.DataFrame
    patients: pd.DataFrame
    tumours: pd.DataFrame
    intensity: pd.DataFrame
    contrast: pd.DataFrame
    pixel_counts: PixelCounts
    noun: str = TUMOUR_NOUN

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, pd.DataFrame)}


def describe(pack: Pack) -> Description:
    """Compute the tables of `pack`; every slice is read once."""
    noun = pack.structures.noun.removeprefix("a ")
    table = pack.index.groupby("case", sort=False).agg(
        institution=("institution", "first"),
        slices=("slice", "size"),
        positive_slices=("positive", "sum"),
        **{f"{noun}_pixels": ("pixels", "sum"), "largest_area": ("pixels", "max")},
    )
    patients = table.assign(positive_share=table["positive_slices"] / table["slices"])
    pixel_counts = count_pixels(pack)
    names, areas = pack.structures.names, pixel_counts.areas
    if len(names) > 1:
        for name, own in zip(names, areas.T, strict=True):
            pixels = pd.Series(own).groupby(pack.index["case"], sort=False).sum()
            patients[structure_column("pixels", name)] = pixels
    return Description(
        _counts(pack, areas, noun),
        _institutions(pack.index, patients, noun),
        patients,
        _sizes(pack, areas),
        _intensity(pack),
        _contrast(pack, pixel_counts.levels, noun),
        pixel_counts,
        noun,
    )


def median_over_patients(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median of each column over the patients of a table whose index has the level `case`."""
    return table.groupby(level=[level for level in table.index.names if level != "case"], sort=False).median()


def _slice_sizes(pack: Pack) -> NDArray[np.int64]:
    """Return the pixels of each slice (N,), without padding."""
    if "height" in pack.index:
        return (pack.index["height"] * pack.index["width"]).to_numpy(np.int64)
    return np.full(len(pack.index), pack.masks[0].size)


def _by_structure(pack: Pack, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the tables of each structure, with the structure as first level of the index if there are several."""
    keys = pack.structures.names
    return pd.concat(tables, keys=keys, names=["structure"]) if len(keys) > 1 else tables[0]


def _counts(pack: Pack, areas: NDArray[np.int64], noun: str) -> pd.DataFrame:
    """Return one row, or one for any structure and one for each of several."""
    total, overall = int(_slice_sizes(pack).sum()), pack.index["pixels"].to_numpy()
    each = [overall, *areas.T] if areas.shape[1] > 1 else [overall]
    tables = []
    for own in each:
        slices, positive, pixels = len(own), int((own > 0).sum()), int(own.sum())
        row = {
            "patients": int((pd.Series(own).groupby(pack.index["case"]).sum() > 0).sum()),
            "slices": slices,
            "positive_slices": positive,
            "empty_slices": slices - positive,
            "positive_share": positive / slices,
            f"{noun}_pixels": pixels,
            f"{noun}_share": pixels / total,
        }
        tables.append(pd.DataFrame([row]))
    tables[0]["patients"] = len(pack.cases)
    if len(tables) == 1:
        return tables[0]
    return pd.concat(tables).set_axis(pd.Index(["any", *pack.structures.names], name="structure"))


def _institutions(index: pd.DataFrame, patients: pd.DataFrame, noun: str) -> pd.DataFrame:
    table = patients.groupby("institution").agg(
        patients=("slices", "size"), slices=("slices", "sum"), positive_slices=("positive_slices", "sum")
    )
    areas = index[index["positive"]].groupby("institution")["pixels"]
    return table.assign(
        positive_share=table["positive_slices"] / table["slices"], **{f"median_{noun}_area": areas.median()}
    )


def _sizes(pack: Pack, areas: NDArray[np.int64]) -> pd.DataFrame:
    shares, tables = list(QUANTILES.values()), []
    for own, share in zip(areas.T, (areas / _slice_sizes(pack)[:, None]).T, strict=True):
        columns = {
            "slice_area": pd.Series(own[own > 0]).quantile(shares).to_numpy(),
            "slice_share": pd.Series(share[own > 0]).quantile(shares).to_numpy(),
            "patient_pixels": pd.Series(own).groupby(pack.index["case"]).sum().quantile(shares).to_numpy(),
        }
        tables.append(pd.DataFrame(columns, index=pd.Index(QUANTILES, name="quantile")))
    return _by_structure(pack, tables)


def _intensity(pack: Pack) -> pd.DataFrame:
    """Moments and quantiles of the volume of each patient, from its 256 exact bins.

    A quantile is the smallest value that at least this share of the pixels does not exceed.
    """
    rows = []
    for case in pack.cases:
        histograms = pack.histograms[pack.rows([case])].sum(0, dtype=np.int64)
        for channel, histogram in zip(pack.manifest.channels, histograms, strict=True):
            count, mean = histogram.sum(), _mean(histogram)
            quantiles = np.searchsorted(np.cumsum(histogram), count * np.array((0.01, 0.5, 0.99))).astype(float)
            sd = np.sqrt(histogram @ (np.arange(256) - mean) ** 2 / count)
            rows.append((case, channel, mean, sd, *quantiles, histogram[0] / count))
    columns = ["case", "channel", "mean", "sd", "p1", "median", "p99", "zeros"]
    return pd.DataFrame(rows, columns=columns).set_index(["case", "channel"])


def _contrast(pack: Pack, levels: NDArray[np.int64], noun: str) -> pd.DataFrame:
    """Each structure against the rest of the head; NaN if a patient lacks either."""
    tables = []
    for k in range(len(pack.structures)):
        rows = [
            (
                case,
                channel,
                _mean(each[TUMOUR + k]),
                _mean(each[REST]),
                auroc_of_histograms(each[TUMOUR + k], each[REST]),
            )
            for case, patient in zip(pack.cases, levels, strict=True)
            for channel, each in zip(pack.manifest.channels, patient, strict=True)
        ]
        columns = ["case", "channel", f"{noun}_mean", "rest_mean", "auroc"]
        tables.append(pd.DataFrame(rows, columns=columns).set_index(["case", "channel"]))
    return _by_structure(pack, tables)


def _mean(histogram: NDArray[np.int64]) -> float:
    count = histogram.sum()
    return float(histogram @ np.arange(256) / count) if count else np.nan


def auroc_of_histograms(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Return how often a pixel of `some` (256,) is brighter than one of `others`; a tie counts half."""
    pairs = float(some.sum()) * float(others.sum())
    darker = np.cumsum(others) - others / 2
    return float(some @ darker) / pairs if pairs else np.nan


def count_pixels(pack: Pack) -> PixelCounts:
    """Count the pixels of `pack`, one slice at a time. Patients are in the order of `pack.cases`."""
    _, height, width, channels = pack.images.shape
    rest = np.zeros((2, len(pack.cases), channels, 1, 256), np.int64)  # of the head, and of the whole slice
    levels = np.zeros((len(pack.cases), channels, len(pack.structures), 256), np.int64)
    areas = np.zeros((len(pack.index), len(pack.structures)), np.int64)
    tumour, head, whole = (np.zeros((height, width), np.int64) for _ in range(3))
    found = 0  # pixels of structures within the head
    for patient, case in enumerate(pack.cases):
        rows = pack.rows([case])
        thresholds = [otsu_threshold(histogram) for histogram in pack.histograms[rows].sum(0, dtype=np.int64)]
        own = pack.own_grid(rows)
        for row in rows:
            image = np.ascontiguousarray(pack.images[row][own])
            masks = np.ascontiguousarray(pack.truth(row)[:, *own])
            inside, mask = segment_head(image, thresholds), np.asarray(masks.any(0))
            found += int((masks & inside).sum())
            tumour[own] += mask
            head[own] += inside
            whole[own] += 1
            areas[row] = masks.sum((1, 2))
            for c in range(channels):
                rest[0, patient, c] += _histogram(image, c, inside & ~mask)
                rest[1, patient, c] += _histogram(image, c, ~mask)
                for k, structure in enumerate(masks):
                    levels[patient, c, k] += _histogram(image, c, structure)
    cropped = 2 * found < areas.sum()
    levels = np.concatenate((rest[int(cropped)], levels), 2)
    return PixelCounts(levels, areas, tumour, whole if cropped else head, "slice" if cropped else "head")


def _histogram(image: Pixels, channel: int, region: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the pixels of a region (H, W) at each grey level of a channel of the image (H, W, C), (256,)."""
    counts = cv2.calcHist([image], [channel], region.view(np.uint8), [256], [0, 256])
    return np.asarray(counts.ravel(), np.int64)


def segment_head(image: Pixels, thresholds: Sequence[int]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) where any channel (H, W, C) exceeds its threshold, with holes filled."""
    bright = np.zeros(image.shape[:2], np.uint8)
    for channel, level in enumerate(thresholds):
        bright |= image[..., channel] > level
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(bright, outlines, -1, 1, cv2.FILLED)
    return bright.astype(bool)


def otsu_threshold(histogram: NDArray[np.int64]) -> int:
    """Return the last level of the lower class in Otsu's split of a histogram (256,) (Otsu 1979).

    The result is 255, which no pixel exceeds, if all pixels have one level.
    """
    below = np.cumsum(histogram)
    weight = below * (below[-1] - below).astype(float)
    values = np.cumsum(histogram * np.arange(256))
    between = (values[-1] * (below / below[-1]) - values) ** 2 / np.where(weight > 0, weight, np.inf)
    return int(between.argmax()) if between.any() else 255
