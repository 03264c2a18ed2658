"""From a recipe to out-of-fold scores, fold by fold; what they leave goes to a `Recorder`.

Validation patients choose epoch and threshold; the test patients of a fold are scored once, at its end.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from bench.checkpoint import Best, save_model
from bench.cost import inference_costs
from bench.device import memory_in_use, prepare
from bench.feed import Feed
from bench.masks import Masks, save_masks
from bench.pictures import curves
from bench.probabilities import save_probabilities
from bench.recipe import Recipe
from bench.records import SILENT, CaseScore, FoldResult, Recorder, Watch
from bench.splits import Fold, split_table
from bench.step import Execution
from bench.tasks.segmentation import Segmentation
from bench.together import together
from bench.train import train
from bench.tune import choose, throughput


@dataclass(frozen=True)
class Outcome:
    """What a cross-validation gives: its folds, and what all tested patients say together."""

    results: tuple[FoldResult, ...]
    values: Mapping[str, float]
    costs: Mapping[str, float]


def cross_validate(
    recipe: Recipe, recorder: Recorder, *, only: int | None = None, watch: Watch = SILENT
) -> Outcome:
    """Run the folds (or one of them) as children of the recorder's run, then record what they give together."""
    started = time.perf_counter()
    config = recipe.config
    prepare(recipe.device, deterministic=config.train.deterministic, threads=config.threads)
    feed = Feed(recipe.pack, config.input, recipe.device)
    plan = choose(recipe, feed)
    recorder.settings(
        {
            "plan.execution": plan.execution,
            "plan.why": plan.why,
            **{f"plan.images_per_second.{how}": f"{rate:.0f}" for how, rate in plan.rates.items()},
            "plan.threads": torch.get_num_threads(),
            "plan.data_on_device": feed.resident,
        }
    )
    recorder.table("split", split_table(recipe.pack.index, recipe.folds))

    def one(fold: Fold, watch: Watch) -> tuple[FoldResult, Masks]:
        with recorder.child(f"fold {fold.number}", {"bench.fold": str(fold.number)}) as child:
            result, predicted = run_fold(recipe, fold, feed, child, execution=plan.execution, watch=watch)
        watch.scored(fold.number, _means(recipe, result, predicted))
        return result, predicted

    wanted = [fold for fold in recipe.folds if only is None or fold.number == only]
    done = together(one, wanted, config.folds_at_once, recipe.device, watch)
    results = [result for result, _ in done]
    predictions = Masks.joined(predicted for _, predicted in done)
    scores = [s for r in results for s in r.scores]
    cases, slices = _cases(recipe, results, predictions), slice_table(scores)
    recorder.table("cases", cases)
    for name, table in recipe.task.tables(slices).items():
        recorder.table(name, table)
    values = recipe.task.summarise(cases, slices)
    costs = inference_costs(recipe, feed) | {
        "wall_seconds": time.perf_counter() - started,
        "train_seconds": sum(r.seconds for r in results),
        "device_seconds": sum(r.seconds for r in results) * _workers(recipe),
        "images": sum(r.images for r in results),
        "epochs": sum(r.epochs for r in results) / len(results),  # of a fold
        "peak_memory_mb": max(r.peak_memory for r in results) / 2**20,
        "parameters": recipe.parameters,
    }
    costs = {f"cost/{name}": value for name, value in costs.items()}
    recorder.metrics(values | costs)
    if not recipe.leaky:
        for name, pixels in recipe.task.pictures(recipe.pack, cases, slices, predictions).items():
            recorder.image(name, pixels)
    return Outcome(tuple(results), values, costs)


def run_fold(
    recipe: Recipe,
    fold: Fold,
    feed: Feed,
    recorder: Recorder,
    *,
    execution: Execution = "eager",
    watch: Watch = SILENT,
) -> tuple[FoldResult, Masks]:
    """Train on a fold's training patients, choose on its validation patients, score its test patients once.

    Gives the result and the predicted masks of the test patients.
    """
    config = recipe.config
    settings, task = config.train, recipe.task
    seed = seed_of(config.seed, fold.number)
    model = recipe.model(seed)
    if recipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(recipe.device)
    best = Best()
    history: list[dict[str, Any]] = []
    scores: list[float] = []
    memory = 0
    watch.fold(fold.number, len(recipe.folds), recipe.images_per_fold(fold))
    epochs = train(
        model,
        feed,
        recipe.pack.rows(fold.train),
        loss=recipe.loss,
        augment=recipe.augment,
        schedule=recipe.schedule,
        settings=settings,
        seed=seed,
        scores=scores,
        execution=execution,
        target=task.target,
        smallest=recipe.smallest_batch,
        tick=watch.images,
        say=watch.say,
    )
    for epoch in epochs:
        value = task.validate(feed, model, fold.val)
        scores.append(task.sign * value)
        best.consider(model, scores[-1], epoch.number)
        memory = max(memory, memory_in_use(recipe.device))
        row = {
            "train/loss": epoch.loss,
            "train/lr": epoch.lr,
            "train/images_per_second": epoch.images / epoch.seconds,
            f"val/{task.primary}": value,
        }
        history.append({"epoch": epoch.number, **row, "images": epoch.images, "seconds": epoch.seconds})
        recorder.metrics(row, epoch.number)
        watch.epoch(epoch.number, settings.epochs, epoch.loss, value)
        if settings.patience is not None and epoch.number - best.epoch >= settings.patience:
            break
    recorder.settings({"plan.steps": epoch.how, "plan.parts_of_a_batch": epoch.parts})
    best.restore(model)
    threshold = task.threshold(feed, model, fold.val)
    tested = list(task.score([model], feed, fold.test, threshold))
    result = FoldResult(
        fold=fold.number,
        scores=tuple(score for score, _ in tested),
        threshold=threshold,
        best_epoch=best.epoch,
        best_score=task.sign * best.score,
        epochs=len(history),
        images=sum(h["images"] for h in history),
        seconds=sum(h["seconds"] for h in history),
        peak_memory=memory,
    )
    predictions = Masks.joined(masks for _, masks in tested)
    _record_fold(recipe, result, predictions, model, pd.DataFrame(history), recorder)
    return result, predictions


