"""NIfTI, NRRD and MetaImage volumes, read with SimpleITK and cut into slices along one axis, as stored.

Axes are numbered as in the file; SimpleITK returns arrays with the first axis last.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.readers.headers import check_file, check_header
from bench.data.source import BadFile, Bits, Pixels, Report, by_name, format_shape, refuse
from bench.errors import BadSetting, DataError
from bench.formatting import join_first
from bench.outputs import without_outputs

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
TWO_FILES = (".mhd", ".hdr", ".nhdr")
PERCENTILES = (0.5, 99.5)  # of a volume, mapped to black and white

_CHANNEL = re.compile(r"(.+)_(00\d\d)")  # does not match the year in scan_2021

Window = tuple[float, float]


def find_volumes(path: Path, report: Report = refuse) -> dict[str, Path]:
    """Return `{name without suffix: file}` of a volume or of the volumes in a folder; empty if there are none.

    Reports two files of one name, and volumes whose header and pixels are two files.
    """
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    files = [file for file in files if file.name[0] != "."]
    for file in files:
        if file.suffix.lower() in TWO_FILES:
            way = "Save it as .nii.gz or .mha with SimpleITK.WriteImage(SimpleITK.ReadImage(old), new)."
            report(BadFile("two-files", file, f"keeps its pixels in a second file. {way}"))
    found = without_outputs(file for file in files if volume_suffix(file))
    return by_name(((file.name.removesuffix(volume_suffix(file)), file) for file in found), report)


def volume_suffix(path: Path) -> str:
    """Return the suffix of a volume as it is written in its name; '' for any other file."""
    return next((path.name[-len(end) :] for end in SUFFIXES if path.name.lower().endswith(end)), "")


def folders_of_volumes(root: Path) -> list[Path]:
    """Return the subfolders of a folder that hold volumes."""
    folders = (path for path in sorted(root.iterdir()) if path.is_dir())
    return [folder for folder in folders if any(map(volume_suffix, folder.iterdir()))]


def group_channels(
    volumes: Mapping[str, Path], cases: Iterable[str] = (), report: Report = refuse
) -> dict[str, tuple[Path, ...]]:
    """Return the files of each case: <case>_0000, <case>_0001 ... are channels, any other name is a case itself.

    A name in `cases` is a case even if it ends like a channel. Reports cases that lack a channel.
    """
    known, numbered = set(cases), defaultdict[str, dict[int, Path]](dict)
    for name, path in volumes.items():
        parts = None if name in known else _CHANNEL.fullmatch(name)
        numbered[parts[1] if parts else name][int(parts[2]) if parts else 0] = path
    for case, files in list(numbered.items()):
        if sorted(files) != list(range(len(files))):
            names = join_first(path.name for path in files.values())
            report(DataError(f"{case} lacks a channel: it has {names}, but channels are numbered from 0000."))
            del numbered[case]
    return {case: tuple(files[number] for number in sorted(files)) for case, files in sorted(numbered.items())}


@dataclass(frozen=True)
class Grid:
    """The grid of a volume: voxels and spacing in millimetres along its first three axes, and channels."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    channels: int

    def cut(self, axis: int) -> tuple[int, tuple[int, int], tuple[float, float]]:
        """Return the number of slices along `axis`, and rows and columns of a slice in pixels and millimetres."""
        column, row = (other for other in range(3) if other != axis)
        return (
            self.size[axis],
            (self.size[row], self.size[column]),
            (self.spacing[row], self.spacing[column]),
        )


def finest_axis(grids: Iterable[Grid]) -> int:
    """Return the axis that leaves slices with the finest pixels, by the median spacing; of equal ones the last."""
    spacing = np.median([grid.spacing for grid in grids], axis=0)
    return max(axis for axis in range(3) if spacing[axis] >= 0.99 * spacing.max())


def read_grid(files: tuple[Path, ...]) -> Grid:
    """Return the grid of a case from its headers. Raises `BadFile`."""
    header = read_header(files[0])
    size = header.GetSize()
    if len(size) not in (3, 4) or (len(size) == 4 and len(files) > 1):
        raise BadFile("shape", files[0], f"has the size {size}. It must have three axes, or four with channels.")
    return Grid(size[:3], tuple(header.GetSpacing()[:3]), size[3] if len(size) == 4 else len(files))


def read_volume(files: Iterable[Path], window: Window | None = None, *, axis: int = 2) -> Pixels:
    """Read a case as uint8 (S, H, W, C), from one file per channel or one file with four axes. Raises `BadFile`.

    Slices are cut along `axis` of the file.

    Black and white are the two levels of `window`, or else the 0.5 and 99.5 percentile of each channel.
    """
    channels: list[Pixels] = []
    for path in files:
        array = read_array(path)
        if not np.isfinite(array).all():
            raise BadFile("values", path, "holds values that are not finite. Save it again without them.")
        for channel in [array] if array.ndim == 3 else array:
            if channels and channel.shape != channels[0].shape:
                sizes = f"{format_shape(channel.shape)}, another channel {format_shape(channels[0].shape)}"
                raise BadFile("shape", path, f"is {sizes}. Save all channels with the same size.")
            channels.append(_to_grey_levels(channel, window))
    return np.stack([np.moveaxis(channel, 2 - axis, 0) for channel in channels], -1)


