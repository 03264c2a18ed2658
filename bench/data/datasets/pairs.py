"""Images with one mask each, in two folders or side by side."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.data.readers.images import (
    MASK_NAME,
    SUFFIXES,
    find_patients,
    last_number,
    list_images,
    read_mask,
    read_pixels,
    relative_name,
    resize_pair,
)
from bench.data.readers.mask_values import Colours, LabelMap, Values, as_tuples, colour_map
from bench.data.readers.patient_folders import UNKNOWN
from bench.data.source import (
    BadFile,
    Pixels,
    Report,
    SliceFile,
    Source,
    UnusableFiles,
    by_name,
    check_mask_size,
    check_subfolders,
    report_orphans,
    without_problems,
)
from bench.errors import BadSetting, DataError
from bench.files import check_folder
from bench.registry import dataset
from bench.structures import Structures, make_structures

SPLIT_FOLDERS = "train", "training", "val", "valid", "validation", "test", "testing"  # never names of patients
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}


@dataset(folders=("images", "masks"), defaults={"train.epochs": 50, "train.batch_size": 16})
def pairs(
    *,
    folder: Path,
    images: str = "images",
    masks: str = "masks",
    patient: str | None = None,
    patients: str | None = None,
    structures: Values | None = None,
    exclusive: bool | None = None,
    colours: Colours | None = None,
    resize: Annotated[int, Field(ge=16, le=4096)] | None = None,
) -> Source:
    """Your own images with one mask each: PNG, JPEG or TIFF of 8 bits, grey or colour.

    Images are below `folder`/`images`, their masks below `folder`/`masks` with the same names, with or without
    _mask or _segmentation at the end; '.' for both means that masks are beside their images. A folder of images is
    one patient. If several patients share a folder, `patient` is a regular expression for the path of an image
    below `images`, without its suffix, whose group is the patient: '(P[0-9]+)_.*', or '(.*)' if every image is a
    separate patient; or `patients` is a table below `folder`, such as patients.csv, with the columns image and
    patient. A mask holds 0 and 255, or 0 and 1. Otherwise `structures` names the grey levels of each structure,
    such as {liver: 1, kidneys: [2, 3]}, or `colours` their colours, such as {tumour: [255, 0, 0]}. Structures that
    share a level overlap; `exclusive` = false lets others overlap too. `resize` resizes every slice to that many
    pixels square when it is read, the image by area and the mask by nearest pixel. Raises `BenchError` for
    problems that must be fixed.
    """
    root = check_folder(folder)
    problems: list[DataError] = []
    image_files, mask_files = _pair_files(root, images, masks, problems.append)
    owners = find_patients(image_files, patient, patients, root, images)
    members = defaultdict(list)
    for name in image_files:
        members[owners[name] if owners else _folder_of(name, root / images)].append(name)
    slices = tuple(
        SliceFile(case, number, UNKNOWN, image_files[name], mask_files[name])
        for case, names in sorted(members.items())
        for number, name in _number_slices(names)
    )
    channels = _channels_of(slices) if slices else CHANNELS[1]
    if structures and colours:
        raise BadSetting("dataset.structures and dataset.colours both name the structures. Set one of them.")
    labels = colour_map(colours, len(mask_files)) if colours else None
    if structures:
        labels = LabelMap(make_structures(as_tuples(structures), exclusive), len(mask_files))
    source = Source(
        name=root.resolve().name,
        slices=slices,
        read=partial(_read, channels=len(channels), resize=resize, labels=labels),
        channels=channels,
        licence="not stated",
        variant=" ".join(
            f"{name}={value}"
            for name, value in (("resize", resize), ("colours", colours), ("structures", structures))
            if value
        ),
        structures=labels.structures if labels else Structures(),
    )
    return without_problems(source, problems)


def _pair_files(root: Path, images: str, masks: str, report: Report) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and masks by the path of the image below its folder, without suffix. Raises `DataError`."""
    way_out = "Set dataset.images and dataset.masks to the two folders, or both to '.' if masks are beside images."
    check_subfolders(root, (images, masks), way_out)
    side_by_side = (root / images).resolve() == (root / masks).resolve()
    in_images, in_masks = (
        [(relative_name(folder, path), path) for path in list_images(folder)]
        for folder in (root / images, root / masks)
    )
    image_files = by_name((p for p in in_images if not (side_by_side and MASK_NAME.fullmatch(p[0]))), report)
    if not image_files:
        raise DataError(f"{root / images} holds no images. They end in {', '.join(SUFFIXES)}.")
    mask_files = by_name(
        (
            (name if name in image_files or not (match := MASK_NAME.fullmatch(name)) else match[1], path)
            for name, path in in_masks
            if not (side_by_side and name in image_files)
        ),
        report,
    )
    report_orphans(image_files, mask_files, report)
    return image_files, mask_files


def _channels_of(slices: tuple[SliceFile, ...]) -> tuple[str, ...]:
    """Return the channels of the first image that can be read. Raises `BadFile` if there is none."""
    broken: list[BadFile] = []
    for entry in slices:
        try:
            return CHANNELS[read_pixels(entry.image).shape[-1]]
        except BadFile as error:
            broken.append(error)
    raise UnusableFiles(broken, None)


def _folder_of(name: str, images: Path) -> str:
    """Return the folder of an image: its patient. Raises `DataError` for one that may hold several patients."""
    parent, _, file = name.rpartition("/")
    if parent.lower() in SPLIT_FOLDERS:
        raise DataError(
            f"{images / parent} is named like a part of a split, not like a patient. Set a pattern that finds "
            f"the patient of {file}: --set 'dataset.patient={parent}/(P[0-9]+)_.*', "
            "or '.*/(P[0-9]+)_.*' for all parts."
        )
    if not parent:
        raise DataError(
            f"{images} holds images outside any patient's folder, such as {name}. Set a pattern for patients: "
            "--set 'dataset.patient=(P[0-9]+)_.*', or '(.*)' if every image is a separate patient."
        )
    return parent


def _number_slices(names: list[str]) -> list[tuple[int, str]]:
    """Order the slices of a patient by the last number in their names; count them if numbers repeat."""
    ordered = sorted(names, key=lambda name: (last_number(Path(name).name), name))
    numbers = [last_number(Path(name).name) for name in ordered]
    if len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(ordered) + 1))
    return list(zip(numbers, ordered, strict=True))


def _read(
    entry: SliceFile, *, channels: int, resize: int | None, labels: LabelMap | None
) -> tuple[Pixels, Pixels]:
    assert entry.mask is not None  # `_pair_files`
    image, mask = read_pixels(entry.image), read_mask(entry.mask, labels)
    if image.shape[-1] != channels:
        sentence = f"has {image.shape[-1]} channel(s), but the first image has {channels}. Save all images alike."
        raise BadFile("channels", entry.image, sentence)
    check_mask_size(image, mask, entry.mask)
    return resize_pair(image, mask, resize)
