"""TIFF, PNG and JPEG images of 8 bits, grey or colour, in folders of one or several patients."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.readers.checks import BadFile, to_binary_mask
from bench.data.readers.tiff import read_page
from bench.data.source import Pixels
from bench.errors import BadSetting, DataError

TIFF = (".tif", ".tiff")
SUFFIXES = (*TIFF, ".png", ".jpg", ".jpeg")
MASK_NAME = re.compile(r"(.+)_(mask|segmentation)", re.IGNORECASE)  # of a mask beside images, without suffix


def find_images(path: Path) -> dict[Path, list[Path]]:
    """Return `{folder: its images by slice number}`, without masks (`MASK_NAME`). Raises `DataError`."""
    if path.is_file():
        return {path.parent: [path]}
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Pass an image, or a folder of images.")
    images = [p for p in list_images(path) if not MASK_NAME.fullmatch(p.stem)]
    if not images:
        raise DataError(f"{path} holds no images. They end in {', '.join(SUFFIXES)}.")
    return {
        folder: sorted((p for p in images if p.parent == folder), key=lambda p: (last_number(p.stem), p.name))
        for folder in sorted({p.parent for p in images})
    }


def list_images(folder: Path) -> list[Path]:
    """Return all files below a folder with the suffix of an image, except hidden ones."""
    return [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and p.name[0] != "."]


def group_by_patient(files: Sequence[Path], root: Path, pattern: str | None) -> list[list[Path]]:
    """Group the images of one folder by the patient that `pattern` matches; without a pattern, as one patient."""
    if pattern is None:
        return [list(files)]
    members = defaultdict(list)
    for path in files:
        match = re.fullmatch(pattern, relative_name(root, path))
        members[match[1] if match else ""].append(path)
    return list(members.values())


def match_patient(name: str, pattern: str, folder: Path) -> str:
    """Return the patient of an image: the group of `pattern` in its name below `folder`. Raises `BenchError`."""
    try:
        match = re.fullmatch(pattern, name)
        case = match[1] if match else None
    except (re.error, IndexError) as error:
        raise BadSetting(
            f"dataset.patient = {pattern!r} is not valid: {error}. "
            "Use a regular expression with a group that matches the patient."
        ) from None
    if not case:
        raise DataError(
            f"dataset.patient = {pattern!r} finds no patient in {folder / name}. It must match all images."
        )
    return case


def read_slice(path: Path, channels: int) -> Pixels:
    """Read an image as uint8 (H, W, channels); a grey image is repeated in every channel. Raises `DataError`."""
    image = read_pixels(path)
    if image.shape[-1] == 1:
        return np.repeat(image, channels, -1)
    if image.shape[-1] != channels:
        raise DataError(f"{path} has {image.shape[-1]} channels; the model was trained on {channels}.")
    return image


def read_pixels(path: Path) -> Pixels:
    """Read a grey image as uint8 (H, W, 1) or a colour image as (H, W, 3). Raises `BadFile`."""
    if path.suffix.lower() in TIFF:
        image = read_page(path)
    else:
        decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.dtype != np.uint8:
            raise BadFile("unreadable", path, "cannot be read as an 8-bit image. Save it as an 8-bit PNG.")
        image = np.asarray(decoded, np.uint8)
        if image.ndim == 3:
            if image.shape[2] == 4 and (image[..., 3] < 255).any():
                raise BadFile("shape", path, "is partly transparent. Save it without an alpha channel.")
            image = image[..., 2::-1]  # from blue, green, red, without an opaque alpha channel
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise BadFile("shape", path, f"has the shape {image.shape}. An image is grey or has 3 channels.")
    return np.ascontiguousarray(image)


def read_mask_image(path: Path) -> Pixels:
    """Read a mask of {0, 255} or {0, 1} in one or equal channels as uint8 (H, W) of 0 and 1. Raises `BadFile`."""
    pixels = read_pixels(path)
    if (pixels != pixels[..., :1]).any():
        raise BadFile("shape", path, "is in colour. A mask is grey: 0 and 255, or 0 and 1.")
    return to_binary_mask(pixels[..., 0], path)


def read_mask_beside(path: Path) -> NDArray[np.bool_] | None:
    """Read the mask beside an image, <name>_mask of the same type, as bool (H, W); None if there is none."""
    mask = path.with_name(f"{path.stem}_mask{path.suffix}")
    return read_mask_image(mask).astype(bool) if mask.is_file() else None


def relative_name(folder: Path, path: Path) -> str:
    """Return the path below the folder without its suffix, which patterns for patients must match."""
    return path.relative_to(folder).with_suffix("").as_posix()


def last_number(name: str) -> int:
    """Return the last number in a name, 0 if it has none."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0
