"""What tests are made of: packs in memory, a recorder, patients on disk, and tiny real runs on a phantom."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray
from typer.testing import CliRunner

from bench.cli import app
from bench.data.pack import Pack, pack_in_memory
from bench.structures import TUMOUR, Structures

CHANNELS = ("pre", "flair", "post")
TWO = Structures(("upper", "lower"), ((1,), (2,)))


def pack_of(
    images: np.ndarray,
    masks: np.ndarray,
    cases: Sequence[str],
    institutions: Sequence[str] = (),
    structures: Structures = TUMOUR,
) -> Pack:
    """A pack of these slices; the slices of each case are numbered from 1."""
    whole = pack_in_memory(images, CHANNELS[: images.shape[-1]], masks, structures=structures)
    names = pd.Series(cases)
    numbers = names.groupby(names).cumcount() + 1
    where = list(institutions) or ["DU"] * len(names)
    return replace(whole, index=whole.index.assign(case=names, slice=numbers, institution=where))


def refuse_to_write(patch: pytest.MonkeyPatch) -> None:
    """Do as a read-only file system does when a folder, a lock or the record of a check is to be written."""

    def refuse(path: object = None, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path if isinstance(path, str | Path) else None)

    def make_folder(path: str | Path, *_: object) -> None:
        if Path(path).exists():
            raise FileExistsError(path)
        refuse(path)

    patch.setattr("filelock.FileLock.acquire", refuse)
    patch.setattr("bench.data.cached_arrays.write_atomically", refuse)
    patch.setattr(os, "mkdir", make_folder)


def tiny_pack(
    cases: int = 4,
    slices: int = 5,
    size: int = 32,
    channels: int = 3,
    seed: int = 0,
    structures: Structures = TUMOUR,
) -> Pack:
    """Noise with one bright square a slice, which the mask marks; the first slice of each case has none.

    Several structures, at most 8, share its rows from top to bottom.
    """
    rng = np.random.default_rng(seed)
    count = cases * slices
    images = rng.integers(0, 80, (count, size, size, channels), np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for row in range(count):
        if row % slices:
            top, left = rng.integers(0, size - 8, 2)
            for y in range(8):
                masks[row, top + y, left : left + 8] = 1 << y * len(structures) // 8
    images[masks.astype(bool)] += 120
    names = [f"P{case}" for case in range(cases) for _ in range(slices)]
    return pack_of(images, masks, names, structures=structures)


class MemoryRecorder:
    """Implements `bench.types.Recorder`; children are kept by name."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.values: dict[str, list[tuple[int, float]]] = {}
        self.labels: dict[str, str] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.images: dict[str, np.ndarray] = {}
        self.paths: dict[str, dict[str, bytes]] = {}
        self.children: dict[str, MemoryRecorder] = {}

    def settings(self, values: Mapping[str, Any]) -> None:
        self.params |= values

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append((step, value))

    def tags(self, values: Mapping[str, str]) -> None:
        self.labels |= values

    def table(self, name: str, rows: pd.DataFrame) -> None:
        self.tables[name] = rows

    def image(self, name: str, pixels: np.ndarray) -> None:
        self.images[name] = pixels

    def files(self, folder: Path, into: str) -> None:
        self.paths[into] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def model(self, folder: Path, channels: int) -> None:
        self.files(folder, "model")

    @contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[MemoryRecorder]:
        self.children[name] = MemoryRecorder()
        self.children[name].tags(tags or {})
        yield self.children[name]

    def last(self, name: str) -> float:
        return self.values[name][-1][1]


SIDE = 16


def image_of(name: str, side: int = SIDE) -> NDArray[np.uint8]:
    """Noise that differs from name to name and never has two equal channels."""
    return np.random.default_rng(crc32(name.encode())).integers(1, 255, (side, side, 3), dtype=np.uint8)


def mask_of(side: int = SIDE, *, positive: bool = True) -> NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[2:5, 3:7] = 255 * positive
    return mask


def write_case(root: Path, name: str, numbers: Iterable[int] = (1, 2, 3), *, side: int = SIDE) -> Path:
    """A whole patient; returns the folder. Slice 1 shows no tumour."""
    folder = root / name
    folder.mkdir(parents=True)
    for number in numbers:
        write(folder / f"{name}_{number}.tif", image_of(f"{name}_{number}", side))
        write(folder / f"{name}_{number}_mask.tif", mask_of(side, positive=number != 1))
    return folder


