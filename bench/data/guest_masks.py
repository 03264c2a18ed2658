"""Masks that another tool predicted, read onto the slices of a data set.

A file holds a whole volume or patient (NIfTI, NRRD, MetaImage, or a TIFF of several pages), or one slice (TIFF
or PNG). Its name is that of the label, image or patient, with or without `_mask`. Files of other kinds are
ignored. The file of a single structure marks it with any one value. Several exclusive structures are values of
a label map: those of the data set, or those that a `dataset.json` beside the masks names, as it does beside
nnU-Net's predictions. Structures that overlap have a file each, `<name>_<structure>`.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from bench.data.mask_units import Unit, slice_units, whole_units
from bench.data.pack import Pack
from bench.data.readers import itk
from bench.data.readers.dataset_json import read_description, stated_structures
from bench.data.readers.images import SUFFIXES, read_pixels
from bench.data.readers.mask_values import to_labels
from bench.data.source import Source, format_shape, walk
from bench.errors import DataError
from bench.formatting import join_first
from bench.masks import Mask

MOST = 20  # problems that are listed


@dataclass
class GuestMasks:
    """Predicted masks by patient, bool (S, K, H, W) on the grid of the pack, and what was found in the files."""

    masks: dict[str, Mask]
    empty: list[str] = field(default_factory=list)  # patients without any predicted pixel
    probabilities: dict[str, NDArray[np.float32]] | None = None  # (S, K, H, W), if they were read
    equal: list[str] = field(default_factory=list)  # pairs of patients whose masks are equal, as if one was copied


def read_guest_masks(
    folders: Mapping[Path, frozenset[str]],
    source: Source,
    pack: Pack,
    *,
    check_headers: bool = True,
    probabilities: bool = False,
) -> GuestMasks:
    """Read the masks of all patients of each folder, `{folder: patients whose masks it must hold}`.

    With `probabilities`, `<name>.npz` is read beside each mask, as nnU-Net writes it. The position that the header
    of a volume states must be that of the label, unless `check_headers` is False.
    Raises `DataError` that lists every missing, unknown, repeated, resized, shifted or unreadable file.
    """
    problems: list[str] = []
    found = GuestMasks({}, probabilities={} if probabilities else None)
    seen: dict[bytes, str] = {}
    units = whole_units(source) + slice_units(source)
    for folder, cases in folders.items():
        reader = _Reader(folder, pack, source.axis, problems, check_headers)
        files = reader.match(units, cases)
        for case in sorted(cases):
            own = [(unit, path) for unit, path in files if unit.case == case]
            mask = reader.read_case(case, own, reader.read_masks, bool)
            if mask is None:
                continue
            if found.probabilities is not None:
                soft = reader.read_case(case, own, reader.read_probabilities, np.float32)
                if soft is None:
                    continue
                found.probabilities[case] = soft
            if not mask.any():
                found.empty.append(case)
            elif (first := seen.setdefault(hashlib.sha256(np.packbits(mask).tobytes()).digest(), case)) != case:
                found.equal.append(f"{first} and {case}")
            found.masks[case] = mask
    if problems:
        more = [f"and {len(problems) - MOST} more"] if len(problems) > MOST else []
        lines = "\n".join(f"- {line}" for line in problems[:MOST] + more)
        raise DataError(f"{len(problems)} problem(s) in the masks, so nothing was scored:\n{lines}")
    return found


@dataclass
class _Reader:
    """Reads the files of one folder; problems are collected as sentences."""

    folder: Path
    pack: Pack
    axis: int
    problems: list[str]
    check_headers: bool
    values: tuple[tuple[int, ...], ...] = field(init=False)  # of each structure

    def __post_init__(self) -> None:
        """Take the values that dataset.json beside the masks states, or those of the data. Raises `DataError`."""
        structures, stated = self.pack.structures, stated_structures(read_description(self.folder))
        if not stated or not structures.exclusive:
            self.values = structures.values
            return
        if missing := [name for name in structures.names if name not in stated]:
            raise DataError(
                f"{self.folder / 'dataset.json'} names the labels {join_first(stated)}, but the data set has "
                f"{join_first(structures.names)}: {missing[0]} is missing. Fix it, or remove the file."
            )
        self.values = tuple(stated[name] for name in structures.names)

    def match(self, units: Sequence[Unit], cases: frozenset[str]) -> list[tuple[Unit, dict[str, Path]]]:
        """Return each unit with its files by structure, `{"": file}` for a label map; report unknown names."""
        structures = self.pack.structures
        ends = [""] if structures.exclusive else [f"_{name}" for name in structures.names]
        by_name = {name + end: (unit, end) for unit in units for name in unit.names for end in ends}
        found: dict[int, tuple[Unit, dict[str, Path]]] = {}
        for path in (parent / name for parent, names in walk(self.folder) for name in names):
            suffix = itk.volume_suffix(path) or (path.suffix if path.suffix.lower() in SUFFIXES else "")
            if not suffix or path.stem.endswith("_overlay"):  # as `bench predict` writes beside its masks
                continue
            name = path.name.removesuffix(suffix).removesuffix("_mask")
            unit, end = by_name.get(name, (None, ""))
            if unit is None:
                self.problems.append(
                    f"{path} belongs to no patient of the data set; files are named after its labels"
                )
            elif unit.case not in cases:
                self.problems.append(f"{path} is of {unit.case}, whom this fold does not test")
            elif end in (files := found.setdefault(id(unit), (unit, {}))[1]):
                self.problems.append(f"{path} and {files[end].name} are both masks of {name}")
            else:
                files[end] = path
        return list(found.values())

    def read_case(
        self,
        case: str,
        found: Iterable[tuple[Unit, dict[str, Path]]],
        read: Callable[[Unit, Mapping[str, Path]], NDArray[Any]],
        kind: type[np.generic] | type[bool],
    ) -> NDArray[Any] | None:
        """Return masks or probabilities of a patient on the grid of the pack, or None after reporting a problem.

        `read` returns those of a unit, (S, K, H, W), from its files.
        """
        rows = self.pack.rows([case])
        place = {int(row): at for at, row in enumerate(rows)}
        height, width = self.pack.masks.shape[1:]
        stack = np.zeros((len(rows), len(self.pack.structures), height, width), kind)
        covered = np.zeros(len(rows), int)
        for unit, files in found:
            try:
                part = read(unit, files)
            except DataError as error:
                self.problems.append(str(error))
                return None
            at = [place[int(row)] for row in unit.rows]
            covered[at] += 1
            stack[at] = self.pack.pad(part)
        if not covered.any():
            self.problems.append(f"{self.folder} has no mask of {case}")
        elif (covered == 0).any():
            numbers = self.pack.index["slice"].to_numpy()[rows][covered == 0]
            self.problems.append(f"{self.folder} has no mask of slice {join_first(numbers)} of {case}")
        elif (covered > 1).any():
            self.problems.append(f"{self.folder} has a mask of {case} as a whole, and masks of its slices")
        else:
            return stack
        return None

    def read_probabilities(self, unit: Unit, files: Mapping[str, Path]) -> NDArray[np.float32]:
        """Return the probabilities (S, K, H, W) beside the mask of a unit. Raises `DataError`."""
        mask, structures = next(iter(files.values())), len(self.pack.structures)
        suffix = itk.volume_suffix(mask) or mask.suffix
        path = mask.with_name(f"{mask.name.removesuffix(suffix).removesuffix('_mask')}.npz")
        try:
            with np.load(path) as content:
                array = np.asarray(content["probabilities"], np.float32)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no array 'probabilities' ({' '.join(str(error).split())})") from None
        array = np.moveaxis(array, 1 + 2 - self.axis, 1) if array.ndim == 4 else array
        wanted = (len(unit.rows), *self._size(unit))
        if array.ndim != 4 or array.shape[1:] != wanted or array.shape[0] not in (structures, structures + 1):
            raise DataError(
                f"{path} is {format_shape(array.shape)}, but must be {structures} or {structures + 1}x"
                f"{format_shape(wanted)}: structures (with or without the background first), slices, rows, columns"
            )
        if not (array >= 0).all() or not (array <= 1.001).all():  # False for NaN, too
            raise DataError(f"{path} holds values outside of 0 to 1: save probabilities, not logits")
        return np.ascontiguousarray(array[-structures:].swapaxes(0, 1))

    def _size(self, unit: Unit) -> tuple[int, int]:
        """Return rows and columns of a unit on its own grid."""
        own, packed = self.pack.own_grid(unit.rows), self.pack.masks.shape[1:]
        height, width = (len(range(*side.indices(of))) for side, of in zip(own, packed, strict=True))
        return height, width

    def read_masks(self, unit: Unit, files: Mapping[str, Path]) -> Mask:
        """Return the masks (S, K, H, W) of a unit on its own grid. Raises `DataError`."""
        structures, size = self.pack.structures, self._size(unit)
        if not structures.exclusive:
            if missing := [name for name in structures.names if f"_{name}" not in files]:
                raise DataError(f"{next(iter(files.values()))} has no partner for {missing[0]}")
            each = [self._read_file(unit, files[f"_{name}"], size) > 0 for name in structures.names]
            return np.stack(each, 1)
        labels = self._read_file(unit, files[""], size)
        if len(structures) == 1:
            return labels[:, None] > 0
        known = {0, *(value for values in self.values for value in values)}
        if unknown := sorted(set(np.unique(labels).tolist()) - known):
            raise DataError(f"{files['']} holds the value {unknown[0]}, which stands for no structure")
        return np.stack([np.isin(labels, values) for values in self.values], 1)

    def _read_file(self, unit: Unit, path: Path, size: tuple[int, int]) -> NDArray[Any]:
        """Return the labels (S, H, W) of a file. Raises `DataError` if its grid is not that of the data."""
        if itk.volume_suffix(path):
            array = np.moveaxis(itk.read_array(path, finite=True), 2 - self.axis, 0)
        elif path.suffix.lower() in (".tif", ".tiff"):
            array = _read_pages(path)
        else:
            array = read_pixels(path)[..., 0][None]
        wanted = (len(unit.rows), *size)
        if array.shape != wanted:
            raise DataError(
                f"{path} is {format_shape(array.shape)}, but the data are {format_shape(wanted)} (slices, rows, "
                "columns): save the mask on the original grid"
            )
        labels, values = to_labels(array, path)
        if len(self.pack.structures) == 1 and len(values) > 2:
            raise DataError(f"{path} holds the values {join_first(values)}; a mask of one structure holds two")
        if self.check_headers and unit.label and itk.volume_suffix(path) and not itk.are_aligned(path, unit.label):
            raise DataError(
                f"{path} states another position, direction or spacing than {unit.label}: it was shifted, turned "
                "or resampled. Fix its header, or compare pixels as stored with --ignore-headers"
            )
        return labels


def _read_pages(path: Path) -> NDArray[Any]:
    """Return the pages of a TIFF, (S, H, W). Raises `DataError`."""
    try:
        pages = tifffile.imread(path)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    return np.asarray(pages[None] if pages.ndim == 2 else pages)


def fold_folders(folder: Path, tested: Mapping[int, frozenset[str]]) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield the folder of each fold, `fold_<number>` or its subfolder `validation`, with the patients it tests.

    Raises `DataError` if one does not exist.
    """
    for number, cases in tested.items():
        own = folder / f"fold_{number}"
        if not own.is_dir():
            raise DataError(f"{folder} has no folder fold_{number}. Make one for each of the {len(tested)} folds.")
        yield (own / "validation" if (own / "validation").is_dir() else own), cases
