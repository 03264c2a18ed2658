"""Slices as TIFF files, read with suspicion: the tags are checked before a pixel is allocated.

What goes wrong without: a truncated file may come back as an array of shape (0,), Pillow cuts uint16 to
uint8, a multi-page file gives only its first page, and a damaged header can ask for 10 GB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from bench.data.source import Pixels, SliceFile
from bench.errors import DataError

LARGEST = 4096  # pixels a side; a header that claims more is refused before memory is asked for


class BadFile(DataError):
    """One file that cannot be used. `code` names the trap, `path` the file."""

    def __init__(self, code: str, path: Path, sentence: str) -> None:
        super().__init__(f"{path} {sentence}")
        self.code, self.path = code, path

    def __reduce__(self) -> tuple[Any, ...]:  # an exception of three arguments, on its way out of a worker process
        return BadFile, (self.code, self.path, str(self).removeprefix(f"{self.path} "))


def read_pair(entry: SliceFile) -> tuple[Pixels, Pixels]:
    """Image uint8 (H, W, 3) and mask uint8 (H, W) of 0 and 1 of one slice. Raises `BadFile`."""
    image = read_image(entry.image)
    if entry.mask is None:
        raise BadFile("orphan-image", entry.image, "has no mask beside it. Add the mask, or move the image away.")
    mask = read_mask(entry.mask)
    on_one_grid(image, mask, entry.mask)
    return image, mask


def on_one_grid(image: Pixels, mask: Pixels, path: Path) -> None:
    """Raise `BadFile` for a mask, read from `path`, of another size than its image."""
    if mask.shape != image.shape[:2]:
        sizes = f"{mask.shape[0]}x{mask.shape[1]}, its image {image.shape[0]}x{image.shape[1]}"
        raise BadFile("mask-size", path, f"is {sizes}. Save both on one grid.")


def read_image(path: Path) -> Pixels:
    """uint8 (H, W, 3). Raises `BadFile`."""
    image = read_page(path)
    if image.ndim != 3 or image.shape[2] != 3:
        raise BadFile("shape", path, f"has the shape {image.shape}. An image is height x width x 3 channels.")
    return image


def read_mask(path: Path) -> Pixels:
    """uint8 (H, W) of 0 and 1, from a file of {0, 255} or {0, 1}. Raises `BadFile`."""
    mask = read_page(path)
    if mask.ndim != 2:
        raise BadFile("shape", path, f"has the shape {mask.shape}. A mask is height x width, without channels.")
    return binary(mask, path)


def binary(mask: Pixels, path: Path) -> Pixels:
    """0 and 1 from {0, 255} or {0, 1}. Raises `BadFile`, naming `path`, for anything else."""
    high = mask.max()
    if high not in (0, 1, 255) or not ((mask == 0) | (mask == high)).all():
        values = np.unique(mask)
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise BadFile("mask-values", path, f"holds the values {shown}. A mask holds 0 and 255, or 0 and 1.")
    return (mask > 0).astype(np.uint8)


def read_page(path: Path) -> Pixels:
    """The pixels of a single-page uint8 file, once its tags have been believed."""
    try:
        with tifffile.TiffFile(path) as file:
            _check(file, path)
            pixels: Pixels = file.pages[0].asarray()
            expected = file.pages[0].shape
    except DataError:
        raise
    except Exception as error:  # a broken file makes the decoder raise anything, struct.error to zlib.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFile(
            "unreadable", path, f"cannot be read as TIFF ({reason}). Download or save it again."
        ) from error
    if pixels.shape != expected or not pixels.size:
        raise BadFile(
            "truncated", path, f"gives pixels of shape {pixels.shape}, not {expected}. Download it again."
        )
    return pixels


def _check(file: Any, path: Path) -> None:
    page, pages = file.pages[0], len(file.pages)
    if max(page.imagewidth, page.imagelength) > LARGEST or page.samplesperpixel > 16:
        claim = f"{page.imagewidth}x{page.imagelength} pixels of {page.samplesperpixel} channel(s)"
        raise BadFile("giant", path, f"claims {claim}; at most {LARGEST} a side are read. Is its header damaged?")
    if pages != 1:
        raise BadFile("multi-page", path, f"has {pages} pages. Save one slice a file.")
    if page.dtype != np.uint8:
        raise BadFile("dtype", path, f"holds {page.dtype} pixels. Save it as uint8, rescaled on purpose.")
    ends = [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    stored, size = sum(page.databytecounts), file.filehandle.size
    promised = page.nbytes if page.compression == 1 else stored  # 1: uncompressed
    if not ends or max(ends) > size or stored < promised:
        raise BadFile(
            "truncated", path, f"is cut short: {size} bytes are too few for its pixels. Download it again."
        )
