"""Findings about the layout of a folder of patients and about the table beside them, before any pixel is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.data.readers.patient_folders import (
    UNKNOWN,
    DataTree,
    find_conflicting_copy,
    parse_case_name,
    read_table,
)
from bench.errors import DataError
from bench.formatting import join_first


@dataclass(frozen=True)
class Finding:
    """One problem: its code, a sentence, and the files and patients concerned."""

    code: str
    message: str
    where: tuple[str, ...] = ()


def layout_errors(tree: DataTree, *, compare_all: bool) -> Iterator[Finding]:
    """Find problems that make a folder unusable; `compare_all` compares every file of duplicated patients."""
    if not any(scan.slices for scan in tree.scans.values()):
        message = (
            f"{tree.root} holds no slices named <case>/<name>_<number>.tif, with masks ..._mask.tif. "
            "For other images use --dataset pairs, for volumes --dataset volumes."
        )
        yield Finding("no-slices", message, (str(tree.root),))
    if tree.synthetic and (real := sorted(tree.scans.keys() - tree.synthetic)):
        message = f"{tree.root} mixes a phantom with {join_first(real)}. Keep them in separate folders."
        yield Finding("mixed-phantom", message, tuple(real))
    for case, scan in tree.scans.items():
        repeated = Counter(s.number for s in scan.slices)
        without_mask = [s.image for s in scan.slices if s.mask is None]
        duplicates = [s.image for s in scan.slices if repeated[s.number] > 1]
        kinds = (
            ("orphan-image", "image(s) without a mask", "Add or remove them.", without_mask),
            ("orphan-mask", "mask(s) without an image", "Add or remove them.", scan.orphan_masks),
            ("duplicate-number", "images with the same slice number", "Keep one each.", duplicates),
        )
        for code, what, fix, paths in kinds:
            if paths:
                message = f"{case} has {len(paths)} {what}: {join_first(p.name for p in paths)}. {fix}"
                yield Finding(code, message, (case, *map(str, paths)))
        if other := find_conflicting_copy(scan, tree.copies.get(case, ()), compare_all=compare_all):
            message = f"{scan.folder} and {other.folder} are both named {case} but differ. Rename or remove one."
            yield Finding("copies-differ", message, (case, str(scan.folder), str(other.folder)))


def layout_warnings(tree: DataTree) -> Iterator[Finding]:
    """Find layout problems that a user should know of."""
    if tree.copies:
        folders = [str(copy.folder) for copies in tree.copies.values() for copy in copies]
        parents = join_first(sorted({str(Path(f).parent) for f in folders}))
        message = f"{len(tree.copies)} patient(s) exist more than once; the copies in {parents} are not used."
        yield Finding("doubled-tree", message, tuple(folders))
    for case, scan in tree.scans.items():
        numbers = [s.number for s in scan.slices] or [0]
        if gaps := sorted(set(range(min(numbers), max(numbers))) - set(numbers)):
            message = f"{case} lacks slice(s) {join_first(gaps)}."
            yield Finding("slice-gap", message, (case, *map(str, gaps)))
        if scan.slices and (first := scan.slices[0]).number != 1:
            message = f"the slices of {case} start at {first.number}, not at 1."
            yield Finding("numbering", message, (case, str(first.image)))
    for path in tree.unnumbered:
        yield Finding("unnumbered", f"{path} has no slice number and is not used.", (str(path),))
    members = defaultdict(list)
    for case, scan in tree.scans.items():
        members[parse_case_name(scan.folder)[1]].append(case)
    for name, (case, *others) in sorted(members.items()):
        if name != UNKNOWN and not others:
            message = f"institution {name} has a single patient, {case}, so folds cannot be stratified by it."
            yield Finding("lone-institution", message, (name, case))


def table_warnings(tree: DataTree) -> Iterator[Finding]:
    """Find problems of data.csv, and differences between its patients and those with images."""
    for path in tree.tables:
        raw = path.read_bytes()
        semicolons, crlf = b";" in raw.partition(b"\n")[0], b"\r\n" in raw
        if odd := " and ".join(["semicolons"] * semicolons + ["CRLF line ends"] * crlf):
            yield Finding("table-dialect", f"{path} has {odd}: a plain read_csv may misread it.", (str(path),))
    for path in tree.tables[:1]:
        try:
            table = read_table(path)
        except DataError as error:
            yield Finding("table-unreadable", f"{error} It is not used.", (str(path),))
            continue
        if repeated := sorted(set(table.index[table.index.duplicated()])):
            message = f"{path} has several rows of {join_first(repeated)}."
            yield Finding("repeated-row", message, (str(path), *repeated))
        rows, cases = set(table.index), tree.scans.keys()
        if absent := sorted(rows - cases):
            message = f"{len(absent)} of {len(rows)} patients in {path.name} have no images: {join_first(absent)}."
            yield Finding("row-without-patient", message, tuple(absent))
        if extra := sorted(cases - rows):
            message = f"{len(extra)} of {len(cases)} patients have no row in {path.name}: {join_first(extra)}."
            yield Finding("patient-without-row", message, tuple(extra))
