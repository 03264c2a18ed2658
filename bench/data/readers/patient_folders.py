"""Folders of patients in the layout of LGG: their slices and tables, before any pixel is read.

    <case>/<anything>_<n>.tif  with  <case>/<anything>_<n>_mask.tif      optionally data.csv beside the cases

Files are grouped by patient, never by path, since the Kaggle archive holds its whole tree twice. Masks are paired
with images by name and slices are ordered by number, since text sorts `_10_mask.tif` before `_10.tif`.
"""

from __future__ import annotations

import filecmp
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.data.readers.mask_values import LabelMap
from bench.data.source import SliceFile, walk
from bench.errors import DataError
from bench.files import check_folder, read_json
from bench.formatting import join_first
from bench.structures import make_structures

CHANNELS = ("pre", "flair", "post")
MARKER = "PHANTOM.json"  # marks a folder of synthetic data, so that it is never mistaken for patients
TABLE = "data.csv"
UNKNOWN = "unknown"
TEXT = dict.fromkeys(("Patient", "patient", "image"), str)  # the columns that are no numbers

_SLICE = re.compile(r"(?P<stem>.+_(?P<number>\d+))(?P<mask>_mask)?\.tiff?", re.IGNORECASE)
_BARCODE = re.compile(r"(?P<case>(?:TCGA|PHANTOM)_(?P<institution>[A-Z0-9]{2})_[A-Z0-9]+)(?:_\d{8})?")


@dataclass(frozen=True)
class PatientFolder:
    """The folder of one patient: its slices by number, and masks without an image."""

    folder: Path
    slices: tuple[SliceFile, ...]
    orphan_masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DataTree:
    """The content of a folder, by patient."""

    root: Path
    scans: dict[str, PatientFolder]  # the copy that is used; sorted by case
    copies: dict[str, tuple[PatientFolder, ...]]  # further folders with the same case name
    tables: tuple[Path, ...]  # every data.csv, those nearest to the root first
    unnumbered: tuple[Path, ...]  # TIFF files without a slice number
    synthetic: frozenset[str]  # cases in a folder that is marked as synthetic, or below one
    marker: Path | None = None  # the file that marks the first of them


def scan_folder(folder: Path) -> DataTree:
    """Find patients, slices and tables under `folder`. Raises `DataError` if it is not a folder."""
    root = check_folder(folder)
    scans: dict[str, list[PatientFolder]] = defaultdict(list)
    tables, unnumbered = [], []
    for current, names in walk(root):
        tables += [current / TABLE] if TABLE in names else []
        tiffs = [name for name in names if name.lower().endswith((".tif", ".tiff"))]
        scan, others = _scan_patient(current, tiffs)
        unnumbered += others
        if scan.slices or scan.orphan_masks:
            scans[parse_case_name(current)[0]].append(scan)
    for (
        copies
    ) in scans.values():  # the most complete one is used; of equally complete ones the nearest to the root
        copies.sort(key=lambda s: (-len(s.slices), len(s.folder.parts), str(s.folder)))
    ranked = dict(sorted(scans.items()))
    parents = {scan.folder.resolve().parent for scan, *_ in ranked.values()}
    markers = {parent: [m for p in (parent, *parent.parents) if (m := p / MARKER).is_file()] for parent in parents}
    marked = {parent: found[0] for parent, found in markers.items() if found}
    return DataTree(
        root=root,
        scans={case: used for case, (used, *_) in ranked.items()},
        copies={case: tuple(rest) for case, (_, *rest) in ranked.items() if rest},
        tables=tuple(sorted(tables, key=lambda t: (len(t.parts), str(t)))),
        unnumbered=tuple(unnumbered),
        synthetic=frozenset(case for case, (used, *_) in ranked.items() if used.folder.resolve().parent in marked),
        marker=min(marked.values(), default=None),
    )


def mask_labels(tree: DataTree) -> LabelMap | None:
    """Return what the values of the masks stand for, which a phantom of several structures states; else None."""
    marker = read_json(tree.marker, "the marker", "Write the phantom again.") if tree.marker else {}
    labels = marker.get("labels")
    count = sum(len(scan.slices) for scan in tree.scans.values())
    return LabelMap(make_structures(labels), count, MARKER) if labels else None


