"""Whole training pipelines: ours against nnU-Net's own 2D trainer on the same slices.

nnU-Net (Isensee et al. 2021) runs as its documentation says: the slices in its file format, its fingerprint, its
plan for the configuration 2d, its preprocessing, and its trainer with augmentation in worker processes. Two
things are changed so that both sides do the same work: it plans for whole slices instead of cropping black
borders, and it trains with our batch size.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from torch import nn

from bench import registry
from bench.config import Input, RunConfig
from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.device import configure_torch
from bench.training.loop import Recipe
from benchmarks.speed.figure import Side, SpeedFigure, race
from benchmarks.speed.problem import BATCH, SpeedProblem
from benchmarks.speed.work import count_work

DATASET = "Dataset001_Speed"
MODULE = "nnunetv2"
WORKERS = "nnUNet_n_proc_DA"
MISSING = "not installed: pip install 'medseg-bench[nnunet]'"
ON_CPU = (2, 2)  # images per batch and batches per turn: a step at 256x256 takes seconds


@dataclass(frozen=True)
class NnunetTraining:
    """nnU-Net's trainer, the processes that load its batches, and the batch size that it had planned."""

    trainer: Any
    workers: tuple[psutil.Process, ...]
    planned_batch: int

    @property
    def patch(self) -> tuple[int, ...]:
        return tuple(self.trainer.configuration_manager.patch_size)

    def turn(self) -> int:
        """Train for an epoch as nnU-Net's `run_training` does, without the validation: a `Side`.

        The workers run only during the turn. Otherwise they would fill their queues while the other side is timed,
        slow it down, and then deliver batches that cost no time.
        """
        trainer, steps = self.trainer, range(self.trainer.num_iterations_per_epoch)
        for worker in self.workers:
            worker.resume()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in steps])
        for worker in self.workers:
            worker.suspend()
        return len(steps) * int(trainer.batch_size)


