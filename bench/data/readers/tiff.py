"""Slices as TIFF files, whose tags are checked before a pixel is allocated.

Without the checks, a truncated file may be read as an array of shape (0,), Pillow reduces uint16 to uint8, a
multi-page file yields only its first page, and a damaged header can request 10 GB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from bench.data.readers.checks import MAX_SIDE, BadFile, check_mask_size, to_binary_mask
from bench.data.source import Pixels, SliceFile
from bench.errors import DataError


def read_pair(entry: SliceFile) -> tuple[Pixels, Pixels]:
    """Read image uint8 (H, W, 3) and mask uint8 (H, W) of 0 and 1 of one slice. Raises `BadFile`."""
    image = read_image(entry.image)
    if entry.mask is None:
        raise BadFile("orphan-image", entry.image, "has no mask beside it. Add the mask, or move the image away.")
    mask = read_mask(entry.mask)
    check_mask_size(image, mask, entry.mask)
    return image, mask


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
        raise BadFile(
            "unreadable", path, f"cannot be read as TIFF ({reason}). Download or save it again."
        ) from error
    if pixels.shape != expected or not pixels.size:
        raise BadFile(
            "truncated", path, f"contains pixels of shape {pixels.shape}, not {expected}. Download it again."
        )
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
        raise BadFile(
            "truncated", path, f"is truncated: {size} bytes are too few for its pixels. Download it again."
        )
