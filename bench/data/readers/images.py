"""TIFF, PNG and JPEG images of 8 bits, grey or colour, in folders of one or several patients.

The tags of a TIFF file are checked before a pixel is allocated. Without the checks, a truncated file may be read
as an array of shape (0,), a multi-page file yields only its first page, and a damaged header can request 10 GB.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from bench.data.source import MAX_SIDE, BadFile, Pixels, to_binary_mask
from bench.errors import BadSetting, DataError
from bench.outputs import without_outputs

TIFF = (".tif", ".tiff")
SUFFIXES = (*TIFF, ".png", ".jpg", ".jpeg")
MASK_NAME = re.compile(r"(.+)_(mask|segmentation)", re.IGNORECASE)  # of a mask beside images, without suffix


def find_images(path: Path) -> dict[Path, list[Path]]:
    """Return `{folder: its images by slice number}`, without masks (`MASK_NAME`). Raises `DataError`."""
    if path.is_file():
        return {path.parent: [path]}
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Pass an image, or a folder of images.")
    images = without_outputs(p for p in list_images(path) if not MASK_NAME.fullmatch(p.stem))
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
        where = folder / name
        raise DataError(f"dataset.patient = {pattern!r} finds no patient in {where}. It must match all images.")
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
    return read_mask_image(mask).astype(bool) if mask.is_file() and without_outputs([mask]) else None


def relative_name(folder: Path, path: Path) -> str:
    """Return the path below the folder without its suffix, which patterns for patients must match."""
    return path.relative_to(folder).with_suffix("").as_posix()


def last_number(name: str) -> int:
    """Return the last number in a name, 0 if it has none."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0


def read_image(path: Path) -> Pixels:
    """Read an image as uint8 (H, W, 3). Raises `BadFile`."""
    image = read_page(path)
    if image.ndim != 3 or image.shape[2] != 3:
        raise BadFile("shape", path, f"has the shape {image.shape}. An image is height x width x 3 channels.")
    return image


def read_mask(path: Path) -> Pixels:
    """Read a mask of {0, 255} or {0, 1} as uint8 (H, W) of 0 and 1. Raises `BadFile`."""
    mask = read_page(path)
    if mask.ndim != 2:
        raise BadFile("shape", path, f"has the shape {mask.shape}. A mask is height x width, without channels.")
    return to_binary_mask(mask, path)


def read_page(path: Path) -> Pixels:
    """Read the pixels of a single-page uint8 file after checking its tags. Raises `BadFile`."""
    try:
        with tifffile.TiffFile(path) as file:
            _check_tags(file, path)
            pixels: Pixels = file.pages[0].asarray()
            expected = file.pages[0].shape
    except DataError:
        raise
    except Exception as error:  # the decoder raises anything from struct.error to zlib.error
        reason = " ".join(str(error).split()) or type(error).__name__
        sentence = f"cannot be read as TIFF ({reason}). Download or save it again."
        raise BadFile("unreadable", path, sentence) from error
    if pixels.shape != expected or not pixels.size:
        shapes = f"{pixels.shape}, not {expected}"
        raise BadFile("truncated", path, f"contains pixels of shape {shapes}. Download it again.")
    return pixels


def _check_tags(file: Any, path: Path) -> None:
    page, pages = file.pages[0], len(file.pages)
    if max(page.imagewidth, page.imagelength) > MAX_SIDE or page.samplesperpixel > 16:
        claim = f"{page.imagewidth}x{page.imagelength} pixels of {page.samplesperpixel} channel(s)"
        raise BadFile("giant", path, f"claims {claim}; at most {MAX_SIDE} a side are read. Is its header damaged?")
    if pages != 1:
        raise BadFile("multi-page", path, f"has {pages} pages. Save one slice per file.")
    if page.dtype != np.uint8:
        raise BadFile("dtype", path, f"holds {page.dtype} pixels. Rescale it and save it as uint8.")
    ends = [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    stored, size = sum(page.databytecounts), file.filehandle.size
    promised = page.nbytes if page.compression == 1 else stored  # 1: uncompressed
    if not ends or max(ends) > size or stored < promised:
        sentence = f"is truncated: {size} bytes are too few for its pixels. Download it again."
        raise BadFile("truncated", path, sentence)


def resize_image(image: Pixels, side: int) -> Pixels:
    """Resize an image (H, W, C) to `side` pixels square; each pixel is the mean of the area that it covers."""
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8).reshape(side, side, -1)


def resize_pair(image: Pixels, mask: Pixels, side: int | None) -> tuple[Pixels, Pixels]:
    """Resize an image by area and its mask (H, W) by nearest pixel. Return both unchanged if `side` is None."""
    if side is None:
        return image, mask
    # INTER_NEAREST_EXACT samples at pixel centres, as INTER_AREA does; INTER_NEAREST shifts by half a pixel.
    nearest = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return resize_image(image, side), np.asarray(nearest, np.uint8)
