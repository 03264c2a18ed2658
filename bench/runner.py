"""From a configuration to out-of-fold scores.

`resolve` finds every fault before anything is trained; `cross_validate` runs the folds; what they leave goes
to a `Recorder`. Validation chooses epoch and threshold, the test patients of a fold are scored once, at its end.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn

from bench import registry
from bench.checkpoint import Best, save_model
from bench.config import RunConfig
from bench.errors import BadSetting, UnknownName
from bench.evaluate import Metric, choose_threshold, score_case, stacks
from bench.feed import Feed, channel_numbers
from bench.leaderboard import summarise
from bench.masks import Mask, save_masks
from bench.pack import Pack, Source, packed
from bench.records import CaseScore, FoldResult, Recorder
from bench.report import curves, overlays
from bench.splits import Fold, split_hash, split_table
from bench.train import Augment, Loss, Schedule, steps_per_epoch, train


class Watch:
    """What a live display may want to hear; silent by default."""

    def packing(self, done: int, of: int) -> None: ...
    def fold(self, number: int, of: int, images: int) -> None: ...
    def images(self, count: int) -> None: ...
    def epoch(self, number: int, of: int, loss: float, score: float) -> None: ...
    def scored(self, number: int, values: Mapping[str, float]) -> None: ...


SILENT = Watch()


@dataclass(frozen=True)
class Recipe:
    """A configuration with everything in it found, bound and checked."""

    config: RunConfig
    pack: Pack
    folds: tuple[Fold, ...]
    device: torch.device
    loss: Loss
    augment: tuple[Augment, ...]
    schedule: Schedule
    metrics: Mapping[str, Metric]
    sign: int  # +1 where a higher primary score is better, else -1
    parameters: int

    @property
    def split_hash(self) -> str:
        return split_hash(self.folds)

    @property
    def channels(self) -> int:
        return len(channel_numbers(self.pack.manifest.channels, self.config.input.channels))

    def model(self, seed: int) -> nn.Module:
        """A fresh model on the device, initialised from `seed`."""
        return _build(self.config, self.channels, seed).to(self.device).to(memory_format=torch.channels_last)

    def images_per_fold(self, fold: Fold) -> int:
        """Training images of one fold at full length."""
        settings = self.config.train
        slices = len(self.pack.rows(fold.train))
        return settings.epochs * steps_per_epoch(slices, settings.batch_size) * min(settings.batch_size, slices)


def resolve(config: RunConfig, *, only: int | None = None, watch: Watch = SILENT) -> Recipe:
    """Find, bind and check everything a run needs. Raises `BenchError` for whatever the user must mend."""
    for plugin in config.plugins:
        registry.load_plugin(Path(plugin))
    config = config.completed()
    names = config.evaluate.metrics or tuple(registry.metric)
    if config.evaluate.primary not in names:
        names = (*names, config.evaluate.primary)
    metrics = {name: registry.metric[name].bind({}) for name in names}
    higher = registry.metric[config.evaluate.primary].facts.get("higher")
    if higher is None:
        raise BadSetting(
            f"'{config.evaluate.primary}' is neither better high nor low. Choose evaluate.primary=dice."
        )
    device = find_device(config.device)
    source: Source = registry.dataset[config.dataset.name].bind(config.dataset.params)()
    pack = packed(source, tick=watch.packing)
    folds: list[Fold] = registry.split[config.split.name].bind(config.split.params)(pack.index)
    if only is not None:
        chosen = [f for f in folds if f.number == only]
        if not chosen:
            raise UnknownName(f"there is no fold {only}; they are numbered 0 to {len(folds) - 1}.")
    recipe = Recipe(
        config=config,
        pack=pack,
        folds=tuple(folds),
        device=device,
        loss=registry.loss[config.loss.name].bind(config.loss.params),
        augment=tuple(registry.augmentation[n].bind(p) for n, p in config.augment.items()),
        schedule=registry.schedule[config.train.schedule.name].bind(config.train.schedule.params),
        metrics=metrics,
        sign=1 if higher else -1,
        parameters=0,
    )
    _check_training(recipe)
    built = _build(config, recipe.channels, config.seed)
    if config.train.freeze_epochs and not hasattr(built, "encoder"):
        raise BadSetting(
            f"train.freeze_epochs needs an encoder, and this {config.model.name} has none. Give --encoder."
        )
    return Recipe(**{**recipe.__dict__, "parameters": sum(p.numel() for p in built.parameters())})


def cross_validate(
    recipe: Recipe, recorder: Recorder, *, only: int | None = None, watch: Watch = SILENT
) -> list[FoldResult]:
    """Run the folds (or one of them) as children of the recorder's run, then record what they give together."""
    started = time.perf_counter()
    results: list[FoldResult] = []
    predictions: dict[str, Mask] = {}
    recorder.table("split", split_table(recipe.pack.index, recipe.folds))
    for fold in recipe.folds:
        if only is None or fold.number == only:
            with recorder.child(f"fold {fold.number}", {"bench.fold": str(fold.number)}) as child:
                result, predicted = run_fold(recipe, fold, child, watch=watch)
            results.append(result)
            predictions |= predicted
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
    for name, pixels in overlays(recipe.pack, cases, predictions, recipe.config.evaluate.primary).items():
        recorder.image(f"overlays/{name}", pixels)
    return results


