"""From a recipe to out-of-fold scores, fold by fold; what they leave goes to a `Recorder`.

Validation patients choose epoch and threshold; the test patients of a fold are scored once, at its end.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from bench.checkpoint import Best, save_model
from bench.device import memory_in_use, prepare
from bench.evaluate import Metric, choose_threshold, needs_pixels, score_case, stacks, tallies
from bench.feed import Feed
from bench.leaderboard import summarise
from bench.masks import Mask, Masks, save_masks
from bench.recipe import Recipe
from bench.records import SILENT, CaseScore, Counted, FoldResult, Recorder, Stack, Watch
from bench.report import curves, overlays
from bench.splits import Fold, split_table
from bench.step import Execution
from bench.together import together
from bench.train import train
from bench.tune import choose, throughput


def cross_validate(
    recipe: Recipe, recorder: Recorder, *, only: int | None = None, watch: Watch = SILENT
) -> list[FoldResult]:
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
        watch.scored(fold.number, summarise(case_table([result]), with_interval=False))
        return result, predicted

    wanted = [fold for fold in recipe.folds if only is None or fold.number == only]
    done = together(one, wanted, config.folds_at_once, recipe.device, watch)
    results = [result for result, _ in done]
    predictions = Masks.joined(predicted for _, predicted in done)
    cases = case_table(results)
    recorder.table("cases", cases)
    values = summarise(cases)
    recorder.metrics(
        values
        | {
            "cost/wall_seconds": time.perf_counter() - started,
            "cost/train_seconds": sum(r.seconds for r in results),
            "cost/images": sum(r.images for r in results),
            "cost/epochs": sum(r.epochs for r in results) / len(results),  # of a fold
            "cost/peak_memory_mb": max(r.peak_memory for r in results) / 2**20,
            "cost/parameters": recipe.parameters,
        }
    )
    primary = recipe.config.evaluate.primary
    for name, pixels in overlays(recipe.pack, cases, predictions, primary, sign=recipe.sign).items():
        recorder.image(f"overlays/{name}", pixels)
    return results


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
    settings, primary = config.train, config.evaluate.primary
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
        smallest=recipe.smallest_batch,
        tick=watch.images,
        say=watch.say,
    )
    for epoch in epochs:
        value = _validate(recipe, feed, model, fold)
        scores.append(recipe.sign * value)
        best.consider(model, scores[-1], epoch.number)
        memory = max(memory, memory_in_use(recipe.device))
        row = {
            "train/loss": epoch.loss,
            "train/lr": epoch.lr,
            "train/images_per_second": epoch.images / epoch.seconds,
            f"val/{primary}": value,
        }
        history.append({"epoch": epoch.number, **row, "images": epoch.images, "seconds": epoch.seconds})
        recorder.metrics(row, epoch.number)
        watch.epoch(epoch.number, settings.epochs, epoch.loss, value)
        if settings.patience is not None and epoch.number - best.epoch >= settings.patience:
            break
    recorder.settings({"plan.steps": epoch.how, "plan.parts_of_a_batch": epoch.parts})
    best.restore(model)
    threshold = _threshold(recipe, feed, model, fold)
    tested = [
        (score, Masks([(score.case, mask)]))
        for score, mask in _score(recipe, feed, model, fold.test, recipe.metrics, threshold)
    ]
    result = FoldResult(
        fold=fold.number,
        scores=tuple(score for score, _ in tested),
        threshold=threshold,
        best_epoch=best.epoch,
        best_score=recipe.sign * best.score,
        epochs=len(history),
        images=sum(h["images"] for h in history),
        seconds=sum(h["seconds"] for h in history),
        peak_memory=memory,
    )
    predictions = Masks.joined(masks for _, masks in tested)
    _record_fold(recipe, result, predictions, model, pd.DataFrame(history), recorder)
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


def estimate_seconds(recipe: Recipe, only: int | None = None) -> float:
    """Seconds that the run will take: one training step and one prediction on a throwaway model are timed."""
    settings = recipe.config.train
    prepare(recipe.device, deterministic=settings.deterministic, threads=recipe.config.threads)
    model = recipe.model(0)
    feed = Feed(recipe.pack, recipe.config.input, recipe.device)
    per_image = 1 / throughput(recipe, feed, choose(recipe, feed).execution)
    started = time.perf_counter()
    case = next(iter(sorted(recipe.folds[0].val)))
    list(_stacks(recipe, feed, model, [case]))
    per_slice = (time.perf_counter() - started) / len(recipe.pack.rows([case]))
    folds = [f for f in recipe.folds if only is None or f.number == only]
    return sum(
        recipe.images_per_fold(f) * per_image
        + (settings.epochs * len(recipe.pack.rows(f.val)) + len(recipe.pack.rows(f.test))) * per_slice
        for f in folds
    )


def _validate(recipe: Recipe, feed: Feed, model: nn.Module, fold: Fold) -> float:
    """The mean primary score of the validation patients, at threshold 0.5."""
    metric = recipe.metrics[recipe.config.evaluate.primary]
    given: Iterable[Counted]
    if needs_pixels(metric):
        given = (stack for _, _, stack in _stacks(recipe, feed, model, fold.val))
    else:
        settings = recipe.config.evaluate.batch_size, recipe.config.train.precision
        counted = tallies([model], feed, fold.val, threshold=0.5, batch_size=settings[0], precision=settings[1])
        given = (tally for _, tally in counted)
    scores = np.array([metric(case) for case in given])
    return float(np.nanmean(scores)) if not np.isnan(scores).all() else math.nan


def _score(
    recipe: Recipe,
    feed: Feed,
    model: nn.Module,
    cases: frozenset[str],
    metrics: Mapping[str, Metric],
    threshold: float,
) -> Iterator[tuple[CaseScore, Mask]]:
    numbers = recipe.pack.index["slice"].to_numpy()
    for case, rows, stack in _stacks(recipe, feed, model, cases, threshold):
        yield score_case(case, numbers[rows].tolist(), stack, metrics), stack.prediction


def _threshold(recipe: Recipe, feed: Feed, model: nn.Module, fold: Fold) -> float:
    given = recipe.config.evaluate.threshold
    if given != "validation":
        return given
    return choose_threshold(stack for _, _, stack in _stacks(recipe, feed, model, fold.val))


def _stacks(
    recipe: Recipe, feed: Feed, model: nn.Module, cases: Iterable[str], threshold: float = 0.5
) -> Iterator[tuple[str, NDArray[np.int64], Stack]]:
    """`evaluate.stacks` of one model, as the recipe has it."""
    size, precision = recipe.config.evaluate.batch_size, recipe.config.train.precision
    return stacks([model], feed, cases, threshold=threshold, batch_size=size, precision=precision)


def _record_fold(
    recipe: Recipe,
    result: FoldResult,
    predictions: Masks,
    model: nn.Module,
    history: pd.DataFrame,
    recorder: Recorder,
) -> None:
    cases = case_table([result])
    recorder.table("cases", cases)
    recorder.table("slices", pd.concat([s.slices for s in result.scores], ignore_index=True))
    recorder.table("history", history)
    primary = recipe.config.evaluate.primary
    recorder.metrics(
        {f"test/{k}": v for k, v in summarise(cases, with_interval=False).items()}
        | {
            f"best/val_{primary}": result.best_score,
            "best/epoch": result.best_epoch,
            "best/threshold": result.threshold,
            "cost/train_seconds": result.seconds,
        }
    )
    recorder.image("curves", curves(history, primary))
    numbers = {s.case: s.slices["slice"].tolist() for s in result.scores}
    with tempfile.TemporaryDirectory() as folder:
        save_masks(Path(folder) / "masks.npz", predictions, numbers)
        recorder.files(Path(folder), "masks")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "segmenter"
        save_model(saved, model, describe_model(recipe, result))
        recorder.model(saved, recipe.pack.images.shape[-1])


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
