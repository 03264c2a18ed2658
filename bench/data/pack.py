"""The packed data set: every slice of every patient in two memory-mapped uint8 arrays.

A `Source` says which slices a folder holds and how to read one; `packed` turns it into a `Pack` once and
finds it again by content. A pack is a folder:

    images.npy      uint8 (N, H, W, C)        masks.npy        uint8 (N, H, W), 0 or 1
    histograms.npy  uint32 (N, C, 256)        index.csv        case, slice, institution, positive, pixels
    manifest.json   what it is, its content key and the SHA-256 of the files beside it
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import TypeAdapter

from bench.data.source import Pixels, Source
from bench.errors import DataError
from bench.files import cache_folder

FORMAT = 1  # raise it when the files below change their meaning


@dataclass(frozen=True)
class Manifest:
    """What a pack says of itself. `key` is the content key: equal keys hold equal pixels."""

    key: str
    dataset: str
    synthetic: bool
    channels: tuple[str, ...]
    licence: str
    notes: tuple[str, ...]
    stamp: str  # of the files' names, sizes and times: finds the pack again without reading them
    sha256: dict[str, str]
    format: int = FORMAT


def shown_channel(channels: Sequence[str]) -> int:
    """The channel that people look at: FLAIR, where there is one."""
    return list(channels).index("flair") if "flair" in channels else 0


@dataclass(frozen=True)
class Pack:
    """A packed data set, opened. Rows of `index` and of the arrays correspond."""

    folder: Path
    manifest: Manifest
    images: Pixels
    masks: Pixels
    histograms: NDArray[np.uint32]
    index: pd.DataFrame

    @property
    def cases(self) -> list[str]:
        """Patients, in the order of the index."""
        return list(self.index["case"].unique())

    def rows(self, cases: Iterable[str]) -> NDArray[np.int64]:
        """Row numbers of all slices of these patients, in the order of the index."""
        return np.flatnonzero(self.index["case"].isin(set(cases)).to_numpy())

    def profile(self) -> dict[str, Any]:
        """What it holds, in numbers, for whoever logs it."""
        return {
            "patients": int(self.index["patient" if "patient" in self.index else "case"].nunique()),
            "slices": len(self.index),
            "positive_slices": int(self.index["positive"].sum()),
            "institutions": int(self.index["institution"].nunique()),
            "synthetic": self.manifest.synthetic,
            "licence": self.manifest.licence,
        }


def open_pack(folder: Path, *, verify: bool = False) -> Pack:
    """Open a pack; with `verify`, compare the SHA-256 of every file. Raises `DataError`."""
    said = _read_manifest(folder)
    if said.get("format") != FORMAT:
        raise DataError(f"the pack {folder} was written by another version. Remove it and it is made again.")
    try:
        manifest = TypeAdapter(Manifest).validate_python(said)
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks", "histograms")]
        index = pd.read_csv(folder / "index.csv", dtype={"case": str, "institution": str}, keep_default_na=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise _damaged(folder, error) from None
    if verify and (wrong := [n for n, digest in manifest.sha256.items() if _sha256(folder / n) != digest]):
        raise DataError(f"the pack {folder} has changed since it was written: {', '.join(wrong)}. Remove it.")
    images, masks, histograms = arrays
    return Pack(folder, manifest, images, masks, histograms, index)


def load_or_pack(
    source: Source,
    cache: Path | None = None,
    *,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> Pack:
    """The pack of `source`: found again when its files are unchanged, else written.

    It appears under its final name only when it is whole; an interrupted one is swept away by the next.
    `tick(done, of)` is called after each slice. Raises `DataError`.
    """
    if not source.slices:
        raise DataError(f"the data set '{source.name}' has no slices.")
    cache = (cache or cache_folder()) / "packs"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"nothing can be kept in {cache}: {error.strerror}. Set BENCH_CACHE.") from None
    stamp = _stamp(source)
    with FileLock(cache / ".lock"):
        for leftover in cache.glob(".writing-*"):
            shutil.rmtree(leftover)
        for folder in sorted(f.parent for f in cache.glob("*/manifest.json")):
            if _read_manifest(folder).get("stamp") == stamp:
                return open_pack(folder)
        writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=cache))
        try:
            manifest_of = _write(source, writing, stamp, tick)
            folder = cache / f"{source.name}-{manifest_of.key}"
            if folder.exists():  # the same pixels under other paths: only the stamp is new
                shutil.rmtree(folder)
            writing.rename(folder)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    return open_pack(folder)


def by_slice(pack: Pack) -> Pack:
    """The same pack as if every slice were a patient: `case` is <patient>#<slice>, `patient` its own."""
    index = pack.index
    alone = index["case"] + "#" + index["slice"].astype(str)
    return replace(pack, index=index.assign(patient=index["case"], case=alone))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return said