def _to_grey_levels(channel: NDArray[Any], window: Window | None) -> Pixels:
    low, high = map(float, window or np.percentile(channel, PERCENTILES))
    if high <= low:  # a blank channel
        return np.zeros(channel.shape, np.uint8)
    levels = channel.astype(np.float32)  # the only copy: volumes are large
    levels -= low
    levels *= 255 / (high - low)
    return np.asarray(levels.round(out=levels).clip(0, 255, out=levels), np.uint8)


def read_array(path: Path, *, finite: bool = False) -> NDArray[Any]:
    """Read a file as (S, H, W), or (C, S, H, W) if it has four axes. Raises `BadFile`.

    SimpleITK reads a NaN of NIfTI as 0; with `finite` it is refused.
    """
    itk = import_simpleitk()
    header = read_header(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti(path, header, finite=finite)
    try:
        array: NDArray[Any] = itk.GetArrayFromImage(itk.ReadImage(str(path)))
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    return array


def _check_nifti(path: Path, header: Any, *, finite: bool) -> None:
    """Raise `BadFile` for a NIfTI file that ends early or is damaged: SimpleITK reads zeros without an error."""
    start, bits = int(float(header.GetMetaData("vox_offset"))), int(header.GetMetaData("bitpix"))
    missing = prod(header.GetSize()) * bits // 8
    real = {"16": "f4", "64": "f8"}.get(header.GetMetaData("datatype")) if finite else None
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            order = ">" if file.read(start)[:1] == b"\0" else "<"  # first is the size of the header, 348 or 540
            while missing and (block := file.read(min(missing, 1 << 20))):
                missing -= len(block)
                whole = len(block) // (bits // 8)
                if real and not np.isfinite(np.frombuffer(block, order + real, whole)).all():
                    raise BadFile(
                        "mask-values", path, "holds values that are not finite. Save it again without them."
                    )
            file.read(1 << 20)  # the end, where gzip checks its sum
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise BadFile("truncated", path, f"is damaged ({reason}). Download it again.") from None
    if missing:
        raise BadFile(
            "truncated", path, f"is truncated: {missing} bytes of its pixels are missing. Download it again."
        )


def write_stack(path: Path, stack: Bits, like: Path | tuple[float, ...], *, axis: int = 2) -> None:
    """Write a stack (S, H, W) that was cut along `axis` as a volume.

    It gets the spacing, origin and direction of the volume `like`, or only a spacing in millimetres.
    """
    itk = import_simpleitk()
    image = itk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(stack, 0, 2 - axis)))
    if isinstance(like, tuple):
        image.SetSpacing(like)
    else:
        given = zip((image.SetOrigin, image.SetSpacing, image.SetDirection), _geometry(like), strict=True)
        for copy, value in given:
            copy(value)
    itk.WriteImage(image, str(path), True)


def are_aligned(one: Path, other: Path) -> bool:
    """Return whether the headers of two volumes place them alike, to a hundredth of a pixel. Raises `BadFile`."""
    geometry = _geometry(one)
    tolerances = (0, 0.01 * min(geometry[1])), (0.01, 0), (0, 0.01)  # relative and absolute
    pairs = zip(geometry, _geometry(other), tolerances, strict=True)
    return all(np.allclose(a, b, rtol, atol) for a, b, (rtol, atol) in pairs)


def _geometry(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Return origin, spacing and direction of the first three axes."""
    header = read_header(path)
    axes = header.GetDimension()
    direction = np.reshape(header.GetDirection(), (axes, axes))[:3, :3].ravel()
    return list(header.GetOrigin()[:3]), list(header.GetSpacing()[:3]), direction.tolist()


def read_header(path: Path) -> Any:
    """Return a SimpleITK reader that has read the header of a file, but no pixels. Raises `BadFile`."""
    reader = import_simpleitk().ImageFileReader()
    check_file(path)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if reader.GetNumberOfComponents() != 1:
        raise BadFile("shape", path, "holds vectors. Save one file per channel, or the channels as a fourth axis.")
    check_header(path, reader.GetSize())
    return reader


def import_simpleitk(needed_by: str = "reading volumes", extra: str = "volumes", otherwise: str = "") -> Any:
    """Import SimpleITK when it is needed. Raises `BadSetting`, with the `extra` to install, if it is missing."""
    try:
        import SimpleITK
    except ImportError:
        message = f"{needed_by} needs SimpleITK: pip install 'medseg-bench[{extra}]'{otherwise}."
        raise BadSetting(message) from None
    return SimpleITK


def _unreadable(path: Path, error: RuntimeError) -> BadFile:
    reason = " ".join(str(error).rpartition("ERROR: ")[2].split()) or "damaged"
    way = "Resample it to a grid without shear" if "orthonormal" in reason else "Download or save it again"
    return BadFile("unreadable", path, f"cannot be read ({reason}). {way}.")
