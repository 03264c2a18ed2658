"""TIFF, PNG and JPEG images of 8 bits, grey or colour, in folders of one or several patients.

Headers are checked before a pixel is allocated (`headers.py`). Without the checks, a truncated TIFF may be read as
an array of shape (0,), and a multi-page file yields only its first page.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from bench.data.readers.headers import ORIENTATION, check_file, check_header, check_image, check_tiff
from bench.data.readers.mask_values import LabelMap, colour_codes, to_binary_mask
from bench.data.readers.patient_folders import read_patients
from bench.data.source import BadFile, Bits, Pixels, walk
from bench.errors import BadSetting, DataError
from bench.outputs import without_outputs

TIFF = (".tif", ".tiff")
BY_PILLOW = (5, 7, 50000)  # LZW, JPEG and ZSTD, which tifffile leaves to a further package
SUFFIXES = (*TIFF, ".png", ".jpg", ".jpeg")
# The name of a mask beside images, without suffix, and of folders of masks.
MASK_NAME = re.compile(r"(.+)_(mask|seg|segmentation|label|gt)", re.IGNORECASE)
MASK_FOLDERS = {"mask", "masks", "label", "labels", "labelstr", "labelsts", "segmentation", "segmentations", "gt"}


def find_images(path: Path) -> dict[Path, list[Path]]:
    """Return `{folder: its images by slice number}`, without masks (`is_mask_name`). Raises `DataError`."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} is no image: {', '.join(SUFFIXES)}. Unpack an archive and pass its folder.")
        if is_mask_name(path.stem):
            raise DataError(
                f"{path} is named like a mask, which is not predicted. Pass the image, or rename the file."
            )
        return {path.parent: [path]}
    if not path.exists():
        raise DataError(f"{path} does not exist. Pass an image, or a folder of images.")
    found = without_outputs(list_images(path))
    images = [file for file in found if not is_mask_name(relative_name(path, file))]
    if not images:
        raise DataError(f"{path} holds no images other than masks. They end in {', '.join(SUFFIXES)}.")
    return {
        folder: sorted((p for p in images if p.parent == folder), key=lambda p: (last_number(p.stem), p.name))
        for folder in sorted({p.parent for p in images})
    }


def is_mask_name(name: str) -> bool:
    """Return whether a path below a folder, without suffix, is that of a mask: by its end or a folder."""
    *folders, file = name.split("/")
    return bool(MASK_NAME.fullmatch(file)) or not MASK_FOLDERS.isdisjoint(map(str.lower, folders))


