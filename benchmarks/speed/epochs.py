"""Whole epochs with their validation, against a notebook's loop; and several folds at once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench import registry
from bench.config import Input, RunConfig, Train
from bench.data.loader import SliceLoader
from bench.data.normalise import IMAGENET
from bench.data.source import SliceFile
from bench.device import configure_torch
from bench.inference.predict import Predictor
from bench.inference.sliding_window import logits_of
from bench.metrics.overlap import dice
from bench.training.cross_validation import run_in_parallel
from bench.training.loop import Recipe
from bench.types import SILENT, Watch
from benchmarks.speed import warping
from benchmarks.speed.figure import Side, SpeedFigure, race
from benchmarks.speed.problem import SpeedProblem
from benchmarks.speed.training import (
    LR,
    TrainingJob,
    build_inside,
    fastest_execution,
    memory_returned,
    training_jobs,
)

WORKERS = 2  # of the notebook's DataLoader, as hosted notebooks have it
FOLDS_AT_ONCE = 2  # for a CPU with few cores; a GPU also gets twice as many


class ResizedTiffSlices(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of TIFF files as a notebook trains on them: decoded, resized, augmented and normalised one by one."""

    def __init__(self, files: list[SliceFile], size: int, *, augmented: bool) -> None:
        self.files = files
        augmentation = warping.albumentations_warp().transforms if augmented else ()
        self.transform = A.Compose([A.Resize(size, size), *augmentation, A.Normalize(*IMAGENET)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.files[row].image)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.files[row].mask), cv2.IMREAD_GRAYSCALE)
        pair = self.transform(image=image, mask=np.asarray(np.asarray(mask) > 0, np.float32))
        return torch.from_numpy(pair["image"].transpose(2, 0, 1).copy()), torch.from_numpy(pair["mask"])[None]


def split_rows(problem: SpeedProblem) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows to train on and the patients to validate on.

    Both come from the first patients, as many as one turn has images for. A fifth of them validate, at least one.
    """
    slices = problem.pack.index.groupby("case", sort=False).size().cumsum()
    cases = list(slices.index[: max(2, int((slices <= problem.images).sum()))])
    validation = cases[: max(1, len(cases) // 5)]
    return problem.pack.rows(set(cases) - set(validation)), validation


def build_our_epoch(problem: SpeedProblem, job: TrainingJob) -> Side:
    """Return a side that trains and validates an epoch as `bench run` does: from the pack, with the warp."""
    loader = SliceLoader(problem.pack, Input(image_size=job.size), problem.device)
    rows, validation = split_rows(problem)
    model = job.build(loader.pack.images.shape[-1]).to(problem.device).to(memory_format=torch.channels_last)
    epochs = train_epochs(problem, job, loader, rows, model)
    predictor = Predictor([model], loader, batch_size=32)

    def turn() -> int:
        images = next(epochs)
        for (counts,) in predictor.case_counts(validation, threshold=0.5):
            dice(counts)
        return images

    return turn


def train_epochs(
    problem: SpeedProblem,
    job: TrainingJob,
    loader: SliceLoader,
    rows: NDArray[np.int64],
    model: torch.nn.Module,
    watch: Watch = SILENT,
) -> Iterator[int]:
    """Train epoch after epoch; yield the number of images of each."""
    settings = Train.model_validate({"epochs": 10**5, "batch_size": job.batch, "lr": LR})
    recipe = Recipe(
        config=RunConfig(train=settings),
        loss=registry.loss["bce_dice"].bind({}),
        augment=(registry.augmentation["warp"].bind(warping.OURS),),
        schedule=registry.schedule["constant"].bind({}),
    )
    loop = recipe.train(model, loader, rows, seed=0, execution=fastest_execution(problem), watch=watch)
    return (epoch.images for epoch in loop)


def build_notebook_epoch(problem: SpeedProblem, job: TrainingJob, workers: int) -> Side:
    """Return a side that trains an epoch as tutorials do.

    A DataLoader reads files, albumentations augments, training is float32 NCHW with `.item()` after every step.
    """
    rows, validation = split_rows(problem)
    files = problem.source.slices
    training_loader, validation_loader = (
        DataLoader(
            ResizedTiffSlices([files[row] for row in part], job.size, augmented=training),
            job.batch,
            shuffle=training,
            drop_last=training,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="spawn",  # forking a process with threads may deadlock
        )
        for part, training in ((rows, True), (problem.pack.rows(validation), False))
    )
    model = job.build(problem.pack.images.shape[-1]).to(problem.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loss = registry.loss["bce_dice"].bind({})

    def turn() -> int:
        seen, total = 0, 0.0
        model.train()
        for images, masks in training_loader:
            images, masks = images.to(problem.device), masks.to(problem.device)
            optimizer.zero_grad()
            value = loss(logits_of(model, images), masks)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += value.item()
            seen += len(images)
        model.eval()
        with torch.no_grad():
            for images, masks in validation_loader:
                images, masks = images.to(problem.device), masks.to(problem.device)
                predicted = logits_of(model, images).sigmoid() > 0.5
                total += (2 * (predicted * masks).sum() / (predicted.sum() + masks.sum())).item()
        return seen

    return build_inside(lambda: turn, memory_returned)


def measure(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure training images per second of a whole epoch with its validation."""
    configure_torch(problem.device, deterministic=False)
    on_gpu = problem.device.type == "cuda"
    job = training_jobs(problem)[0]
    cores = os.cpu_count() or WORKERS
    gates = {WORKERS: 5.0} | ({cores: 1.5} if cores != WORKERS else {})  # by the number of the notebook's workers
    notebooks = [build_notebook_epoch(problem, job, workers) for workers in gates]
    ours, *others = race(build_our_epoch(problem, job), *notebooks, repeats=problem.repeats)
    return [
        SpeedFigure(
            "epoch",
            f"notebook loop, {workers} workers",
            "images/s",
            ours,
            theirs,
            gate if on_gpu else None,
            note=str(job),
        )
        for (workers, gate), theirs in zip(gates.items(), others, strict=True)
    ]


def measure_folds(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure images per second of one epoch in each of several folds: at once, against one after another."""
    configure_torch(problem.device, deterministic=False)
    # cuDNN keeps its benchmark results per thread, and every turn of parallel folds has new threads.
    torch.backends.cudnn.benchmark = False
    on_gpu = problem.device.type == "cuda"
    gate = 1.15 if on_gpu else None
    job = training_jobs(problem)[0]
    loader = SliceLoader(problem.pack, Input(image_size=job.size), problem.device)
    rows, _ = split_rows(problem)
    figures = []
    for folds in (FOLDS_AT_ONCE, 2 * FOLDS_AT_ONCE) if on_gpu else (FOLDS_AT_ONCE,):

        def build(at_once: int, folds: int = folds) -> Side:
            models = [
                job.build(loader.pack.images.shape[-1]).to(problem.device).to(memory_format=torch.channels_last)
                for _ in range(folds)
            ]

            def run_fold(fold: int, watch: Watch) -> int:
                # A loop is a generator and stays in one thread: each turn starts a new one, CUDA graph included.
                return next(train_epochs(problem, job, loader, rows, models[fold], watch))

            def turn() -> int:
                return sum(run_in_parallel(run_fold, range(folds), at_once, problem.device, SILENT))

            return turn

        parallel, sequential = race(build(folds), build(1), repeats=problem.repeats)
        note = f"{folds} folds of {job}"
        figures.append(
            SpeedFigure("folds", "one fold after another", "images/s", parallel, sequential, gate, note=note)
        )
    return figures
