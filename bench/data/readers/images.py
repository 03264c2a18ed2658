"""Images as people have them: TIFF, PNG or JPEG of 8 bits, grey or colour, in folders of one patient each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.readers.tiff import BadFile, binary, read_page
from bench.data.source import Pixels, by_area
from bench.errors import BadSetting, DataError

TIFF = (".tif", ".tiff")


SUFFIXES = (*TIFF, ".png", ".jpg", ".jpeg")


MASK = re.compile(r"(.+)_(mask|segmentation)", re.IGNORECASE)  # the name of a mask beside images, without suffix


def find_images(path: Path) -> dict[Path, list[Path]]:
    """`{folder: its images by slice number}`, without masks, which `MASK` tells. Raises `DataError`."""
    if path.is_file():
        return {path.parent: [path]}
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Give an image, or a folder of images.")
    found = [p for p in files_below(path) if not MASK.fullmatch(p.stem)]
    if not found:
        raise DataError(f"{path} holds no images. They end in {', '.join(SUFFIXES)}.")
    return {
        folder: sorted((p for p in found if p.parent == folder), key=lambda p: (number_of(p.stem), p.name))
        for folder in sorted({p.parent for p in found})
    }


def files_below(folder: Path) -> list[Path]:
    """Files that end as images do, but for hidden ones."""
    return [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and p.name[0] != "."]


def by_patient(files: Sequence[Path], root: Path, pattern: str | None) -> list[list[Path]]:
    """The images of one folder by patient: one patient, or whoever the group of `pattern` says, as in training."""
    if pattern is None:
        return [list(files)]
    members = defaultdict(list)
    for path in files:
        found = re.fullmatch(pattern, name_below(root, path))
        members[found[1] if found else ""].append(path)
    return list(members.values())


def said_patient(name: str, pattern: str, folder: Path) -> str:
    """Whose an image is: the group of `pattern` in its name below `folder`. Raises `BenchError`."""
    try:
        found = re.fullmatch(pattern, name)
        case = found[1] if found else None
    except (re.error, IndexError) as error:
        raise BadSetting(
            f"dataset.patient = {pattern!r} is refused: {error}. "
            "Give a regular expression whose group is the patient."
        ) from None
    if not case:
        raise DataError(
            f"dataset.patient = {pattern!r} does not say whose {folder / name} is. Let it match all images."
        )
    return case


def read_slice(path: Path, channels: int) -> Pixels:
    """uint8 (H, W, channels); a grey image stands for every channel. Raises `DataError`."""
    image = read_pixels(path)
    if image.shape[-1] == 1:
        return np.repeat(image, channels, -1)
    if image.shape[-1] != channels:
        raise DataError(f"{path} has {image.shape[-1]} channels; the model was trained on {channels}.")
    return image


def read_pixels(path: Path) -> Pixels:
    """uint8 (H, W, 1) of a grey image, (H, W, 3) of a colour one. Raises `BadFile`."""
    if path.suffix.lower() in TIFF:
        image = read_page(path)
    else:
        read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if read is None or read.dtype != np.uint8:
            raise BadFile("unreadable", path, "is no 8-bit image that can be read. Save it as PNG of 8 bits.")
        image = np.asarray(read, np.uint8)
        if image.ndim == 3:
            if image.shape[2] == 4 and (image[..., 3] < 255).any():
                raise BadFile("shape", path, "is transparent in parts. Save it without an alpha channel.")
            image = image[..., 2::-1]  # blue, green, red, and what is opaque everywhere
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise BadFile("shape", path, f"has the shape {image.shape}. An image is grey or has 3 channels.")
    return np.ascontiguousarray(image)


def read_mask_of(path: Path) -> Pixels:
    """uint8 (H, W) of 0 and 1 from a file of {0, 255} or {0, 1}, grey or in equal channels. Raises `BadFile`."""
    pixels = read_pixels(path)
    if (pixels != pixels[..., :1]).any():
        raise BadFile("shape", path, "is in colour. A mask is grey: 0 and 255, or 0 and 1.")
    return binary(pixels[..., 0], path)


def read_truth(path: Path) -> NDArray[np.bool_] | None:
    """The mask beside an image, <name>_mask of the same type, bool (H, W); None where there is none."""
    beside = path.with_name(f"{path.stem}_mask{path.suffix}")
    return read_mask_of(beside).astype(bool) if beside.is_file() else None


def resized(image: Pixels, mask: Pixels, side: int | None) -> tuple[Pixels, Pixels]:
    """Image by area, mask by nearest pixel, both `side` pixels square; as they are, where no side is given."""
    if side is None:
        return image, mask
    # INTER_NEAREST_EXACT samples at pixel centres, as INTER_AREA does; INTER_NEAREST shifts by half a pixel.
    nearest = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return by_area(image, side), np.asarray(nearest, np.uint8)


def name_below(folder: Path, path: Path) -> str:
    """What a pattern for patients is held against: the path below the folder, without its suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def number_of(name: str) -> int:
    """The last number in a name, 0 if it has none."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0
