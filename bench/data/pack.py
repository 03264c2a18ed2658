"""The packed dataset: all slices of all patients in two memory-mapped uint8 arrays.

A `Source` lists the slices of a folder and reads one; `load_or_pack` writes them to a `Pack` once and reuses it as
long as the files are unchanged. A pack is a folder:

    images.npy      uint8 (N, H, W, C)        masks.npy        uint8 (N, H, W), 0 or 1
    histograms.npy  uint32 (N, C, 256)        index.csv        case, slice, institution, positive, pixels
    manifest.json   description, content key, and the SHA-256 of the other files
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

FORMAT = 1  # increase when the meaning of the files above changes


@dataclass(frozen=True)
class Manifest:
    """The description of a pack. `key` is the content key: equal keys mean equal pixels."""

    key: str
    dataset: str
    synthetic: bool
    channels: tuple[str, ...]
    licence: str
    notes: tuple[str, ...]
    stamp: str  # hash of the names, sizes and times of the source files: identifies the pack without reading them
    sha256: dict[str, str]
    format: int = FORMAT


def display_channel(channels: Sequence[str]) -> int:
    """Return the index of the channel shown to people: FLAIR if present, else the first."""
    return list(channels).index("flair") if "flair" in channels else 0


@dataclass(frozen=True)
class Pack:
    """An open packed dataset. Rows of `index` and of the arrays correspond."""

    folder: Path
    manifest: Manifest
    images: Pixels
    masks: Pixels
    histograms: NDArray[np.uint32]
    index: pd.DataFrame

    @property
    def cases(self) -> list[str]:
        """The patients, in the order of the index."""
        return list(self.index["case"].unique())

    def rows(self, cases: Iterable[str]) -> NDArray[np.int64]:
        """Return the row numbers of all slices of these patients, in the order of the index."""
        return np.flatnonzero(self.index["case"].isin(set(cases)).to_numpy())

    def profile(self) -> dict[str, Any]:
        """Return counts and facts to log with a run."""
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
    content = _read_manifest(folder)
    if content.get("format") != FORMAT:
        raise DataError(f"the pack {folder} was written by another version. Remove it; it will be written again.")
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks", "histograms")]
        index = pd.read_csv(folder / "index.csv", dtype={"case": str, "institution": str}, keep_default_na=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise _damaged(folder, error) from None
    if verify and (wrong := [n for n, digest in manifest.sha256.items() if _sha256(folder / n) != digest]):
        raise DataError(f"the pack {folder} has changed since it was written: {', '.join(wrong)}. Remove it.")
    images, masks, histograms = arrays
    return Pack(folder, manifest, images, masks, histograms, index)


def load_or_pack(
    source: Source, cache: Path | None = None, *, tick: Callable[[int, int], None] = lambda done, total: None
) -> Pack:
    """Open the pack of `source` if its files are unchanged, else write it. Raises `DataError`.

    A pack gets its final name only when it is complete; the next call removes what an interrupted one left.
    `tick(done, total)` is called after each slice.
    """
    if not source.slices:
        raise DataError(f"the dataset '{source.name}' has no slices.")
    cache = (cache or cache_folder()) / "packs"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {cache}: {error.strerror}. Set BENCH_CACHE to another folder.") from None
    stamp = _stamp(source)
    with FileLock(cache / ".lock"):
        for leftover in cache.glob(".writing-*"):
            shutil.rmtree(leftover)
        for folder in sorted(f.parent for f in cache.glob("*/manifest.json")):
            if _read_manifest(folder).get("stamp") == stamp:
                return open_pack(folder)
        writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=cache))
        try:
            manifest = _write(source, writing, stamp, tick)
            folder = cache / f"{source.name}-{manifest.key}"
            if folder.exists():  # the same pixels from other paths: only the stamp differs
                shutil.rmtree(folder)
            writing.rename(folder)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    return open_pack(folder)


def one_case_per_slice(pack: Pack) -> Pack:
    """Return the pack with every slice as a case of its own, <patient>#<slice>; `patient` keeps the patient."""
    index = pack.index
    names = index["case"] + "#" + index["slice"].astype(str)
    return replace(pack, index=index.assign(patient=index["case"], case=names))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return content


def _damaged(folder: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"the pack {folder} is damaged ({reason}). Remove it; it will be written again.")


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
                "Set dataset.resize to resize every slice to one size when packing."
            )
        images[row], masks[row] = image, mask
        histograms[row] = compute_histograms([image])[0]
        digest.update(f"{entry.case}/{entry.number}/{entry.institution}".encode())
        digest.update(image.tobytes() + mask.tobytes())
        tick(row + 1, count)
    images.flush()
    masks.flush()
    np.save(folder / "histograms.npy", histograms)
    cases, numbers, places = zip(*((s.case, s.number, s.institution) for s in source.slices), strict=True)
    _index(cases, numbers, places, masks).to_csv(folder / "index.csv", index=False)
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


def _index(
    case: str | Sequence[str], number: Sequence[int], institution: str | Sequence[str], masks: Pixels
) -> pd.DataFrame:
    """One row per slice; a single name holds for all slices."""
    pixels = masks.sum((1, 2), dtype=np.int64)
    columns = {"case": case, "slice": number, "institution": institution, "positive": pixels > 0, "pixels": pixels}
    return pd.DataFrame(columns)


def _stamp(source: Source) -> str:
    """Hash the names, sizes and times of all files, and the facts that the dataset function derived from them."""

    def signature(path: Path | None) -> tuple[Any, ...]:
        if path is None:
            return (None,)
        stat = path.stat()
        return str(path.resolve()), stat.st_size, stat.st_mtime_ns

    rows = [(s.case, s.number, s.institution, *signature(s.image), *signature(s.mask)) for s in source.slices]
    rows += [signature(path) for path in source.extra_files]
    content = (FORMAT, source.name, source.channels, source.synthetic, source.notes, source.variant, rows)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compute_histograms(images: Iterable[Pixels]) -> NDArray[np.uint32]:
    """Return (N, C, 256): how often each grey level occurs in each channel of each image (H, W, C)."""
    return np.array(
        [[np.bincount(i[..., c].ravel(), minlength=256) for c in range(i.shape[-1])] for i in images], np.uint32
    )


def pack_in_memory(
    images: Pixels, channels: tuple[str, ...], masks: Pixels | None = None, case: str = "input"
) -> Pack:
    """Return a pack of one case that exists only in memory: slices (S, H, W, C) to predict on."""
    masks = np.zeros(images.shape[:3], np.uint8) if masks is None else masks
    index = _index(case, range(1, len(images) + 1), "unknown", masks)
    manifest = Manifest("transient", "memory", False, channels, "", (), "", {})
    return Pack(Path(), manifest, images, masks, compute_histograms(images), index)
