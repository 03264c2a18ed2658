from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from bench.data.loader import SliceLoader
from bench.device import memory_in_use
from bench.errors import StoreError
from bench.masks import Masks, save_masks, save_probabilities
from bench.models.io import save_model
from bench.training.checkpoint import Best, Checkpoints, read_state, write_state
from bench.training.experiment import Experiment
from bench.training.loop import Progress
from bench.training.plots import curves
from bench.training.step import Execution
from bench.training.tasks.segmentation import Segmentation
from bench.types import SILENT, CaseScore, Fold, FoldResult, Recorder, Watch


class FoldWorkspace:
    """What a fold keeps in a folder while it runs, and its result once it is done."""

    def __init__(self, folder: Path, every: float, watch: Watch) -> None:
        self.file, self.watch, self.began = folder / "result.state", watch, time.perf_counter()
        self.checkpoints = Checkpoints(folder, every=every, say=watch.say)

    def finish(self, result: FoldResult, masks: Masks) -> None:
        scores = [asdict(s) | {"slices": s.slices.to_dict("list")} for s in result.scores]
        kept = replace(result, scores=(), before=result.before + time.perf_counter() - self.began)
        write_state(self.file, {"result": asdict(kept), "scores": scores, **masks.state()})

    def result(self) -> tuple[FoldResult, Masks] | None:
        """The result of a fold that is done; None while it is not."""
        if not self.file.exists():
            return None
        try:
            kept = read_state(self.file)
        except StoreError as error:
            self.watch.say(f"{error} The fold goes on from its last checkpoint.")
            return None
        scores = (CaseScore(**s | {"slices": pd.DataFrame(s["slices"])}) for s in kept["scores"])
        return FoldResult(**kept["result"] | {"scores": tuple(scores)}), Masks.of_state(kept)


def run_fold(
    experiment: Experiment,
    fold: Fold,
    loader: SliceLoader,
    recorder: Recorder,
    *,
    execution: Execution = "eager",
    watch: Watch = SILENT,
    kept: FoldWorkspace | None = None,
) -> tuple[FoldResult, Masks]:
    """Train on a fold's training patients, choose on its validation patients, score its test patients once.

    Gives the result and the predicted masks of the test patients. Goes on from what is `kept`.
    """
    started = time.perf_counter()
    config = experiment.config
    settings, task = config.train, experiment.task
    seed = derive_seed(config.seed, fold.number)
    model = experiment.model(seed)
    if experiment.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(experiment.device)
    best = Best()
    history: list[dict[str, Any]] = []
    scores: list[float] = []
    how: dict[str, str] = {}
    memory, before = 0, 0.0
    watch.fold(fold.number, len(experiment.folds), experiment.images_per_fold(fold))
    saved = kept.checkpoints.latest() if kept else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        best.load(saved["best"])
        history, scores = saved["history"], saved["scores"]
        memory, before, how = saved["memory"], saved["before"], saved["how"]
        watch.images(sum(h["images"] for h in history))
        watch.say(f"fold {fold.number} goes on after epoch {len(history)}")
    progress = Progress(saved and saved["progress"])
    rows = experiment.pack.rows(fold.train)
    epochs = experiment.train(
        model, loader, rows, seed=seed, scores=scores, execution=execution, watch=watch, progress=progress
    )

    def enough() -> bool:
        return settings.patience is not None and bool(scores) and len(scores) - best.epoch >= settings.patience

    for epoch in () if enough() else epochs:
        value = task.validate(loader, model, fold.val)
        scores.append(task.sign * value)
        best.consider(model, scores[-1], epoch.number)
        memory = max(memory, memory_in_use(experiment.device))
        row = {
            "train/loss": epoch.loss,
            "train/lr": epoch.lr,
            "train/images_per_second": epoch.images / epoch.seconds,
            f"val/{task.primary}": value,
        }
        history.append({"epoch": epoch.number, **row, "images": epoch.images, "seconds": epoch.seconds})
        recorder.metrics(row, epoch.number)
        watch.epoch(epoch.number, settings.epochs, epoch.loss, value)
        how = {"plan.steps": epoch.how, "plan.parts_of_a_batch": str(epoch.parts)}
        if kept and kept.checkpoints.due():
            state = {"progress": progress.state(), "model": model.state_dict(), "best": best.state()}
            told = {"history": history, "scores": scores, "memory": memory, "how": how}
            told["before"] = before + time.perf_counter() - started
            kept.checkpoints.save(epoch.number, state | told)
        if enough():
            break
    recorder.tags(how)
    if task.sign > 0 and max(scores) == 0:
        watch.say(
            f"fold {fold.number} has learnt nothing: its validation {task.primary} is 0 after every epoch. Where "
            "most slices are empty, train.warmup_epochs=1, train.positive_fraction=0.5 or loss.over=batch help."
        )
    best.restore(model)
    threshold = task.threshold(loader, model, fold.val)
    tested = list(task.score([model], loader, fold.test, threshold))
    result = FoldResult(
        fold=fold.number,
        scores=tuple(score for score, _ in tested),
        threshold=threshold,
        best_epoch=best.epoch,
        best_score=task.sign * best.score,
        epochs=len(history),
        images=sum(h["images"] for h in history),
        seconds=sum(h["seconds"] for h in history),
        before=before,
        peak_memory=memory,
    )
    predictions = Masks.joined(masks for _, masks in tested)
    _record_fold(experiment, result, predictions, model, pd.DataFrame(history), recorder)
    return result, predictions


