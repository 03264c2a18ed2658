"""Cross-validation: run the folds of an experiment and record what they show together.

Validation patients choose epoch and threshold; the test patients of a fold are scored once, at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeVar

import torch

from bench.data.fingerprints import image_table
from bench.data.loader import SliceLoader
from bench.data.splits import split_table
from bench.device import configure_torch
from bench.masks import Masks
from bench.training.execution import choose_execution, inference_costs, training_speed
from bench.training.experiment import Experiment
from bench.training.fold import FoldWorkspace, run_fold
from bench.training.fold_records import case_table, fold_means, slice_table
from bench.types import SILENT, Fold, FoldResult, Recorder, Watch

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class CrossValidationResult:
    """The folds, the scores over all tested patients, and the costs, both by logged name."""

    results: tuple[FoldResult, ...]
    values: Mapping[str, float]
    costs: Mapping[str, float]


def cross_validate(
    experiment: Experiment,
    recorder: Recorder,
    *,
    only: int | None = None,
    watch: Watch = SILENT,
    workspace: Path | None = None,
) -> CrossValidationResult:
    """Run the folds (or the one numbered `only`) as children of the recorder's run, then record their summary.

    Folds leave checkpoints and results in `workspace`, from which the same call continues after an interruption.
    """
    started = time.perf_counter()
    config = experiment.config
    configure_torch(experiment.device, deterministic=config.train.deterministic, threads=config.threads)
    loader = SliceLoader(experiment.pack, config.input, experiment.device)
    plan = choose_execution(experiment, loader)
    recorder.tags(
        {
            "plan.execution": plan.execution,
            "plan.why": plan.why,
            **{f"plan.images_per_second.{way}": f"{rate:.0f}" for way, rate in plan.rates.items()},
            "plan.threads": str(torch.get_num_threads()),
            "plan.data_on_device": str(loader.resident),
        }
    )
    record_patients(experiment, recorder)

    def run_one(fold: Fold, watch: Watch) -> tuple[FoldResult, Masks]:
        folder = workspace and workspace / f"fold-{fold.number}"
        kept = FoldWorkspace(folder, config.checkpoint_every, watch) if folder else None
        done = kept.load_result() if kept else None
        if done is None:
            how = plan.execution
            with recorder.child(f"fold {fold.number}", {"bench.fold": str(fold.number)}) as child:
                done = run_fold(experiment, fold, loader, child, execution=how, watch=watch, workspace=kept)
            if kept is not None:  # once the child run has ended
                kept.save_result(*done)
        watch.scored(fold.number, fold_means(experiment, *done))
        return done

    folds = [fold for fold in experiment.folds if only is None or fold.number == only]
    at_once = min(config.folds_at_once, len(folds))
    done = run_in_parallel(run_one, folds, at_once, experiment.device, watch)
    earlier = sum(result.earlier_seconds for result, _ in done) / at_once
    costs = inference_costs(experiment, loader) | {
        "wall_seconds": time.perf_counter() - started + earlier,
        "parameters": experiment.parameters,
    }
    return record_summary(experiment, recorder, done, costs, at_once=at_once)


def record_patients(experiment: Experiment, recorder: Recorder) -> None:
    """Log which patients are on which side of which fold, and the fingerprints of their images."""
    recorder.table("split", split_table(experiment.pack.index, experiment.folds))
    recorder.table("images", image_table(experiment.raw))


def record_summary(
    experiment: Experiment,
    recorder: Recorder,
    done: Sequence[tuple[FoldResult, Masks]],
    costs: Mapping[str, float],
    *,
    at_once: int = 1,
) -> CrossValidationResult:
    """Log tables, scores and pictures of all folds together; `costs` join those that the folds know."""
    results = [result for result, _ in done]
    masks = Masks.joined(predicted for _, predicted in done)
    cases = case_table(experiment, results, masks)
    slices = slice_table([s for r in results for s in r.scores])
    recorder.table("cases", cases)
    for name, table in experiment.task.tables(slices).items():
        recorder.table(name, table)
    values = experiment.task.summarise(cases, slices)
    seconds = sum(r.seconds for r in results)
    threads = torch.get_num_threads() if experiment.device.type == "cpu" else 1
    costs = {
        **costs,
        "train_seconds": seconds,
        "device_seconds": seconds * threads / at_once,
        "images": sum(r.images for r in results),
        "epochs": sum(r.epochs for r in results) / len(results),  # per fold
        "peak_memory_mb": max(r.peak_memory for r in results) / 2**20,
    }
    costs = {f"cost/{name}": value for name, value in costs.items()}
    recorder.metrics(values | costs)
    if not experiment.leaky:
        for name, pixels in experiment.task.pictures(experiment.pack, cases, slices, masks).items():
            recorder.image(name, pixels)
    return CrossValidationResult(tuple(results), values, costs)


@dataclass(frozen=True)
class TimeEstimate:
    """The seconds that a run would take, and the training images and slices that were timed to say so."""

    seconds: float
    images: int
    slices: int


def estimate_time(experiment: Experiment, only: int | None = None, *, limit: float = 10.0) -> TimeEstimate:
    """Estimate the time of a run from training steps and predictions of a throwaway model.

    On a CPU each of the two is timed for about `limit` seconds; a slow model is judged by fewer images.
    """
    settings, pack = experiment.config.train, experiment.pack
    configure_torch(experiment.device, deterministic=settings.deterministic, threads=experiment.config.threads)
    loader = SliceLoader(pack, experiment.config.input, experiment.device)
    rate, images = training_speed(experiment, loader, limit)
    predictor = experiment.predictor([experiment.model(0)], loader)
    case = min(experiment.folds[0].val)
    rows = pack.rows([case])
    predictor.probabilities(rows[:1], experiment.task.output_shape)  # the first one is slower than all others
    started, slices = time.perf_counter(), 0
    while slices < len(rows) and time.perf_counter() - started < limit:
        predictor.probabilities(rows[slices : slices + 1], experiment.task.output_shape)
        slices += 1
    per_slice = (time.perf_counter() - started) / slices
    if slices == len(rows):  # so scoring the patient is quick, too
        started = time.perf_counter()
        list(experiment.task.score(predictor, [case], (0.5,) * len(experiment.structures)))
        per_slice = (time.perf_counter() - started) / slices
    seconds = sum(
        experiment.images_per_fold(f) / rate
        + (settings.epochs * len(pack.rows(f.val)) + len(pack.rows(f.test))) * per_slice
        for f in experiment.folds
        if only is None or f.number == only
    )
    return TimeEstimate(seconds, images, slices)


def run_in_parallel(
    work: Callable[[T, Watch], R], items: Sequence[T], at_once: int, device: torch.device, watch: Watch
) -> list[R]:
    """Call `work(item, watch)` for every item, `at_once` at a time; return the results in the order of the items.

    Each thread has a CUDA stream of its own, or its share of the CPU threads; device and data are shared. If one
    raises, or the user interrupts, the others end with a KeyboardInterrupt at their next step, and the
    first exception is raised.
    """
    if at_once == 1 or len(items) == 1:
        return [work(item, watch) for item in items]
    stop = Event()
    threads = torch.get_num_threads()
    stoppable = _Stoppable(watch, stop)

    def run_one(item: T) -> R:
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.default_stream(device))  # models may still be copied there
            with torch.cuda.stream(stream):
                return work(item, stoppable)
        torch.set_num_threads(max(1, threads // at_once))
        return work(item, stoppable)

    with ThreadPoolExecutor(at_once, "bench-fold") as pool:
        futures = [pool.submit(run_one, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in futures if f in done and f.exception() is not None]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    return [future.result() for future in failed or futures]


class _Stoppable(Watch):
    """Passes everything on until `stop` is set, then interrupts its thread."""

    def __init__(self, watch: Watch, stop: Event) -> None:
        self.watch, self.stop = watch, stop
        for name in ("say", "fold", "epoch", "scored"):
            setattr(self, name, getattr(watch, name))

    def images(self, count: int) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.watch.images(count)
