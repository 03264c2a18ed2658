"""LGG: brain MRI of lower-grade glioma with FLAIR abnormality masks, and any folder laid out like it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.data.readers.images import resized
from bench.data.readers.patient_folders import (
    CHANNELS,
    TABLE,
    UNKNOWN,
    Tree,
    identify,
    read_table,
    rival,
    survey,
)
from bench.data.readers.tiff import read_pair
from bench.data.source import Pixels, SliceFile, Source
from bench.errors import DataError
from bench.formatting import listing
from bench.registry import dataset


@dataset(defaults={"train.epochs": 50, "train.batch_size": 16})
def lgg(*, folder: Path, resize: Annotated[int, Field(ge=16, le=4096)] | None = None) -> Source:
    """Lower-grade glioma on brain MRI: 110 patients of five institutions, 3,929 slices (Buda et al. 2019).

    `folder` holds the Kaggle tree (`mateuszbuda/lgg-mri-segmentation`), or your own data under such names:
    <case>/<anything>_<n>.tif, uint8 of 3 channels, and <case>/<anything>_<n>_mask.tif. `resize` makes every
    slice that many pixels a side when it is read, the image by area and the mask by nearest pixel.
    Raises `DataError` for what must be mended; `notes` of the source say what merely should be known.
    """
    tree = survey(folder)
    _refuse(tree)
    name, licence = _identity(tree)
    return Source(
        name=name,
        slices=tuple(entry for scan in tree.scans.values() for entry in scan.slices),
        read=partial(_read, resize=resize),
        channels=CHANNELS,
        licence=licence,
        synthetic=bool(tree.synthetic),
        notes=tuple(_notes(tree)),
        variant=f"resize={resize}" if resize else "",
    )


def _identity(tree: Tree) -> tuple[str, str]:
    """Name and licence: your own data is called as its folder, and nothing is said of its licence."""
    if tree.synthetic:
        return "phantom", "CC0-1.0 (synthetic)"
    if all(identify(scan.folder)[1] == UNKNOWN for scan in tree.scans.values()):
        return tree.root.resolve().name, "not stated"
    return "lgg", "CC BY-NC-SA 4.0"


def _read(entry: SliceFile, *, resize: int | None) -> tuple[Pixels, Pixels]:
    return resized(*read_pair(entry), resize)


def _refuse(tree: Tree) -> None:
    if not any(scan.slices for scan in tree.scans.values()):
        raise DataError(
            f"{tree.root} holds no slices. They are named <case>/<name>_<number>.tif and ..._mask.tif. "
            "Other images: --dataset pairs; volumes: --dataset volumes."
        )
    if tree.synthetic and (real := sorted(tree.scans.keys() - tree.synthetic)):
        raise DataError(f"{tree.root} mixes a phantom with {listing(real)}. Keep them in two folders.")
    for case, scan in tree.scans.items():
        if images := scan.orphan_images:
            raise DataError(
                f"{len(images)} image(s) of {case} have no mask: {listing(images)}. Add or remove them."
            )
        if masks := scan.orphan_masks:
            raise DataError(f"{len(masks)} mask(s) of {case} have no image: {listing(masks)}. Add or remove them.")
        if twice := scan.twice:
            raise DataError(f"{case} has a slice number twice: {listing(twice)}. Keep one of them.")
        if other := rival(scan, tree.copies.get(case, ())):
            both = f"{scan.folder} and {other.folder}"
            raise DataError(f"{both} both say that they are {case}, and differ. Rename or remove one of them.")


def _notes(tree: Tree) -> Iterable[str]:
    if tree.copies:
        above = sorted({str(copy.folder.parent) for copies in tree.copies.values() for copy in copies})
        yield f"{len(tree.copies)} patient(s) are there twice; the copies in {listing(above)} were left out."
    for case, scan in tree.scans.items():
        if scan.gaps:
            yield f"{case} lacks slice(s) {listing(scan.gaps)}."
    if tree.unnumbered:
        count, names = len(tree.unnumbered), listing(tree.unnumbered)
        yield f"{count} TIFF file(s) without a slice number were left out: {names}."
    for institution, case in tree.alone.items():
        yield f"institution {institution} has a single patient, {case}: no fold can be stratified by it."
    if tree.tables:
        yield from _table_notes(tree)


def _table_notes(tree: Tree) -> Iterable[str]:
    try:
        rows = set(read_table(tree.tables[0]).index)
    except DataError as error:
        yield f"{error} It was left out."
        return
    if absent := sorted(rows - tree.scans.keys()):
        yield f"{len(absent)} of {len(rows)} patients in {TABLE} have no images: {listing(absent)}."
    if extra := sorted(tree.scans.keys() - rows):
        yield f"{len(extra)} of {len(tree.scans)} patients have no row in {TABLE}: {listing(extra)}."
