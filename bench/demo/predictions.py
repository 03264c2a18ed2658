"""The prediction of a run for one scan at every position of the threshold slider: masks, Dice and downloads."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass

import numpy as np
import tifffile
from numpy.typing import NDArray

from bench.demo.scans import Scan
from bench.masks import THRESHOLDS, Mask
from bench.metrics.confusion import dice_of
from bench.types import RunRecord


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction of a run for a scan. `levels` are uint8 (S, H, W).

    Level k means edges[k - 1] <= probability < edges[k]. The edges are the steps of the threshold slider and the
    run's own threshold, so a mask of the levels equals the mask of the probabilities in every pixel. The texts say
    which models predicted, how the threshold was set, and what a viewer must know.
    """

    run: RunRecord
    levels: NDArray[np.uint8]
    edges: NDArray[np.float64]
    threshold: float
    threshold_text: str
    models_text: str
    warnings: tuple[str, ...]
    logged_dice: float | None = None  # of this patient in the run's own table, if it was made of the same images

    def snap(self, threshold: float) -> float:
        """Return the run's own threshold if it equals `threshold` to two decimals, else the nearest edge."""
        if abs(threshold - self.threshold) < 0.005:
            return self.threshold
        return float(self.edges[np.abs(self.edges - threshold).argmin()])

    def mask(self, threshold: float) -> Mask:
        """Return where the probability reaches a threshold, which must be an edge: bool (S, H, W)."""
        return self.levels > np.searchsorted(self.edges, threshold)

    def probability(self, at: int) -> NDArray[np.float64]:
        """Return the probabilities (H, W) of slice `at`, rounded down to the edges."""
        floors: NDArray[np.float64] = np.concatenate(([0.0], self.edges))[self.levels[at]]
        return floors


def quantize(probability: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the levels and edges of a `Prediction` from probabilities and the run's own threshold."""
    edges = np.union1d(THRESHOLDS, [threshold])
    return np.digitize(probability, edges.astype(np.float32)).astype(np.uint8), edges


@dataclass(frozen=True)
class Score:
    """Pixels of truth and prediction, and Dice: NaN if both are empty, None without a truth."""

    truth: int | None
    prediction: int
    dice: float | None


def score(prediction: Mask, truth: Mask | None) -> Score:
    """Return the areas and the Dice of one slice or of a whole stack."""
    predicted = int(prediction.sum())
    if truth is None:
        return Score(None, predicted, None)
    true, hits = int(truth.sum()), int((prediction & truth).sum())
    return Score(true, predicted, float(dice_of(hits, predicted - hits, true - hits)))


def choose_slice(scan: Scan, prediction: Prediction | None) -> int:
    """Return the slice to open with: of the largest tumour, else of the largest prediction, else the middle."""
    areas = np.zeros(len(scan.images)) if scan.truth is None else scan.truth.sum((1, 2))
    if not areas.any() and prediction is not None:
        areas = prediction.mask(prediction.threshold).sum((1, 2))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def encode_masks(scan: Scan, prediction: Prediction, threshold: float) -> tuple[str, bytes]:
    """Return name and content of a file of masks as `bench predict` writes them, with pixels 0 and 255.

    One slice becomes `<name>_mask.tif`; several become such files in a zip, with a text that says what made them.
    """
    pages = [_encode_tiff(mask) for mask in prediction.mask(threshold)]
    if len(pages) == 1:
        return f"{scan.names[0]}_mask.tif", pages[0]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{scan.case or scan.names[0]}_{prediction.run.name}")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, page in zip(scan.names, pages, strict=True):
            file.writestr(f"{stem}/{name}_mask.tif", page)
        file.writestr(f"{stem}/about.txt", _describe_masks(scan, prediction, threshold))
    return f"{stem}.zip", content.getvalue()


def _encode_tiff(mask: Mask) -> bytes:
    page = io.BytesIO()
    tifffile.imwrite(page, mask.astype(np.uint8) * 255, photometric="minisblack")
    return page.getvalue()


def _describe_masks(scan: Scan, prediction: Prediction, threshold: float) -> str:
    run, own = prediction.run, threshold == prediction.threshold
    origin = prediction.threshold_text if own else "moved by hand: not the run's own"
    lines = (
        f"Masks of {scan.title} by the run {run.name} ({run.run_id}).",
        prediction.models_text,
        f"Threshold {threshold:.4g}, {origin}.",
        *prediction.warnings,
        "Research software, not for clinical use.",
    )
    return "\n".join(lines) + "\n"