def _workers(recipe: Recipe) -> int:
    """Threads of the CPU's kernels, or one GPU."""
    return torch.get_num_threads() if recipe.device.type == "cpu" else 1


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


def estimate_seconds(recipe: Recipe, only: int | None = None) -> float:
    """Seconds that the run will take: one training step and one prediction on a throwaway model are timed."""
    settings = recipe.config.train
    prepare(recipe.device, deterministic=settings.deterministic, threads=recipe.config.threads)
    model = recipe.model(0)
    feed = Feed(recipe.pack, recipe.config.input, recipe.device)
    per_image = 1 / throughput(recipe, feed, choose(recipe, feed).execution)
    started = time.perf_counter()
    case = next(iter(sorted(recipe.folds[0].val)))
    list(recipe.task.score([model], feed, [case], 0.5))
    per_slice = (time.perf_counter() - started) / len(recipe.pack.rows([case]))
    folds = [f for f in recipe.folds if only is None or f.number == only]
    return sum(
        recipe.images_per_fold(f) * per_image
        + (settings.epochs * len(recipe.pack.rows(f.val)) + len(recipe.pack.rows(f.test))) * per_slice
        for f in folds
    )


def _record_fold(
    recipe: Recipe,
    result: FoldResult,
    predictions: Masks,
    model: nn.Module,
    history: pd.DataFrame,
    recorder: Recorder,
) -> None:
    primary = recipe.task.primary
    recorder.table("cases", _cases(recipe, [result], predictions))
    recorder.table("slices", slice_table(result.scores))
    recorder.table("history", history)
    recorder.metrics(
        {f"test/{k}": v for k, v in _means(recipe, result, predictions).items()}
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
        save_model(saved, model, describe_model(recipe, result))
        recorder.model(saved, recipe.pack.images.shape[-1])


def _means(recipe: Recipe, result: FoldResult, predictions: Masks) -> dict[str, float]:
    cases = _cases(recipe, [result], predictions)
    return recipe.task.summarise(cases, slice_table(result.scores), with_interval=False)


def _cases(recipe: Recipe, results: Sequence[FoldResult], predictions: Masks) -> pd.DataFrame:
    return _of_patients(recipe, predictions) if recipe.leaky else case_table(results)


def _of_patients(recipe: Recipe, predictions: Masks) -> pd.DataFrame:
    """`case_table` of the patients whose slices a leaky split has tested one by one, put together again."""
    assert isinstance(recipe.task, Segmentation)
    index = recipe.pack.index
    rows = []
    for patient, slices in index[index["case"].isin(set(predictions))].groupby("patient", sort=False):
        mask = np.concatenate([predictions[case] for case in slices["case"]])
        truth = recipe.pack.masks[slices.index.to_numpy()].astype(bool)
        scored = recipe.task.score_mask(str(patient), slices["slice"].tolist(), truth, mask)
        rows.append({"case": scored.case, **scored.values, **scored.counts})
    return pd.DataFrame(rows)


def describe_model(recipe: Recipe, result: FoldResult) -> dict[str, Any]:
    """What `checkpoint.load_model` and a reader need to use the weights again."""
    manifest = recipe.pack.manifest
    config = recipe.config.model_dump(mode="json")
    config["dataset"].pop("folder", None)  # where the data lay is nobody's business
    return {
        "config": config,
        "channels": recipe.channels,
        "channel_names": list(manifest.channels),
        "threshold": result.threshold,
        "fold": result.fold,
        "best_epoch": result.best_epoch,
        "split_hash": recipe.split_hash,
        "data": {k: v for k, v in asdict(manifest).items() if k in ("dataset", "key", "synthetic", "licence")},
    }


def seed_of(*parts: object) -> int:
    """A seed derived from what a thing is, such as (run seed, fold): 48 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])
