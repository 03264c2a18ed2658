"""What a dataset function returns, and the checks that its readers share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import DataError
from bench.structures import TUMOUR, Structures

Pixels = NDArray[np.uint8]
Bits = NDArray[np.unsignedinteger[Any]]  # (..., H, W), a bit for each structure
Report = Callable[[DataError], object]  # what to do with a problem, such as `refuse`


@dataclass(frozen=True)
class SliceFile:
    """One slice on disk. `mask` is None for an image without a reference mask.

    `position` is the index of the slice, from 0, in a file that holds several; else None.
    """

    case: str
    number: int
    institution: str
    image: Path
    mask: Path | None
    position: int | None = None
    size: tuple[int, int] | None = None  # pixels (H, W), if slices of several sizes are padded to one
    spacing: tuple[float, float] | None = None  # millimetres from one row and one column to the next, if known


@dataclass(frozen=True)
class Source:
    """A dataset on disk, before its pixels are read.

    `read` returns an image uint8 (H, W, C) and a mask (H, W) with a bit for each of `structures`
    (`bench.structures.join_bits`), which is 0 and 1 for a single one, or raises `DataError`.
    `notes` are sentences that the user must see, such as one about a duplicated folder that is not used.
    """

    name: str
    slices: tuple[SliceFile, ...]  # ordered by case, then by number
    read: Callable[[SliceFile], tuple[Pixels, Bits]]
    channels: tuple[str, ...]
    licence: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    variant: str = ""  # settings that change what `read` returns, such as a resize
    structures: Structures = TUMOUR
    axis: int = 2  # of a volume, along which it is cut into slices
    extra_files: tuple[Path, ...] = ()  # files that `read` opens and no slice names, such as further channels
    mask_values: Mapping[Path, Collection[int]] = field(default_factory=dict)  # that `read` has found so far


class BadFile(DataError):
    """One file that cannot be used. `code` names the problem, `path` the file."""

    def __init__(self, code: str, path: Path, sentence: str) -> None:
        super().__init__(f"{path} {sentence}")
        self.code, self.path = code, path

    def __reduce__(self) -> tuple[Any, ...]:  # pickle would call an exception of three arguments with one
        return BadFile, (self.code, self.path, str(self).removeprefix(f"{self.path} "))


class UnusableFiles(DataError):
    """Several files that cannot be used. `source` is the dataset without them, None if nothing is left."""

    def __init__(self, problems: Sequence[DataError], source: Source | None) -> None:
        others = f" `bench data check` names {len(problems) - 1} more problem(s)." if problems[1:] else ""
        super().__init__(f"{problems[0]}{others}")
        self.problems, self.source = tuple(problems), source

    def __reduce__(self) -> tuple[Any, ...]:
        return UnusableFiles, (self.problems, None)


def without_problems(source: Source, problems: Sequence[DataError]) -> Source:
    """Return `source`. Raises `UnusableFiles`, with what is left of it, if there are problems."""
    if problems:
        raise UnusableFiles(problems, source if source.slices else None)
    return source


def check_subfolders(root: Path, names: Sequence[str], way_out: str) -> None:
    """Raise `DataError` with the way out if a folder of data lacks one of its subfolders."""
    missing = [name for name in names if not (root / name).is_dir()]
    if not missing:
        return
    if root.resolve().name in names and all((root.resolve().parent / name).is_dir() for name in names):
        way_out = f"Give the folder above it, {root.resolve().parent}."
    raise DataError(f"{root} has no folder '{missing[0]}'. {way_out}")


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `root` with the sorted names of its files; hidden ones are left out.

    Links to folders are followed, unless they lead back to a folder that holds them.
    """
    for parent, subfolders, names in os.walk(root, followlinks=True):
        folder = Path(parent)
        real = folder.resolve()
        visible = [name for name in sorted(subfolders) if name[0] != "." and name != "__MACOSX"]
        subfolders[:] = [name for name in visible if (folder / name).resolve() not in (real, *real.parents)]
        yield folder, sorted(name for name in names if name[0] != ".")


def format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, such as '256x256'."""
    return "x".join(map(str, shape))


def refuse(problem: DataError) -> None:
    """Raise a problem. A dataset collects problems instead, so that `bench data check` can name them all."""
    raise problem


def by_name(files: Iterable[tuple[str, Path]], report: Report = refuse) -> dict[str, Path]:
    """Return `{name: file}`. Report two files of one name."""
    named: dict[str, Path] = {}
    for name, path in files:
        if (first := named.setdefault(name, path)) is not path:
            report(BadFile("same-name", path, f"and {first} have the same name. Keep one of them."))
    return named


def report_orphans(
    images: dict[str, Path], masks: dict[str, Path], report: Report, *, image: str = "image", mask: str = "mask"
) -> None:
    """Remove and report the images and masks by name that have no partner; `image` and `mask` name the two."""
    for code, some, others, partner in (
        ("orphan-image", images, masks, mask),
        ("orphan-mask", masks, images, image),
    ):
        for name in sorted(some.keys() - others.keys()):
            report(BadFile(code, some.pop(name), f"has no {partner} of its name. Fix or remove it."))


def check_mask_size(image: Pixels, mask: NDArray[Any], path: Path) -> None:
    """Raise `BadFile` if a mask (..., H, W), read from `path`, differs in size from its image (..., H, W, C)."""
    if mask.shape != image.shape[:-1]:
        sizes = f"{format_shape(mask.shape)}, its image {format_shape(image.shape[:-1])}"
        raise BadFile("mask-size", path, f"is {sizes}. Save both with the same size.")
