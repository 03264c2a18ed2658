"""A phantom: synthetic heads in the layout of LGG, to try everything without patient data.

Each head is an ellipsoid of scalp, bone, grey and white matter and ventricles, drawn in three channels like
pre-contrast T1, FLAIR and post-contrast T1. Its lesions are bright in FLAIR and dark before contrast. Scalp, the
rims of the ventricles and bright bodies (bright in FLAIR *and* before contrast) resemble lesions: no threshold on
one channel segments a phantom, but a small network learns to.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter

from bench.data.datasets.lgg import lgg
from bench.data.readers.patient_folders import MARKER, TABLE
from bench.data.source import Pixels, Source
from bench.errors import BadSetting, DataError
from bench.files import cache_folder, lock_if_writable, naming, writing_to_cache
from bench.registry import dataset

VERSION = 1  # increase when the pixels change: phantoms in the cache are then written again

Volume = NDArray[np.float32]  # (S, N, N)

# The contrast of each tissue: pre, FLAIR, post.
SCALP, BONE = (0.65, 0.80, 0.70), (0.06, 0.05, 0.06)
GREY, WHITE, FLUID = (0.40, 0.47, 0.43), (0.54, 0.38, 0.57), (0.16, 0.10, 0.17)
RIM, BODY = (0.50, 0.62, 0.53), (0.78, 0.80, 0.80)  # rims of the ventricles, and bodies that mimic a lesion

CORE = (0.30, 0.95, 0.95)  # of a lesion, with `structures` = 2
LABELS = {False: {"tumour": [1, 2], "core": [2]}, True: {"rim": [1], "core": [2]}}  # by whether they are exclusive

README = """# Phantom

Synthetic heads written by `bench data phantom`: no pixel comes from a person. The layout is that of the LGG
dataset. The clusters in data.csv are random: any association with them is chance.
"""


@dataset(defaults={"train.epochs": 4, "train.batch_size": 8, "split.folds": 3})
def phantom(
    *,
    patients: Annotated[int, Field(ge=1, le=9999)] = 16,
    size: Annotated[int, Field(ge=32, le=512)] = 64,
    slices: Annotated[int, Field(ge=6, le=200)] = 8,
    institutions: Annotated[int, Field(ge=1, le=9)] = 4,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    structures: Literal[1, 2] = 1,
    exclusive: bool = False,
) -> Source:
    """Synthetic heads with lesions, written on first use: for trials and tests, never for claims.

    `patients`, `institutions` and `slices` (per patient) are numbers, `size` is the pixels per side, and `seed`
    draws heads and lesions. The last institution has a single patient,
    and the post-contrast channel of one patient is its FLAIR. With `structures` = 2 a lesion has a core: masks are
    label maps of 1 (rim) and 2 (core), and the structures are tumour and core, which overlap, or with `exclusive`
    = true rim and core. Equal settings give equal bytes.
    """
    settings = PhantomSettings(patients, size, slices, institutions, seed, structures, exclusive)
    key = hashlib.sha256(json.dumps([VERSION, settings.values()]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"phantom-{key}"
    with writing_to_cache(folder.parent), lock_if_writable(folder.with_suffix(".lock")):
        if len(list(folder.glob("*/*.tif"))) != 2 * patients * slices:
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, settings)
    # Replaces the note on the institution with a single patient, which is intended here.
    return replace(lgg(folder=folder), notes=("synthetic: its scores say nothing about patients.",))


def write_phantom(folder: Path, **settings: int) -> Path:
    """Write a phantom to `folder`, which must be new or empty, with the settings of the dataset `phantom`.

    Raises `DataError` and `BadSetting`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder. Use a new one.")
    checked = PhantomSettings(**dataset["phantom"].settings(settings))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rmdir()
    with naming(folder):
        _write(folder, checked)
    return folder


