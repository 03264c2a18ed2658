"""Packed slices after a run's preprocessing: made once, kept beside the pack, found again.

Preprocessing is part of the method, not of the data: a prepared pack keeps the manifest and so the key of the raw
one, and runs with and without it are ranked on one board. In the pack's folder lie, for each chain of steps,

    prepared-<hash>/images.npy      uint8 (N, H, W, C)
    prepared-<hash>/histograms.npy  uint32 (N, C, 256)

which may be removed at any time, by hand or with the pack: they are made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from bench import registry
from bench.data.pack import Pack, histograms_of
from bench.data.source import Pixels
from bench.errors import BadSetting, DataError

FORMAT = 1  # raise it when the files above change their meaning, or what steps import from other files


Steps: TypeAlias = Mapping[str, Mapping[str, Any]]


Histograms: TypeAlias = NDArray[np.uint32]


Tick: TypeAlias = Callable[[int, int], None]


def preprocessed(pack: Pack, steps: Steps, *, tick: Tick = lambda done, of: None) -> Pack:
    """The pack after `steps`, name -> settings, one after another on every slice; itself where there are none.

    Found again where the same steps, with all settings and the source files they are in, were prepared before; a
    pack in memory is prepared in memory. `tick(done, of)` is called after each slice. Raises `BenchError`.
    """
    if not steps:
        return pack
    change = _chain(steps)
    if pack.folder == Path():
        images = np.empty(pack.images.shape, np.uint8)
        return replace(pack, images=images, histograms=_fill(images, pack.images, change, tick))
    folder = pack.folder / f"prepared-{_key(steps)}"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            _write(folder, pack.images, change, tick)
    try:
        images, histograms = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "histograms"))
    except (OSError, ValueError, EOFError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{folder} is damaged ({why}). Remove that folder and it is made again.") from None
    return replace(pack, images=images, histograms=histograms)


def _write(folder: Path, raw: Pixels, change: Callable[[Pixels], Pixels], tick: Tick) -> None:
    """Make `folder`, whole or not at all."""
    writing = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)  # of a process that was killed
    writing.mkdir()
    try:
        images = np.lib.format.open_memmap(writing / "images.npy", mode="w+", dtype=np.uint8, shape=raw.shape)
        np.save(writing / "histograms.npy", _fill(images, raw, change, tick))
        images.flush()
        writing.rename(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _fill(images: Pixels, raw: Pixels, change: Callable[[Pixels], Pixels], tick: Tick) -> Histograms:
    """Put every changed slice of `raw` into `images`. Gives the histograms.

    In threads: OpenCV and ITK do not hold Python's lock while they compute.
    """

    def one(row: int) -> Histograms:
        image = change(np.array(raw[row]))
        images[row] = image
        return histograms_of([image])

    histograms = np.zeros((len(raw), raw.shape[-1], 256), np.uint32)
    with ThreadPoolExecutor(torch.get_num_threads(), "bench-prepare") as pool:
        for row, found in enumerate(pool.map(one, range(len(raw)))):
            histograms[row] = found[0]
            tick(row + 1, len(raw))
    return histograms


def _chain(steps: Steps) -> Callable[[Pixels], Pixels]:
    """All steps as one function of a slice (H, W, C). Raises `BenchError` for what is not there."""
    bound = [(name, registry.preprocessing[name].bind(params)) for name, params in steps.items()]

    def change(image: Pixels) -> Pixels:
        shape = image.shape
        for name, step in bound:
            image = step(image)
            if image.shape != shape or image.dtype != np.uint8:
                raise BadSetting(
                    f"the preprocessing '{name}' turns a uint8 slice of shape {shape} into {image.dtype} of shape "
                    f"{image.shape}, but slices must keep both. Mend it or leave it out."
                )
        return image

    return change


def _key(steps: Steps) -> str:
    """What the result depends on besides the raw pixels, hashed. What a source file imports is not looked at."""
    entries = [(registry.preprocessing[name], params) for name, params in steps.items()]
    what = [(entry.name, entry.settings(params), _source(entry)) for entry, params in entries]
    return hashlib.sha256(json.dumps([FORMAT, what], default=str).encode()).hexdigest()[:16]


def _source(entry: registry.Entry) -> str:
    """The SHA-256 of the file that holds the function: a step that was edited gives other slices."""
    try:
        file = Path(inspect.getfile(entry.fn))
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (TypeError, OSError):
        raise BadSetting(
            f"the preprocessing '{entry.name}' was defined in no file, so its slices could not be found again. "
            "Put it into a file and give --plugin."
        ) from None
