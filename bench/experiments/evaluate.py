"""`bench evaluate`: score logged models on patients who took no part in their run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.run_summary import headline
from bench.console import Display, console
from bench.data.pack import Pack, load_or_pack
from bench.device import find_device
from bench.errors import DataError
from bench.formatting import SYNTHETIC_WARNING, join_first, list_thresholds
from bench.inference.fold_models import FoldModels
from bench.masks import Masks
from bench.structures import per_structure
from bench.tracking import EVALUATION, connect_to_write, download_models, find_parent, find_run, open_run
from bench.tracking.export import find_exported_models
from bench.tracking.participants import Participants, read_exported_participants, read_participants
from bench.tracking.tags import Tag, data_tags
from bench.training.experiment import source_like, task_of
from bench.training.fold_records import patient_rows, slice_table
from bench.types import CaseScore


def evaluate_external(
    wanted: str,
    folder: Path,
    *,
    fold: int | None,
    threshold: float | None,
    device: str,
    uri: str | None,
    changes: Mapping[str, Any] | None = None,
) -> str:
    """Score the models of a run, or of an exported folder, on the patients of another folder.

    `changes` are settings of the data set in which the folder differs from that of the run.

    The result, with overlays of the best, the median and the worst patient, is logged as a child of the run, or as
    a run of its own, whose id is returned. Raises `DataError` if patients took part in the run that the models
    come from, under whatever name.
    """
    store = connect_to_write(uri)
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        exported = Path(wanted)
        folders = find_exported_models(exported, fold)
        run = None if folders else find_run(store, wanted)
        if run is not None:
            folders = download_models(store, run, Path(workspace), fold=fold)
        models = FoldModels(folders, str(find_device(device)))
        pack = load_or_pack(source_like(models.config, folder, changes), tick=display.packing)
        tags: dict[str, str] = {Tag.KIND: EVALUATION, **data_tags(pack.manifest)}
        if run is None:
            participants = read_exported_participants(models.descriptions[0])
            origin, name, experiment = str(exported), exported.resolve().name, models.config.dataset.name
        else:
            parent = find_parent(store, run)
            participants = read_participants(store, parent)
            tags["mlflow.parentRunId"] = parent.info.run_id
            origin, name = run.info.run_id, str(run.info.run_name)
            experiment = store.client.get_experiment(run.info.experiment_id).name
        _check_patients(models, pack, participants, folder, display)
        evaluate = models.config.evaluate.model_copy(update={"metrics": ()})
        task = task_of(models.config.model_copy(update={"evaluate": evaluate}))
        thresholds = models.thresholds if threshold is None else (threshold,) * len(models.thresholds)
        predictor = models.predictor(pack, tick=display.packing)
        scored: list[tuple[CaseScore, Masks]] = []
        for number, case in enumerate(pack.cases, 1):
            scored += task.score(predictor, [case], thresholds)
            display.bar(number, len(pack.cases), "evaluating", "patients")
        scores, masks = [score for score, _ in scored], Masks.joined(mask for _, mask in scored)
        columns = per_structure("threshold", models.structures.names, thresholds)
        cases = pd.DataFrame(patient_rows(scores, **columns))
        slices = slice_table(scores)
        values = task.summarise(cases, slices)
        title = f"{name} on {folder.resolve().name}"
        with open_run(store, title, experiment, tags | {Tag.TASK: task.name}, say=display.say) as recorder:
            settings = {"evaluate.run": origin, "evaluate.threshold": list_thresholds(thresholds)}
            recorder.settings(settings | {"evaluate.models": len(models.models)})
            recorder.data(pack.manifest.dataset, pack.manifest.key, pack.profile())
            recorder.metrics(values)
            for table, rows in {"cases": cases, "slices": slices, **task.tables(slices)}.items():
                recorder.table(table, rows)
            for picture, pixels in task.pictures(pack, cases, slices, masks).items():
                recorder.image(picture, pixels)
    count = "1 model" if len(models.models) == 1 else f"the mean of {len(models.models)} fold models"
    title = f"{title}: {count}, threshold {list_thresholds(thresholds)}, {len(scores)} patients"
    console().print(f"{title}\n{headline(values)}", markup=False)
    return recorder.run_id


def _check_patients(
    models: FoldModels, pack: Pack, participants: Participants, folder: Path, display: Display
) -> None:
    """Raise `DataError` if the channels differ, or if patients are known to the models."""
    if pack.manifest.channels != models.channels:
        raise DataError(
            f"the model was trained on the channels {', '.join(models.channels)}, but the data in {folder} have "
            f"{', '.join(pack.manifest.channels)}. Give --data a folder with the same channels."
        )
    if not models.presence and len(pack.structures) != len(models.structures):
        raise DataError(
            f"the model segments {', '.join(models.structures.names)}, but the data in {folder} have "
            f"{', '.join(pack.structures.names)}. Give --data a folder with the same structures."
        )
    if shared := participants.find_in(pack):
        raise DataError(
            f"{len(shared)} of the patients of {folder} took part in the run itself, by their names or by "
            f"their images ({join_first(shared)}): an external test needs other patients. "
            "Their out-of-fold scores are on the leaderboard."
        )
    if participants.images is None:
        display.say("note: these models know their patients only by name, not by image")
    if pack.manifest.synthetic:
        display.say(SYNTHETIC_WARNING)
