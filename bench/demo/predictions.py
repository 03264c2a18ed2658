"""The prediction of a run for one scan at every position of the threshold slider: masks, Dice and downloads."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import tifffile
from numpy.typing import NDArray

from bench.demo.scans import Scan
from bench.masks import THRESHOLDS, Mask
from bench.metrics.confusion import dice_of
from bench.structures import Structures, resolve_overlaps
from bench.training.tasks.segmentation import mean_defined
from bench.types import RunRecord


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction of a run for a scan. `levels` are uint8 (S, K, H, W), `thresholds` the run's own.

    Level n means edges[n - 1] <= probability < edges[n]. The edges are the steps of the threshold slider and the
    run's own thresholds, so a mask of the levels equals the mask of the probabilities in every pixel. Of exclusive
    structures called at one pixel, the one of highest rank is left; `ranks` are uint8 (S, K, H, W), None if
    structures may overlap. The texts say which models predicted, how the thresholds were set, and what a viewer
    must know.
    """

    run: RunRecord
    structures: Structures
    thresholds: tuple[float, ...]
    levels: NDArray[np.uint8]
    ranks: NDArray[np.uint8] | None
    edges: NDArray[np.float64]
    threshold_text: str
    models_text: str
    warnings: tuple[str, ...]
    logged_dice: float | None = None  # of this patient in the run's own table, if it was made of the same images

    def move_threshold(self, structure: int, threshold: float) -> tuple[float, ...]:
        """Return the run's own thresholds, with that of one structure moved to the edge nearest to `threshold`.

        If it equals the run's own to two decimals, it is not moved.
        """
        moved = list(self.thresholds)
        if abs(threshold - moved[structure]) >= 0.005:
            moved[structure] = float(self.edges[np.abs(self.edges - threshold).argmin()])
        return tuple(moved)

    def mask(self, thresholds: Sequence[float]) -> Mask:
        """Return where each structure is predicted at its threshold, which must be an edge: bool (S, K, H, W)."""
        called = self.levels > np.searchsorted(self.edges, thresholds)[:, None, None]
        return called if self.ranks is None else resolve_overlaps(called, self.ranks)

    def probability(self, at: int, structure: int) -> NDArray[np.float64]:
        """Return the probabilities (H, W) of a structure in slice `at`, rounded down to the edges."""
        floors: NDArray[np.float64] = np.concatenate(([0.0], self.edges))[self.levels[at, structure]]
        return floors


class Quantized(TypedDict):
    """Attributes of a `Prediction`."""

    levels: NDArray[np.uint8]
    ranks: NDArray[np.uint8] | None
    edges: NDArray[np.float64]


def quantize(probability: NDArray[np.float32], thresholds: Sequence[float], *, exclusive: bool) -> Quantized:
    """Return levels, ranks and edges of a `Prediction` from probabilities and the run's own thresholds."""
    edges = np.union1d(THRESHOLDS, thresholds)
    levels = np.digitize(probability, edges.astype(np.float32)).astype(np.uint8)
    return {"levels": levels, "ranks": _rank(probability) if exclusive else None, "edges": edges}


def _rank(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the place of each structure at each pixel, (S, K, H, W), from 0 for the least probable."""
    ranks = np.zeros(probability.shape, np.uint8)
    left = np.ones(probability.shape, bool)
    for rank in range(probability.shape[1] - 1, 0, -1):
        best = resolve_overlaps(left, probability)
        ranks[best] = rank
        left &= ~best
    return ranks


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


def score_structures(prediction: Mask, truth: Mask | None) -> list[Score]:
    """Return the score of each structure, in one slice (K, H, W) or in a whole stack (S, K, H, W)."""
    count = prediction.shape[-3]
    return [score(prediction[..., k, :, :], None if truth is None else truth[..., k, :, :]) for k in range(count)]


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the score of all structures: the mean Dice where it is defined, and the sums of pixels."""
    predicted = sum(each.prediction for each in scores)
    if any(each.truth is None for each in scores):
        return Score(None, predicted, None)
    dice = mean_defined([each.dice for each in scores if each.dice is not None])
    return Score(sum(each.truth or 0 for each in scores), predicted, dice)


def choose_slice(scan: Scan, prediction: Prediction | None) -> int:
    """Return the slice to open with: of the largest truth, else of the largest prediction, else the middle."""
    areas = np.zeros(len(scan.images)) if scan.truth is None else scan.truth.sum((1, 2, 3))
    if not areas.any() and prediction is not None:
        areas = prediction.mask(prediction.thresholds).sum((1, 2, 3))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def encode_masks(scan: Scan, prediction: Prediction, thresholds: Sequence[float]) -> tuple[str, bytes]:
    """Return name and content of a file of masks as `bench predict` writes them.

    A mask of one structure has pixels 0 and 255, one of several exclusive structures their labels in the data set;
    structures that may overlap have a mask of 0 and 1 each. One mask becomes `<name>_mask.tif`; several become
    such files in a zip, with a text that says what made them.
    """
    masks = prediction.mask(thresholds)
    maps = prediction.structures.image_maps(masks)
    pages = {
        f"{name}{end}_mask.tif": _encode_tiff(labels[at])
        for at, name in enumerate(scan.names)
        for end, labels in maps.items()
    }
    if len(pages) == 1:
        return next(iter(pages.items()))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{scan.case or scan.names[0]}_{prediction.run.name}")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, page in pages.items():
            file.writestr(f"{stem}/{name}", page)
        file.writestr(f"{stem}/about.txt", _describe_masks(scan, prediction, thresholds))
    return f"{stem}.zip", content.getvalue()


def _encode_tiff(labels: NDArray[np.unsignedinteger]) -> bytes:
    page = io.BytesIO()
    tifffile.imwrite(page, labels, photometric="minisblack")
    return page.getvalue()


def name_thresholds(structures: Structures, thresholds: Sequence[float], digits: int = 3) -> str:
    """Return thresholds as text: '0.5', or for several structures '0.5 (anterior), 0.43 (posterior)'."""
    names = [f" ({name})" if len(structures) > 1 else "" for name in structures.names]
    return ", ".join(f"{value:.{digits}g}{name}" for value, name in zip(thresholds, names, strict=True))


def _describe_masks(scan: Scan, prediction: Prediction, thresholds: Sequence[float]) -> str:
    run, own = prediction.run, tuple(thresholds) == prediction.thresholds
    origin = prediction.threshold_text if own else "moved by hand: not the run's own"
    lines = (
        f"Masks of {scan.title} by the run {run.name} ({run.run_id}).",
        prediction.models_text,
        f"Threshold {name_thresholds(prediction.structures, thresholds, 4)}, {origin}.",
        *prediction.warnings,
        "Research software, not for clinical use.",
    )
    return "\n".join(lines) + "\n"
