"""3D volumes in the folder layout of nnU-Net or the Decathlon, cut into slices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bench.data.readers.images import find_patients, resize_pair
from bench.data.readers.itk import (
    SUFFIXES,
    Window,
    are_aligned,
    count_slices_and_channels,
    find_volumes,
    group_channels,
    read_array,
    read_volume,
    volume_suffix,
)
from bench.data.readers.mask_values import Foreground
from bench.data.readers.patient_folders import UNKNOWN
from bench.data.source import (
    BadFile,
    Pixels,
    SliceFile,
    Source,
    check_folder,
    check_mask_size,
    report_orphans,
    without_problems,
)
from bench.errors import BadSetting, DataError
from bench.files import read_json
from bench.formatting import join_first
from bench.registry import dataset

Level = Annotated[float, Field(ge=-1e9, le=1e9)]


@dataset(defaults={"train.epochs": 50, "train.batch_size": 16})
def volumes(
    *,
    folder: Path,
    images: str = "imagesTr",
    labels: str = "labelsTr",
    label: Annotated[int, Field(ge=1, lt=2**32)] | None = None,
    window: tuple[Level, Level] | None = None,
    patient: str | None = None,
    patients: str | None = None,
    resize: Annotated[int, Field(ge=16, le=4096)] | None = None,
) -> Source:
    """Your own volumes: NIfTI, NRRD or MetaImage, in the layout of nnU-Net or the Decathlon (MSD).

    `folder`/`images` holds <case>_0000.nii.gz, <case>_0001.nii.gz ..., one file per channel, or <case>.nii.gz of
    one channel or with channels as a fourth axis; `folder`/`labels` holds <case>.nii.gz. An optional dataset.json
    names the channels. The foreground is every value above 0, or only the value `label`. Grey levels become 8
    bits: from the 0.5 to the 99.5 percentile of each volume and channel, or between the two levels of `window`,
    such as [-160, 240] for CT. A volume is one patient, unless `patient` groups several: a regular expression for
    <case> whose group is the patient; or `patients` is a table below `folder`, such as patients.csv, with the
    columns image (<case>) and patient. `resize` resizes every slice to that many pixels square. Slices are those
    of the last axis, as stored, and scores are in pixels. Raises `BenchError` for problems that must be fixed.
    """
    if window is not None and not window[0] < window[1]:
        raise BadSetting(f"dataset.window = {list(window)} is empty. Give two levels, the lower one first.")
    root = check_folder(folder)
    problems: list[DataError] = []
    scans, masks = _pair_files(root, images, labels, problems)
    sizes: dict[str, tuple[int, int]] = {}
    misaligned = []
    for case, files in scans.items():
        try:
            size, aligned = count_slices_and_channels(files), are_aligned(files[0], masks[case])
        except BadFile as error:
            problems.append(error)
            continue
        first = next(iter(sizes), case)
        if sizes.setdefault(case, size)[1] != sizes[first][1]:
            sentence = f"has {size[1]} channel(s), but {first} has {sizes[first][1]}. Save all volumes alike."
            problems.append(BadFile("channels", files[0], sentence))
            del sizes[case]
        elif not aligned:
            misaligned.append(case)
    owners = find_patients(sizes, patient, patients, root, images)
    members = defaultdict(list)
    for case in sizes:
        members[owners.get(case, case)].append(case)
    slices: list[SliceFile] = []
    for name, cases in sorted(members.items()):
        positions = [(case, position) for case in cases for position in range(sizes[case][0])]
        slices += [
            SliceFile(name, number, UNKNOWN, scans[case][0], masks[case], position)
            for number, (case, position) in enumerate(positions, 1)
        ]
    notes = []
    if patient is None and patients is None:
        notes += ["each volume is treated as one patient; if a patient has several volumes, set dataset.patient."]
    if misaligned:
        notes += [
            f"the headers of {len(misaligned)} label(s) differ in position from their volumes: "
            f"{join_first(misaligned)}; they are matched pixel by pixel, as stored."
        ]
    foreground = Foreground(f"dataset.label = {label}", label, len(sizes))
    source = Source(
        name=root.resolve().name,
        slices=tuple(slices),
        read=_Reader({scans[case][0]: scans[case] for case in sizes}, foreground, window, resize),
        channels=_channel_names(root, next((channels for _, channels in sizes.values()), 1)),
        licence="not stated",
        notes=tuple(notes),
        variant=f"{label} {window} {resize}",
        extra_files=tuple(path for case in sizes for path in scans[case][1:]),
    )
    return without_problems(source, problems)


@dataclass
class _Reader:
    """Reads slices of a volume, which stays in memory until a slice of another volume is read."""

    files: Mapping[Path, tuple[Path, ...]]
    foreground: Foreground
    window: Window | None
    resize: int | None
    cached: tuple[Path, Pixels, Pixels] | None = None

    def __call__(self, entry: SliceFile) -> tuple[Pixels, Pixels]:
        if self.cached is None or self.cached[0] != entry.image:
            self.cached = None  # free its memory first
            assert entry.mask is not None  # `_pair_files`
            images, labels = read_volume(self.files[entry.image], self.window), read_array(entry.mask, finite=True)
            check_mask_size(images, labels, entry.mask)
            self.cached = entry.image, images, self.foreground.select(labels, entry.mask)
        _, images, masks = self.cached
        return resize_pair(images[entry.position], masks[entry.position], self.resize)


def _pair_files(
    root: Path, images: str, labels: str, problems: list[DataError]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    """Return the image files and the label file of each case. Raises `DataError`."""
    if missing := [name for name in (images, labels) if not (root / name).is_dir()]:
        way = "Set dataset.images and dataset.labels to the two folders."
        folders = [
            path for path in sorted(root.iterdir()) if path.is_dir() and any(map(volume_suffix, path.iterdir()))
        ]
        if folders and len(missing) == 2:
            way = (
                f"It holds {len(folders)} folder(s) of volumes, such as {folders[0].name}. Copy or link those "
                f"of each patient to {images}/<patient>_0000.nii.gz, {images}/<patient>_0001.nii.gz ..., one for "
                f"each channel, and its label to {labels}/<patient>.nii.gz."
            )
        raise DataError(f"{root} has no folder '{missing[0]}'. {way}")
    masks = find_volumes(root / labels, problems.append)
    scans = group_channels(find_volumes(root / images, problems.append), masks, problems.append)
    if not scans and not problems:
        raise DataError(f"{root / images} holds no volumes. They end in {', '.join(SUFFIXES)}.")
    first = {case: channels[0] for case, channels in scans.items()}
    report_orphans(first, masks, problems.append, image="volume", mask="label")
    return {case: scans[case] for case in first}, masks


def _channel_names(root: Path, count: int) -> tuple[str, ...]:
    """Return the channel names of dataset.json in lower case, or numbered names. Raises `DataError`."""
    stated: dict[str, Any] = {}
    if (file := root / "dataset.json").exists():
        content = read_json(file, "the description", "Fix or remove it.")
        try:
            stated = dict(content.get("channel_names") or content.get("modality") or {})
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file} cannot be read ({error}). Fix or remove it.") from None
    names = tuple(str(stated.get(str(number), "")).lower() for number in range(count))
    if all(names) and len(set(names)) == count:
        return names
    return ("grey",) if count == 1 else tuple(f"channel{number}" for number in range(count))
