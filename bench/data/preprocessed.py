"""Packed slices after the preprocessing of a run: computed once, cached beside the pack, and reused.

Preprocessing is part of the method, not of the data. A preprocessed pack keeps the manifest, and so the key, of
the raw one: runs with and without preprocessing are ranked on one board. The folder of the pack holds, for each
chain of steps,

    prepared-<hash>/images.npy      uint8 (N, H, W, C)
    prepared-<hash>/histograms.npy  uint32 (N, C, 256)
    prepared-<hash>/checked.json    the state in which images and histograms were last compared

These folders may be removed at any time; they are computed again. The histograms are computed again when a file of
the folder has changed; a difference is an error.
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
from numpy.typing import NDArray

from bench import registry
from bench.data.cached_arrays import checked, create_array, damaged, file_state, open_array, remember_check
from bench.data.pack import Pack, Tick, compute_histograms
from bench.data.source import Pixels
from bench.errors import BadSetting
from bench.files import lock_if_writable, writing_to_cache

FILES = ("images.npy", "histograms.npy")
FORMAT = 1  # increase when the meaning of the files above changes, or when code that the steps import changes

Steps: TypeAlias = Mapping[str, Mapping[str, Any]]
Histograms: TypeAlias = NDArray[np.uint32]


def preprocess_pack(pack: Pack, steps: Steps, *, tick: Tick = lambda done, total: None) -> Pack:
    """Apply `steps`, name -> settings, in order to every slice. Without steps, return the pack itself.

    A cached result is reused if the steps, all their settings and their source files are the same. A pack in
    memory is preprocessed in memory. `tick(done, total)` is called after each slice. Raises `BenchError`.
    """
    if not steps:
        return pack
    change = _chain(steps)
    if pack.folder == Path():
        images = np.empty(pack.images.shape, np.uint8)
        return replace(pack, images=images, histograms=_fill(images, pack.images, change, tick))
    folder = pack.folder / f"prepared-{_key(steps)}"
    with writing_to_cache(pack.folder), lock_if_writable(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            _write(folder, pack.images, change, tick)
        try:
            images, histograms = _open(folder, pack, tick)
        except (OSError, ValueError, EOFError) as error:
            raise damaged(folder, error) from None
    return replace(pack, images=images, histograms=histograms)


def _open(folder: Path, pack: Pack, tick: Tick) -> tuple[Pixels, Histograms]:
    """Open the arrays of a preprocessed pack. Raises `OSError` and `ValueError`."""
    images = open_array(folder / "images.npy", np.uint8)
    histograms = open_array(folder / "histograms.npy", np.uint32)
    if (images.shape, histograms.shape) != (pack.images.shape, pack.histograms.shape):
        raise ValueError("its files do not belong to the pack")
    state = file_state(folder / name for name in FILES)
    if checked(folder).get("histograms") != state:
        for row, (image, counts) in enumerate(zip(images, histograms, strict=True)):
            if not np.array_equal(compute_histograms([image])[0], counts):
                raise ValueError(f"slice {row} has changed since it was written")
            tick(row + 1, len(images))
        remember_check(folder, histograms=state)
    return images, histograms


def _write(folder: Path, raw: Pixels, change: Callable[[Pixels], Pixels], tick: Tick) -> None:
    """Write `folder` completely or not at all."""
    writing = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)  # left by a process that was killed
    writing.mkdir()
    try:
        images = create_array(writing / "images.npy", np.uint8, raw.shape)
        histograms = create_array(writing / "histograms.npy", np.uint32, (len(raw), raw.shape[-1], 256))
        histograms[:] = _fill(images, raw, change, tick)
        images.flush()
        histograms.flush()
        writing.rename(folder)
        remember_check(folder, histograms=file_state(folder / name for name in FILES))
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _fill(images: Pixels, raw: Pixels, change: Callable[[Pixels], Pixels], tick: Tick) -> Histograms:
    """Write every changed slice of `raw` into `images`, and return the histograms.

    Threads are enough: OpenCV and ITK release Python's lock while they compute.
    """

    def change_slice(row: int) -> Histograms:
        images[row] = image = change(np.array(raw[row]))
        return compute_histograms([image])

    histograms = np.zeros((len(raw), raw.shape[-1], 256), np.uint32)
    with ThreadPoolExecutor(torch.get_num_threads(), "bench-prepare") as pool:
        for row, histogram in enumerate(pool.map(change_slice, range(len(raw)))):
            histograms[row] = histogram[0]
            tick(row + 1, len(raw))
    return histograms


def _chain(steps: Steps) -> Callable[[Pixels], Pixels]:
    """Combine the steps into one function of a slice (H, W, C). Raises `BenchError` for unknown settings."""
    bound = [(name, registry.preprocessing[name].bind(params)) for name, params in steps.items()]

    def change(image: Pixels) -> Pixels:
        shape = image.shape
        for name, step in bound:
            image = step(image)
            if image.shape != shape or image.dtype != np.uint8:
                raise BadSetting(
                    f"the preprocessing '{name}' turns a uint8 slice of shape {shape} into {image.dtype} of shape "
                    f"{image.shape}, but it must keep both. Fix it or leave it out."
                )
        return image

    return change


def _key(steps: Steps) -> str:
    """Hash all that the result depends on besides the raw pixels. What a source file imports is not included."""
    content = []
    for name, params in steps.items():
        entry = registry.preprocessing[name]
        try:  # an edited step must not reuse old slices
            source = hashlib.sha256(Path(inspect.getfile(entry.fn)).read_bytes()).hexdigest()
        except (TypeError, OSError):
            raise BadSetting(
                f"the preprocessing '{name}' is not defined in a file, so its cached slices could not be "
                "recognised. Put it into a file and load that with --plugin."
            ) from None
        content.append((name, entry.settings(params), source))
    return hashlib.sha256(json.dumps([FORMAT, content], default=str).encode()).hexdigest()[:16]
