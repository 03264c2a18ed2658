"""The packed dataset: all slices of all patients in two memory-mapped uint8 arrays.

A pack is a folder, which `load_or_pack` writes once and reuses as long as the files of the `Source` are unchanged:

    images.npy      uint8 (N, H, W, C)        masks.npy        uint8 (N, H, W), a bit for each structure
    histograms.npy  uint32 (N, C, 256)        index.csv        case, slice, institution, positive, pixels;
                                              height, width if padded; row_mm, column_mm if known
    manifest.json   description, content key, and the SHA-256 of the other files
    checked.json    the state in which these files and the source files were last compared with the content key

A pack is opened without writing, so a cache may be read-only. Its shapes are checked always; its content is read
again only if a file of the pack or of the source has another size, time or inode than at the last check.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from bench.data.cached_arrays import (
    checked,
    create_array,
    damaged,
    file_state,
    hash_json,
    open_array,
    remember_check,
)
from bench.data.source import Pixels, Source
from bench.errors import DataError
from bench.files import cache_folder, file_sha256, lock_if_writable, writing_to_cache
from bench.structures import TUMOUR, Structures, split_bits

FORMAT = 1  # increase when the meaning of the files above changes
FILES = ("histograms.npy", "images.npy", "index.csv", "masks.npy")
COMPLETE = (*FILES, "manifest.json")

S = TypeVar("S", bound=np.generic)
Tick: TypeAlias = Callable[[int, int], None]
Labelled: TypeAlias = tuple[str, int, str, Pixels, Pixels]  # case, slice, institution, image, mask


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
    structures: Structures = TUMOUR
    axis: int = 2  # of a volume, along which it was cut into slices

    def write(self, folder: Path) -> None:
        (folder / "manifest.json").write_text(json.dumps(asdict(self), indent=1))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of a manifest, of any format. Raises `DataError`."""
    try:
        return TypeAdapter(dict[str, Any]).validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from None


def _facts(source: Source) -> dict[str, Any]:
    """Return what a source and the manifest of its pack must have in common."""
    facts = {name: getattr(source, name) for name in ("channels", "synthetic", "notes", "structures", "axis")}
    return facts | {"dataset": source.name}


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
    def structures(self) -> Structures:
        return self.manifest.structures

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the masks of these rows, bool (S, K, H, W)."""
        return split_bits(self.masks[rows], len(self.structures))

    @property
    def padded(self) -> bool:
        """Whether slices of several sizes were padded to one."""
        return "height" in self.index

    def own_grid(self, rows: NDArray[np.int64]) -> tuple[slice, slice]:
        """Return rows and columns that these slices have on disk; the rest of a packed slice is padding."""
        if not self.padded:
            return slice(None), slice(None)
        height, width = self.index[["height", "width"]].to_numpy()[rows].max(0)
        return slice(int(height)), slice(int(width))

    def pad(self, stack: NDArray[S]) -> NDArray[S]:
        """Return a stack (..., H, W) of `own_grid` at the size of packed slices."""
        missing = [(0, whole - own) for whole, own in zip(self.masks.shape[1:], stack.shape[-2:], strict=True)]
        return np.pad(stack, [*[(0, 0)] * (stack.ndim - 2), *missing]) if any(map(sum, missing)) else stack

    def spacing(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Return millimetres from row to row and column to column of these slices, (S, 2); None if unknown."""
        if "row_mm" not in self.index:
            return None
        return self.index[["row_mm", "column_mm"]].to_numpy(np.float64)[rows]

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


def open_pack(folder: Path, *, verify: bool = False, tick: Tick = lambda done, total: None) -> Pack:
    """Open a pack and check it; its content is checked if `verify`, or if a file changed since the last check.

    `tick(done, total)` is called after each slice that is checked. Raises `DataError`.
    """
    content = _read_manifest(folder)
    if content.get("format") != FORMAT:
        raise DataError(f"the pack {folder} was written by another version. Remove it; it will be written again.")
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
        images = open_array(folder / "images.npy", np.uint8)
        masks = open_array(folder / "masks.npy", manifest.structures.bits)
        histograms = open_array(folder / "histograms.npy", np.uint32)
        index = pd.read_csv(folder / "index.csv", dtype={"case": str, "institution": str}, keep_default_na=False)
        state = file_state(folder / name for name in COMPLETE)
        slices, channels = len(index), len(manifest.channels)
        shapes = (slices, *images.shape[1:3], channels), images.shape[:3], (slices, channels, 256)
        if (images.shape, masks.shape, histograms.shape) != shapes or set(manifest.sha256) != {*FILES}:
            raise ValueError("its files do not belong together")
        identity = [index[name].tolist() for name in ("case", "slice", "institution")]
    except (OSError, ValueError, TypeError, EOFError, KeyError) as error:
        raise damaged(folder, error) from None
    if verify or checked(folder).get("pack") != state:
        same = (
            _content_key(zip(*identity, images, masks, strict=True), images.shape, manifest.structures, tick)
            == manifest.key
        )
        large = () if same else ("images.npy", "masks.npy")  # the key is computed from these
        names = ("histograms.npy", "index.csv", *large)
        wrong = [name for name in names if file_sha256(folder / name) != manifest.sha256[name]]
        if wrong or not same:
            raise DataError(
                f"the pack {folder} has changed since it was written: {', '.join(wrong or ['manifest.json'])}. "
                "Remove it; it will be written again."
            )
        remember_check(folder, pack=state)
    return Pack(folder, manifest, images, masks, histograms, index)


