"""What the demo shows: a patient of a data folder with its truth, or files that somebody dropped on the page."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.data.fingerprints import fingerprints, image_table
from bench.data.pack import histograms_of, load_or_pack
from bench.data.readers.images import find_images, read_slice
from bench.data.source import Pixels, Source
from bench.errors import DataError
from bench.masks import Mask

SUFFIXES = (".tif", ".tiff", ".png")  # no JPEG: one that is cut short would be read as if it were whole


LARGEST = 1 << 26  # pixels of a stack that is dropped on the page; `bench predict` takes more


@dataclass(frozen=True, eq=False)
class Scan:
    """The slices of one patient: uint8 (S, H, W, C), and bool (S, H, W) where there is a truth.

    `case` is the patient of the data folder, None for dropped files. Equal `key`s are equal scans. `names` are
    those of the slices' files without suffix, `prints` the `fingerprints` of their images.
    """

    key: str
    title: str
    case: str | None
    images: Pixels
    truth: Mask | None
    names: tuple[str, ...]
    channels: tuple[str, ...]
    synthetic: bool = False
    data: str = ""  # content key of the data set that it belongs to
    prints: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @cached_property
    def bright(self) -> tuple[float, ...]:
        """The grey level that is shown white, for each channel: one for all slices."""
        flat = self.images.reshape(-1, self.images.shape[-1])
        return tuple(float(b) for b in np.maximum(np.percentile(flat, 99.5, axis=0), 1))


class Patients:
    """The patients of a data folder. Raises `DataError` for one that cannot be used."""

    def __init__(self, source: Source, tick: Callable[[int, int], None] = lambda done, of: None) -> None:
        self.pack = load_or_pack(source, tick=tick)
        self._names = [  # in the order of the pack's rows
            entry.image.stem if entry.place is None else f"{entry.image.name.partition('.')[0]}_{entry.place + 1}"
            for entry in source.slices
        ]
        self._prints = image_table(self.pack).groupby("case")["image"].agg(frozenset).to_dict()

    @property
    def cases(self) -> list[str]:
        return self.pack.cases

    def scan(self, case: str) -> Scan:
        """One patient. Raises `DataError` when it is not there."""
        rows, manifest = self.pack.rows([case]), self.pack.manifest
        if not len(rows):
            raise DataError(f"there is no patient {case} in the data folder. Choose one of the list.")
        return Scan(
            key=f"{manifest.key}/{case}",
            title=case,
            case=case,
            images=np.array(self.pack.images[rows]),
            truth=self.pack.masks[rows].astype(bool),
            names=tuple(self._names[row] for row in rows),
            channels=manifest.channels,
            synthetic=manifest.synthetic,
            data=manifest.key,
            prints=self.prints(case),
        )

    def prints(self, case: str) -> frozenset[str]:
        """What the images of a patient are known by (`fingerprints`)."""
        found: frozenset[str] = self._prints.get(case, frozenset())
        return found


def dropped(files: Sequence[Path], channels: tuple[str, ...]) -> Scan:
    """Files as the slices of one patient, in the order of their numbers. Raises `DataError`.

    Files that end in _mask are left out, and said.
    """
    _refuse(files)
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copy(file, folder)
        try:
            (paths,) = find_images(Path(folder)).values()
            slices = [read_slice(path, len(channels)) for path in paths]
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", "")) from None
    sizes = {image.shape[:2]: path.name for image, path in zip(slices, paths, strict=True)}
    if len(sizes) > 1:
        shown = " and ".join(f"{name} is {size[0]}x{size[1]}" for size, name in list(sizes.items())[:2])
        raise DataError(f"{shown}: the files of one patient have one size. Drop one patient at a time.")
    images = np.stack(slices)
    if images[..., 0].size > LARGEST:
        raise DataError(f"{images[..., 0].size:,} pixels are too many for this page. Use `bench predict`.")
    names = tuple(path.stem for path in paths)
    masks = len(files) - len(paths)
    return Scan(
        key=f"dropped/{hashlib.sha256(images.tobytes() + repr((names, images.shape)).encode()).hexdigest()}",
        title=paths[0].name if len(paths) == 1 else f"{len(paths)} files, {names[0]} to {names[-1]}",
        case=None,
        images=images,
        truth=None,
        names=names,
        channels=channels,
        prints=frozenset(fingerprints(histograms_of(images))) - {""},
        notes=(f"{masks} file(s) that end in _mask were left out: a mask is no scan.",) if masks else (),
    )


def _refuse(files: Iterable[Path]) -> None:
    names = [file.name for file in files]
    if not names:
        raise DataError("no files were dropped. Drop the slices of a patient.")
    for name in names:
        if not name.lower().endswith(SUFFIXES):
            raise DataError(f"{name} is no scan. Drop images that end in {', '.join(SUFFIXES)}.")
        if names.count(name) > 1:
            raise DataError(f"two files are called {name}. Give every slice a name of its own.")
    if all(Path(name).stem.endswith("_mask") for name in names):
        raise DataError("only masks were dropped (they end in _mask). Drop the scans.")