def case_table(results: Sequence[FoldResult]) -> pd.DataFrame:
    """One row a test patient: case, fold, threshold, every metric, pixel counts."""
    return pd.DataFrame(
        [
            {"case": s.case, "fold": r.fold, "threshold": r.threshold, **s.values, **s.counts}
            for r in results
            for s in r.scores
        ]
    )


def slice_table(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """One row a test slice, as the task scores it."""
    return pd.concat([s.slices for s in scores], ignore_index=True)


def record_masks(recorder: Recorder, masks: Masks, scores: Sequence[CaseScore]) -> None:
    """Leave masks, and the probabilities that they were called from, under `masks/`."""
    numbers = {s.case: s.slices["slice"].tolist() for s in scores}
    with tempfile.TemporaryDirectory() as folder:
        save_masks(Path(folder) / "masks.npz", masks, numbers)
        if masks.probabilities:
            save_probabilities(Path(folder) / "probabilities.npz", masks.probabilities, numbers)
        recorder.files(Path(folder), "masks")


def _record_fold(
    experiment: Experiment,
    result: FoldResult,
    predictions: Masks,
    model: nn.Module,
    history: pd.DataFrame,
    recorder: Recorder,
) -> None:
    primary = experiment.task.primary
    recorder.table("cases", _cases(experiment, [result], predictions))
    recorder.table("slices", slice_table(result.scores))
    recorder.table("history", history)
    recorder.metrics(
        {f"test/{k}": v for k, v in _means(experiment, result, predictions).items()}
        | {
            f"best/val_{primary}": result.best_score,
            "best/epoch": result.best_epoch,
            "best/threshold": result.threshold,
            "cost/train_seconds": result.seconds,
        }
    )
    recorder.image("curves", curves(history, primary))
    if predictions:
        record_masks(recorder, predictions, result.scores)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "segmenter"
        save_model(saved, model, describe_model(experiment, result))
        recorder.model(saved, experiment.pack.images.shape[-1])


def _means(experiment: Experiment, result: FoldResult, predictions: Masks) -> dict[str, float]:
    cases = _cases(experiment, [result], predictions)
    return experiment.task.summarise(cases, slice_table(result.scores), with_interval=False)


def _cases(experiment: Experiment, results: Sequence[FoldResult], predictions: Masks) -> pd.DataFrame:
    return _of_patients(experiment, predictions) if experiment.leaky else case_table(results)


def _of_patients(experiment: Experiment, predictions: Masks) -> pd.DataFrame:
    """`case_table` of the patients whose slices a leaky split has tested one by one, put together again."""
    assert isinstance(experiment.task, Segmentation)
    index = experiment.pack.index
    rows = []
    for patient, slices in index[index["case"].isin(set(predictions))].groupby("patient", sort=False):
        mask = np.concatenate([predictions[case] for case in slices["case"]])
        truth = experiment.pack.masks[slices.index.to_numpy()].astype(bool)
        scored = experiment.task.score_mask(str(patient), slices["slice"].tolist(), truth, mask)
        rows.append({"case": scored.case, **scored.values, **scored.counts})
    return pd.DataFrame(rows)


def describe_model(experiment: Experiment, result: FoldResult) -> dict[str, Any]:
    """What `checkpoint.load_model` and a reader need to use the weights again."""
    manifest = experiment.pack.manifest
    config = experiment.config.model_dump(mode="json")
    config["dataset"].pop("folder", None)  # where the data lay is nobody's business
    return {
        "config": config,
        "channels": experiment.channels,
        "channel_names": list(manifest.channels),
        "threshold": result.threshold,
        "fold": result.fold,
        "best_epoch": result.best_epoch,
        "split_hash": experiment.split_hash,
        "data": {k: v for k, v in asdict(manifest).items() if k in ("dataset", "key", "synthetic", "licence")},
    }


def derive_seed(*parts: object) -> int:
    """A seed derived from what a thing is, such as (run seed, fold): 48 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])
