"""What is wrong with a folder of slices: every trap found in one pass, each with the names of files and patients.

An error makes scores wrong or reading impossible; a warning is something to know before believing a score.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.data.readers.patient_folders import CHANNELS, Tree, read_table, rival, survey
from bench.data.readers.tiff import BadFile, read_image, read_mask
from bench.data.source import Pixels, SliceFile, Source
from bench.errors import DataError
from bench.formatting import listing


@dataclass(frozen=True)
class Finding:
    """One trap: its code, a sentence, and the files and patients that it names."""

    code: str
    message: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """All that was found, and the figures of the data that could be read."""

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def audit(folder: Path, *, tick: Callable[[int, int], None] = lambda done, of: None) -> Audit:
    """Check every file of LGG, or of data laid out like it; `tick(done, of)` is called after each slice.

    Never stops at the first finding; raises `DataError` only when there is no such folder.
    """
    tree = survey(folder)
    total, done = sum(len(scan.slices) for scan in tree.scans.values()), 0
    errors = list(_layout_errors(tree))
    cases = []
    for case, scan in tree.scans.items():
        seen = _Case(case, scan.slices, CHANNELS)
        for entry in scan.slices:
            errors += seen.look(entry)
            tick(done := done + 1, total)
        cases.append(seen)
    errors += _leaks(cases)
    warnings = [*_layout_warnings(tree), *_table_warnings(tree), *_sizes(cases)]
    warnings += [finding for seen in cases for finding in seen.warnings()]
    return Audit(tuple(errors), tuple(warnings), _facts(cases, synthetic=bool(tree.synthetic)))


def audit_source(source: Source, *, tick: Callable[[int, int], None] = lambda done, of: None) -> Audit:
    """Check every slice that the loader of a data set has found, as it reads them."""
    members = defaultdict(list)
    for entry in source.slices:
        members[entry.case].append(entry)
    cases = [_Case(case, tuple(entries), source.channels) for case, entries in members.items()]
    errors: list[Finding] = []
    done, broken = 0, set[Path]()
    for seen in cases:
        for entry in seen.slices:
            tick(done := done + 1, len(source.slices))
            if entry.image in broken:
                continue
            try:
                image, mask = source.read(entry)
            except DataError as bad:
                broken.add(entry.image)
                errors.append(_of_file(bad, entry))
                continue
            seen.take_image(
                entry.image if entry.place is None else Path(f"{entry.image}#{entry.place + 1}"), image
            )
            seen.take_mask(mask)
    warnings = [Finding("note", note) for note in source.notes]
    warnings += [*_sizes(cases), *(finding for seen in cases for finding in seen.warnings())]
    return Audit((*errors, *_leaks(cases)), tuple(warnings), _facts(cases, synthetic=source.synthetic))


@dataclass
class _Case:
    """What the pixels of one patient add up to, slice by slice; no more than one slice is held."""

    case: str
    slices: tuple[SliceFile, ...]
    channels: tuple[str, ...]
    shapes: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)  # of images that are not constant
    flair_levels: list[float] = field(default_factory=list)  # the mean of each slice
    masks: int = 0
    positive: int = 0
    largest: int = 0  # tumour pixels of one slice

    def __post_init__(self) -> None:
        self.blank: dict[str, list[Path]] = {channel: [] for channel in self.channels}
        others = [channel for channel in self.channels if channel != "flair"] if "flair" in self.channels else []
        self.same_as_flair = dict.fromkeys(others, True)

    def look(self, entry: SliceFile) -> Iterator[Finding]:
        """Take in one slice, image and mask each for itself; yields what cannot be used."""
        shape = None
        try:
            image = read_image(entry.image)
        except BadFile as bad:
            yield _of_file(bad, entry)
        else:
            shape = image.shape
            self.take_image(entry.image, image)
        if entry.mask is None:
            return  # an orphan, named with the layout
        try:
            mask = read_mask(entry.mask)
        except BadFile as bad:
            yield _of_file(bad, entry)
            return
        if shape is not None and mask.shape != shape[:2]:
            message = f"{entry.mask} is {_by(mask.shape)}, its image {_by(shape)}."
            yield Finding("mask-size", message, (str(entry.mask), self.case))
        self.take_mask(mask)

    def take_mask(self, mask: Pixels) -> None:
        area = int(mask.sum())
        self.masks += 1
        self.positive += area > 0
        self.largest = max(self.largest, area)

    def take_image(self, path: Path, image: Pixels) -> None:
        self.shapes[path] = image.shape
        planes = dict(zip(self.channels, np.ascontiguousarray(image.transpose(2, 0, 1)), strict=True))
        constant = [channel for channel, plane in planes.items() if plane.min() == plane.max()]
        for channel in constant:
            self.blank[channel].append(path)
        if len(constant) < len(planes):  # empty end slices are alike everywhere and leak nothing
            self.digests[path] = hashlib.blake2b(repr(image.shape).encode() + image.tobytes()).hexdigest()
        for channel in self.same_as_flair:
            # Over the whole patient: one blank slice alone would look like a substitution.
            self.same_as_flair[channel] &= np.array_equal(planes[channel], planes["flair"])
        if "flair" in planes:
            self.flair_levels.append(float(planes["flair"].mean()))

    @property
    def substituted(self) -> list[str]:
        """Channels that are FLAIR in every slice, of a patient whose FLAIR is not blank."""
        if len(self.blank.get("flair", ())) == len(self.shapes):
            return []
        return [channel for channel, same in self.same_as_flair.items() if same]

    def warnings(self) -> Iterator[Finding]:
        for channel in self.substituted:
            message = f"{self.case} has no {channel} sequence: FLAIR stands in its place in every slice."
            yield Finding("substituted-channel", message, (self.case, channel))
        for channel, paths in self.blank.items():
            if paths:
                much = "all" if len(paths) == len(self.shapes) else f"{len(paths)} of {len(self.shapes)}"
                message = f"the {channel} channel of {self.case} is blank in {much} slices."
                yield Finding("blank-channel", message, (self.case, *map(str, paths)))
        if self.masks and not self.positive:
            message = f"{self.case} has no tumour in any mask: its Dice is not defined."
            yield Finding("no-tumour", message, (self.case,))
        for paths in _groups(self.digests.items()):
            message = f"{self.case} holds the same image {len(paths)} times: {listing(p.name for p in paths)}."
            yield Finding("repeated-slice", message, (self.case, *map(str, paths)))


def _of_file(bad: DataError, entry: SliceFile) -> Finding:
    code, path = (bad.code, bad.path) if isinstance(bad, BadFile) else ("refused", entry.image)
    return Finding(code, str(bad), (str(path), entry.case))


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _groups(pairs: Iterable[tuple[Path, str]]) -> list[list[Path]]:
    """Paths that share a digest."""
    found = defaultdict(list)
    for path, digest in pairs:
        found[digest].append(path)
    return [paths for paths in found.values() if len(paths) > 1]


def _layout_errors(tree: Tree) -> Iterator[Finding]:
    if not any(scan.slices for scan in tree.scans.values()):
        yield Finding(
            "no-slices",
            f"{tree.root} holds no slices named <case>/<name>_<number>.tif. "
            "Other images: --dataset pairs; volumes: --dataset volumes.",
            (str(tree.root),),
        )
    if tree.synthetic and (real := sorted(tree.scans.keys() - tree.synthetic)):
        yield Finding(
            "mixed-phantom", f"a phantom and {len(real)} other patient(s) lie in one folder.", tuple(real)
        )
    for case, scan in tree.scans.items():
        kinds: dict[str, tuple[str, Iterable[Path]]] = {
            "orphan-image": ("image(s) without a mask", scan.orphan_images),
            "orphan-mask": ("mask(s) without an image", scan.orphan_masks),
            "duplicate-number": ("images that share a slice number", scan.twice),
        }
        for code, (what, paths) in kinds.items():
            if names := [str(p) for p in paths]:
                short = listing(p.name for p in map(Path, names))
                yield Finding(code, f"{case} has {len(names)} {what}: {short}.", (case, *names))
        if other := rival(scan, tree.copies.get(case, ()), thorough=True):
            message = f"{scan.folder} and {other.folder} both say that they are {case}, and differ."
            yield Finding("copies-differ", message, (case, str(scan.folder), str(other.folder)))


def _layout_warnings(tree: Tree) -> Iterator[Finding]:
    if tree.copies:
        folders = [str(copy.folder) for copies in tree.copies.values() for copy in copies]
        above = sorted({str(Path(f).parent) for f in folders})
        message = (
            f"{len(tree.copies)} patient(s) are there more than once; the copies in {listing(above)} are not used."
        )
        yield Finding("doubled-tree", message, tuple(folders))
    for case, scan in tree.scans.items():
        if scan.gaps:
            yield Finding(
                "slice-gap", f"{case} lacks slice(s) {listing(scan.gaps)}.", (case, *map(str, scan.gaps))
            )
        if scan.slices and (first := scan.slices[0]).number != 1:
            message = f"the slices of {case} start at {first.number}, not at 1."
            yield Finding("numbering", message, (case, str(first.image)))
    for path in tree.unnumbered:
        yield Finding("unnumbered", f"{path} has no slice number and is left out.", (str(path),))
    for institution, case in tree.alone.items():
        message = f"institution {institution} has a single patient, {case}: no fold can be stratified by it."
        yield Finding("lone-institution", message, (institution, case))


def _table_warnings(tree: Tree) -> Iterator[Finding]:
    for path in tree.tables:
        raw = path.read_bytes()
        semicolons, crlf = b";" in raw.partition(b"\n")[0], b"\r\n" in raw
        if odd := " and ".join(["semicolons"] * semicolons + ["CRLF line ends"] * crlf):
            yield Finding("table-dialect", f"{path} has {odd}: a plain read_csv may misread it.", (str(path),))
    for path in tree.tables[:1]:
        try:
            table = read_table(path)
        except DataError as error:
            yield Finding("table-unreadable", str(error), (str(path),))
            continue
        if repeated := sorted(set(table.index[table.index.duplicated()])):
            yield Finding(
                "repeated-row", f"{path} has several rows of {listing(repeated)}.", (str(path), *repeated)
            )
        rows, here = set(table.index), tree.scans.keys()
        if absent := sorted(rows - here):
            message = f"{len(absent)} of {len(rows)} patients in {path} have no images: {listing(absent)}."
            yield Finding("row-without-patient", message, tuple(absent))
        if extra := sorted(here - rows):
            message = f"{len(extra)} of {len(here)} patients have no row in {path}: {listing(extra)}."
            yield Finding("patient-without-row", message, tuple(extra))


def _sizes(cases: list[_Case]) -> Iterator[Finding]:
    shapes = {path: shape for seen in cases for path, shape in seen.shapes.items()}
    if len(sizes := Counter(shapes.values())) < 2:
        return
    usual, count = sizes.most_common(1)[0]
    other = sorted(str(path) for path, shape in shapes.items() if shape != usual)
    message = (
        f"{len(other)} image(s) are not {_by(usual)} as {count} others are: {listing(other)}. "
        "Give dataset.resize a size, and all are resized to it."
    )
    yield Finding("image-size", message, tuple(other))


def _leaks(cases: list[_Case]) -> Iterator[Finding]:
    """The same pixels in two patients: wherever the split falls, one may be tested on what it was trained on."""
    owner = {path: seen.case for seen in cases for path in seen.digests}
    for paths in _groups((path, digest) for seen in cases for path, digest in seen.digests.items()):
        if len(patients := sorted({owner[p] for p in paths})) > 1:
            message = f"patients {listing(patients)} share an image, pixel for pixel: {listing(paths)}."
            yield Finding("shared-slice", message, (*patients, *map(str, paths)))


def _facts(cases: list[_Case], *, synthetic: bool) -> Mapping[str, Any]:
    """Figures of the slices that could be read; `flair_ratio` compares the mean levels of patients."""
    slices = [len(seen.slices) for seen in cases]
    positive = [seen.positive for seen in cases if seen.masks]
    levels = [float(np.mean(seen.flair_levels)) for seen in cases if seen.flair_levels]
    facts: dict[str, Any] = {
        "patients": len(cases),
        "slices": sum(slices),
        "positive_slices": sum(positive),
        "institutions": dict(sorted(Counter(seen.slices[0].institution for seen in cases if seen.slices).items())),
        "synthetic": synthetic,
        "sizes": dict(Counter(_by(shape) for seen in cases for shape in seen.shapes.values()).most_common()),
        "largest_tumour": max((seen.largest for seen in cases), default=0),
    }
    if any(seen.same_as_flair for seen in cases):
        facts["complete_patients"] = sum(not seen.substituted for seen in cases)
        for channel in cases[0].same_as_flair:
            facts[f"without_{channel}"] = [seen.case for seen in cases if channel in seen.substituted]
    if slices:
        facts["slices_per_patient"] = (min(slices), float(np.median(slices)), max(slices))
    if positive:
        facts["positive_per_patient"] = (min(positive), float(np.median(positive)), max(positive))
    if levels and min(levels) > 0:
        facts["flair_ratio"] = max(levels) / min(levels)
    return MappingProxyType(facts)
