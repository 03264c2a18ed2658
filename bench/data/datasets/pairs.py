"""Images of your own with a mask each, in two folders or side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.data.readers.images import (
    MASK,
    SUFFIXES,
    files_below,
    name_below,
    number_of,
    read_mask_of,
    read_pixels,
    resized,
    said_patient,
)
from bench.data.readers.patient_folders import UNKNOWN
from bench.data.readers.tiff import on_one_grid
from bench.data.source import Pixels, SliceFile, Source
from bench.errors import DataError
from bench.formatting import listing
from bench.registry import dataset

PARTS = "train", "training", "val", "valid", "validation", "test", "testing"  # no patient is called so


CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}


@dataset(defaults={"train.epochs": 50, "train.batch_size": 16})
def pairs(
    *,
    folder: Path,
    images: str = "images",
    masks: str = "masks",
    patient: str | None = None,
    resize: Annotated[int, Field(ge=16, le=4096)] | None = None,
) -> Source:
    """Images of your own with a mask each: PNG, JPEG or TIFF of 8 bits, grey or colour.

    Images lie below `folder`/`images`, their masks below `folder`/`masks` under the same names, with or without
    _mask or _segmentation at the end; '.' for both says that masks lie beside their images. A folder of images is
    a patient. Where several share one, `patient` says who is who: a regular expression for the path of an image
    below `images`, without its suffix, whose group is the patient: '(P[0-9]+)_.*', or '(.*)' where every image is
    a patient of its own. `resize` makes every slice that many pixels a side when it is read, the image by area and
    the mask by nearest pixel. Raises `BenchError` for what must be mended.
    """
    root = folder.expanduser()
    pictures, truths = _paired(root, images, masks)
    members = defaultdict(list)
    for name in pictures:
        members[_patient(name, patient, root / images)].append(name)
    slices = tuple(
        SliceFile(case, number, UNKNOWN, pictures[name], truths[name])
        for case, names in sorted(members.items())
        for number, name in _numbered(names)
    )
    channels = CHANNELS[read_pixels(slices[0].image).shape[-1]]
    return Source(
        name=root.resolve().name,
        slices=slices,
        read=partial(_read, channels=len(channels), resize=resize),
        channels=channels,
        licence="not stated",
        variant=f"resize={resize}" if resize else "",
    )


def _paired(root: Path, images: str, masks: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks, each by the path of the image below its folder, without suffix. Raises `DataError`."""
    for name in (images, masks):
        if not (root / name).is_dir():
            raise DataError(
                f"{root} has no folder '{name}'. Name the two folders with dataset.images and dataset.masks; "
                "'.' for both where masks lie beside their images."
            )
    beside = (root / images).resolve() == (root / masks).resolve()
    pictures = _named(p for p in _below(root / images) if not (beside and MASK.fullmatch(p[0])))
    truths = _named(
        (name if name in pictures or not (marked := MASK.fullmatch(name)) else marked[1], path)
        for name, path in _below(root / masks)
        if not (beside and name in pictures)
    )
    if not pictures:
        raise DataError(f"{root / images} holds no images. They end in {', '.join(SUFFIXES)}.")
    for some, others, lack in ((pictures, truths, "have no mask"), (truths, pictures, "are masks of no image")):
        if orphans := [some[name] for name in sorted(some.keys() - others.keys())]:
            raise DataError(f"{len(orphans)} file(s) {lack}: {listing(orphans)}. Mend or remove them.")
    return pictures, truths


def _below(folder: Path) -> Iterable[tuple[str, Path]]:
    return ((name_below(folder, path), path) for path in files_below(folder))


def _named(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for name, path in found:
        if name in named:
            raise DataError(f"{named[name]} and {path} are of one name. Keep one of them.")
        named[name] = path
    return named


def _patient(name: str, pattern: str | None, images: Path) -> str:
    """Whose image this is. Raises `BenchError` where that is not said: a guess would be a leak."""
    if pattern is None:
        parent, _, file = name.rpartition("/")
        if parent.lower() in PARTS:
            raise DataError(
                f"{images / parent} is named as a part of a split, not as a patient. Say whose images such "
                f"as {file} are: dataset.patient='{parent}/(P[0-9]+)_.*', or '.*/(P[0-9]+)_.*' for all parts."
            )
        if not parent:
            raise DataError(
                f"{images} holds images that are in no patient's folder, such as {name}. Say whose they are: "
                "dataset.patient='(P[0-9]+)_.*', or '(.*)' if every image is a patient of its own."
            )
        return parent
    return said_patient(name, pattern, images)


def _numbered(names: list[str]) -> list[tuple[int, str]]:
    """A patient's slices in order, by the last number in their names; counted where two have the same."""
    ordered = sorted(names, key=lambda name: (number_of(Path(name).name), name))
    numbers = [number_of(Path(name).name) for name in ordered]
    if len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(ordered) + 1))
    return list(zip(numbers, ordered, strict=True))


def _read(entry: SliceFile, *, channels: int, resize: int | None) -> tuple[Pixels, Pixels]:
    assert entry.mask is not None  # `_paired`
    image, mask = read_pixels(entry.image), read_mask_of(entry.mask)
    if image.shape[-1] != channels:
        raise DataError(f"{entry.image} has {image.shape[-1]} channel(s), the first {channels}. Save all alike.")
    on_one_grid(image, mask, entry.mask)
    return resized(image, mask, resize)
