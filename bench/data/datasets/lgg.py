"""LGG: brain MRI of lower-grade glioma with FLAIR abnormality masks, and any folder in the same layout."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.data.audit_layout import layout_errors, layout_warnings, table_warnings
from bench.data.readers.patient_folders import CHANNELS, UNKNOWN, DataTree, parse_case_name, scan_folder
from bench.data.readers.tiff import read_pair
from bench.data.resize import resize_pair
from bench.data.source import Pixels, SliceFile, Source
from bench.errors import DataError
from bench.formatting import join_first
from bench.registry import dataset

NOTED = (  # warnings that every user of the data must see; `bench data check` shows the others
    "doubled-tree",
    "slice-gap",
    "lone-institution",
    "table-unreadable",
    "row-without-patient",
    "patient-without-row",
)


@dataset(defaults={"train.epochs": 50, "train.batch_size": 16})
def lgg(*, folder: Path, resize: Annotated[int, Field(ge=16, le=4096)] | None = None) -> Source:
    """Lower-grade glioma on brain MRI: 110 patients of five institutions, 3,929 slices (Buda et al. 2019).

    `folder` holds the Kaggle tree (`mateuszbuda/lgg-mri-segmentation`), or your own data with such names:
    <case>/<anything>_<n>.tif, uint8 of 3 channels, and <case>/<anything>_<n>_mask.tif. `resize` resizes every
    slice to that many pixels square when it is read, the image by area and the mask by nearest pixel. Raises
    `DataError` for problems that must be fixed; other problems become `notes` of the source.
    """
    tree = scan_folder(folder)
    if error := next(layout_errors(tree, compare_all=False), None):
        raise DataError(error.message)
    name, licence = _name_and_licence(tree)
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


def _name_and_licence(tree: DataTree) -> tuple[str, str]:
    """Return name and licence. Other data in this layout has the name of its folder and no stated licence."""
    if tree.synthetic:
        return "phantom", "CC0-1.0 (synthetic)"
    if all(parse_case_name(scan.folder)[1] == UNKNOWN for scan in tree.scans.values()):
        return tree.root.resolve().name, "not stated"
    return "lgg", "CC BY-NC-SA 4.0"


def _read(entry: SliceFile, *, resize: int | None) -> tuple[Pixels, Pixels]:
    return resize_pair(*read_pair(entry), resize)


def _notes(tree: DataTree) -> Iterable[str]:
    for warning in (*layout_warnings(tree), *table_warnings(tree)):
        if warning.code in NOTED:
            yield warning.message
    if tree.unnumbered:
        count, names = len(tree.unnumbered), join_first(tree.unnumbered)
        yield f"{count} TIFF file(s) without a slice number are not used: {names}."
