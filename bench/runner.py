"""From a recipe to out-of-fold scores, fold by fold; what they leave goes to a `Recorder`.

Validation patients choose epoch and threshold; the test patients of a fold are scored once, at its end.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from bench.checkpoint import Best, Checkpoints, read_state, save_model, write_state
from bench.cost import inference_costs
from bench.device import memory_in_use, prepare
from bench.errors import StoreError
from bench.feed import Feed
from bench.masks import Masks, save_masks
from bench.pack import image_table
from bench.pictures import curves
from bench.probabilities import save_probabilities
from bench.recipe import Recipe
from bench.records import SILENT, CaseScore, FoldResult, Recorder, Watch
from bench.splits import Fold, split_table
from bench.step import Execution
from bench.tasks.segmentation import Segmentation
from bench.together import together
from bench.train import Progress
from bench.tune import choose, throughput


class Kept:
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


@dataclass(frozen=True)
class Outcome:
    """What a cross-validation gives: its folds, and what all tested patients say together."""

    results: tuple[FoldResult, ...]
    values: Mapping[str, float]
    costs: Mapping[str, float]


def cross_validate(
    recipe: Recipe,
    recorder: Recorder,
    *,
    only: int | None = None,
    watch: Watch = SILENT,
    workspace: Path | None = None,
) -> Outcome:
    """Run the folds (or one of them) as children of the recorder's run, then record what they give together.

    In `workspace` they leave checkpoints and results, from which the same call goes on after it was broken off.
    """
    started = time.perf_counter()
    config = recipe.config
    prepare(recipe.device, deterministic=config.train.deterministic, threads=config.threads)
    feed = Feed(recipe.pack, config.input, recipe.device)
    plan = choose(recipe, feed)
    recorder.tags(
        {
            "plan.execution": plan.execution,
            "plan.why": plan.why,
            **{f"plan.images_per_second.{how}": f"{rate:.0f}" for how, rate in plan.rates.items()},
            "plan.threads": str(torch.get_num_threads()),
            "plan.data_on_device": str(feed.resident),
        }
    )
    record_patients(recipe, recorder)

    def one(fold: Fold, watch: Watch) -> tuple[FoldResult, Masks]:
        folder = workspace and workspace / f"fold-{fold.number}"
        kept = Kept(folder, config.checkpoint_every, watch) if folder else None
        done = kept.result() if kept else None
        if done is None:
            with recorder.child(f"fold {fold.number}", {"bench.fold": str(fold.number)}) as child:
                done = run_fold(recipe, fold, feed, child, execution=plan.execution, watch=watch, kept=kept)
            if kept:
                kept.finish(*done)
        watch.scored(fold.number, _means(recipe, *done))
        return done

    wanted = [fold for fold in recipe.folds if only is None or fold.number == only]
    at_once = min(config.folds_at_once, len(wanted))
    done = together(one, wanted, at_once, recipe.device, watch)
    before = sum(result.before for result, _ in done) / at_once
    costs = inference_costs(recipe, feed) | {
        "wall_seconds": time.perf_counter() - started + before,
        "parameters": recipe.parameters,
    }
    return record_together(recipe, recorder, done, costs, at_once=at_once)


def record_patients(recipe: Recipe, recorder: Recorder) -> None:
    """Who takes part, on which side of which fold, and by what images they would be known again."""
    recorder.table("split", split_table(recipe.pack.index, recipe.folds))
    recorder.table("images", image_table(recipe.raw))


def record_together(
    recipe: Recipe,
    recorder: Recorder,
    done: Sequence[tuple[FoldResult, Masks]],
    costs: Mapping[str, float],
    *,
    at_once: int = 1,
) -> Outcome:
    """Record what folds give together, and `costs` beside what they know of their own."""
    results = [result for result, _ in done]
    predictions = Masks.joined(predicted for _, predicted in done)
    cases = _cases(recipe, results, predictions)
    slices = slice_table([s for r in results for s in r.scores])
    recorder.table("cases", cases)
    for name, table in recipe.task.tables(slices).items():
        recorder.table(name, table)
    values = recipe.task.summarise(cases, slices)
    seconds = sum(r.seconds for r in results)
    costs = {
        **costs,
        "train_seconds": seconds,
        "device_seconds": seconds * _workers(recipe) / at_once,
        "images": sum(r.images for r in results),
        "epochs": sum(r.epochs for r in results) / len(results),  # of a fold
        "peak_memory_mb": max(r.peak_memory for r in results) / 2**20,
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
    kept: Kept | None = None,
) -> tuple[FoldResult, Masks]:
    """Train on a fold's training patients, choose on its validation patients, score its test patients once.

    Gives the result and the predicted masks of the test patients. Goes on from what is `kept`.
    """
    started = time.perf_counter()
    config = recipe.config
    settings, task = config.train, recipe.task
    seed = seed_of(config.seed, fold.number)
    model = recipe.model(seed)
    if recipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(recipe.device)
    best = Best()
    history: list[dict[str, Any]] = []
    scores: list[float] = []
    how: dict[str, str] = {}
    memory, before = 0, 0.0
    watch.fold(fold.number, len(recipe.folds), recipe.images_per_fold(fold))
    saved = kept.checkpoints.latest() if kept else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        best.load(saved["best"])
        history, scores = saved["history"], saved["scores"]
        memory, before, how = saved["memory"], saved["before"], saved["how"]
        watch.images(sum(h["images"] for h in history))
        watch.say(f"fold {fold.number} goes on after epoch {len(history)}")
    progress = Progress(saved and saved["progress"])
    rows = recipe.pack.rows(fold.train)
    epochs = recipe.train(
        model, feed, rows, seed=seed, scores=scores, execution=execution, watch=watch, progress=progress
    )

    def enough() -> bool:
        return settings.patience is not None and bool(scores) and len(scores) - best.epoch >= settings.patience

    for epoch in () if enough() else epochs:
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
        before=before,
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