def parse_case_name(folder: Path) -> tuple[str, str]:
    """Return case and institution of a folder: TCGA_DU_7010_19860307 is (TCGA_DU_7010, DU).

    The first three fields are the patient's id in data.csv. Any other name is a case of institution 'unknown'.
    """
    name = folder.name or folder.resolve().name  # the name of '.' is ''
    if barcode := _BARCODE.fullmatch(name):
        return barcode["case"], barcode["institution"]
    return name, UNKNOWN


def find_conflicting_copy(
    used: PatientFolder, copies: Iterable[PatientFolder], *, compare_all: bool = False
) -> PatientFolder | None:
    """Return the first folder that has the case name of `used` but is not a copy of it, or None.

    Such a folder has another name (a second date), shares no file with `used`, or a shared file differs. One image
    and its mask are compared, or all files with `compare_all`.
    """
    for copy in copies:
        copied = {path.name: path for path in _files(copy)}
        shared = [path for path in _files(used) if path.name in copied]
        compared = shared if compare_all else shared[len(shared) // 2 :][:2]
        same_name = copy.folder.name == used.folder.name
        if not (shared and same_name and all(filecmp.cmp(p, copied[p.name], shallow=False) for p in compared)):
            return copy
    return None


def read_table(path: Path, key: str = "Patient") -> pd.DataFrame:
    """Read a table with commas or semicolons, indexed by a column; empty cells are NaN. Raises `DataError`."""
    try:
        header = path.read_text(encoding="utf-8-sig").partition("\n")[0]
        table = pd.read_csv(path, sep=";" if ";" in header else ",", encoding="utf-8-sig", dtype=TEXT)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({' '.join(str(error).split())}).") from None
    if key not in table:
        raise DataError(f"{path} has no column '{key}'; it has {join_first(table.columns)}.")
    return table.set_index(key)


def read_patients(path: Path, images: Collection[str]) -> dict[str, str]:
    """Return `{image: patient}` from the columns image and patient of a table. Raises `DataError`.

    An image is named by its path below its folder or by its file name, with or without a suffix. Rows of other
    images are ignored.
    """
    table = read_table(path, "image")
    if "patient" not in table:
        raise DataError(f"{path} has no column 'patient'; it has {join_first(['image', *table.columns])}.")
    table, names = table.dropna(subset=["patient"]), Counter(image.rpartition("/")[2] for image in images)
    owners = defaultdict[str, set[str]](set)
    for name, patient in zip(map(str, table.index), table["patient"], strict=True):
        for key in {name, str(Path(name).with_suffix("")), name.removesuffix(".nii.gz")}:
            owners[key].add(patient)
    found = {image: owners.get(image, set()) for image in images}
    for image in found.keys() - owners.keys():
        if names[name := image.rpartition("/")[2]] == 1:
            found[image] = owners.get(name, set())
    for problem, wrong in (
        ("has no row", [image for image, patients in found.items() if not patients]),
        ("names several patients", [image for image, patients in found.items() if len(patients) > 1]),
    ):
        if wrong:
            raise DataError(
                f"{path} {problem} for {len(wrong)} image(s): {join_first(wrong)}. Add or correct the rows."
            )
    return {image: patient for image, (patient,) in found.items()}


def _scan_patient(folder: Path, names: list[str]) -> tuple[PatientFolder, list[Path]]:
    """Pair images and masks among the TIFF files of one folder. Return files without a slice number separately."""
    case, institution = parse_case_name(folder)
    images: dict[str, tuple[int, Path]] = {}
    masks: dict[str, Path] = {}
    unnumbered = []
    for name in names:
        if (match := _SLICE.fullmatch(name)) is None:
            unnumbered.append(folder / name)
        elif match["mask"]:
            masks[match["stem"]] = folder / name
        else:
            images[match["stem"]] = int(match["number"]), folder / name
    slices = tuple(
        SliceFile(case, number, institution, image, masks.get(stem))
        for stem, (number, image) in sorted(images.items(), key=lambda item: item[1])
    )
    orphans = tuple(masks[stem] for stem in sorted(masks.keys() - images.keys()))
    return PatientFolder(folder, slices, orphans), unnumbered


def _files(scan: PatientFolder) -> list[Path]:
    return [path for s in scan.slices for path in (s.image, s.mask) if path is not None]
