"""Tiny patients on disk, whole or broken, for the tests of what reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import numpy as np
import tifffile
from numpy.typing import NDArray

SIDE = 16


def image_of(name: str, side: int = SIDE) -> NDArray[np.uint8]:
    """Noise that differs from name to name and never has two equal channels."""
    return np.random.default_rng(crc32(name.encode())).integers(1, 255, (side, side, 3), dtype=np.uint8)


def mask_of(side: int = SIDE, *, positive: bool = True) -> NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[2:5, 3:7] = 255 * positive
    return mask


def write_case(root: Path, name: str, numbers: Iterable[int] = (1, 2, 3), *, side: int = SIDE) -> Path:
    """A whole patient; returns the folder. Slice 1 shows no tumour."""
    folder = root / name
    folder.mkdir(parents=True)
    for number in numbers:
        write(folder / f"{name}_{number}.tif", image_of(f"{name}_{number}", side))
        write(folder / f"{name}_{number}_mask.tif", mask_of(side, positive=number != 1))
    return folder


def write(path: Path, pixels: NDArray[np.generic]) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def two_pages(path: Path) -> None:
    page = tifffile.imread(path)
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack")


def giant(path: Path, side: int = 100_000) -> None:
    """122 bytes whose header promises 30 GB: tag, type (3 short, 4 long), count, value."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, side), (279, 4, 1, 3 * side * side & 0xFFFFFFFF)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0))


def sixteen_bits(path: Path) -> None:
    write(path, tifffile.imread(path).astype(np.uint16) * 257)


def four_channels(path: Path) -> None:
    page = tifffile.imread(path)
    tifffile.imwrite(path, np.dstack([page, page[..., :1]]), photometric="rgb", extrasamples=["unassalpha"])


def garbage(path: Path) -> None:
    path.write_bytes(b"not a TIFF at all")
