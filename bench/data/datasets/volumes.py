"""3D volumes in the folder layout of nnU-Net or the Decathlon, cut into slices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from bench.data.readers.dataset_json import Description, channel_names, read_description, stated_structures
from bench.data.readers.images import find_patients, resize_pair
from bench.data.readers.itk import (
    SUFFIXES,
    Grid,
    Window,
    are_aligned,
    find_volumes,
    finest_axis,
    folders_of_volumes,
    group_channels,
    read_array,
    read_grid,
    read_volume,
)
from bench.data.readers.mask_values import LabelMap, Value, Values, as_tuples
from bench.data.readers.patient_folders import UNKNOWN
from bench.data.source import (
    BadFile,
    Bits,
    Pixels,
    SliceFile,
    Source,
    check_mask_size,
    check_subfolders,
    format_shape,
    report_orphans,
    without_problems,
)
from bench.errors import BadSetting, DataError
from bench.files import check_folder
from bench.formatting import join_first
from bench.registry import dataset
from bench.structures import Structures, make_structures

Level = Annotated[float, Field(ge=-1e9, le=1e9)]


@dataset(folders=("imagesTr", "labelsTr"), defaults={"train.epochs": 50, "train.batch_size": 16})
def volumes(
    *,
    folder: Path,
    images: str = "imagesTr",
    labels: str = "labelsTr",
    label: Value | None = None,
    structures: Values | None = None,
    exclusive: bool | None = None,
    axis: Literal[0, 1, 2] | None = None,
    window: tuple[Level, Level] | None = None,
    patient: str | None = None,
    patients: str | None = None,
    resize: Annotated[int, Field(ge=16, le=4096)] | None = None,
) -> Source:
    """Your own volumes: NIfTI, NRRD or MetaImage, in the layout of nnU-Net or the Decathlon (MSD).

    `folder`/`images` holds <case>_0000.nii.gz, <case>_0001.nii.gz ..., one file per channel, or <case>.nii.gz of
    one channel or with channels as a fourth axis; `folder`/`labels` holds <case>.nii.gz. An optional dataset.json
    names the channels, the licence and the values of the structures. `structures` names these by hand, as in
    {anterior: 1, posterior: 2} or, for regions, {tumour: [1, 2, 4], core: [1, 4]}; regions that share a value
    overlap, and `exclusive` = false lets others overlap too. Without any names the only structure is every value
    above 0, or the value `label`. Grey levels become 8 bits: from the 0.5 to the 99.5 percentile of each volume
    and channel, or between the two levels of `window`, such as [-160, 240] for CT. A volume is one patient, unless
    `patient` groups several: a regular expression for <case> whose group is the patient; or `patients` is a table
    below `folder`, such as patients.csv, with the columns image (<case>) and patient. Slices are cut along `axis`
    of the file (0, 1 or 2), by default the one that leaves the finest pixels. Slices of several sizes are padded
    to the largest, and scored on their own grid; `resize` resizes all to that many pixels square instead. Raises
    `BenchError` for problems that must be fixed.
    """
    if window is not None and not window[0] < window[1]:
        raise BadSetting(f"dataset.window = {list(window)} is empty. Give two levels, the lower one first.")
    root = check_folder(folder)
    problems: list[DataError] = []
    scans, masks = _pair_files(root, images, labels, problems)
    description = read_description(root)
    grids, misaligned = _read_grids(scans, masks, problems)
    owners = find_patients(grids, patient, patients, root, images)
    members = defaultdict(list)
    for case in grids:
        members[owners.get(case, case)].append(case)
    along = finest_axis(grids.values()) if axis is None and grids else axis or 0
    cuts = {case: grid.cut(along) for case, grid in grids.items()}
    sizes = {size for _, size, _ in cuts.values()}
    padded = len(sizes) > 1 and resize is None
    slices: list[SliceFile] = []
    for name, cases in sorted(members.items()):
        positions = [(case, position) for case in cases for position in range(cuts[case][0])]
        for number, (case, position) in enumerate(positions, 1):
            _, size, spacing = cuts[case]
            place = position, size if padded else None, None if resize else spacing
            slices.append(SliceFile(name, number, UNKNOWN, scans[case][0], masks[case], *place))
    notes = []
    if along != 2:
        notes += [f"slices are cut along axis {along} of the files; set dataset.axis to choose another."]
    if padded:
        largest = format_shape(tuple(map(max, zip(*sizes, strict=True))))
        notes += [f"slices of {len(sizes)} sizes are padded to {largest} pixels, and scored on their own grid."]
    if patient is None and patients is None:
        notes += ["each volume is treated as one patient; if a patient has several volumes, set dataset.patient."]
    if misaligned:
        notes += [
            f"the headers of {len(misaligned)} label(s) differ in position from their volumes: "
            f"{join_first(misaligned)}; they are matched pixel by pixel, as stored."
        ]
    found = _find_structures(description, structures, label, exclusive, len(grids))
    source = Source(
        name=root.resolve().name,
        slices=tuple(slices),
        read=_Reader({scans[case][0]: scans[case] for case in grids}, found, window, along, resize),
        channels=channel_names(description, next((grid.channels for grid in grids.values()), 1)),
        licence=description.licence or "not stated",
        notes=tuple(notes),
        variant=f"{label} {window} {resize} {along} {structures}",
        structures=found.structures,
        axis=along,
        extra_files=tuple(path for case in grids for path in scans[case][1:]),
        mask_values=found.seen,
    )
    return without_problems(source, problems)


@dataclass
class _Reader:
    """Reads slices of a volume, which stays in memory until a slice of another volume is read."""

    files: Mapping[Path, tuple[Path, ...]]
    labels: LabelMap
    window: Window | None
    axis: int
    resize: int | None
    cached: tuple[Path, Pixels, Bits] | None = None

    def __call__(self, entry: SliceFile) -> tuple[Pixels, Bits]:
        if self.cached is None or self.cached[0] != entry.image:
            self.cached = None  # free its memory first
            assert entry.mask is not None  # `_pair_files`
            images = read_volume(self.files[entry.image], self.window, axis=self.axis)
            labels = np.moveaxis(read_array(entry.mask, finite=True), 2 - self.axis, 0)
            check_mask_size(images, labels, entry.mask)
            self.cached = entry.image, images, self.labels.read(labels, entry.mask)
        _, images, masks = self.cached
        return resize_pair(images[entry.position], masks[entry.position], self.resize)


def _pair_files(
    root: Path, images: str, labels: str, problems: list[DataError]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    """Return the image files and the label file of each case. Raises `DataError`."""
    way = "Set dataset.images and dataset.labels to the two folders."
    folders = folders_of_volumes(root)
    if folders and not any((root / name).is_dir() for name in (images, labels)):
        way = (
            f"It holds {len(folders)} folder(s) of volumes, such as {folders[0].name}. Copy or link those "
            f"of each patient to {images}/<patient>_0000.nii.gz, {images}/<patient>_0001.nii.gz ..., one for "
            f"each channel, and its label to {labels}/<patient>.nii.gz."
        )
    check_subfolders(root, (images, labels), way)
    masks = find_volumes(root / labels, problems.append)
    scans = group_channels(find_volumes(root / images, problems.append), masks, problems.append)
    if not scans and not problems:
        raise DataError(f"{root / images} holds no volumes. They end in {', '.join(SUFFIXES)}.")
    first = {case: channels[0] for case, channels in scans.items()}
    report_orphans(first, masks, problems.append, image="volume", mask="label")
    return {case: scans[case] for case in first}, masks


def _read_grids(
    scans: Mapping[str, tuple[Path, ...]], masks: Mapping[str, Path], problems: list[DataError]
) -> tuple[dict[str, Grid], list[str]]:
    """Return the grid of each case that can be read, and the cases whose label has another position.

    What cannot be read is added to `problems`.
    """
    grids: dict[str, Grid] = {}
    misaligned = []
    for case, files in scans.items():
        try:
            grid, aligned = read_grid(files), are_aligned(files[0], masks[case])
        except BadFile as error:
            problems.append(error)
            continue
        first = next(iter(grids), case)
        if grids.setdefault(case, grid).channels != (count := grids[first].channels):
            sentence = f"has {grid.channels} channel(s), but {first} has {count}. Save all volumes alike."
            problems.append(BadFile("channels", files[0], sentence))
            del grids[case]
        elif not aligned:
            misaligned.append(case)
    return grids, misaligned


def _find_structures(
    description: Description, structures: Values | None, label: Value | None, exclusive: bool | None, files: int
) -> LabelMap:
    """Return how labels are read: by the settings, else as dataset.json says, else as one structure.

    Raises `BenchError`.
    """
    stated = stated_structures(description) if label is None and structures is None else {}
    if not (structures or stated or label):
        return LabelMap(Structures(), files)
    values = as_tuples(structures) if structures else stated or {Structures().names[0]: (label or 1,)}
    setting = "dataset.json" if stated else "dataset.structures" if structures else "dataset.label"
    named = make_structures(values, exclusive, setting=setting)
    if len(named) == 1 and stated:  # then every value above 0 is meant, whatever it is
        named = replace(named, values=((),))
    return LabelMap(named, files, setting, complete=bool(stated))
