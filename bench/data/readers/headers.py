"""Headers of images: what a file claims about its pixels, checked before memory is allocated for them.

A damaged header can request 10 GB, and a PNG of 200 kB can decode to 500 MB. A viewer turns and colours pixels as
the header says; a file that needs this is refused.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import tifffile
from PIL import ImageFile

from bench.data.source import BadFile, format_shape

MAX_PIXELS = 1 << 26  # of one slice: 8192 x 8192
MAX_VOXELS = 1 << 30  # of one volume with all its channels: 1024 x 1024 x 1024
MAX_SAMPLES = 16  # of one pixel

ORIENTATION = 274  # the tag of EXIF and TIFF; 1 is upright
_UNUSUAL = {
    "palette": "colours of a palette",
    "separated": "CMYK colours",
    "CMYK": "CMYK colours",
    "cielab": "Lab colours",
}


def check_header(
    path: Path,
    size: tuple[int, ...],
    samples: int = 1,
    *,
    pages: int = 1,
    dtype: str = "uint8",
    colours: str = "",
    orientation: int = 1,
) -> None:
    """Raise `BadFile` for a file whose pixels are too many, or would be read other than they are meant.

    `size` is width and height, and slices and channels of a volume.
    """
    if prod(size[:2]) > MAX_PIXELS or prod(size) > MAX_VOXELS or samples > MAX_SAMPLES:
        claim = f"{format_shape(size)} pixels" + f" of {samples} channels" * (samples > 1)
        limits = f"{MAX_PIXELS:,} a slice and {MAX_VOXELS:,} a volume"
        raise BadFile("giant", path, f"claims {claim}; at most {limits} are read. Is its header damaged?")
    if pages != 1:
        raise BadFile("multi-page", path, f"has {pages} pages. Save one slice per file.")
    if dtype != "uint8":
        raise BadFile("dtype", path, f"holds {dtype} pixels. Rescale it and save it as uint8.")
    if orientation != 1:
        turned = f"is stored turned or mirrored (orientation {orientation}), so its mask may lie elsewhere"
        raise BadFile("orientation", path, f"{turned}. Save image and mask upright, without this tag.")
    if colours in _UNUSUAL:
        raise BadFile("colours", path, f"holds {_UNUSUAL[colours]}. Save it as a grey or RGB image.")


def check_file(path: Path) -> None:
    """Raise `BadFile` for what is no file, such as a broken link or a pipe, which would be read for ever."""
    if not path.is_file():
        raise BadFile("unreadable", path, "is no file, or a link to none. Remove it or correct the link.")


def check_tiff(path: Path, file: tifffile.TiffFile) -> None:
    """Check the header of an open TIFF file, and that it holds all bytes of its pixels. Raises `BadFile`."""
    page: Any = file.pages[0]
    pages = len(file.pages) * page.imagedepth
    if pages == 1 and (file.is_shaped or file.is_imagej):  # several pages may lie behind one directory
        pages = max(1, file.series[0].size // max(page.size, 1))
    tag = page.tags.get(ORIENTATION)
    check_header(
        path,
        (page.imagewidth, page.imagelength),
        page.samplesperpixel,
        pages=pages,
        dtype=str(page.dtype),
        colours=getattr(page.photometric, "name", "").lower(),
        orientation=int(tag.value) if tag else 1,
    )
    ends = [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    stored, size = sum(page.databytecounts), file.filehandle.size
    promised = page.nbytes if page.compression == 1 else stored  # 1: uncompressed
    if not ends or max(ends) > size or stored < promised:
        sentence = f"is truncated: {size} bytes are too few for its pixels. Download it again."
        raise BadFile("truncated", path, sentence)


def check_image(path: Path, image: ImageFile.ImageFile) -> None:
    """Check the header of an image that Pillow has opened; `load` decodes its pixels. Raises `BadFile`."""
    deep = ";16" in str(image.tile[0].args) if image.tile else False  # Pillow cuts 16 bits of RGB to 8
    dtype = "uint16" if deep or image.mode[0] in "IF" else "uint8"
    pages = getattr(image, "n_frames", 1) if image.format == "PNG" else 1  # MPO holds a preview as a second page
    check_header(path, image.size, len(image.getbands()), pages=pages, dtype=dtype, colours=image.mode)