@dataclass(frozen=True)
class PhantomSettings:
    """Settings of a phantom."""

    patients: int
    size: int
    slices: int
    institutions: int
    seed: int
    structures: int
    exclusive: bool

    def __post_init__(self) -> None:
        if self.patients < self.institutions:
            raise BadSetting(f"{self.patients} phantom patients are too few for {self.institutions} institutions.")

    def values(self) -> dict[str, Any]:
        """Return the settings by name; those of a single structure are the same as before there were two."""
        values = asdict(self)
        if self.structures == 1:
            del values["structures"], values["exclusive"]
        return values

    def institution(self, patient: int) -> int:
        """Return the institution of a patient. The first is large and the last has one patient, as in LGG."""
        free = self.patients - self.institutions
        if patient >= free:  # one for each, so that none is empty
            return patient - free
        return int((self.institutions - 1) * (patient / free) ** 1.5)


def _write(folder: Path, settings: PhantomSettings) -> None:
    """Write `folder` completely or not at all."""
    with tempfile.TemporaryDirectory(prefix=".phantom-", dir=folder.parent) as name:
        writing = Path(name)
        rows = ["Patient,RNASeqCluster,MethylationCluster,CNCluster"]
        for patient in range(settings.patients):
            institution = settings.institution(patient)
            case = f"PHANTOM_{2 * chr(ord('A') + institution)}_{patient + 1:04}"
            current = writing / f"{case}_20000101"
            current.mkdir()
            for number, (image, mask) in enumerate(zip(*draw_head(settings, patient), strict=True), start=1):
                stem = f"{current.name}_{number}"
                tifffile.imwrite(current / f"{stem}.tif", image, photometric="rgb", metadata=None)
                tifffile.imwrite(current / f"{stem}_mask.tif", mask, photometric="minisblack", metadata=None)
            clusters = np.random.default_rng([settings.seed, patient, 2]).integers(1, 4, 3)
            rows.append(f"{case},{','.join(map(str, clusters))}")
        (writing / TABLE).write_text("\n".join(rows) + "\n")
        (writing / "README.md").write_text(README)
        labels = {"labels": LABELS[settings.exclusive]} if settings.structures > 1 else {}
        marker = {"version": VERSION, **settings.values(), **labels}
        (writing / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
        writing.chmod(0o755)  # mkdtemp lets only the owner read
        writing.rename(folder)


def draw_head(settings: PhantomSettings, patient: int) -> tuple[Pixels, Pixels]:
    """Draw one patient: images uint8 (S, N, N, 3) and masks uint8 (S, N, N).

    A mask holds 0 and 255, or with two structures 0, 1 (the rim of a lesion) and 2 (its core).
    """
    rng = np.random.default_rng([settings.seed, patient])
    scanner = np.random.default_rng([settings.seed, settings.institution(patient), 1])
    shape = (settings.slices, settings.size, settings.size)

    def texture(grain: float) -> Volume:
        """Return smooth noise of unit variance; `grain` is its correlation length over the field of view."""
        noise = gaussian_filter(rng.standard_normal(shape, np.float32), (0.7, *2 * (grain * settings.size,)))
        return np.asarray(noise / noise.std(), np.float32)

    # Coordinates from -1 to 1, rotated and shifted in the plane.
    z, *plane = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    angle, shift = rng.normal(0, 0.12), rng.normal(0, 0.03, 2)
    y, x = (axis - np.float32(by) for axis, by in zip(plane, shift, strict=True))
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = c * y - s * x, s * y + c * x
    wide, tall = rng.uniform(0.70, 0.80), rng.uniform(0.84, 0.94)
    radius = np.hypot(x / wide, y / tall) / np.sqrt(1 - 0.65 * z**2)  # 1 on the surface of the head
    soft = 2.5 / settings.size  # width of an edge
    levels = z[np.abs(z[:, 0, 0]) < 0.45, 0, 0]  # centred on a slice, so that no lesion falls between two

    def blob(small: float, large: float) -> Volume:
        """Return the distance from the centre of a random ellipsoid in the brain, 1 on its surface."""
        at, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.55)
        centre = rng.choice(levels), out * tall * np.sin(at), out * wide * np.cos(at)
        size, flat = rng.uniform(small, large), rng.uniform(0.75, 1.3)
        axes = zip((z, y, x), centre, (1.6 * size + 0.05, size * flat, size / flat), strict=True)
        return np.asarray(np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in axes)), np.float32)

    # From the outside in: each tissue is painted over the previous one according to its membership.
    ripple, matter = texture(0.03), texture(0.05)
    volume = np.zeros((*shape, 3), np.float32)
    _paint(volume, _inside(radius, 1.0, soft), SCALP)
    _paint(volume, _inside(radius, 0.89, soft), BONE)
    _paint(volume, _inside(radius, 0.83, soft), FLUID)
    _paint(volume, _inside(radius + 0.012 * ripple, 0.80, soft), GREY)
    _paint(volume, _inside(radius + 0.05 * ripple, 0.66, 0.06) * _inside(-matter, 0.9, 0.5), WHITE)
    horn = rng.uniform(0.8, 1.25)
    to_horn = np.sqrt(((np.abs(x) - 0.13 - 0.1 * y**2) / 0.075) ** 2 + ((y + 0.02) / 0.30) ** 2 + (z / 0.55) ** 2)
    to_horn /= horn
    _paint(volume, _inside(to_horn + 0.10 * ripple, 1.35, 0.25) * rng.uniform(0.3, 1.0), RIM)
    _paint(volume, _inside(to_horn, 1.0, 0.15), FLUID)

    cortex, lesion, core = 0.74, np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for _ in range(rng.integers(1, 5)):
        body = blob(0.10, 0.24) + 0.12 * ripple
        member = _inside(body, 1.0, 0.12) * _inside(radius, cortex, soft)
        _paint(volume, member, np.multiply(BODY, rng.uniform(0.75, 1.1)))
    for _ in range(1 + (rng.random() < 0.25)):
        depth = blob(0.14, 0.34) + 0.17 * texture(0.06)
        bright, rim = rng.uniform(0.56, 0.82), rng.choice([0.0, rng.uniform(0.5, 1.0)])
        member = _inside(depth, 1.0, rng.uniform(0.10, 0.40)) * _inside(radius, cortex, soft)
        _paint(volume, member, (rng.uniform(0.25, 0.42), bright, rng.uniform(0.28, 0.42)))
        shell = member * np.exp(-(((depth - 0.75) / 0.13) ** 2))
        _paint(volume, rim * shell, (0.30, bright, 0.85))
        lesion = np.maximum(lesion, member)
        if settings.structures > 1:
            centre = _inside(depth, 0.6, 0.1) * member
            _paint(volume, centre, CORE)
            core = np.maximum(core * (1 - member), centre)  # this lesion covers the core of an earlier one

    variation = 1 + 0.05 * matter + 0.10 * texture(0.30)  # of the tissue, and the bias field of a coil
    volume *= variation[..., None]
    level = rng.uniform(0.45, 1.0) * scanner.uniform(0.7, 1.0, 3)
    noise = scanner.uniform(0.01, 0.04) * rng.standard_normal(volume.shape, np.float32)
    pixels = 255 * level * np.clip(volume + noise * (volume > 0.02), 0, 1)
    images = np.asarray(pixels, np.uint8)
    if patient == 2:
        images[..., 2] = images[..., 1]  # FLAIR replaces a missing sequence, as in LGG
    step = np.uint8(255 if settings.structures == 1 else 1)
    return images, step * ((lesion > 0.5).astype(np.uint8) + (core > 0.5))


def _inside(distance: Volume, edge: float, width: float) -> Volume:
    """Return a membership of 1 well inside `edge` and 0 well outside, linear over `width`."""
    return np.asarray(np.clip(0.5 + (edge - distance) / width, 0, 1), np.float32)


def _paint(volume: Volume, membership: Volume, contrast: tuple[float, float, float] | NDArray[np.float64]) -> None:
    """Mix a tissue into the volume, in place."""
    volume += membership[..., None] * (np.asarray(contrast, np.float32) - volume)
