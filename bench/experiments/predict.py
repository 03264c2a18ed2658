"""`bench predict`: masks of images and volumes by logged models, whether or not there is a truth."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile

from bench.console import Display, console
from bench.data.pack import shown_channel
from bench.data.readers.images import by_patient, find_images, read_slice, read_truth
from bench.data.readers.itk import by_case, extent, find_volumes, read_volume, suffix_of, write_mask
from bench.data.source import Pixels
from bench.device import find_device
from bench.errors import DataError
from bench.inference.fold_models import FoldModels
from bench.inference.overlays import side_by_side
from bench.masks import Mask
from bench.tracking import connect, find_run, model_folders
from bench.tracking.export import exported


def predict_folder(
    wanted: str, path: Path, out: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> None:
    """Write `<name>_mask.tif` and `<name>_overlay.png` under `out` for every image, keeping subfolders.

    The images of one folder are one patient: they are normalised together, as in training. Where an image has a
    mask beside it, the overlay shows it too, with the Dice. Of a volume, the mask is a volume that lies where it
    does, and the overlay shows the slice with most tumour. Presence models leave `presence.csv` instead.
    """
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = exported(Path(wanted), fold)
        if not folders:
            store = connect(uri)
            folders = model_folders(store, find_run(store, wanted), Path(workspace), fold=fold)
        segmenter = FoldModels(folders, str(find_device(device)))
        chosen = segmenter.threshold if threshold is None else threshold
        called: list[dict[str, object]] = []
        scans = _volumes_at(path, segmenter) or _images_at(path, segmenter)
        of = sum(len(scan.names) for scan in scans)
        for scan in scans:
            images = scan.load()
            probability = segmenter.predict(images)
            masks = probability >= chosen
            called += [
                {"image": name, "probability": float(p.max()), "called": bool(mask.any())}
                for name, p, mask in zip(scan.names, probability, masks, strict=True)
            ]
            out.mkdir(parents=True, exist_ok=True)
            if not segmenter.presence:
                scan.write(out, images[..., shown_channel(segmenter.channels)], masks)
            display.bar(len(called), of, "predicting", "images")
    positive = sum(bool(row["called"]) for row in called)
    if segmenter.presence:
        pd.DataFrame(called).to_csv(out / "presence.csv", index=False)
    count = f"{of} image{'s' * (of != 1)}"
    what = (
        f"{out / 'presence.csv'} tells of {count}"
        if segmenter.presence
        else f"masks and overlays of {count} are in {out}"
    )
    console().print(f"{what}; {positive} of them with tumour at threshold {chosen:.2f}", markup=False)


@dataclass(frozen=True)
class _PatientInput:
    """A patient to predict.

    `names` are those of its slices, `load` gives their pixels (S, H, W, C), and `write` leaves in a folder, given
    the channel that people look at (S, H, W), masks of that shape.
    """

    names: list[str]
    load: Callable[[], Pixels]
    write: Callable[[Path, Pixels, Mask], None]


def _images_at(path: Path, segmenter: FoldModels) -> list[_PatientInput]:
    root = path.parent if path.is_file() else path
    whose = segmenter.config.dataset.params.get("patient")

    def load(folder: Path, files: list[Path]) -> Pixels:
        slices = [read_slice(file, len(segmenter.channels)) for file in files]
        if len({s.shape for s in slices}) > 1:
            raise DataError(f"the images of {folder} differ in size; a patient's are on one grid.")
        return np.stack(slices)

    def write(files: list[Path], out: Path, images: Pixels, masks: Mask) -> None:
        for file, image, mask in zip(files, images, masks, strict=True):
            truth = read_truth(file)
            if truth is not None and truth.shape != mask.shape:
                raise DataError(f"the mask beside {file} has another size than the image. Mend or remove it.")
            name = out / file.relative_to(root).with_suffix("")
            name.parent.mkdir(parents=True, exist_ok=True)
            pixels = mask.astype(np.uint8) * 255
            tifffile.imwrite(name.with_name(f"{name.name}_mask.tif"), pixels, photometric="minisblack")
            _overlay(name, image, mask, truth)

    return [
        _PatientInput(
            [str(file.relative_to(root)) for file in files], partial(load, folder, files), partial(write, files)
        )
        for folder, found in find_images(path).items()
        for files in by_patient(found, root, whose)
    ]


def _volumes_at(path: Path, segmenter: FoldModels) -> list[_PatientInput]:
    window = segmenter.config.dataset.params.get("window")

    def write(case: str, file: Path, out: Path, images: Pixels, masks: Mask) -> None:
        write_mask(out / f"{case}_mask{suffix_of(file)}", masks, file)
        largest = int(masks.sum((1, 2)).argmax())
        _overlay(out / case, images[largest], masks[largest], None)

    scans = []
    for case, files in by_case(find_volumes(path)).items():
        slices, channels = extent(files)
        if channels != len(segmenter.channels):
            raise DataError(
                f"{case} has {channels} channel(s); the model was trained on {len(segmenter.channels)}."
            )
        names = [f"{case}#{number}" for number in range(1, slices + 1)]
        scans.append(_PatientInput(names, partial(read_volume, files, window), partial(write, case, files[0])))
    return scans


def _overlay(name: Path, image: Pixels, mask: Mask, truth: Mask | None) -> None:
    cv2.imwrite(str(name.with_name(f"{name.name}_overlay.png")), side_by_side(image, mask, truth)[..., ::-1])
