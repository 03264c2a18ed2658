"""`bench predict`: masks of images and volumes by logged models; no truth is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile

from bench.console import Display
from bench.data.pack import display_channel
from bench.data.readers import itk
from bench.data.readers.images import (
    find_images,
    group_by_patient,
    is_mask_name,
    last_number,
    list_images,
    read_mask_beside,
    read_slice,
)
from bench.data.source import Pixels
from bench.device import find_device
from bench.errors import BadSetting, DataError
from bench.formatting import join_first, list_thresholds
from bench.inference.fold_models import FoldModels
from bench.inference.overlays import side_by_side
from bench.masks import Mask
from bench.outputs import check_outputs, new_output, write_output
from bench.structures import Structures, call_structures
from bench.tracking import connect, download_models, find_run
from bench.tracking.export import find_exported_models


@dataclass(frozen=True)
class _PatientInput:
    """The slices of one patient to predict.

    `names` are those of the slices, `outputs` those of the files to write, `load` reads the pixels (S, H, W, C),
    and `write` takes an output folder, the channel to show (S, H, W) and masks (S, K, H, W).
    """

    names: list[str]
    outputs: list[str]
    load: Callable[[], Pixels]
    write: Callable[[Path, Pixels, Mask], None]


@dataclass(frozen=True, repr=False)
class Predictions:
    """What was predicted, and a sentence that says where it is.

    `images` has one row per image or slice: image, probability (the highest), called (whether anything is
    predicted).
    """

    images: pd.DataFrame
    summary: str

    def to_pandas(self) -> pd.DataFrame:
        return self.images

    def __repr__(self) -> str:
        return self.summary


def predict_folder(
    wanted: str,
    inputs: Sequence[Path],
    out: Path,
    *,
    fold: int | None,
    threshold: float | None,
    device: str,
    uri: str | None,
) -> Predictions:
    """Write `<name>_mask.tif` and `<name>_overlay.png` under `out` for every image of the inputs.

    An input is an image, a volume, or a folder of them, whose subfolders are kept.

    A mask of several exclusive structures holds their values in the data set; structures that may overlap get a
    file each, `<name>_<structure>_mask.tif`.
    The images of one folder are one patient: they are normalised together, as in training. If an image has a mask
    beside it, the overlay shows it too, with the Dice. The mask of a volume is a volume of the same geometry, and
    its overlay shows the slice with most tumour. Presence models write `presence.csv` instead.
    """
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = find_exported_models(Path(wanted), fold)
        if not folders:
            store = connect(uri)
            folders = download_models(store, find_run(store, wanted), Path(workspace), fold=fold)
        models = FoldModels(folders, str(find_device(device)))
        thresholds = models.thresholds if threshold is None else (threshold,) * len(models.thresholds)
        for path in inputs:
            if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
                raise BadSetting(
                    f"--out {out} is inside {path}: masks would lie among the images that they were made from. "
                    "Give a folder outside of it."
                )
        patients = _find_patients(inputs, models)
        table = out / "presence.csv"
        check_outputs([table] if models.presence else (out / name for p in patients for name in p.outputs))
        total = sum(len(patient.names) for patient in patients)
        called: list[dict[str, object]] = []
        for patient in patients:
            images = patient.load()
            _refuse_masks(images, patient.names)
            probability = models.probabilities(images)
            masks = call_structures(probability, thresholds, exclusive=models.structures.exclusive)
            called += [
                {"image": name, "probability": float(p.max()), "called": bool(mask.any())}
                for name, p, mask in zip(patient.names, probability, masks, strict=True)
            ]
            if not models.presence:
                patient.write(out, images[..., display_channel(models.channels)], masks)
            display.bar(len(called), total, "predicting", "images")
    positive = sum(bool(row["called"]) for row in called)
    count = f"{total} image{'s' * (total != 1)}"
    what = f"{models.structures.noun} at threshold {list_thresholds(thresholds)}"
    found = pd.DataFrame(called)
    if models.presence:
        write_output(table, found.to_csv(index=False))
        result = f"{table} lists {count}"
    else:
        result = f"masks and overlays of {count} are in {out}"
    return Predictions(found, f"{result}; {positive} of them with {what}")


def _find_patients(inputs: Sequence[Path], models: FoldModels) -> list[_PatientInput]:
    """Return the patients of all inputs. Single images of one folder are one patient. Raises `DataError`."""
    patients: list[_PatientInput] = []
    single: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(inputs):
        if volumes := _volumes(path, models):
            patients += volumes
        elif path.is_dir():
            _refuse_folder_of_volumes(path)
            patients += _images(path, find_images(path), models)
        else:
            for folder, files in find_images(path).items():
                single.setdefault(folder, []).extend(files)
    for folder, files in single.items():
        patients += _images(folder, {folder: sorted(files, key=lambda p: (last_number(p.stem), p.name))}, models)
    return patients


def _refuse_folder_of_volumes(path: Path) -> None:
    """Raise `DataError` if a folder holds no images, but folders of volumes: it names the one to pass."""
    folders = itk.folders_of_volumes(path)
    if folders and not list_images(path):
        scans = next((each for each in folders if not is_mask_name(f"{each.name}/a")), folders[0])
        names = join_first(each.name for each in folders)
        raise DataError(
            f"{path} holds its volumes in the folders {names}. Pass the one of the scans, such as {scans}."
        )


def _images(root: Path, found: Mapping[Path, list[Path]], models: FoldModels) -> list[_PatientInput]:
    structures, ends = models.structures, _ends(models.structures)
    params = models.config.dataset.params
    table = params.get("patients")
    table = table if isinstance(table, str) else None  # the phantom's `patients` is their number

    def load(folder: Path, files: list[Path]) -> Pixels:
        slices = [read_slice(file, len(models.channels)) for file in files]
        if len({s.shape for s in slices}) > 1:
            raise DataError(f"the images of {folder} differ in size, but must have one size per patient.")
        return np.stack(slices)

    def write(files: list[Path], out: Path, images: Pixels, masks: Mask) -> None:
        for file, image, mask in zip(files, images, masks, strict=True):
            beside = read_mask_beside(file) if len(mask) == 1 else None
            truth = None if beside is None else beside[None]
            if truth is not None and truth.shape != mask.shape:
                raise DataError(f"the mask beside {file} has another size than the image. Fix or remove it.")
            *mask_names, overlay_name = named(file)
            for name, labels in zip(mask_names, structures.image_maps(mask[None]).values(), strict=True):
                with new_output(out / name) as tiff:
                    tifffile.imwrite(tiff, labels[0], photometric="minisblack")
            _write_overlay(out / overlay_name, image, mask, truth, structures)

    def named(file: Path) -> list[str]:
        stem = file.relative_to(root).with_suffix("")
        return [*(f"{stem}{end}_mask.tif" for end in ends), f"{stem}_overlay.png"]

    return [
        _PatientInput(
            [str(file.relative_to(root)) for file in files],
            [name for file in files for name in named(file)],
            partial(load, folder, files),
            partial(write, files),
        )
        for folder, images in found.items()
        for files in group_by_patient(images, root, params.get("patient"), table)
    ]


def _volumes(path: Path, models: FoldModels) -> list[_PatientInput]:
    window = models.config.dataset.params.get("window")
    structures, ends = models.structures, _ends(models.structures)

    def write(names: list[str], file: Path, out: Path, images: Pixels, masks: Mask) -> None:
        for name, labels in zip(names[:-1], structures.label_maps(masks).values(), strict=True):
            with new_output(out / name) as volume:
                itk.write_stack(volume, labels, file, axis=models.axis)
        largest = int(masks.sum((1, 2, 3)).argmax())
        _write_overlay(out / names[-1], images[largest], masks[largest], None, structures)

    patients = []
    scans = {name: file for name, file in itk.find_volumes(path).items() if not is_mask_name(name)}
    for case, files in itk.group_channels(scans).items():
        grid = itk.read_grid(files)
        if grid.channels != len(models.channels):
            count = len(models.channels)
            raise DataError(f"{case} has {grid.channels} channel(s); the model was trained on {count}.")
        slices = grid.size[models.axis]
        names = [f"{case}#{number}" for number in range(1, slices + 1)]
        load = partial(itk.read_volume, files, window, axis=models.axis)
        suffix = itk.volume_suffix(files[0])
        outputs = [*(f"{case}{end}_mask{suffix}" for end in ends), f"{case}_overlay.png"]
        patients.append(_PatientInput(names, outputs, load, partial(write, outputs, files[0])))
    return patients


def _refuse_masks(images: Pixels, names: list[str]) -> None:
    """Raise `DataError` if the images of a patient hold two grey levels only, as masks do."""
    low, high = images.min(), images.max()
    if low < high and ((images == low) | (images == high)).all():
        raise DataError(
            f"{join_first(names)} hold two grey levels only, like masks. Pass the scans without masks."
        )


def _ends(structures: Structures) -> list[str]:
    """Return the ends of the names of mask files, before `_mask`."""
    return list(structures.label_maps(np.zeros((0, len(structures), 1, 1), bool)))


def _write_overlay(path: Path, image: Pixels, mask: Mask, truth: Mask | None, structures: Structures) -> None:
    with new_output(path) as png:
        cv2.imwrite(str(png), side_by_side(image, mask, truth, names=structures.names)[..., ::-1])
