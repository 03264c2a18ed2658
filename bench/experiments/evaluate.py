"""`bench evaluate`: logged models on patients who took no part in their run, and have a truth."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from bench.analysis.run_summary import headline
from bench.console import Display, console
from bench.data.pack import Pack, load_or_pack
from bench.device import find_device
from bench.errors import DataError
from bench.formatting import SYNTHETIC_WARNING, listing
from bench.inference.fold_models import FoldModels
from bench.tracking import EVALUATION, KIND, connect, find_run, model_folders, open_run, parent_of
from bench.tracking.export import exported
from bench.tracking.participants import participants_of_export, participants_of_run
from bench.tracking.tags import data_tags
from bench.training.experiment import source_like, task_of
from bench.training.fold import slice_table


def evaluate_external(
    wanted: str, folder: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> str:
    """Score the models of a run, or of a folder that was exported, on the patients of another folder.

    It is logged as a child of the run, or by itself. Gives the id of what was logged. Raises `DataError` where
    patients took part in the run that the models come from, under whatever name.
    """
    store = connect(uri)
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = exported(Path(wanted), fold)
        run = None if folders else find_run(store, wanted)
        if run is not None:
            folders = model_folders(store, run, Path(workspace), fold=fold)
        segmenter = FoldModels(folders, str(find_device(device)))
        config = segmenter.config
        pack = load_or_pack(source_like(config, folder), tick=display.packing)
        _fit(segmenter, pack)
        task = task_of(config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"metrics": ()})}))
        tags = {KIND: EVALUATION, "bench.task": task.name, **data_tags(pack.manifest)}
        if run is None:
            origin, whose, experiment = wanted, Path(wanted).resolve().name, config.dataset.name
            known = participants_of_export(segmenter.descriptions[0])
        else:
            parent = parent_of(store, run)
            origin, whose = run.info.run_id, str(run.info.run_name)
            experiment = store.client.get_experiment(run.info.experiment_id).name
            tags["mlflow.parentRunId"] = parent.info.run_id
            known = participants_of_run(store, parent)
        if shared := known.among(pack):
            raise DataError(
                f"{len(shared)} of the patients of {folder} took part in the run itself, by their names or by "
                f"their images ({listing(shared)}): an external test needs others. "
                "Their out-of-fold scores are on the leaderboard."
            )
        if known.images is None:
            display.say("note: these models know who took part by their names alone, and not by their images")
        if pack.manifest.synthetic:
            display.say(SYNTHETIC_WARNING)
        chosen = segmenter.threshold if threshold is None else threshold
        loader = segmenter.loader(pack, tick=display.packing)
        scores = []
        for number, case in enumerate(pack.cases, 1):
            scores += [score for score, _ in task.score(segmenter.models, loader, [case], chosen)]
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


def _fit(segmenter: FoldModels, pack: Pack) -> None:
    if pack.manifest.channels != segmenter.channels:
        raise DataError(
            f"the model was trained on the channels {', '.join(segmenter.channels)}; "
            f"these data have {', '.join(pack.manifest.channels)}."
        )
