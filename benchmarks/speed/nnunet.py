"""Training with everything around it: ours, against nnU-Net's own 2D trainer on the same slices.

nnU-Net (Isensee et al. 2021) runs as its documentation says: the slices written in its format, its
fingerprint, its plan for the configuration 2d, its preprocessing, and its trainer with its augmentation in
worker processes. Two things are changed so that both sides do the same work: it plans for whole slices, not
for what is left of them without black borders, and it trains with our batch size.
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
from bench.training.loop import train
from benchmarks.speed.figure import Side, SpeedFigure, race
from benchmarks.speed.problem import BATCH, SpeedProblem
from benchmarks.speed.roof import cost

NAME = "Dataset001_Speed"
MODULE = "nnunetv2"
WORKERS = "nnUNet_n_proc_DA"
MISSING = "not installed: pip install 'medseg-bench[nnunet]'"
ON_CPU = (2, 2)  # images a batch and batches a turn: a step at 256x256 takes seconds


@dataclass(frozen=True)
class Peer:
    """nnU-Net's trainer, ready to take steps; the processes that loader it; the batch that it had planned."""

    trainer: Any
    workers: tuple[psutil.Process, ...]
    planned_batch: int

    @property
    def patch(self) -> tuple[int, ...]:
        return tuple(self.trainer.configuration_manager.patch_size)

    def turn(self) -> int:
        """Train for an epoch, as its `run_training` does, and leave out the validation: a `Side`.

        Its workers run only meanwhile. Else they would fill their queues while the other side is timed, slow it
        down, and come back with batches that cost no time.
        """
        trainer, steps = self.trainer, range(self.trainer.num_iterations_per_epoch)
        for worker in self.workers:
            worker.resume()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in steps])
        for worker in self.workers:
            worker.suspend()
        return len(steps) * int(trainer.batch_size)


