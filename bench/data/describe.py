"""What a packed data set looks like, in tables: counts, institutions, patients, tumours, grey levels.

Everything is computed from the pack: the index, the histograms, and one pass over images and masks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.census import REST, TUMOUR, Census, census
from bench.data.pack import Pack

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Description:
    """Tables of a data set. Areas are in pixels of the packed grid; shares lie between 0 and 1.

    counts        one row: patients, slices, positive and empty slices, positive share, tumour pixels and share
    institutions  a row an institution: patients, slices, positive slices, positive share, median tumour area
    patients      a row a patient: institution, slices, positive slices and share, tumour pixels, largest area
    tumours       quantiles of the tumour area of positive slices, and of tumour pixels of patients
    intensity     a row a patient and channel: mean, sd, p1, median and p99 of all its pixels, share of zeros
    contrast      a row a patient and channel: mean of the tumour and of the rest of the head, and the AUROC of the
                  two: how often a pixel of tumour is brighter than one of the rest, a tie being half
    census        the counts that figures are drawn from
    """

    counts: pd.DataFrame
    institutions: pd.DataFrame
    patients: pd.DataFrame
    tumours: pd.DataFrame
    intensity: pd.DataFrame
    contrast: pd.DataFrame
    census: Census

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, pd.DataFrame)}


def describe(pack: Pack) -> Description:
    """The tables of `pack`; reads every slice once."""
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
    counted = census(pack)
    contrast = _contrast(pack, counted.levels)
    return Description(counts, institutions, patients, tumours, _intensity(pack), contrast, counted)


def _patients(index: pd.DataFrame) -> pd.DataFrame:
    table = index.groupby("case", sort=False).agg(
        institution=("institution", "first"),
        slices=("slice", "size"),
        positive_slices=("positive", "sum"),
        tumour_pixels=("pixels", "sum"),
        largest_area=("pixels", "max"),
    )
    return table.assign(positive_share=table["positive_slices"] / table["slices"])


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


def _contrast(pack: Pack, levels: NDArray[np.int64]) -> pd.DataFrame:
    """Tumour against the rest of the head; NaN where a patient has none of either."""
    rows = [
        {
            "case": case,
            "channel": channel,
            "tumour_mean": _mean(counted[TUMOUR]),
            "rest_mean": _mean(counted[REST]),
            "auroc": brighter(counted[TUMOUR], counted[REST]),
        }
        for case, patient in zip(pack.cases, levels, strict=True)
        for channel, counted in zip(pack.manifest.channels, patient, strict=True)
    ]
    return pd.DataFrame(rows).set_index(["case", "channel"])


def _mean(histogram: NDArray[np.int64]) -> float:
    count = histogram.sum()
    return float(histogram @ np.arange(256) / count) if count else np.nan


def brighter(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Probability that a pixel of `some` is brighter than one of `others`, histograms (256,); a tie is half."""
    pairs = float(some.sum()) * float(others.sum())
    darker = np.cumsum(others) - others / 2
    return float(some @ darker) / pairs if pairs else np.nan
