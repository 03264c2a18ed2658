"""The scans that the demo shows: patients of a data folder with their truth, or files dropped on the page."""

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
from bench.data.pack import compute_histograms, load_or_pack
from bench.data.readers.images import find_images, read_slice
from bench.data.source import Pixels, Source
from bench.errors import DataError
from bench.formatting import join_and
from bench.masks import Mask
from bench.structures import Structures

SUFFIXES = (".tif", ".tiff", ".png")
MAX_PIXELS = 1 << 26  # of all dropped slices together; `bench predict` takes more


@dataclass(frozen=True, eq=False)
class Scan:
    """The slices of one patient: images uint8 (S, H, W, C), and the truth bool (S, K, H, W) if there is one.

    `structures` are the names of the K structures. `case` is the patient's id in the data folder, None for dropped
    files. Scans with the same `key` are equal. `names` are the slices' file names without suffix, `fingerprints`
    identify their images.
    """

    key: str
    title: str
    case: str | None
    images: Pixels
    truth: Mask | None
    names: tuple[str, ...]
    channels: tuple[str, ...]
    structures: tuple[str, ...] = Structures().names
    synthetic: bool = False
    data: str = ""  # content key of the dataset that it belongs to
    fingerprints: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @cached_property
    def white_levels(self) -> tuple[float, ...]:
        """The grey level that is shown white, for each channel; all slices share it."""
        flat = self.images.reshape(-1, self.images.shape[-1])
        return tuple(float(level) for level in np.maximum(np.percentile(flat, 99.5, axis=0), 1))


class Patients:
    """The patients of a data folder. Raises `DataError` if the folder cannot be used."""

    def __init__(self, source: Source, tick: Callable[[int, int], None] = lambda done, of: None) -> None:
        self.pack = load_or_pack(source, tick=tick)
        self._names = [  # in the order of the pack's rows
            s.image.stem if s.position is None else f"{s.image.name.partition('.')[0]}_{s.position + 1}"
            for s in source.slices
        ]
        images = image_table(self.pack).groupby("case")["image"]
        self._fingerprints = {str(case): frozenset[str](values) for case, values in images}

    @property
    def cases(self) -> list[str]:
        return self.pack.cases

    def scan(self, case: str) -> Scan:
        """Return the scan of one patient. Raises `DataError` for an unknown patient."""
        rows, manifest = self.pack.rows([case]), self.pack.manifest
        if not len(rows):
            raise DataError(f"there is no patient {case} in the data folder. Choose one of the list.")
        height, width = self.pack.own_grid(rows)
        return Scan(
            key=f"{manifest.key}/{case}",
            title=case,
            case=case,
            images=np.array(self.pack.images[rows][:, height, width]),
            truth=self.pack.truth(rows)[..., height, width],
            names=tuple(self._names[row] for row in rows),
            channels=manifest.channels,
            structures=self.pack.structures.names,
            synthetic=manifest.synthetic,
            data=manifest.key,
            fingerprints=self.fingerprints(case),
        )

    def fingerprints(self, case: str) -> frozenset[str]:
        """Return the fingerprints of a patient's images."""
        return self._fingerprints.get(case, frozenset())


def read_dropped_files(
    files: Sequence[Path], channels: tuple[str, ...], structures: tuple[str, ...] = Structures().names
) -> Scan:
    """Read files as the slices of one patient, ordered by the numbers in their names. Raises `DataError`.

    Files that end in _mask are left out, and a note says so.
    """
    _check_names(files)
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copy(file, folder)
        try:
            (paths,) = find_images(Path(folder)).values()
            slices: list[Pixels] = []
            for path in paths:  # counted while they are read: together they may be too many for memory
                slices.append(read_slice(path, len(channels)))
                if (pixels := sum(image[..., 0].size for image in slices)) > MAX_PIXELS:
                    raise DataError(f"{pixels:,} pixels are too many for this page. Use `bench predict`.")
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", "")) from None
    sizes = {image.shape[:2]: path.name for image, path in zip(slices, paths, strict=True)}
    if len(sizes) > 1:
        examples = join_and(f"{name} is {size[0]}x{size[1]}" for size, name in list(sizes.items())[:2])
        raise DataError(f"{examples}: the files of one patient must have one size. Drop one patient at a time.")
    images = np.stack(slices)
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
        structures=structures,
        fingerprints=frozenset(fingerprints(compute_histograms(images))) - {""},
        notes=(f"{masks} file(s) that end in _mask were left out: a mask is not a scan.",) if masks else (),
    )


def _check_names(files: Iterable[Path]) -> None:
    names = [file.name for file in files]
    if not names:
        raise DataError("no files were dropped. Drop the slices of a patient.")
    for name in names:
        if not name.lower().endswith(SUFFIXES):
            raise DataError(f"{name} is not a scan. Drop images that end in {', '.join(SUFFIXES)}.")
        if names.count(name) > 1:
            raise DataError(f"two files are called {name}. Give every slice its own name.")
    if all(Path(name).stem.endswith("_mask") for name in names):
        raise DataError("only masks were dropped (they end in _mask). Drop the scans.")