def figures(given: SpeedProblem, module: str = MODULE) -> list[SpeedFigure]:
    """Images a second in training, whole pipelines: ours is what `bench run` does by default.

    The networks are of about the same cost, not the same, so the note says what each computes an image.
    """
    device = given.device
    batch, steps = (BATCH, given.images // BATCH) if device.type == "cuda" else ON_CPU
    configure_torch(device, deterministic=False)
    model, side = ours(given.pack, device, batch, steps)
    if find_spec(module) is None:
        (alone,) = race(side, repeats=given.repeats)
        return [SpeedFigure("nnunet", "nnU-Net, 2D", "images/s", alone, (), note=MISSING)]
    with peer(given.pack, device, batch, steps) as other:
        fast, slow = race(side, other.turn, repeats=given.repeats)
        shape = (len(given.pack.manifest.channels), *other.patch)
        pairs = ("ours", model, fast), ("theirs", other.trainer.network, slow)
        does = "; ".join(f"{who} {facts(network, shape, median(rates))}" for who, network, rates in pairs)
    note = f"batch {batch} of {shape[1]}x{shape[2]} (it had planned {other.planned_batch}); {does}"
    return [SpeedFigure("nnunet", f"nnU-Net {version(module)}, 2D", "images/s", fast, slow, note=note)]


def ours(pack: Pack, device: torch.device, batch: int, steps: int) -> tuple[nn.Module, Side]:
    """The default model, and a turn of training it for an epoch of so many steps."""
    config = RunConfig.model_validate({"train": {"batch_size": batch, "epochs": 10**6}}).completed()
    model: nn.Module = registry.model[config.model.name].bind(config.model.params)(len(pack.manifest.channels))
    model = model.to(device).to(memory_format=torch.channels_last)
    epochs = train(
        model,
        SliceLoader(pack, Input(), device),
        np.resize(np.arange(len(pack.index)), steps * batch),
        loss=registry.loss[config.loss.name].bind(config.loss.params),
        augment=[registry.augmentation[name].bind(params) for name, params in config.augment.items()],
        schedule=registry.schedule[config.train.schedule.name].bind(config.train.schedule.params),
        settings=config.train,
        seed=0,
        execution="graph",  # eager on a CPU
    )
    return model, lambda: next(epochs).images


@contextmanager
def peer(pack: Pack, device: torch.device, batch: int, steps: int) -> Iterator[Peer]:
    """nnU-Net's trainer on this pack, for epochs of so many steps. Files, processes and settings end with it.

    As many workers augment as the machine has cores, or `nnUNet_n_proc_DA`; on a GPU its network is compiled,
    unless `nnUNet_compile` says no. What it prints is dropped.
    """
    with tempfile.TemporaryDirectory(prefix="bench-nnunet-") as name, redirect_stdout(StringIO()):
        folders = {f"nnUNet_{kind}": f"{name}/{kind}" for kind in ("raw", "preprocessed", "results")}
        settings = {
            WORKERS: os.environ.get(WORKERS) or str(os.cpu_count()),
            "PYTHONWARNINGS": "ignore",  # in the processes that it starts
        }
        with variables(folders | settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = write(pack, Path(name) / "raw" / NAME)
            plans = plan(pack, Path(name) / "preprocessed" / NAME)
            chosen = plans["configurations"]["2d"]
            planned, chosen["batch_size"] = chosen["batch_size"], batch
            kind = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
            trainer = kind(plans | {"continue_training": False}, "2d", "all", dataset, device)
            trainer.num_iterations_per_epoch, trainer.num_epochs = steps, 10**6
            trainer.disable_checkpointing = True
            before, started = multiprocessing.active_children(), list[psutil.Process]()
            try:
                trainer.on_train_start()
                started = [psutil.Process(p.pid) for p in multiprocessing.active_children() if p not in before]
                yield Peer(trainer, tuple(started), planned)
            finally:
                for process in started:
                    with suppress(psutil.NoSuchProcess):
                        process.resume()
                trainer.on_train_end()  # ends its processes


def write(pack: Pack, folder: Path) -> dict[str, Any]:
    """The pack as a data set in nnU-Net's format, a case a slice and a PNG a channel; gives its dataset.json."""
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    cases = {}
    for row, (image, mask) in enumerate(zip(pack.images, pack.masks, strict=True)):
        images = [f"imagesTr/slice{row:05d}_{channel:04d}.png" for channel in range(image.shape[-1])]
        label = f"labelsTr/slice{row:05d}.png"
        for file, pixels in zip((*images, label), (*np.moveaxis(image, -1, 0), mask), strict=True):
            cv2.imwrite(str(folder / file), pixels)
        cases[f"slice{row:05d}"] = {"images": images, "label": label}
    said = {
        "channel_names": {str(number): channel for number, channel in enumerate(pack.manifest.channels)},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(cases),
        "file_ending": ".png",
        "dataset": cases,  # else it compares the name of every file with that of every case
    }
    (folder / "dataset.json").write_text(json.dumps(said, indent=1))
    return said


def plan(pack: Pack, folder: Path) -> dict[str, Any]:
    """nnU-Net's plans for the data set that was written, which is preprocessed into `folder`."""
    api = import_module("nnunetv2.experiment_planning.plan_and_preprocess_api")
    processes = min(8, os.cpu_count() or 1)
    fingerprint = api.extract_fingerprint_dataset(1, num_processes=processes, show_progress_bar=False)
    fingerprint["shapes_after_crop"] = [(1, *pack.masks.shape[1:])] * len(pack.masks)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plans: dict[str, Any] = api.plan_experiment_dataset(1)[0]
    api.preprocess_dataset(1, configurations=("2d",), num_processes=(processes,), show_progress_bar=False)
    return plans


def facts(network: nn.Module, shape: tuple[int, ...], images_per_second: float) -> str:
    """The size of a network, and how much it computes on images (C, H, W), in words."""
    network = getattr(network, "_orig_mod", network)  # without the wrapper of torch.compile
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    gigaflop = cost(network, (2, *shape), torch.float32).flops / 2 / 1e9
    return f"{millions:.1f} M, {gigaflop:.0f} GFLOP an image, {gigaflop * images_per_second:.0f} GFLOP/s"


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """These environment variables, for the block only."""
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