def write(path: Path, pixels: NDArray[np.generic]) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def two_pages(path: Path) -> None:
    page = tifffile.imread(path)
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack")


def giant(path: Path, side: int = 100_000) -> None:
    """122 bytes whose header promises 30 GB: tag, type (3 short, 4 long), count, value."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, side), (279, 4, 1, 3 * side * side & 0xFFFFFFFF)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0))


def sixteen_bits(path: Path) -> None:
    write(path, tifffile.imread(path).astype(np.uint16) * 257)


def four_channels(path: Path) -> None:
    page = tifffile.imread(path)
    tifffile.imwrite(path, np.dstack([page, page[..., :1]]), photometric="rgb", extrasamples=["unassalpha"])


def garbage(path: Path) -> None:
    path.write_bytes(b"not a TIFF at all")


def write_volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (0.5, 0.5, 5)) -> None:
    """Write a volume; the spacing is that of columns, rows and slices of the array."""
    itk = pytest.importorskip("SimpleITK", reason="pip install 'medseg-bench[volumes]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    itk.WriteImage(image, str(path))


def write_others(folder: Path, **settings: int) -> Path:
    """Write a phantom whose patients have other names than those of any phantom; returns the folder."""
    _bench("data", "phantom", folder, *_sets("", settings))
    for scan in folder.glob("PHANTOM_*"):
        for file in scan.iterdir():
            file.rename(file.with_name(file.name.replace("_00", "_77", 1)))
        scan.rename(scan.with_name(scan.name.replace("_00", "_77", 1)))
    return folder


SMALL = {"patients": 6, "size": 32, "slices": 6, "institutions": 2}
SHORT = ["--folds", "3", "--batch-size", "4", "--lr", "0.01", "--quiet"]


@dataclass(frozen=True)
class Home:
    """A folder with a store, a phantom that the runs were made on, and one of other patients."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlruns' / 'mlflow.db'}"

    @property
    def phantom(self) -> Path:
        return self.folder / "phantom"

    @property
    def environment(self) -> dict[str, str]:
        return {"BENCH_CACHE": str(self.folder / "cache"), "MLFLOW_TRACKING_URI": self.uri}


def make_home(folder: Path, template: Path, *names: str) -> Home:
    """A run of each name: of three folds and two epochs, each with another seed."""
    home = Home(folder)
    shutil.copytree(template, folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in home.environment.items():
            patch.setenv(key, value)
        patch.chdir(folder)
        _bench("data", "phantom", home.phantom, *_sets("", SMALL))
        for seed, name in enumerate(names):
            train(name, "--seed", seed)
    return home


def train(name: str, *more: object) -> None:
    """One run on the phantom, in the store of the environment."""
    model = {"base": 4, "depth": 2}
    _bench("run", *_sets("dataset.", SMALL), *_sets("model.", model), *SHORT, "--epochs", 2, "--name", name, *more)


def inside(home: Home, patch: pytest.MonkeyPatch) -> None:
    """Work in this home."""
    for key, value in home.environment.items():
        patch.setenv(key, value)
    patch.chdir(home.folder)


def server_environment(home: Home) -> dict[str, str]:
    return os.environ | home.environment | {"OMP_NUM_THREADS": "1"}


def _sets(prefix: str, values: dict[str, int]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{prefix}{key}={value}")]


def _bench(*words: object) -> None:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


ENDER = """
import os, signal, sys, time
from pathlib import Path
import bench.experiments.search  # once for all processes
from bench.cli import main

number, folder, moments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
del sys.argv[1:4]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
for moment in moments:
    if not (child := os.fork()):
        main()
    began, ended = time.monotonic(), 0
    while not (list(folder.glob(moment)) if "/" in moment else time.monotonic() - began > float(moment)):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.002)
    if not ended:
        os.kill(child, number)
        status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def run_and_end(words: Sequence[str], number: int, folder: Path, *moments: str | float) -> list[int]:
    """Run a command once for each moment, and send it the signal then; return the exit codes.

    A moment is a pattern of files in `folder`, of which one exists then, or seconds after the start.
    """
    script = [sys.executable, "-c", ENDER, str(int(number)), str(folder), ",".join(map(str, moments)), *words]
    ended = subprocess.run(script, check=True, timeout=300, capture_output=True, text=True)
    return [int(line) for line in ended.stdout.splitlines() if line.lstrip("-").isdigit()]
