"""Volumes of your own, laid out as challenges give them, cut into slices."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from bench.data.readers.images import resized, said_patient
from bench.data.readers.itk import (
    SUFFIXES,
    Window,
    by,
    by_case,
    extent,
    find_volumes,
    read_array,
    read_volume,
    together,
)
from bench.data.readers.patient_folders import UNKNOWN
from bench.data.readers.tiff import BadFile
from bench.data.source import Pixels, SliceFile, Source
from bench.errors import BadSetting, DataError
from bench.formatting import listing
from bench.registry import dataset


@dataset(defaults={"train.epochs": 50, "train.batch_size": 16})
def volumes(
    *,
    folder: Path,
    images: str = "imagesTr",
    labels: str = "labelsTr",
    label: Annotated[int, Field(ge=1)] | None = None,
    window: Window | None = None,
    patient: str | None = None,
    resize: Annotated[int, Field(ge=16, le=4096)] | None = None,
) -> Source:
    """Volumes of your own: NIfTI, NRRD or MetaImage, laid out as for nnU-Net or the Decathlon (MSD).

    `folder`/`images` holds <case>_0000.nii.gz, <case>_0001.nii.gz ..., a file a channel, or <case>.nii.gz of one
    channel or with channels as a fourth axis; `folder`/`labels` holds <case>.nii.gz. dataset.json, where there is
    one, names the channels. What is above 0 is to be found, or the one value `label`. Grey levels become 8 bits:
    from the 0.5 to the 99.5 percentile of each volume and channel, or between the two of `window`, such as
    [-160, 240] for a CT. A volume is a patient; where several are of one, `patient` says so: a regular expression
    for <case> whose group is the patient. `resize` makes every slice that many pixels a side. Slices are those of
    the last axis, as stored, and scores are in pixels. Raises `BenchError` for what must be mended.
    """
    if window is not None and not window[0] < window[1]:
        raise BadSetting(f"dataset.window = {list(window)} is empty. Give two levels, the lower one first.")
    root = folder.expanduser()
    scans, truths = _paired(root, images, labels)
    sizes = {case: extent(files) for case, files in scans.items()}
    (first, (_, channels)), *others = sizes.items()
    for case, (_, count) in others:
        if count != channels:
            raise DataError(f"{case} has {count} channel(s), {first} has {channels}. Save all alike.")
    members = defaultdict(list)
    for case in scans:
        members[case if patient is None else said_patient(case, patient, root / images)].append(case)
    slices: list[SliceFile] = []
    for who, cases in sorted(members.items()):
        places = [(case, place) for case in cases for place in range(sizes[case][0])]
        slices += [
            SliceFile(who, number, UNKNOWN, scans[case][0], truths[case], place)
            for number, (case, place) in enumerate(places, 1)
        ]
    return Source(
        name=root.resolve().name,
        slices=tuple(slices),
        read=_Reader({files[0]: files for files in scans.values()}, label, window, resize),
        channels=_channel_names(root, channels),
        licence="not stated",
        notes=tuple(_notes(scans, truths, patient)),
        variant=f"{label} {window} {resize}",
        beside=tuple(path for files in scans.values() for path in files[1:]),
    )


def _notes(
    scans: Mapping[str, tuple[Path, ...]], truths: Mapping[str, Path], patient: str | None
) -> Iterator[str]:
    if patient is None:
        yield "each volume is taken for a patient of its own; where several are of one, give dataset.patient."
    if apart := [case for case, files in scans.items() if not together(files[0], truths[case])]:
        yield (
            f"by their headers, {len(apart)} label(s) do not lie where their volumes do: {listing(apart)}; "
            "they are taken pixel by pixel, as stored."
        )


@dataclass
class _Reader:
    """Reads a slice out of its volume, which is kept until a slice of another one is asked for."""

    files: Mapping[Path, tuple[Path, ...]]
    label: int | None
    window: Window | None
    resize: int | None
    held: tuple[Path, Pixels, Pixels] | None = None

    def __call__(self, entry: SliceFile) -> tuple[Pixels, Pixels]:
        if self.held is None or self.held[0] != entry.image:
            self.held = None  # its memory first
            self.held = (entry.image, *self._read(entry))
        _, images, masks = self.held
        return resized(images[entry.place], masks[entry.place], self.resize)

    def _read(self, entry: SliceFile) -> tuple[Pixels, Pixels]:
        assert entry.mask is not None  # `_paired`
        images, truth = read_volume(self.files[entry.image], self.window), read_array(entry.mask)
        if truth.shape != images.shape[:3]:
            sizes = f"{by(truth)}, its image {by(images[..., 0])}"
            raise BadFile("mask-size", entry.mask, f"is {sizes}. Save both on one grid.")
        return images, np.asarray(truth > 0 if self.label is None else truth == self.label, np.uint8)


def _paired(root: Path, images: str, labels: str) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    """The files of each scan, and its label, by case. Raises `DataError`."""
    for name in (images, labels):
        if not (root / name).is_dir():
            raise DataError(
                f"{root} has no folder '{name}'. Name the two folders with dataset.images and dataset.labels."
            )
    truths = find_volumes(root / labels)
    scans = by_case(find_volumes(root / images), truths)
    if not scans:
        raise DataError(f"{root / images} holds no volumes. They end in {', '.join(SUFFIXES)}.")
    for some, others, lack in ((scans, truths, "have no label"), (truths, scans, "are labels of no volume")):
        if orphans := sorted(set(some) - set(others)):
            raise DataError(f"{len(orphans)} case(s) {lack}: {listing(orphans)}. Mend or remove them.")
    return scans, truths


def _channel_names(root: Path, count: int) -> tuple[str, ...]:
    """As dataset.json calls them, in small letters, or by their numbers. Raises `DataError`."""
    told: dict[str, Any] = {}
    if (file := root / "dataset.json").is_file():
        try:
            said = json.loads(file.read_text())
            told = dict(said.get("channel_names") or said.get("modality") or {})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file} cannot be read ({error}). Mend or remove it.") from None
    names = tuple(str(told.get(str(number), "")).lower() for number in range(count))
    if all(names) and len(set(names)) == count:
        return names
    return ("grey",) if count == 1 else tuple(f"channel{number}" for number in range(count))