def run_fold(
    recipe: Recipe, fold: Fold, recorder: Recorder, *, watch: Watch = SILENT
) -> tuple[FoldResult, dict[str, Mask]]:
    """Train on a fold's training patients, choose on its validation patients, score its test patients once.

    Gives the result and the predicted masks of the test patients.
    """
    config = recipe.config
    settings, primary = config.train, config.evaluate.primary
    seed = seed_of(config.seed, fold.number)
    _prepare(settings.deterministic, seed)
    feed = Feed(recipe.pack, config.input, recipe.device)
    model = recipe.model(seed)
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
        tick=watch.images,
    )
    for epoch in epochs:
        validation = _score(recipe, feed, model, fold.val, {primary: recipe.metrics[primary]}, 0.5)
        value = float(np.nanmean([s.values[primary] for s, _ in validation] or [math.nan]))
        scores.append(recipe.sign * value)
        best.consider(model, scores[-1], epoch.number)
        memory = max(memory, _memory(recipe.device))
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
    best.restore(model)
    threshold = _threshold(recipe, feed, model, fold)
    tested = list(_score(recipe, feed, model, fold.test, recipe.metrics, threshold))
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
    predictions = {score.case: mask for score, mask in tested}
    _record_fold(recipe, result, predictions, model, pd.DataFrame(history), recorder)
    watch.scored(fold.number, summarise(case_table([result]), with_interval=False))
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
    model = recipe.model(0)
    feed = Feed(recipe.pack, recipe.config.input, recipe.device)
    rows = recipe.pack.rows(recipe.folds[0].train)[: settings.batch_size]
    once = settings.model_copy(update={"epochs": 2, "batch_size": len(rows), "freeze_epochs": 0})
    loop = train(
        model,
        feed,
        rows,
        loss=recipe.loss,
        augment=recipe.augment,
        schedule=recipe.schedule,
        settings=once,
        seed=0,
    )
    per_image = [epoch.seconds / epoch.images for epoch in loop][-1]  # the first one warms up
    started = time.perf_counter()
    case = next(iter(sorted(recipe.folds[0].val)))
    list(stacks([model], feed, [case], threshold=0.5, batch_size=recipe.config.evaluate.batch_size))
    per_slice = (time.perf_counter() - started) / len(recipe.pack.rows([case]))
    folds = [f for f in recipe.folds if only is None or f.number == only]
    return sum(
        recipe.images_per_fold(f) * per_image
        + (settings.epochs * len(recipe.pack.rows(f.val)) + len(recipe.pack.rows(f.test))) * per_slice
        for f in folds
    )


def find_device(wanted: str) -> torch.device:
    """The device of this name; 'auto' is the first GPU, else the CPU. Raises `BadSetting`."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise BadSetting(f"'{wanted}' is no device. Give auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadSetting(f"the device '{wanted}' is not there. Give --device cpu, or auto.")
    if device.type not in ("cpu", "cuda"):
        raise BadSetting(f"the device '{wanted}' is not supported. Give auto, cpu or cuda.")
    return device


def seed_of(*parts: object) -> int:
    """A seed derived from what a thing is, such as (run seed, fold): 48 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])


def _score(
    recipe: Recipe,
    feed: Feed,
    model: nn.Module,
    cases: frozenset[str],
    metrics: Mapping[str, Metric],
    threshold: float,
) -> Iterator[tuple[CaseScore, Mask]]:
    numbers = recipe.pack.index["slice"].to_numpy()
    evaluate = recipe.config.evaluate
    for case, rows, stack in stacks(
        [model],
        feed,
        cases,
        threshold=threshold,
        batch_size=evaluate.batch_size,
        precision=recipe.config.train.precision,
    ):
        yield score_case(case, numbers[rows].tolist(), stack, metrics), stack.prediction


def _threshold(recipe: Recipe, feed: Feed, model: nn.Module, fold: Fold) -> float:
    evaluate = recipe.config.evaluate
    if evaluate.threshold != "validation":
        return evaluate.threshold
    seen = stacks(
        [model],
        feed,
        fold.val,
        threshold=0.5,
        batch_size=evaluate.batch_size,
        precision=recipe.config.train.precision,
    )
    return choose_threshold(stack for _, _, stack in seen)


def _record_fold(
    recipe: Recipe,
    result: FoldResult,
    predictions: Mapping[str, Mask],
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
    return {
        "config": recipe.config.model_dump(mode="json"),
        "channels": recipe.channels,
        "channel_names": list(manifest.channels),
        "threshold": result.threshold,
        "fold": result.fold,
        "best_epoch": result.best_epoch,
        "split_hash": recipe.split_hash,
        "data": {k: v for k, v in asdict(manifest).items() if k in ("dataset", "key", "synthetic", "licence")},
    }


def _build(config: RunConfig, channels: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = registry.model[config.model.name].bind(config.model.params)(channels)
    return model


def _check_training(recipe: Recipe) -> None:
    config = recipe.config
    Feed(recipe.pack, config.input, torch.device("cpu"))  # channels and normalisation fit the data
    if config.train.freeze_epochs >= config.train.epochs:
        raise BadSetting("train.freeze_epochs must be smaller than train.epochs, or nothing trains the encoder.")
    facts, size = registry.model[config.model.name].facts, config.input.image_size
    slices = min(len(recipe.pack.rows(fold.train)) for fold in recipe.folds)
    if min(config.train.batch_size, slices) < facts.get("smallest_batch", 1):
        raise BadSetting(
            f"{config.model.name} needs a batch of {facts['smallest_batch']} or more. Give --batch-size."
        )
    if (size or min(recipe.pack.masks.shape[1:])) < facts.get("smallest_image", 1):
        raise BadSetting(
            f"{config.model.name} needs slices of {facts['smallest_image']} pixels a side. Give --image-size."
        )


def _prepare(deterministic: bool, seed: int) -> None:
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # without it, cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