def load_or_pack(source: Source, cache: Path | None = None, *, tick: Tick = lambda done, total: None) -> Pack:
    """Open the pack of `source` if its files are unchanged, else write it. Raises `DataError`.

    A pack gets its final name only when it is complete; the next call removes what an interrupted one left.
    `tick(done, total)` is called after each slice.
    """
    if not source.slices:
        raise DataError(f"the dataset '{source.name}' has no slices.")
    cache = (cache or cache_folder()) / "packs"
    stamp, state = _stamp(source), _source_state(source)
    with writing_to_cache(cache), lock_if_writable(cache / ".lock") as locked:
        for leftover in cache.glob(".writing-*") if locked else ():
            shutil.rmtree(leftover)
        if (pack := _find(source, cache, stamp, state, tick)) is not None:
            return pack
        cache.mkdir(parents=True, exist_ok=True)  # raises if it was not locked because nothing can be written
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=cache) as name:
            writing = Path(name)
            manifest = _write(source, writing, stamp, tick)
            folder = cache / f"{source.name}-{manifest.key}"
            if folder.exists():  # the same pixels from other paths: only the stamp differs
                shutil.rmtree(folder)
            writing.rename(folder)
        remember_check(folder, pack=file_state(folder / name for name in COMPLETE), source=state)
        return open_pack(folder)


def _find(source: Source, cache: Path, stamp: str, state: str, tick: Tick) -> Pack | None:
    """Return the pack of the source. If its files only seem unchanged, read them to compare the content key."""
    folders = sorted(f.parent for f in cache.glob(f"{glob.escape(source.name)}-*/manifest.json"))
    folders = [folder for folder in folders if _read_manifest(folder).get("stamp") == stamp]
    found = [folder for folder in folders if checked(folder).get("source") == state]
    if folders and not found:
        shape = _shape(source)
        key = _content_key(_read(source, shape), shape, source.structures, tick)
        found = [folder for folder in folders if folder.name == f"{source.name}-{key}"]
    if not found:
        return None
    pack = open_pack(found[0], tick=tick)
    if wrong := [name for name, value in _facts(source).items() if getattr(pack.manifest, name) != value]:
        raise damaged(pack.folder, f"manifest.json has other {' and '.join(wrong)} than the dataset")
    remember_check(pack.folder, source=state)
    return pack


def one_case_per_slice(pack: Pack) -> Pack:
    """Return the pack with every slice as a case of its own, <patient>#<slice>; `patient` keeps the patient."""
    index = pack.index
    names = index["case"] + "#" + index["slice"].astype(str)
    return replace(pack, index=index.assign(patient=index["case"], case=names))


def _shape(source: Source) -> tuple[int, ...]:
    """Return the shape (N, H, W, C) of the packed images; padded slices get the largest height and width."""
    image, _ = source.read(source.slices[0])
    sizes = [entry.size or image.shape[:2] for entry in source.slices]
    return len(sizes), *map(max, zip(*sizes, strict=True)), image.shape[2]


def _read(source: Source, shape: tuple[int, ...]) -> Iterator[Labelled]:
    """Read every slice, padded with 0 below and to the right. Raises `DataError` for one of an unexpected size."""
    for entry in source.slices:
        image, mask = source.read(entry)
        if image.shape != ((*entry.size, shape[3]) if entry.size else shape[1:]):
            raise DataError(
                f"{entry.image} is {image.shape[0]}x{image.shape[1]} with {image.shape[2]} channels, but "
                f"{source.slices[0].image.name} is {shape[1]}x{shape[2]} with {shape[3]}. "
                "Set dataset.resize to resize every slice to one size when packing."
            )
        more = [(0, whole - own) for whole, own in zip(shape[1:3], image.shape, strict=False)]
        image, mask = np.pad(image, [*more, (0, 0)]), np.pad(mask, more)
        yield entry.case, entry.number, entry.institution, image, mask


