"""Images without a truth, to predict on: a file, or a folder whose subfolders are one patient each."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.datasets._tiff import read_image, read_mask
from bench.errors import DataError
from bench.pack import Pixels

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def find_images(path: Path) -> dict[Path, list[Path]]:
    """`{folder: its images by slice number}`; files that end in _mask are left out. Raises `DataError`."""
    if path.is_file():
        return {path.parent: [path]}
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Give an image, or a folder of images.")
    found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.stem.endswith("_mask")]
    if not found:
        raise DataError(f"{path} holds no images. They end in {', '.join(SUFFIXES)}.")
    return {
        folder: sorted((p for p in found if p.parent == folder), key=_number)
        for folder in sorted({p.parent for p in found})
    }


def read_slice(path: Path, channels: int) -> Pixels:
    """uint8 (H, W, channels); a grey image stands for every channel. Raises `DataError`."""
    if path.suffix.lower() in (".tif", ".tiff"):
        image = read_image(path)
    else:
        read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if read is None or read.dtype != np.uint8:
            raise DataError(f"{path} is no 8-bit image that can be read. Save it as PNG or TIFF with 8 bits.")
        image = cv2.cvtColor(read, cv2.COLOR_GRAY2RGB if read.ndim == 2 else cv2.COLOR_BGR2RGB)
    if image.shape[-1] != channels:
        raise DataError(f"{path} has {image.shape[-1]} channels; the model was trained on {channels}.")
    return np.ascontiguousarray(image)


def read_truth(path: Path) -> NDArray[np.bool_] | None:
    """The mask beside an image, <name>_mask of the same type, bool (H, W); None where there is none."""
    beside = path.with_name(f"{path.stem}_mask{path.suffix}")
    if not beside.is_file():
        return None
    if beside.suffix.lower() in (".tif", ".tiff"):
        return read_mask(beside).astype(bool)
    mask: NDArray[np.bool_] = read_slice(beside, 3).max(-1) > 0
    return mask


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0), path.name
