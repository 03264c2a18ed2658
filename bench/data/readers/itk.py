"""Volumes on disk, by SimpleITK: NIfTI, NRRD and MetaImage. Their slices are those of the last axis, as stored."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.readers.tiff import LARGEST, BadFile
from bench.data.source import Pixels
from bench.errors import BadSetting, DataError
from bench.formatting import listing

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


ENDS = (0.5, 99.5)  # percentiles of a volume that become black and white


_CHANNEL = re.compile(r"(.+)_(00\d\d)")  # scan_2021 is no channel


Window = tuple[float, float]


def find_volumes(path: Path) -> dict[str, Path]:
    """`{name without suffix: file}` of a volume, or of those of a folder; none where there are none.

    Raises `DataError` for two of one name.
    """
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    found: dict[str, Path] = {}
    for file in files:
        end = suffix_of(file)
        if not end or file.name[0] == ".":
            continue
        name = file.name[: -len(end)]
        if name in found:
            raise DataError(f"{found[name]} and {file} are of one name. Keep one of them.")
        found[name] = file
    return found


def suffix_of(path: Path) -> str:
    """Of a volume, as it is written; '' of any other file."""
    return next((path.name[-len(end) :] for end in SUFFIXES if path.name.lower().endswith(end)), "")


def by_case(named: Mapping[str, Path], cases: Iterable[str] = ()) -> dict[str, tuple[Path, ...]]:
    """The files of each scan: <case>_0000, <case>_0001 ... are its channels, any other name is a scan's own.

    A name in `cases` is a scan's too, though it end as a channel's. Raises `DataError` for a channel that lacks.
    """
    known, numbered = set(cases), defaultdict[str, dict[int, Path]](dict)
    for name, path in named.items():
        parts = None if name in known else _CHANNEL.fullmatch(name)
        numbered[parts[1] if parts else name][int(parts[2]) if parts else 0] = path
    for case, files in numbered.items():
        if sorted(files) != list(range(len(files))):
            names = listing(path.name for path in files.values())
            raise DataError(f"{case} lacks a channel: it has {names}, and they are counted from 0000.")
    return {case: tuple(files[number] for number in sorted(files)) for case, files in sorted(numbered.items())}


def extent(files: tuple[Path, ...]) -> tuple[int, int]:
    """Slices and channels of a scan, by its headers. Raises `BadFile`."""
    size = header(files[0]).GetSize()
    if len(size) not in (3, 4) or (len(size) == 4 and len(files) > 1):
        raise BadFile("shape", files[0], f"has the size {size}. It must have three axes, or four with channels.")
    if max(size[:2]) > LARGEST:
        raise BadFile("giant", files[0], f"claims {size[0]}x{size[1]} pixels; at most {LARGEST} a side are read.")
    return size[2], size[3] if len(size) == 4 else len(files)


def read_volume(files: Iterable[Path], window: Window | None = None) -> Pixels:
    """The channels of a scan as uint8 (S, H, W, C), from a file each or from one with four axes. Raises `BadFile`.

    Black and white are the two levels of `window`, or the 0.5 and 99.5 percentile of each channel.
    """
    channels: list[Pixels] = []
    for path in files:
        array = read_array(path)
        if not np.isfinite(array).all():
            raise BadFile("values", path, "holds values that are no numbers. Save it again without them.")
        for channel in [array] if array.ndim == 3 else array:
            if channels and channel.shape != channels[0].shape:
                sizes = f"{by(channel)}, another channel {by(channels[0])}"
                raise BadFile("shape", path, f"is {sizes}. Save all on one grid.")
            channels.append(_grey(channel, window))
    return np.stack(channels, -1)


def _grey(channel: NDArray[Any], window: Window | None) -> Pixels:
    low, high = map(float, window or np.percentile(channel, ENDS))
    if high <= low:  # a blank channel
        return np.zeros(channel.shape, np.uint8)
    grey = channel.astype(np.float32)  # the one copy: volumes are large
    grey -= low
    grey *= 255 / (high - low)
    return np.asarray(grey.round(out=grey).clip(0, 255, out=grey), np.uint8)


def read_array(path: Path) -> NDArray[Any]:
    """(S, H, W), or (C, S, H, W) of four axes. Raises `BadFile`."""
    itk = simpleitk()
    try:
        array: NDArray[Any] = itk.GetArrayFromImage(itk.ReadImage(str(path)))
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    return array


def write_mask(path: Path, mask: NDArray[np.bool_], like: Path) -> None:
    """Write a mask (S, H, W) as 0 and 1, where the volume `like` lies in space."""
    itk = simpleitk()
    written = itk.GetImageFromArray(mask.astype(np.uint8))
    origin, spacing, direction = _place(like)
    written.SetOrigin(origin)
    written.SetSpacing(spacing)
    written.SetDirection(direction)
    itk.WriteImage(written, str(path), True)


def together(one: Path, other: Path) -> bool:
    """Whether two volumes lie in one place, by their headers, to a hundredth of a pixel. Raises `BadFile`."""
    (origin, spacing, direction), (its_origin, its_spacing, its_direction) = _place(one), _place(other)
    near = 0.01 * min(spacing)
    return (
        np.allclose(origin, its_origin, rtol=0, atol=near)
        and np.allclose(spacing, its_spacing, rtol=0.01, atol=0)
        and np.allclose(direction, its_direction, rtol=0, atol=0.01)
    )


def _place(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Origin, spacing and direction of the first three axes."""
    said = header(path)
    axes = said.GetDimension()
    direction = np.reshape(said.GetDirection(), (axes, axes))[:3, :3].ravel()
    return list(said.GetOrigin()[:3]), list(said.GetSpacing()[:3]), direction.tolist()


def header(path: Path) -> Any:
    """What SimpleITK knows of a file before its pixels are read. Raises `BadFile`."""
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if reader.GetNumberOfComponents() != 1:
        raise BadFile("shape", path, "holds vectors. Save a file a channel, or the channels as a fourth axis.")
    return reader


def by(array: NDArray[Any]) -> str:
    """A shape for people."""
    return "x".join(map(str, array.shape))


def simpleitk() -> Any:
    """The library, imported late. Raises `BadSetting` where it is not installed."""
    try:
        import SimpleITK
    except ImportError:
        raise BadSetting("volumes are read by SimpleITK: pip install 'medseg-bench[volumes]'.") from None
    return SimpleITK


def _unreadable(path: Path, error: RuntimeError) -> BadFile:
    reason = " ".join(str(error).rpartition("ERROR: ")[2].split()) or "damaged"
    return BadFile("unreadable", path, f"cannot be read ({reason}). Download or save it again.")
