"""LGG: brain MRI of lower-grade glioma with FLAIR abnormality masks, and any folder in the same layout."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.data.audit_layout import layout_errors, layout_warnings, table_warnings
from bench.data.readers.images import read_mask, read_pixels, resize_pair
from bench.data.readers.mask_values import LabelMap
from bench.data.readers.patient_folders import CHANNELS, UNKNOWN, mask_labels, parse_case_name, scan_folder
from bench.data.source import BadFile, Bits, Pixels, SliceFile, Source, check_mask_size
from bench.errors import DataError
from bench.formatting import join_first
from bench.registry import dataset
from bench.structures import TUMOUR

NOTED = (  # warnings that every user of the data must see; `bench data check` shows the others
    "doubled-tree",
    "slice-gap",
    "lone-institution",
    "table-unreadable",
    "row-without-patient",
    "patient-without-row",
)

HANDLE = "mateuszbuda/lgg-mri-segmentation"
BY_HAND = (
    f"By hand: open https://www.kaggle.com/datasets/{HANDLE}, download the archive (about 1 GB, CC BY-NC-SA 4.0), "
    "unpack it, and pass the folder that holds kaggle_3m with --data."
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
    notes = [w.message for w in (*layout_warnings(tree), *table_warnings(tree)) if w.code in NOTED]
    if count := len(tree.unnumbered):
        names = join_first(tree.unnumbered)
        notes.append(f"{count} TIFF file(s) without a slice number are not used: {names}.")
    name, licence = "lgg", "CC BY-NC-SA 4.0"
    if tree.synthetic:
        name, licence = "phantom", "CC0-1.0 (synthetic)"
    elif all(parse_case_name(scan.folder)[1] == UNKNOWN for scan in tree.scans.values()):  # other data
        name, licence = tree.root.resolve().name, "not stated"
    labels = mask_labels(tree)
    return Source(
        name=name,
        slices=tuple(entry for scan in tree.scans.values() for entry in scan.slices),
        read=partial(_read, resize=resize, labels=labels),
        channels=CHANNELS,
        licence=licence,
        synthetic=bool(tree.synthetic),
        notes=tuple(notes),
        variant=f"resize={resize}" if resize else "",
        structures=labels.structures if labels else TUMOUR,
    )


def _read(entry: SliceFile, *, resize: int | None, labels: LabelMap | None) -> tuple[Pixels, Bits]:
    image = read_pixels(entry.image, (3,))
    if entry.mask is None:
        raise BadFile("orphan-image", entry.image, "has no mask beside it. Add the mask, or move the image away.")
    mask = read_mask(entry.mask, labels)
    check_mask_size(image, mask, entry.mask)
    return resize_pair(image, mask, resize)


def download_lgg(folder: Path) -> Path:
    """Download into `folder` and return the folder kaggle_3m. Raises `DataError` with the manual steps."""
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Use a new folder.")
    try:
        import kagglehub
    except ImportError:
        raise DataError(f"the download needs the extra: pip install 'medseg-bench[data]'. {BY_HAND}") from None
    try:
        cached = Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # requests, urllib3, kagglehub and Kaggle's errors have no common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"the download from Kaggle failed ({reason}). {BY_HAND}") from error
    target = folder / "kaggle_3m"
    shutil.copytree(cached / "kaggle_3m", target)  # the archive holds the tree twice; one copy is enough
    return target