def _damaged(folder: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split())
    return DataError(f"the pack {folder} is damaged ({why}). Remove it and it is made again.")


def _write(source: Source, folder: Path, stamp: str, tick: Callable[[int, int], None]) -> Manifest:
    count = len(source.slices)
    first, _ = source.read(source.slices[0])
    shape = first.shape
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, *shape))
    masks = np.lib.format.open_memmap(folder / "masks.npy", mode="w+", dtype=np.uint8, shape=(count, *shape[:2]))
    histograms = np.zeros((count, shape[2], 256), np.uint32)
    digest = hashlib.sha256(f"{FORMAT} {shape}".encode())
    for row, entry in enumerate(source.slices):
        image, mask = source.read(entry)
        if image.shape != shape:
            raise DataError(
                f"{entry.image} is {image.shape[0]}x{image.shape[1]} with {image.shape[2]} channels, but "
                f"{source.slices[0].image.name} is {shape[0]}x{shape[1]} with {shape[2]}. "
                "Give dataset.resize a size, and every slice is resized to it when packing."
            )
        images[row], masks[row] = image, mask
        histograms[row] = histograms_of([image])[0]
        digest.update(f"{entry.case}/{entry.number}/{entry.institution}".encode())
        digest.update(image.tobytes() + mask.tobytes())
        tick(row + 1, count)
    pixels = masks.sum((1, 2), dtype=np.int64)
    images.flush()
    masks.flush()
    np.save(folder / "histograms.npy", histograms)
    pd.DataFrame(
        {
            "case": [s.case for s in source.slices],
            "slice": [s.number for s in source.slices],
            "institution": [s.institution for s in source.slices],
            "positive": pixels > 0,
            "pixels": pixels,
        }
    ).to_csv(folder / "index.csv", index=False)
    manifest = Manifest(
        key=digest.hexdigest()[:16],
        dataset=source.name,
        synthetic=source.synthetic,
        channels=source.channels,
        licence=source.licence,
        notes=source.notes,
        stamp=stamp,
        sha256={f.name: _sha256(f) for f in sorted(folder.iterdir())},
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))
    return manifest


def _stamp(source: Source) -> str:
    """A hash over names, sizes and times of all files, and over what the loader made of them."""

    def of(path: Path | None) -> tuple[Any, ...]:
        if path is None:
            return (None,)
        stat = path.stat()
        return str(path.resolve()), stat.st_size, stat.st_mtime_ns

    rows = [(s.case, s.number, s.institution, *of(s.image), *of(s.mask)) for s in source.slices]
    rows += [of(path) for path in source.beside]
    what = (FORMAT, source.name, source.channels, source.synthetic, source.notes, source.variant, rows)
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def histograms_of(images: Iterable[Pixels]) -> NDArray[np.uint32]:
    """(N, C, 256): how often each image (H, W, C) has each grey level."""
    return np.array(
        [[np.bincount(i[..., c].ravel(), minlength=256) for c in range(i.shape[-1])] for i in images], np.uint32
    )


def pack_in_memory(
    images: Pixels, channels: tuple[str, ...], masks: Pixels | None = None, case: str = "input"
) -> Pack:
    """A pack of one case that lives in memory: slices (S, H, W, C) to predict on."""
    count = len(images)
    histograms = histograms_of(images)
    masks = np.zeros(images.shape[:3], np.uint8) if masks is None else masks
    pixels = masks.sum((1, 2), dtype=np.int64)
    index = pd.DataFrame(
        {
            "case": case,
            "slice": range(1, count + 1),
            "institution": "unknown",
            "positive": pixels > 0,
            "pixels": pixels,
        }
    )
    manifest = Manifest("transient", "memory", False, channels, "", (), "", {})
    return Pack(Path(), manifest, images, masks, histograms, index)
