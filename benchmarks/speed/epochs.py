"""Whole epochs with their validation, against the notebook's loop; and several folds at once."""

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
from bench.config import Input, Train
from bench.data.loader import SliceLoader
from bench.data.normalise import IMAGENET
from bench.data.source import SliceFile
from bench.device import configure_torch
from bench.inference.padding import logits_of
from bench.inference.predict import tallies
from bench.metrics.overlap import dice
from bench.training.loop import train
from bench.training.parallel_folds import run_in_parallel
from bench.types import SILENT, Watch
from benchmarks.speed import warping
from benchmarks.speed.figure import Side, SpeedFigure, race
from benchmarks.speed.problem import SpeedProblem
from benchmarks.speed.training import LR, TrainingJob, fastest, jobs, memory_given_back, within

WORKERS = 2  # of the notebook's loader, as hosted notebooks have it
TOGETHER = 2  # folds at once on a CPU of few cores; a GPU is tried with twice as many as well


class Slices(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of TIFF files as a notebook trains on them: decoded, resized, augmented and normalised one by one."""

    def __init__(self, files: list[SliceFile], size: int, *, augmented: bool) -> None:
        self.files = files
        steps = [A.Resize(size, size), *(warping.peer().transforms if augmented else ()), A.Normalize(*IMAGENET)]
        self.transform = A.Compose(steps)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.files[row].image)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.files[row].mask), cv2.IMREAD_GRAYSCALE)
        made = self.transform(image=image, mask=np.asarray(np.asarray(mask) > 0, np.float32))
        return torch.from_numpy(made["image"].transpose(2, 0, 1).copy()), torch.from_numpy(made["mask"])[None]


def parts(given: SpeedProblem) -> tuple[NDArray[np.int64], list[str]]:
    """Rows to train on, and patients to validate on: of as many patients as make a turn, a fifth, at least one."""
    slices = given.pack.index.groupby("case", sort=False).size().cumsum()
    cases = list(slices.index[: max(2, int((slices <= given.images).sum()))])
    held = cases[: max(1, len(cases) // 5)]
    return given.pack.rows(set(cases) - set(held)), held


def ours(given: SpeedProblem, job: TrainingJob) -> Side:
    """An epoch as `bench run` has it: from the pack, with the warp, and validation counted on the device."""
    loader = SliceLoader(given.pack, Input(image_size=job.size), given.device)
    rows, held = parts(given)
    model = job.build(loader.pack.images.shape[-1]).to(given.device).to(memory_format=torch.channels_last)
    epochs = training(given, job, loader, rows, model)

    def turn() -> int:
        images = next(epochs)
        for _, counted in tallies([model], loader, held, threshold=0.5, batch_size=32):
            dice(counted)
        return images

    return turn


def training(
    given: SpeedProblem,
    job: TrainingJob,
    loader: SliceLoader,
    rows: NDArray[np.int64],
    model: torch.nn.Module,
    watch: Watch = SILENT,
) -> Iterator[int]:
    """Images of one epoch after another."""
    settings = Train.model_validate({"epochs": 10**6, "batch_size": job.batch, "lr": LR})
    loop = train(
        model,
        loader,
        rows,
        loss=registry.loss["bce_dice"].bind({}),
        augment=[registry.augmentation["warp"].bind(warping.OURS)],
        schedule=registry.schedule["constant"].bind({}),
        settings=settings,
        seed=0,
        execution=fastest(given),
        tick=watch.images,
    )
    return (epoch.images for epoch in loop)


def notebook(given: SpeedProblem, job: TrainingJob, workers: int) -> Side:
    """The loop of tutorials: a DataLoader over files, albumentations, float32 NCHW, `.item()` after every step."""
    rows, held = parts(given)
    files = given.source.slices
    validated = given.pack.rows(held)
    loaders = [
        DataLoader(
            Slices([files[row] for row in part], job.size, augmented=training),
            job.batch,
            shuffle=training,
            drop_last=training,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="spawn",  # a fork of a process with threads may never come back
        )
        for part, training in ((rows, True), (validated, False))
    ]
    model = job.build(given.pack.images.shape[-1]).to(given.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loss = registry.loss["bce_dice"].bind({})

    def turn() -> int:
        seen, total = 0, 0.0
        model.train()
        for images, masks in loaders[0]:
            images, masks = images.to(given.device), masks.to(given.device)
            optimizer.zero_grad()
            value = loss(logits_of(model, images), masks)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += value.item()
            seen += len(images)
        model.eval()
        with torch.no_grad():
            for images, masks in loaders[1]:
                images, masks = images.to(given.device), masks.to(given.device)
                called = logits_of(model, images).sigmoid() > 0.5
                total += (2 * (called * masks).sum() / (called.sum() + masks.sum())).item()
        return seen

    return within(lambda: turn, memory_given_back)


def figures(given: SpeedProblem) -> list[SpeedFigure]:
    """Training images a second of a whole epoch and its validation."""
    configure_torch(given.device, deterministic=False)
    on_gpu = given.device.type == "cuda"
    job = jobs(given)[0]
    cores = os.cpu_count() or WORKERS
    gates = {WORKERS: 5.0} | ({cores: 1.5} if cores != WORKERS else {})
    rates = race(ours(given, job), *(notebook(given, job, n) for n in gates), repeats=given.repeats)
    return [
        SpeedFigure(
            "epoch",
            f"notebook loop, {workers} workers",
            "images/s",
            rates[0],
            theirs,
            gate if on_gpu else None,
            note=str(job),
        )
        for (workers, gate), theirs in zip(gates.items(), rates[1:], strict=True)
    ]


def folds(given: SpeedProblem) -> list[SpeedFigure]:
    """Images a second of an epoch in each of several folds: at once, against one after another."""
    configure_torch(given.device, deterministic=False)
    # What it finds is a thread's own, and every turn of the folds at once has new threads.
    torch.backends.cudnn.benchmark = False
    on_gpu = given.device.type == "cuda"
    job = jobs(given)[0]
    loader = SliceLoader(given.pack, Input(image_size=job.size), given.device)
    rows, _ = parts(given)
    found = []
    for many in (TOGETHER, 2 * TOGETHER) if on_gpu else (TOGETHER,):

        def side(at_once: int, many: int = many) -> Side:
            models = [
                job.build(loader.pack.images.shape[-1]).to(given.device).to(memory_format=torch.channels_last)
                for _ in range(many)
            ]

            def fold(number: int, watch: Watch) -> int:
                # A loop is a generator and lives in one thread: an epoch of a new one, a captured graph included.
                return next(training(given, job, loader, rows, models[number], watch))

            def turn() -> int:
                return sum(run_in_parallel(fold, range(many), at_once, given.device, SILENT))

            return turn

        together_, alone = race(side(many), side(1), repeats=given.repeats)
        note = f"{many} folds of {job}"
        gate = 1.15 if on_gpu else None
        found.append(SpeedFigure("folds", "one fold after another", "images/s", together_, alone, gate, note=note))
    return found
