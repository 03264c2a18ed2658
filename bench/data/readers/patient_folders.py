"""Who is in a folder: patients, their slices and the tables beside them, before any pixel is read.

    <case>/<anything>_<n>.tif  with  <case>/<anything>_<n>_mask.tif      data.csv beside the cases, if there is one

Files are grouped by patient, never by path, since the Kaggle archive holds its whole tree twice; masks are
paired with images by name and slices ordered by number, since text sorts `_10_mask.tif` before `_10.tif`.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.data.source import SliceFile
from bench.errors import DataError
from bench.formatting import listing

CHANNELS = ("pre", "flair", "post")


MARKER = "PHANTOM.json"  # lies in a folder of synthetic data, so that it is never taken for patients


TABLE = "data.csv"


UNKNOWN = "unknown"


_SLICE = re.compile(r"(?P<stem>.+_(?P<number>\d+))(?P<mask>_mask)?\.tiff?", re.IGNORECASE)


_BARCODE = re.compile(r"(?P<case>(?:TCGA|PHANTOM)_(?P<institution>[A-Z0-9]{2})_[A-Z0-9]+)(?:_\d{8})?")


@dataclass(frozen=True)
class PatientFolder:
    """The folder of one patient: its slices by number, and masks that belong to none of them."""

    folder: Path
    slices: tuple[SliceFile, ...]
    orphan_masks: tuple[Path, ...] = ()

    @property
    def orphan_images(self) -> list[Path]:
        return [s.image for s in self.slices if s.mask is None]

    @property
    def gaps(self) -> list[int]:
        """Slice numbers that are missing between the first and the last."""
        numbers = [s.number for s in self.slices]
        return sorted(set(range(min(numbers), max(numbers))) - set(numbers)) if numbers else []

    @property
    def twice(self) -> list[Path]:
        """Images whose slice number another image has too."""
        count = Counter(s.number for s in self.slices)
        return [s.image for s in self.slices if count[s.number] > 1]


@dataclass(frozen=True)
class Tree:
    """What lies under a folder, by patient."""

    root: Path
    scans: dict[str, PatientFolder]  # the copy that is used; sorted by case
    copies: dict[str, tuple[PatientFolder, ...]]  # further folders that say they are the same patient
    tables: tuple[Path, ...]  # every data.csv, the nearest to the root first
    unnumbered: tuple[Path, ...]  # TIFF files without a slice number
    synthetic: frozenset[str]  # cases beside or below a phantom's marker

    @property
    def institutions(self) -> dict[str, list[str]]:
        """Institution -> its cases."""
        members = defaultdict(list)
        for case, scan in self.scans.items():
            members[identify(scan.folder)[1]].append(case)
        return dict(sorted(members.items()))

    @property
    def alone(self) -> dict[str, str]:
        """Institution -> its only case."""
        return {name: cases[0] for name, cases in self.institutions.items() if len(cases) == 1 and name != UNKNOWN}


def survey(folder: Path) -> Tree:
    """Find patients, slices and tables under `folder`. Raises `DataError` when it is no folder."""
    root = folder.expanduser()
    if not root.is_dir():
        raise DataError(
            f"the data folder {folder} does not exist. Give dataset.folder the one that holds the cases."
        )
    found: dict[str, list[PatientFolder]] = defaultdict(list)
    tables, unnumbered = [], []
    for parent, inside, names in os.walk(root):
        inside[:] = sorted(n for n in inside if n[0] != "." and n != "__MACOSX")
        here = Path(parent)
        tables += [here / TABLE] if TABLE in names else []
        scan, others = _scan(
            here, sorted(n for n in names if n[0] != "." and n.lower().endswith((".tif", ".tiff")))
        )
        unnumbered += others
        if scan.slices or scan.orphan_masks:
            found[identify(here)[0]].append(scan)
    # The most complete copy is used; of equal ones the nearest to the root.
    ranked = {
        case: sorted(scans, key=lambda s: (-len(s.slices), len(s.folder.parts), str(s.folder)))
        for case, scans in sorted(found.items())
    }
    above = {scan.folder.resolve().parent for scan, *_ in ranked.values()}
    marked = {parent for parent in above if any((p / MARKER).is_file() for p in (parent, *parent.parents))}
    return Tree(
        root=root,
        scans={case: used for case, (used, *_) in ranked.items()},
        copies={case: tuple(rest) for case, (_, *rest) in ranked.items() if rest},
        tables=tuple(sorted(tables, key=lambda t: (len(t.parts), str(t)))),
        unnumbered=tuple(unnumbered),
        synthetic=frozenset(case for case, (used, *_) in ranked.items() if used.folder.resolve().parent in marked),
    )


def identify(folder: Path) -> tuple[str, str]:
    """Case and institution of a folder: TCGA_DU_7010_19860307 is (TCGA_DU_7010, DU).

    The first three fields are the patient's id in data.csv. Any other name is its own case, of 'unknown'.
    """
    name = folder.name or folder.resolve().name  # the name of '.' is ''
    if barcode := _BARCODE.fullmatch(name):
        return barcode["case"], barcode["institution"]
    return name, UNKNOWN


def rival(used: PatientFolder, copies: Iterable[PatientFolder], *, thorough: bool = False) -> PatientFolder | None:
    """The folder, if any, that claims the patient of `used` without being a copy of it.

    It has another name (a second date), shares no file, or a shared file differs. One image and its mask
    are compared, or with `thorough` all of them.
    """
    for copy in copies:
        theirs = {path.name: path for path in _files(copy)}
        shared = [path for path in _files(used) if path.name in theirs]
        tried = shared if thorough else shared[len(shared) // 2 :][:2]
        same_name = copy.folder.name == used.folder.name
        if not (shared and same_name and all(filecmp.cmp(p, theirs[p.name], shallow=False) for p in tried)):
            return copy
    return None


def read_table(path: Path) -> pd.DataFrame:
    """data.csv by patient, with commas or semicolons; an empty cell is missing. Raises `DataError`."""
    try:
        header = path.read_text(encoding="utf-8-sig").partition("\n")[0]
        table = pd.read_csv(path, sep=";" if ";" in header else ",", encoding="utf-8-sig", dtype={"Patient": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({' '.join(str(error).split())}).") from None
    if "Patient" not in table:
        raise DataError(f"{path} has no column 'Patient'; it has {listing(table.columns)}.")
    return table.set_index("Patient")


def _scan(folder: Path, names: list[str]) -> tuple[PatientFolder, list[Path]]:
    case, institution = identify(folder)
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
    return PatientFolder(
        folder, slices, tuple(masks[stem] for stem in sorted(masks.keys() - images.keys()))
    ), unnumbered


def _files(scan: PatientFolder) -> list[Path]:
    return [path for s in scan.slices for path in (s.image, s.mask) if path is not None]
