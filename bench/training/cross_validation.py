"""From a experiment to out-of-fold scores, fold by fold; what they leave goes to a `Recorder`.

Validation patients choose epoch and threshold; the test patients of a fold are scored once, at its end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.data.fingerprints import image_table
from bench.data.loader import SliceLoader
from bench.data.splits import split_table
from bench.device import configure_torch
from bench.masks import Masks
from bench.training.execution import choose_execution, throughput
from bench.training.experiment import Experiment
from bench.training.fold import (
    FoldWorkspace,
    _cases,
    _means,
    run_fold,
    slice_table,
)
from bench.training.inference_cost import inference_costs
from bench.training.parallel_folds import run_in_parallel
from bench.types import SILENT, Fold, FoldResult, Recorder, Watch


@dataclass(frozen=True)
class CrossValidationResult:
    """What a cross-validation gives: its folds, and what all tested patients say together."""

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
    """Run the folds (or one of them) as children of the recorder's run, then record what they give together.

    In `workspace` they leave checkpoints and results, from which the same call goes on after it was broken off.
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
            **{f"plan.images_per_second.{how}": f"{rate:.0f}" for how, rate in plan.rates.items()},
            "plan.threads": str(torch.get_num_threads()),
            "plan.data_on_device": str(loader.resident),
        }
    )
    record_patients(experiment, recorder)

    def one(fold: Fold, watch: Watch) -> tuple[FoldResult, Masks]:
        folder = workspace and workspace / f"fold-{fold.number}"
        kept = FoldWorkspace(folder, config.checkpoint_every, watch) if folder else None
        done = kept.result() if kept else None
        if done is None:
            with recorder.child(f"fold {fold.number}", {"bench.fold": str(fold.number)}) as child:
                done = run_fold(experiment, fold, loader, child, execution=plan.execution, watch=watch, kept=kept)
            if kept:
                kept.finish(*done)
        watch.scored(fold.number, _means(experiment, *done))
        return done

    wanted = [fold for fold in experiment.folds if only is None or fold.number == only]
    at_once = min(config.folds_at_once, len(wanted))
    done = run_in_parallel(one, wanted, at_once, experiment.device, watch)
    before = sum(result.before for result, _ in done) / at_once
    costs = inference_costs(experiment, loader) | {
        "wall_seconds": time.perf_counter() - started + before,
        "parameters": experiment.parameters,
    }
    return record_together(experiment, recorder, done, costs, at_once=at_once)


def record_patients(experiment: Experiment, recorder: Recorder) -> None:
    """Who takes part, on which side of which fold, and by what images they would be known again."""
    recorder.table("split", split_table(experiment.pack.index, experiment.folds))
    recorder.table("images", image_table(experiment.raw))


def record_together(
    experiment: Experiment,
    recorder: Recorder,
    done: Sequence[tuple[FoldResult, Masks]],
    costs: Mapping[str, float],
    *,
    at_once: int = 1,
) -> CrossValidationResult:
    """Record what folds give together, and `costs` beside what they know of their own."""
    results = [result for result, _ in done]
    predictions = Masks.joined(predicted for _, predicted in done)
    cases = _cases(experiment, results, predictions)
    slices = slice_table([s for r in results for s in r.scores])
    recorder.table("cases", cases)
    for name, table in experiment.task.tables(slices).items():
        recorder.table(name, table)
    values = experiment.task.summarise(cases, slices)
    seconds = sum(r.seconds for r in results)
    costs = {
        **costs,
        "train_seconds": seconds,
        "device_seconds": seconds * _workers(experiment) / at_once,
        "images": sum(r.images for r in results),
        "epochs": sum(r.epochs for r in results) / len(results),  # of a fold
        "peak_memory_mb": max(r.peak_memory for r in results) / 2**20,
    }
    costs = {f"cost/{name}": value for name, value in costs.items()}
    recorder.metrics(values | costs)
    if not experiment.leaky:
        for name, pixels in experiment.task.pictures(experiment.pack, cases, slices, predictions).items():
            recorder.image(name, pixels)
    return CrossValidationResult(tuple(results), values, costs)


def _workers(experiment: Experiment) -> int:
    """Threads of the CPU's kernels, or one GPU."""
    return torch.get_num_threads() if experiment.device.type == "cpu" else 1


def estimate_seconds(experiment: Experiment, only: int | None = None) -> float:
    """Seconds that the run will take: one training step and one prediction on a throwaway model are timed."""
    settings = experiment.config.train
    configure_torch(experiment.device, deterministic=settings.deterministic, threads=experiment.config.threads)
    model = experiment.model(0)
    loader = SliceLoader(experiment.pack, experiment.config.input, experiment.device)
    per_image = 1 / throughput(experiment, loader, choose_execution(experiment, loader).execution)
    started = time.perf_counter()
    case = next(iter(sorted(experiment.folds[0].val)))
    list(experiment.task.score([model], loader, [case], 0.5))
    per_slice = (time.perf_counter() - started) / len(experiment.pack.rows([case]))
    folds = [f for f in experiment.folds if only is None or f.number == only]
    return sum(
        experiment.images_per_fold(f) * per_image
        + (settings.epochs * len(experiment.pack.rows(f.val)) + len(experiment.pack.rows(f.test))) * per_slice
        for f in folds
    )