def list_images(folder: Path) -> list[Path]:
    """Return all files below a folder with the suffix of an image, except in hidden folders."""
    found = (parent / name for parent, names in walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def group_by_patient(
    files: Sequence[Path], root: Path, pattern: str | None, table: str | None = None
) -> list[list[Path]]:
    """Group the images of one folder by the patient that `pattern` matches or `table` names; else as one patient.

    Raises `DataError` for several images without the table.
    """
    if len(files) == 1 or pattern is None is table:
        return [list(files)]
    names = [relative_name(root, path) for path in files]
    owners = read_patients(root / table, names) if table else {}
    members = defaultdict(list)
    for path, name in zip(files, names, strict=True):
        match = re.fullmatch(pattern or "", name)
        members[owners.get(name) or (match[1] if match else "")].append(path)
    return list(members.values())


def find_patients(
    names: Collection[str], pattern: str | None, table: str | None, root: Path, images: str
) -> dict[str, str]:
    """Return the patient of each image below `root`/`images`; of none if there is neither pattern nor table.

    The patient is the group of `pattern` in the name, or in the row of `table` below `root`. Raises `BenchError`.
    """
    if table is not None and pattern is not None:
        raise BadSetting("dataset.patient and dataset.patients both name the patients. Set one of them.")
    if table is not None:
        return read_patients(root / table, names)
    owners: dict[str, str] = {}
    if pattern is None:
        return owners
    for name in names:
        try:
            match = re.fullmatch(pattern, name)
            owners[name] = match[1] if match else ""
        except (re.error, IndexError) as error:
            raise BadSetting(
                f"dataset.patient = {pattern!r} is not valid: {error}. "
                "Use a regular expression with a group that matches the patient."
            ) from None
        if not owners[name]:
            where = root / images / name
            raise DataError(
                f"dataset.patient = {pattern!r} finds no patient in {where}. It must match all images."
            )
    return owners


def read_slice(path: Path, channels: int) -> Pixels:
    """Read an image as uint8 (H, W, channels); a grey image is repeated in every channel. Raises `DataError`."""
    image = read_pixels(path)
    if image.shape[-1] == 1:
        return np.repeat(image, channels, -1)
    if image.shape[-1] != channels:
        raise DataError(f"{path} has {image.shape[-1]} channels; the model was trained on {channels}.")
    return image


def read_pixels(path: Path, channels: tuple[int, ...] = (1, 3)) -> Pixels:
    """Read an image as uint8 (H, W, C); C is one of `channels`. Raises `BadFile`."""
    image = _read_tiff(path) if path.suffix.lower() in TIFF else _decode(path, "PNG", "JPEG")
    if image.ndim not in (2, 3) or (*image.shape, 1)[2] not in channels:
        allowed = " or ".join(map(str, channels))
        raise BadFile("shape", path, f"has the shape {image.shape}. Save it with {allowed} channel(s).")
    return np.ascontiguousarray(image.reshape(*image.shape[:2], -1))


def read_mask(path: Path, labels: LabelMap | None = None) -> Bits:
    """Read a mask (H, W) as the bits of the structures of `labels`; without them, as 0 and 1. Raises `BadFile`."""
    pixels = read_pixels(path)
    if labels is not None and labels.setting == "dataset.colours":
        return labels.read(colour_codes(pixels), path)
    if (pixels != pixels[..., :1]).any():
        raise BadFile(
            "shape",
            path,
            "is in colour. A mask is grey: 0 and 255, or 0 and 1. If colours are structures, use --dataset pairs "
            "and set dataset.colours, such as dataset.colours={tumour: [255, 0, 0]}.",
        )
    if labels is not None:
        return labels.read(pixels[..., 0], path)
    return to_binary_mask(pixels[..., 0], path)


def read_mask_beside(path: Path) -> NDArray[np.bool_] | None:
    """Read the mask beside an image, <name>_mask of the same type, as bool (H, W); None if there is none."""
    mask = path.with_name(f"{path.stem}_mask{path.suffix}")
    return read_mask(mask).astype(bool) if mask.is_file() and without_outputs([mask]) else None


def relative_name(folder: Path, path: Path) -> str:
    """Return the path below the folder without its suffix, which patterns for patients must match."""
    return path.relative_to(folder).with_suffix("").as_posix()


def last_number(name: str) -> int:
    """Return the last number in a name, 0 if it has none."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0


def _read_tiff(path: Path) -> Pixels:
    """Read the pixels of a single-page TIFF file of 8 bits after checking its tags. Raises `BadFile`."""
    check_file(path)
    try:
        with tifffile.TiffFile(path) as file:
            check_tiff(path, file)
            page: Any = file.pages[0]
            if page.compression in BY_PILLOW:
                return _decode(path, "TIFF")
            pixels: Pixels = page.asarray()
    except DataError:
        raise
    except Exception as error:  # the decoder raises anything from struct.error to zlib.error
        reason = " ".join(str(error).split()) or type(error).__name__
        sentence = f"cannot be read as TIFF ({reason}). Download or save it again."
        raise BadFile("unreadable", path, sentence) from error
    if pixels.shape != page.shape or not pixels.size:
        shapes = f"{pixels.shape}, not {page.shape}"
        raise BadFile("truncated", path, f"contains pixels of shape {shapes}. Download it again.")
    return ~pixels if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else pixels


def _decode(path: Path, *formats: str) -> Pixels:
    """Decode an image with Pillow, which refuses truncated ones, as uint8 (H, W[, 3]). Raises `BadFile`."""
    check_file(path)
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            path.open("rb") as file,
            Image.open(file, formats=formats) as image,
        ):
            check_image(path, image)
            image.load()
            turned = image.getexif().get(ORIENTATION, 1)  # read last: in PNG, EXIF may follow the pixels
            check_header(path, image.size, orientation=turned)
            with_alpha = "A" in image.getbands() or "transparency" in image.info
            pixels = image.convert("RGBA") if with_alpha else image
            if with_alpha and np.asarray(pixels)[..., 3].min() < 255:
                raise BadFile("shape", path, "is partly transparent. Save it without an alpha channel.")
            return np.asarray(pixels.convert("L" if pixels.mode in ("1", "L") else "RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile("giant", path, f"is too large ({error}). Is its header damaged?") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        sentence = f"cannot be read as an 8-bit image ({reason}). Download or save it again."
        raise BadFile("unreadable", path, sentence) from None


def resize_image(image: Pixels, side: int) -> Pixels:
    """Resize an image (H, W, C) to `side` pixels square; each pixel is the mean of the area that it covers."""
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8).reshape(side, side, -1)


def resize_pair(image: Pixels, mask: Bits, side: int | None) -> tuple[Pixels, Bits]:
    """Resize an image by area and its mask (H, W) by nearest pixel. Return both unchanged if `side` is None."""
    if side is None:
        return image, mask
    # INTER_NEAREST_EXACT samples at pixel centres, as INTER_AREA does; INTER_NEAREST shifts by half a pixel.
    wide = mask if mask.itemsize == 1 else mask.astype(np.float64)  # OpenCV knows no wider unsigned integers
    nearest = cv2.resize(wide, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return resize_image(image, side), np.asarray(nearest, mask.dtype)
