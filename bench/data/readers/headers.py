"""Headers of images: what a file claims about its pixels, checked before memory is allocated for them.

A damaged header can request 10 GB, and a PNG of 200 kB can decode to 500 MB. A viewer turns and colours pixels as
the header says; a file that needs this is refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import tifffile
from PIL import Image

from bench.data.source import BadFile, format_shape

MAX_PIXELS = 1 << 26  # of one slice: 8192 x 8192
MAX_VOXELS = 1 << 30  # of one volume with all its channels: 1024 x 1024 x 1024
MAX_SAMPLES = 16  # of one pixel

_ORIENTATION = 274  # the tag of EXIF and TIFF; 1 is upright
_UNUSUAL = {
    "palette": "colours of a palette",
    "separated": "CMYK colours",
    "CMYK": "CMYK colours",
    "cielab": "Lab colours",
}


@dataclass(frozen=True)
class Header:
    """What a file claims. `size`: width, height, and slices and channels of a volume; `kind`: its colours."""

    size: tuple[int, ...]
    samples: int = 1
    pages: int = 1
    dtype: str = "uint8"
    kind: str = ""
    orientation: int = 1


def check_header(path: Path, header: Header) -> None:
    """Raise `BadFile` for a file whose pixels are too many, or would be read other than they are meant."""
    check_size(path, header.size, header.samples)
    if header.pages != 1:
        raise BadFile("multi-page", path, f"has {header.pages} pages. Save one slice per file.")
    if header.dtype != "uint8":
        raise BadFile("dtype", path, f"holds {header.dtype} pixels. Rescale it and save it as uint8.")
    if header.orientation != 1:
        turned = f"is stored turned or mirrored (orientation {header.orientation}), so its mask may lie elsewhere"
        raise BadFile("orientation", path, f"{turned}. Save image and mask upright, without this tag.")
    if header.kind in _UNUSUAL:
        raise BadFile("colours", path, f"holds {_UNUSUAL[header.kind]}. Save it as a grey or RGB image.")


def check_size(path: Path, size: tuple[int, ...], samples: int = 1) -> None:
    """Raise `BadFile` for more than `MAX_PIXELS` a slice, `MAX_VOXELS` a volume, or `MAX_SAMPLES` a pixel."""
    if prod(size[:2]) > MAX_PIXELS or prod(size) > MAX_VOXELS or samples > MAX_SAMPLES:
        claim = f"{format_shape(size)} pixels" + f" of {samples} channels" * (samples > 1)
        limits = f"{MAX_PIXELS:,} a slice and {MAX_VOXELS:,} a volume"
        raise BadFile("giant", path, f"claims {claim}; at most {limits} are read. Is its header damaged?")


def check_file(path: Path) -> None:
    """Raise `BadFile` for what is no file, such as a broken link or a pipe, which would be read for ever."""
    if not path.is_file():
        raise BadFile("unreadable", path, "is no file, or a link to none. Remove it or correct the link.")


def tiff_header(file: tifffile.TiffFile) -> Header:
    """Return the header of an open TIFF file; a directory that describes several pages counts them all."""
    page: Any = file.pages[0]
    pages = len(file.pages) * page.imagedepth
    if pages == 1 and (file.is_shaped or file.is_imagej):  # several pages may lie behind one directory
        pages = max(1, file.series[0].size // max(page.size, 1))
    tag = page.tags.get(_ORIENTATION)
    return Header(
        size=(page.imagewidth, page.imagelength),
        samples=page.samplesperpixel,
        pages=pages,
        dtype=str(page.dtype),
        kind=getattr(page.photometric, "name", "").lower(),
        orientation=int(tag.value) if tag else 1,
    )


def open_image(path: Path, file: BinaryIO, *formats: str) -> Image.Image:
    """Open the image in an open file with Pillow and check its header; `load` decodes its pixels.

    Raises `BadFile` and what Pillow raises for a damaged file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadFile("giant", path, f"is too large ({error}). Is its header damaged?") from None
    deep = ";16" in str(image.tile[0].args) if image.tile else False  # Pillow cuts 16 bits of RGB to 8
    wide = deep or image.mode[0] in "IF"
    pages = getattr(image, "n_frames", 1) if image.format == "PNG" else 1  # MPO holds a preview as a second page
    check_header(path, Header(image.size, len(image.getbands()), pages, "uint16" if wide else "uint8", image.mode))
    return image


def check_orientation(path: Path, image: Image.Image) -> None:
    """Raise `BadFile` for a loaded image that EXIF turns; in PNG, EXIF may follow the pixels."""
    check_header(path, Header(image.size, orientation=image.getexif().get(_ORIENTATION, 1)))