def measure(problem: SpeedProblem, module: str = MODULE) -> list[SpeedFigure]:
    """Measure images per second in training, with everything that `bench run` does by default.

    The two networks cost about the same but are not equal, so the note gives the work of each per image.
    """
    device = problem.device
    batch, steps = (BATCH, problem.images // BATCH) if device.type == "cuda" else ON_CPU
    configure_torch(device, deterministic=False)
    model, our_side = build_our_training(problem.pack, device, batch, steps)
    if find_spec(module) is None:
        (rates,) = race(our_side, repeats=problem.repeats)
        return [SpeedFigure("nnunet", "nnU-Net, 2D", "images/s", rates, (), note=MISSING)]
    with start_nnunet(problem.pack, device, batch, steps) as peer:
        ours, theirs = race(our_side, peer.turn, repeats=problem.repeats)
        shape = (len(problem.pack.manifest.channels), *peer.patch)
        networks = ("ours", model, ours), ("theirs", peer.trainer.network, theirs)
        work = "; ".join(f"{side} {describe_work(net, shape, median(rates))}" for side, net, rates in networks)
    note = f"batch {batch} of {shape[1]}x{shape[2]} (it had planned {peer.planned_batch}); {work}"
    return [SpeedFigure("nnunet", f"nnU-Net {version(module)}, 2D", "images/s", ours, theirs, note=note)]


def build_our_training(pack: Pack, device: torch.device, batch: int, steps: int) -> tuple[nn.Module, Side]:
    """Return the default model and a side that trains it for an epoch of this many steps per turn."""
    config = RunConfig.model_validate({"train": {"batch_size": batch, "epochs": 10**5}}).completed()
    model: nn.Module = registry.model[config.model.name].bind(config.model.params)(len(pack.manifest.channels))
    model = model.to(device).to(memory_format=torch.channels_last)
    recipe = Recipe(
        config=config,
        loss=registry.loss[config.loss.name].bind(config.loss.params),
        augment=tuple(registry.augmentation[name].bind(params) for name, params in config.augment.items()),
        schedule=registry.schedule[config.train.schedule.name].bind(config.train.schedule.params),
    )
    rows = np.resize(np.arange(len(pack.index)), steps * batch)
    # 'graph' is eager on a CPU
    epochs = recipe.train(model, SliceLoader(pack, Input(), device), rows, seed=0, execution="graph")
    return model, lambda: next(epochs).images


@contextmanager
def start_nnunet(pack: Pack, device: torch.device, batch: int, steps: int) -> Iterator[NnunetTraining]:
    """Start nnU-Net's trainer on this pack, for epochs of this many steps; clean up at the end of the block.

    This removes its files, ends its processes and restores the environment. There is one worker per core, or as
    many as `nnUNet_n_proc_DA` says. On a GPU nnU-Net compiles its network unless `nnUNet_compile` forbids it. Its
    printed output is dropped.
    """
    with tempfile.TemporaryDirectory(prefix="bench-nnunet-") as name, redirect_stdout(StringIO()):
        folders = {f"nnUNet_{kind}": f"{name}/{kind}" for kind in ("raw", "preprocessed", "results")}
        settings = {
            WORKERS: os.environ.get(WORKERS) or str(os.cpu_count()),
            "PYTHONWARNINGS": "ignore",  # in the worker processes
        }
        with environment_variables(folders | settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = write_dataset(pack, Path(name) / "raw" / DATASET)
            plans = make_plans(pack, Path(name) / "preprocessed" / DATASET)
            plan_2d = plans["configurations"]["2d"]
            planned_batch, plan_2d["batch_size"] = plan_2d["batch_size"], batch
            trainer_class = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
            trainer = trainer_class(plans | {"continue_training": False}, "2d", "all", dataset, device)
            trainer.num_iterations_per_epoch, trainer.num_epochs = steps, 10**5
            trainer.disable_checkpointing = True
            before, started = multiprocessing.active_children(), list[psutil.Process]()
            try:
                trainer.on_train_start()
                started = [psutil.Process(p.pid) for p in multiprocessing.active_children() if p not in before]
                yield NnunetTraining(trainer, tuple(started), planned_batch)
            finally:
                for process in started:
                    with suppress(psutil.NoSuchProcess):
                        process.resume()
                trainer.on_train_end()  # ends its processes


def write_dataset(pack: Pack, folder: Path) -> dict[str, Any]:
    """Write the pack in nnU-Net's format, one case per slice and one PNG per channel; return its dataset.json."""
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    cases = {}
    for row, (image, mask) in enumerate(zip(pack.images, pack.masks, strict=True)):
        images = [f"imagesTr/slice{row:05d}_{channel:04d}.png" for channel in range(image.shape[-1])]
        label = f"labelsTr/slice{row:05d}.png"
        for file, pixels in zip((*images, label), (*np.moveaxis(image, -1, 0), mask), strict=True):
            cv2.imwrite(str(folder / file), pixels)
        cases[f"slice{row:05d}"] = {"images": images, "label": label}
    description = {
        "channel_names": {str(number): channel for number, channel in enumerate(pack.manifest.channels)},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(cases),
        "file_ending": ".png",
        "dataset": cases,  # without it, nnU-Net compares the name of every file with that of every case
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    return description


def make_plans(pack: Pack, folder: Path) -> dict[str, Any]:
    """Return nnU-Net's plans for the dataset that was written, and preprocess it into `folder`."""
    api = import_module("nnunetv2.experiment_planning.plan_and_preprocess_api")
    processes = min(8, os.cpu_count() or 1)
    fingerprint = api.extract_fingerprint_dataset(1, num_processes=processes, show_progress_bar=False)
    fingerprint["shapes_after_crop"] = [(1, *pack.masks.shape[1:])] * len(pack.masks)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plans: dict[str, Any] = api.plan_experiment_dataset(1)[0]
    api.preprocess_dataset(1, configurations=("2d",), num_processes=(processes,), show_progress_bar=False)
    return plans


def describe_work(network: nn.Module, shape: tuple[int, ...], images_per_second: float) -> str:
    """Describe the size of a network and its work on images (C, H, W)."""
    network = getattr(network, "_orig_mod", network)  # without the wrapper of torch.compile
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    gigaflop = count_work(network, (2, *shape), torch.float32).flops / 2 / 1e9
    return f"{millions:.1f} M, {gigaflop:.0f} GFLOP an image, {gigaflop * images_per_second:.0f} GFLOP/s"


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables, for the block only."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
