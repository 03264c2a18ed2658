"""The audit of a dataset: every problem in one pass, each with the names of files and patients.

An error makes scores wrong or reading impossible; a warning is something to know before trusting a score.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.data.audit_layout import Finding, layout_errors, layout_warnings, table_warnings
from bench.data.readers.images import read_mask, read_pixels
from bench.data.readers.mask_values import LabelMap
from bench.data.readers.patient_folders import CHANNELS, mask_labels, scan_folder
from bench.data.source import (
    BadFile,
    Bits,
    Pixels,
    SliceFile,
    Source,
    UnusableFiles,
    check_mask_size,
    format_shape,
)
from bench.errors import BadSetting, DataError
from bench.formatting import join_first
from bench.structures import TUMOUR, Structures, structure_column


@dataclass(frozen=True)
class Audit:
    """All findings, and figures of the data that could be read."""

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def audit(folder: Path, *, tick: Callable[[int, int], None] = lambda done, total: None) -> Audit:
    """Check every file of LGG, or of data laid out like it. `tick(done, total)` is called after each slice.

    The audit continues after a finding; it raises `DataError` only if the folder does not exist.
    """
    tree = scan_folder(folder)
    total, done = sum(len(scan.slices) for scan in tree.scans.values()), 0
    errors = list(layout_errors(tree, compare_all=True))
    labels = mask_labels(tree)
    cases = [_CaseAudit(case, scan.slices, CHANNELS) for case, scan in tree.scans.items()]
    for audited in cases:
        for entry in audited.slices:
            errors += audited.check_files(entry, labels)
            tick(done := done + 1, total)
    errors += _shared_images(cases)
    warnings = [*layout_warnings(tree), *table_warnings(tree), *_unusual_sizes(cases)]
    warnings += [finding for audited in cases for finding in audited.warnings()]
    return Audit(tuple(errors), tuple(warnings), _facts(cases, synthetic=bool(tree.synthetic)))


def audit_dataset(
    load: Callable[[], Source], *, tick: Callable[[int, int], None] = lambda done, total: None
) -> Audit:
    """Check a dataset that `load` returns, or what is left of it without the files that it refuses."""
    try:
        return audit_source(load(), tick=tick)
    except UnusableFiles as error:
        rest = audit_source(error.source, tick=tick) if error.source else Audit((), ())
        refused = [_unusable_file(problem) for problem in error.problems]
        return replace(rest, errors=(*refused, *rest.errors))


def audit_source(source: Source, *, tick: Callable[[int, int], None] = lambda done, total: None) -> Audit:
    """Check every slice of a source with its own `read`."""
    members = defaultdict(list)
    for entry in source.slices:
        members[entry.case].append(entry)
    made = [(case, tuple(entries)) for case, entries in members.items()]
    cases = [_CaseAudit(*each, source.channels, source.structures) for each in made]
    errors: list[Finding] = []
    done, broken = 0, set[Path]()
    for audited in cases:
        for entry in audited.slices:
            tick(done := done + 1, len(source.slices))
            if entry.image in broken:
                continue
            try:
                image, mask = source.read(entry)
            except (DataError, BadSetting) as error:
                broken.add(entry.image)
                errors.append(_unusable_file(error, entry))
                continue
            path = entry.image if entry.position is None else Path(f"{entry.image}#{entry.position + 1}")
            audited.add_image(path, image)
            audited.add_mask(mask, entry.mask)
    warnings = [Finding("note", note) for note in source.notes]
    warnings += _merged_labels(source)
    if not any(entry.size for entry in source.slices):  # those are padded to one size
        warnings += _unusual_sizes(cases)
    warnings += [finding for audited in cases for finding in audited.warnings()]
    return Audit((*errors, *_shared_images(cases)), tuple(warnings), _facts(cases, synthetic=source.synthetic))


@dataclass
class _CaseAudit:
    """Accumulates facts about the pixels of one patient; at most one slice is in memory."""

    case: str
    slices: tuple[SliceFile, ...]
    channels: tuple[str, ...]
    structures: Structures = TUMOUR
    shapes: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)  # of images that are not constant
    flair_levels: list[float] = field(default_factory=list)  # the mean of each slice
    masks: int = 0
    positive: int = 0
    largest: int = 0  # pixels of any structure in one slice
    bits: int = 0  # of the structures that occur
    white: list[Path | None] = field(default_factory=list)  # masks without background
    inverted: list[Path | None] = field(default_factory=list)  # masks that look so

    def __post_init__(self) -> None:
        self.blank: dict[str, list[Path]] = {channel: [] for channel in self.channels}
        others = [channel for channel in self.channels if channel != "flair"] if "flair" in self.channels else []
        self.same_as_flair = dict.fromkeys(others, True)

    def check_files(self, entry: SliceFile, labels: LabelMap | None) -> Iterator[Finding]:
        """Read image and mask of one slice independently and add them; yield errors of unusable files."""
        image = None
        try:
            image = read_pixels(entry.image, (3,))
            self.add_image(entry.image, image)
        except BadFile as error:
            yield _unusable_file(error, entry)
        if entry.mask is None:
            return  # an orphan, which the layout errors name
        try:
            mask = read_mask(entry.mask, labels)
            self.add_mask(mask, entry.mask)
            if image is not None:
                check_mask_size(image, mask, entry.mask)
        except BadFile as error:
            yield _unusable_file(error, entry)

    def add_mask(self, mask: Bits, path: Path | None) -> None:
        area = int(np.count_nonzero(mask))
        self.bits |= int(np.bitwise_or.reduce(mask, axis=None))
        self.masks += 1
        self.positive += area > 0
        self.largest = max(self.largest, area)
        if area == mask.size:
            self.white.append(path)
        elif area > mask.size / 2 and mask[:: mask.shape[0] - 1 or 1, :: mask.shape[1] - 1 or 1].all():
            self.inverted.append(path)

    def add_image(self, path: Path, image: Pixels) -> None:
        self.shapes[path] = image.shape
        planes = dict(zip(self.channels, np.ascontiguousarray(image.transpose(2, 0, 1)), strict=True))
        constant = [channel for channel, plane in planes.items() if plane.min() == plane.max()]
        for channel in constant:
            self.blank[channel].append(path)
        if len(constant) < len(planes):  # blank end slices are equal in all patients and leak nothing
            self.digests[path] = hashlib.blake2b(repr(image.shape).encode() + image.tobytes()).hexdigest()
        for channel in self.same_as_flair:
            # Over the whole patient: one blank slice alone would look like a substitution.
            self.same_as_flair[channel] &= np.array_equal(planes[channel], planes["flair"])
        if "flair" in planes:
            self.flair_levels.append(float(planes["flair"].mean()))

    @property
    def present(self) -> list[str]:
        """The structures that occur in some mask."""
        return [name for k, name in enumerate(self.structures.names) if self.bits >> k & 1]

    @property
    def substituted(self) -> list[str]:
        """Channels that equal FLAIR in every slice, unless FLAIR itself is blank."""
        if len(self.blank.get("flair", ())) == len(self.shapes):
            return []
        return [channel for channel, same in self.same_as_flair.items() if same]

    def warnings(self) -> Iterator[Finding]:
        noun = self.structures.noun
        for channel in self.substituted:
            message = f"{self.case} has no {channel} sequence: FLAIR replaces it in every slice."
            yield Finding("substituted-channel", message, (self.case, channel))
        for channel, paths in self.blank.items():
            if paths:
                count = "all" if len(paths) == len(self.shapes) else f"{len(paths)} of {len(self.shapes)}"
                message = f"the {channel} channel of {self.case} is blank in {count} slices."
                yield Finding("blank-channel", message, (self.case, *map(str, paths)))
        for code, what, masks in (
            ("all-white", "white everywhere.", self.white),
            ("inverted-mask", f"white in most pixels and all corners: is {noun} black in them?", self.inverted),
        ):
            if masks:
                message = f"{len(masks)} of {self.masks} mask(s) of {self.case} are {what}"
                yield Finding(code, message, (self.case, *map(str, masks)))
        for name in self.structures.names if self.masks == len(self.slices) else ():  # refused masks may hold it
            if name not in self.present:
                dice = "Dice" if len(self.structures) == 1 else structure_column("dice", name)
                message = f"{self.case} has no {name} in any mask: its {dice} is not defined."
                yield Finding(f"no-{name}", message, (self.case,))
        for paths in _groups_by_digest(self.digests.items()):
            names = join_first(p.name for p in paths)
            message = f"{self.case} holds the same image {len(paths)} times: {names}."
            yield Finding("repeated-slice", message, (self.case, *map(str, paths)))


def _unusable_file(error: DataError | BadSetting, entry: SliceFile | None = None) -> Finding:
    where = (str(entry.image), entry.case) if entry else ()
    if isinstance(error, BadFile):
        return Finding(error.code, str(error), (str(error.path), *where[1:]))
    return Finding("refused", str(error), where)


def _groups_by_digest(pairs: Iterable[tuple[Path, str]]) -> list[list[Path]]:
    """Group paths with the same digest; keep groups of more than one."""
    groups = defaultdict(list)
    for path, digest in pairs:
        groups[digest].append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _unusual_sizes(cases: list[_CaseAudit]) -> Iterator[Finding]:
    shapes = {path: shape for audited in cases for path, shape in audited.shapes.items()}
    if len(sizes := Counter(shapes.values())) < 2:
        return
    usual, count = sizes.most_common(1)[0]
    others = sorted(str(path) for path, shape in shapes.items() if shape != usual)
    message = (
        f"{len(others)} image(s) are not {format_shape(usual[:2])} like {count} others: {join_first(others)}. "
        "Set dataset.resize to resize all images to one size."
    )
    yield Finding("image-size", message, tuple(others))


def _merged_labels(source: Source) -> Iterator[Finding]:
    """Find masks of several labels that all count as the only structure, because nothing names them."""
    values = sorted(set().union(*source.mask_values.values()) - {0})
    if source.structures.values == ((),) and len(values) > 1:
        named = ", ".join(f"name{number}: {value}" for number, value in enumerate(values[:3], 1))
        message = (
            f"the masks hold the labels {join_first(values)}, which count as one structure, "
            f"{source.structures.names[0]}. To score each, name them: --set 'dataset.structures={{{named}}}'."
        )
        yield Finding("several-labels", message)


def _shared_images(cases: list[_CaseAudit]) -> Iterator[Finding]:
    """Find equal images of different patients: a split may train on one and test on the other."""
    owner = {path: audited.case for audited in cases for path in audited.digests}
    for paths in _groups_by_digest(item for audited in cases for item in audited.digests.items()):
        if len(patients := sorted({owner[p] for p in paths})) > 1:
            message = f"patients {join_first(patients)} share an image, pixel for pixel: {join_first(paths)}."
            yield Finding("shared-slice", message, (*patients, *map(str, paths)))


def _facts(cases: list[_CaseAudit], *, synthetic: bool) -> Mapping[str, Any]:
    """Return figures of the readable slices; `flair_ratio` is the highest patient mean over the lowest."""
    slices = [len(audited.slices) for audited in cases]
    positive = [audited.positive for audited in cases if audited.masks]
    levels = [float(np.mean(audited.flair_levels)) for audited in cases if audited.flair_levels]
    institutions = Counter(audited.slices[0].institution for audited in cases if audited.slices)
    sizes = Counter(format_shape(shape[:2]) for audited in cases for shape in audited.shapes.values())
    structures = cases[0].structures if cases else TUMOUR
    names, noun = structures.names, structures.noun.removeprefix("a ")
    facts: dict[str, Any] = {
        "patients": len(cases),
        "slices": sum(slices),
        "positive_slices": sum(positive),
        "institutions": dict(sorted(institutions.items())),
        "synthetic": synthetic,
        "sizes": dict(sizes.most_common()),
        f"largest_{noun}": max((audited.largest for audited in cases), default=0),
    }
    if len(names) > 1:
        facts["patients_with"] = {name: sum(name in audited.present for audited in cases) for name in names}
    if any(audited.same_as_flair for audited in cases):
        facts["complete_patients"] = sum(not audited.substituted for audited in cases)
        for channel in cases[0].same_as_flair:
            facts[f"without_{channel}"] = [audited.case for audited in cases if channel in audited.substituted]
    if slices:
        facts["slices_per_patient"] = (min(slices), float(np.median(slices)), max(slices))
    if positive:
        facts["positive_per_patient"] = (min(positive), float(np.median(positive)), max(positive))
    if levels and min(levels) > 0:
        facts["flair_ratio"] = max(levels) / min(levels)
    return MappingProxyType(facts)
