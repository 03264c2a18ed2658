"""Logged models on other images: `bench evaluate` scores them, `bench predict` writes masks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile

from bench import registry
from bench.console import Display, console
from bench.datasets.images import by_patient, find_images, read_slice, read_truth
from bench.device import find_device
from bench.errors import DataError
from bench.export import exported, took_part
from bench.leaderboard import data_tags
from bench.masks import Mask
from bench.pack import Pack, Pixels, Source, packed, shown_channel
from bench.pictures import side_by_side
from bench.recipe import task_of
from bench.runner import slice_table
from bench.serving import Segmenter
from bench.tables import SYNTHETIC_WARNING, headline
from bench.tracking import EVALUATION, KIND, connect, find_run, model_folders, open_run, parent_of, patients_of


def evaluate_external(
    wanted: str, folder: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> str:
    """Score the models of a run, or of a folder that was exported, on the patients of another folder.

    It is logged as a child of the run, or by itself. Gives the id of what was logged. Raises `DataError` where
    patients took part in the run that the models come from.
    """
    store = connect(uri)
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = exported(Path(wanted), fold)
        run = None if folders else find_run(store, wanted)
        if run is not None:
            folders = model_folders(store, run, Path(workspace), fold=fold)
        segmenter = Segmenter(folders, str(find_device(device)))
        config = segmenter.config
        reads_folders = "folder" in registry.dataset[config.dataset.name].schema.model_fields
        name = config.dataset.name if reads_folders else "lgg"
        how = config.dataset.params if reads_folders else {}  # how they were found and read
        source: Source = registry.dataset[name].bind({**how, "folder": folder})()
        pack = packed(source, tick=display.packing)
        _fit(segmenter, pack)
        task = task_of(config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"metrics": ()})}))
        tags = {KIND: EVALUATION, "bench.task": task.name, **data_tags(pack.manifest)}
        if run is None:
            origin, whose, experiment = wanted, Path(wanted).resolve().name, config.dataset.name
            shared = sorted(took_part(segmenter.descriptions[0], pack.cases))
        else:
            parent = parent_of(store, run)
            origin, whose = run.info.run_id, str(run.info.run_name)
            experiment = store.client.get_experiment(run.info.experiment_id).name
            tags["mlflow.parentRunId"] = parent.info.run_id
            shared = sorted(patients_of(store, parent) & set(pack.cases))
        if shared:
            raise DataError(
                f"{len(shared)} of the patients of {folder} took part in the run itself "
                f"({', '.join(shared[:3])} ...): an external test needs others. "
                "Their out-of-fold scores are on the leaderboard."
            )
        if pack.manifest.synthetic:
            display.say(SYNTHETIC_WARNING)
        chosen = segmenter.threshold if threshold is None else threshold
        feed = segmenter.feed(pack, tick=display.packing)
        scores = []
        for number, case in enumerate(pack.cases, 1):
            scores += [score for score, _ in task.score(segmenter.models, feed, [case], chosen)]
            display.bar(number, len(pack.cases), "evaluating", "patients")
        cases = pd.DataFrame([{"case": s.case, "threshold": chosen, **s.values, **s.counts} for s in scores])
        slices = slice_table(scores)
        values = task.summarise(cases, slices)
        title = f"{whose} on {folder.resolve().name}"
        with open_run(store, title, experiment, tags, say=display.say) as recorder:
            recorder.settings(
                {
                    "evaluate.run": origin,
                    "evaluate.threshold": chosen,
                    "evaluate.models": len(segmenter.models),
                }
            )
            recorder.data(pack.manifest.dataset, pack.manifest.key, pack.profile())
            recorder.metrics(values)
            recorder.table("cases", cases)
            recorder.table("slices", slices)
            for name, table in task.tables(slices).items():
                recorder.table(name, table)
    models = "1 model" if len(segmenter.models) == 1 else f"the mean of {len(segmenter.models)} fold models"
    console().print(
        f"{title}: {models}, threshold {chosen:.2f}, {len(cases)} patients\n{headline(values)}", markup=False
    )
    return recorder.run_id


def predict_folder(
    wanted: str, path: Path, out: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> None:
    """Write `<name>_mask.tif` and `<name>_overlay.png` under `out` for every image, keeping subfolders.

    The images of one folder are one patient: they are normalised together, as in training. Where an image has a
    mask beside it, the overlay shows it too, with the Dice. Presence models leave `presence.csv` instead.
    """
    scans = find_images(path)
    root = path.parent if path.is_file() else path
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = exported(Path(wanted), fold)
        if not folders:
            store = connect(uri)
            folders = model_folders(store, find_run(store, wanted), Path(workspace), fold=fold)
        segmenter = Segmenter(folders, str(find_device(device)))
        chosen = segmenter.threshold if threshold is None else threshold
        done, of = 0, sum(map(len, scans.values()))
        called: list[dict[str, object]] = []
        whose = segmenter.config.dataset.params.get("patient")
        patients = [(folder, part) for folder, all_ in scans.items() for part in by_patient(all_, root, whose)]
        for folder, files in patients:
            slices = [read_slice(file, len(segmenter.channels)) for file in files]
            if len({s.shape for s in slices}) > 1:
                raise DataError(f"the images of {folder} differ in size; a patient's are on one grid.")
            images = np.stack(slices)
            target = out / folder.relative_to(root)
            target.mkdir(parents=True, exist_ok=True)
            for file, image, probability in zip(files, images, segmenter.predict(images), strict=True):
                mask = probability >= chosen
                called.append(
                    {
                        "image": str(file.relative_to(root)),
                        "probability": float(probability.max()),
                        "called": bool(mask.any()),
                    }
                )
                if not segmenter.presence:
                    _write(target, file, _shown(segmenter, image), mask)
                display.bar(done := done + 1, of, "predicting", "images")
    positive = sum(bool(row["called"]) for row in called)
    if segmenter.presence:
        pd.DataFrame(called).to_csv(out / "presence.csv", index=False)
    what = (
        f"{out / 'presence.csv'} tells of {of} images"
        if segmenter.presence
        else f"{of} masks and overlays are in {out}"
    )
    console().print(f"{what}; {positive} images show tumour at threshold {chosen:.2f}", markup=False)


def _shown(segmenter: Segmenter, image: Pixels) -> Pixels:
    """The channel that people look at, (H, W)."""
    shown: Pixels = image[..., shown_channel(segmenter.channels)]
    return shown


def _write(target: Path, file: Path, image: Pixels, mask: Mask) -> None:
    truth = read_truth(file)
    if truth is not None and truth.shape != mask.shape:
        raise DataError(f"the mask beside {file} has another size than the image. Mend or remove it.")
    tifffile.imwrite(target / f"{file.stem}_mask.tif", mask.astype(np.uint8) * 255, photometric="minisblack")
    cv2.imwrite(str(target / f"{file.stem}_overlay.png"), side_by_side(image, mask, truth)[..., ::-1])


def _fit(segmenter: Segmenter, pack: Pack) -> None:
    if pack.manifest.channels != segmenter.channels:
        raise DataError(
            f"the model was trained on the channels {', '.join(segmenter.channels)}; "
            f"these data have {', '.join(pack.manifest.channels)}."
        )