def _content_key(slices: Iterable[Labelled], shape: tuple[int, ...], structures: Structures, tick: Tick) -> str:
    """Hash the pixels, masks, patients, numbers and institutions of all slices, and the names of structures."""
    several = f" {structures.names} {structures.exclusive}" if len(structures) > 1 else ""
    digest = hashlib.sha256(f"{FORMAT} {shape[1:]}{several}".encode())
    for row, (case, number, institution, image, mask) in enumerate(slices):
        digest.update(f"{case}/{number}/{institution}".encode())
        digest.update(image.tobytes() + mask.tobytes())
        tick(row + 1, shape[0])
    return digest.hexdigest()[:16]


def _write(source: Source, folder: Path, stamp: str, tick: Tick) -> Manifest:
    shape = _shape(source)
    images = create_array(folder / "images.npy", np.uint8, shape)
    masks = create_array(folder / "masks.npy", source.structures.bits, shape[:3])
    histograms = create_array(folder / "histograms.npy", np.uint32, (shape[0], shape[3], 256))

    def written() -> Iterator[Labelled]:
        for row, labelled in enumerate(_read(source, shape)):
            images[row], masks[row] = labelled[3:]
            height, width = source.slices[row].size or shape[1:3]
            histograms[row] = compute_histograms([labelled[3][:height, :width]])[0]  # without padding
            yield labelled

    key = _content_key(written(), shape, source.structures, tick)
    for array in (images, masks, histograms):
        array.flush()
    cases, numbers, places = zip(*((s.case, s.number, s.institution) for s in source.slices), strict=True)
    index = _index(cases, numbers, places, masks)
    for names, of in ((("height", "width"), "size"), (("row_mm", "column_mm"), "spacing")):
        if getattr(source.slices[0], of) is not None:
            index[[*names]] = [getattr(entry, of) for entry in source.slices]
    index.to_csv(folder / "index.csv", index=False)
    sha256 = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(key=key, licence=source.licence, stamp=stamp, sha256=sha256, **_facts(source))
    manifest.write(folder)
    return manifest


def _index(
    case: str | Sequence[str], number: Sequence[int], institution: str | Sequence[str], masks: Pixels
) -> pd.DataFrame:
    """One row per slice; a single name holds for all slices."""
    pixels = np.count_nonzero(masks, axis=(1, 2))
    columns = {"case": case, "slice": number, "institution": institution, "positive": pixels > 0, "pixels": pixels}
    return pd.DataFrame(columns)


def _stamp(source: Source) -> str:
    """Hash the names, sizes and times of all files, and the facts that the dataset function derived from them."""

    def signature(path: Path) -> tuple[str, int, int]:
        stat = path.stat()
        return str(path.resolve()), stat.st_size, stat.st_mtime_ns

    rows: list[Any] = [
        (
            *(s.case, s.number, s.institution, *signature(s.image), *(signature(s.mask) if s.mask else (None,))),
            *(own for own in (s.size, s.spacing) if own is not None),
        )
        for s in source.slices
    ]
    rows += [signature(path) for path in source.extra_files]
    named = [asdict(source.structures)] if source.structures != TUMOUR else []
    return hash_json(
        (FORMAT, source.name, source.channels, source.synthetic, source.notes, source.variant, *named, rows)
    )


def _source_state(source: Source) -> str:
    files = [path for s in source.slices for path in (s.image, s.mask) if path is not None]
    return file_state(dict.fromkeys((*files, *source.extra_files)))


def compute_histograms(images: Iterable[Pixels]) -> NDArray[np.uint32]:
    """Return (N, C, 256): how often each grey level occurs in each channel of each image (H, W, C)."""
    return np.array(
        [[np.bincount(i[..., c].ravel(), minlength=256) for c in range(i.shape[-1])] for i in images], np.uint32
    )


def pack_in_memory(
    images: Pixels,
    channels: tuple[str, ...],
    masks: Pixels | None = None,
    case: str = "input",
    structures: Structures = TUMOUR,
) -> Pack:
    """Return a pack of one case that exists only in memory: slices (S, H, W, C) to predict on."""
    masks = np.zeros(images.shape[:3], structures.bits) if masks is None else masks
    index = _index(case, range(1, len(images) + 1), "unknown", masks)
    manifest = Manifest("transient", "memory", False, channels, "", (), "", {}, structures=structures)
    return Pack(Path(), manifest, images, masks, compute_histograms(images), index)
