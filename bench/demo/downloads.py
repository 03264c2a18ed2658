"""Predicted masks as a file for download: a TIFF of one slice, or a zip of several."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import tifffile

from bench.demo.predictions import Prediction
from bench.demo.scans import Scan
from bench.masks import Mask


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
