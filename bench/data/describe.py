"""Tables that describe a packed dataset: counts, institutions, patients, tumours and grey levels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.pack import Pack
from bench.data.pixel_counts import REST, TUMOUR, PixelCounts, count_pixels

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Description:
    """Tables of a dataset. Areas are in pixels of the packed grid; shares are between 0 and 1.

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

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, pd.DataFrame)}


def describe(pack: Pack) -> Description:
    """Compute the tables of `pack`; every slice is read once."""
    patients, pixel_counts = _patients(pack.index), count_pixels(pack)
    return Description(
        _counts(pack, len(patients)),
        _institutions(pack.index, patients),
        patients,
        _tumours(pack, patients),
        _intensity(pack),
        _contrast(pack, pixel_counts.levels),
        pixel_counts,
    )


def _patients(index: pd.DataFrame) -> pd.DataFrame:
    table = index.groupby("case", sort=False).agg(
        institution=("institution", "first"),
        slices=("slice", "size"),
        positive_slices=("positive", "sum"),
        tumour_pixels=("pixels", "sum"),
        largest_area=("pixels", "max"),
    )
    return table.assign(positive_share=table["positive_slices"] / table["slices"])


def _counts(pack: Pack, patients: int) -> pd.DataFrame:
    slices, positive, pixels = len(pack.index), int(pack.index["positive"].sum()), int(pack.index["pixels"].sum())
    return pd.DataFrame(
        {
            "patients": [patients],
            "slices": [slices],
            "positive_slices": [positive],
            "empty_slices": [slices - positive],
            "positive_share": [positive / slices],
            "tumour_pixels": [pixels],
            "tumour_share": [pixels / (slices * pack.masks[0].size)],
        }
    )


def _institutions(index: pd.DataFrame, patients: pd.DataFrame) -> pd.DataFrame:
    members = patients.groupby("institution")
    return pd.DataFrame(
        {
            "patients": members.size(),
            "slices": members["slices"].sum(),
            "positive_slices": members["positive_slices"].sum(),
            "positive_share": members["positive_slices"].sum() / members["slices"].sum(),
            "median_tumour_area": index[index["positive"]].groupby("institution")["pixels"].median(),
        }
    )


def _tumours(pack: Pack, patients: pd.DataFrame) -> pd.DataFrame:
    areas = pack.index.loc[pack.index["positive"], "pixels"].quantile(list(QUANTILES.values())).to_numpy()
    return pd.DataFrame(
        {
            "slice_area": areas,
            "slice_share": areas / pack.masks[0].size,
            "patient_pixels": patients["tumour_pixels"].quantile(list(QUANTILES.values())).to_numpy(),
        },
        index=pd.Index(QUANTILES, name="quantile"),
    )


def _intensity(pack: Pack) -> pd.DataFrame:
    """Moments and quantiles of the volume of each patient, from its 256 exact bins."""
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
        """Return the smallest value that at least this share of pixels does not exceed."""
        return float(np.searchsorted(below, share * count))

    return {
        "mean": mean,
        "sd": float(np.sqrt(histogram @ (values - mean) ** 2 / count)),
        "p1": quantile(0.01),
        "median": quantile(0.5),
        "p99": quantile(0.99),
        "zeros": float(histogram[0] / count),
    }


def _contrast(pack: Pack, levels: NDArray[np.int64]) -> pd.DataFrame:
    """Tumour against the rest of the head; NaN if a patient lacks either."""
    rows = [
        {
            "case": case,
            "channel": channel,
            "tumour_mean": _mean(histograms[TUMOUR]),
            "rest_mean": _mean(histograms[REST]),
            "auroc": auroc_of_histograms(histograms[TUMOUR], histograms[REST]),
        }
        for case, patient in zip(pack.cases, levels, strict=True)
        for channel, histograms in zip(pack.manifest.channels, patient, strict=True)
    ]
    return pd.DataFrame(rows).set_index(["case", "channel"])


def _mean(histogram: NDArray[np.int64]) -> float:
    count = histogram.sum()
    return float(histogram @ np.arange(256) / count) if count else np.nan


def auroc_of_histograms(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Return how often a pixel of `some` (256,) is brighter than one of `others`; a tie counts half."""
    pairs = float(some.sum()) * float(others.sum())
    darker = np.cumsum(others) - others / 2
    return float(some @ darker) / pairs if pairs else np.nan
