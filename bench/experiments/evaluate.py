"""`bench evaluate`: score logged models on patients who took no part in their run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.analysis.run_summary import headline
from bench.console import Display, console
from bench.data.pack import Pack, load_or_pack
from bench.device import find_device
from bench.errors import DataError
from bench.formatting import SYNTHETIC_WARNING, join_first
from bench.inference.fold_models import FoldModels
from bench.tracking import EVALUATION, Run, Store, connect, download_models, find_parent, find_run, open_run
from bench.tracking.export import find_exported_models
from bench.tracking.participants import Participants, read_exported_participants, read_participants
from bench.tracking.tags import Tag, data_tags
from bench.training.experiment import source_like, task_of
from bench.training.fold_records import slice_table
from bench.training.tasks import Task
from bench.types import CaseScore


@dataclass(frozen=True)
class _Origin:
    """Where models come from: their run or folder, its experiment, and the patients that they have seen."""

    id: str
    name: str
    experiment: str
    participants: Participants
    tags: dict[str, str]


def evaluate_external(
    wanted: str, folder: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> str:
    """Score the models of a run, or of an exported folder, on the patients of another folder.

    The result is logged as a child of the run, or as a run of its own, whose id is returned. Raises `DataError` if
    patients took part in the run that the models come from, under whatever name.
    """
    store = connect(uri)
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = find_exported_models(Path(wanted), fold)
        run = None if folders else find_run(store, wanted)
        if run is not None:
            folders = download_models(store, run, Path(workspace), fold=fold)
        models = FoldModels(folders, str(find_device(device)))
        pack = load_or_pack(source_like(models.config, folder), tick=display.packing)
        origin = _exported_origin(Path(wanted), models) if run is None else _run_origin(store, run)
        _check_patients(models, pack, origin.participants, folder, display)
        evaluate = models.config.evaluate.model_copy(update={"metrics": ()})
        task = task_of(models.config.model_copy(update={"evaluate": evaluate}))
        threshold = models.threshold if threshold is None else threshold
        predictor = models.predictor(pack, tick=display.packing)
        scores = []
        for number, case in enumerate(pack.cases, 1):
            scores += [score for score, _ in task.score(predictor, [case], threshold)]
            display.bar(number, len(pack.cases), "evaluating", "patients")
        title = f"{origin.name} on {folder.resolve().name}"
        run_id, values = _log(store, title, origin, task, pack, scores, threshold, len(models.models), display)
    count = "1 model" if len(models.models) == 1 else f"the mean of {len(models.models)} fold models"
    console().print(
        f"{title}: {count}, threshold {threshold:.2f}, {len(scores)} patients\n{headline(values)}", markup=False
    )
    return run_id


def _exported_origin(folder: Path, models: FoldModels) -> _Origin:
    participants = read_exported_participants(models.descriptions[0])
    return _Origin(str(folder), folder.resolve().name, models.config.dataset.name, participants, {})


def _run_origin(store: Store, run: Run) -> _Origin:
    parent = find_parent(store, run)
    experiment = store.client.get_experiment(run.info.experiment_id).name
    tags = {"mlflow.parentRunId": parent.info.run_id}
    return _Origin(run.info.run_id, str(run.info.run_name), experiment, read_participants(store, parent), tags)


def _check_patients(
    models: FoldModels, pack: Pack, participants: Participants, folder: Path, display: Display
) -> None:
    """Raise `DataError` if the channels differ, or if patients are known to the models."""
    if pack.manifest.channels != models.channels:
        raise DataError(
            f"the model was trained on the channels {', '.join(models.channels)}, but the data in {folder} have "
            f"{', '.join(pack.manifest.channels)}. Give --data a folder with the same channels."
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


def _log(
    store: Store,
    title: str,
    origin: _Origin,
    task: Task,
    pack: Pack,
    scores: list[CaseScore],
    threshold: float,
    models: int,
    display: Display,
) -> tuple[str, dict[str, float]]:
    """Log an evaluation; return its run's id and its scores over all patients."""
    cases = pd.DataFrame([{"case": s.case, "threshold": threshold, **s.values, **s.counts} for s in scores])
    slices = slice_table(scores)
    values = task.summarise(cases, slices)
    tags = {Tag.KIND: EVALUATION, Tag.TASK: task.name, **data_tags(pack.manifest), **origin.tags}
    with open_run(store, title, origin.experiment, tags, say=display.say) as recorder:
        recorder.settings({"evaluate.run": origin.id, "evaluate.threshold": threshold, "evaluate.models": models})
        recorder.data(pack.manifest.dataset, pack.manifest.key, pack.profile())
        recorder.metrics(values)
        recorder.table("cases", cases)
        recorder.table("slices", slices)
        for name, table in task.tables(slices).items():
            recorder.table(name, table)
    return recorder.run_id, values
