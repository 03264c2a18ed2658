"""The cost of an epoch against the number of slices, the image size, the number of folds and the model.

Real epochs of `bench.training.loop` with the default augmentation and loss are timed. The points of an axis take
turns, so that a machine that is busy for a while slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from bench import registry
from bench.config import Component, Input, RunConfig, Train
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.training.loop import Recipe
from bench.training.step import Execution
from benchmarks.speed.problem import SpeedProblem
from benchmarks.speed.scaling_laws import AXES, fit_laws
from benchmarks.speed.work import count_work


@dataclass(frozen=True)
class Grid:
    """The values to measure on each axis. The other axes use the first of `models`."""

    models: Mapping[str, Component]
    slices: tuple[int, ...]  # per epoch
    sizes: tuple[int, ...]  # pixels per side
    folds: tuple[int, ...]
    size: int  # on the axes other than size
    images: int  # per epoch, or in all folds together, on the axes other than slices
    batch: int


def _models(base: int, resnet: str, segformer: str) -> dict[str, Component]:
    by_width = [("unet", base // 2), ("unet", base), ("resunet", base), ("attention_unet", base)]
    by_encoder = [("unet", resnet), ("unet", "efficientnet-b0"), ("segformer", segformer)]
    return {f"{name} {width}": Component(name=name, params={"base": width}) for name, width in by_width} | {
        f"{name} {encoder}": Component(name=name, params={"encoder": encoder}) for name, encoder in by_encoder
    }


GPU = Grid(  # 480 slices make full batches in 2, 3, 5 and 10 folds
    models=_models(64, "resnet50", "mit_b2"),
    slices=(64, 128, 256, 512),
    sizes=(64, 128, 192, 256),
    folds=(2, 3, 5, 10),
    size=256,
    images=480,
    batch=16,
)
CPU = Grid(  # smaller models of the same families, for a few minutes on two cores
    models=_models(16, "resnet18", "mit_b0"),
    slices=(16, 32, 64, 128),
    sizes=(32, 64, 96, 128),
    folds=(2, 3, 5),
    size=64,
    images=240,
    batch=8,
)


def grid_for(problem: SpeedProblem, device: torch.device) -> Grid:
    """Return the grid for this device, limited to the size of the problem."""
    grid, side = GPU if device.type == "cuda" else CPU, min(problem.pack.masks.shape[1:])
    return replace(
        grid,
        slices=tuple(n for n in grid.slices if n <= problem.images),
        sizes=tuple(s for s in grid.sizes if s <= side),
        size=min(grid.size, side),
        images=min(grid.images, problem.images),
    )


def build_model(component: Component, channels: int) -> nn.Module:
    """Return the model, initialised from seed 0."""
    torch.manual_seed(0)
    model: nn.Module = registry.model[component.name].bind(component.params)(channels)
    return model.to(memory_format=torch.channels_last)


def count_gigaflops(model: nn.Module, channels: int, size: int) -> float:
    """Return GFLOP per image, forward and backward, 2 FLOP per multiply-add."""
    return count_work(model, (2, channels, size, size), torch.float32).flops / 2 / 1e9


@dataclass(frozen=True)
class Point:
    """A value on an axis. The model trains one epoch on each of `folds` (rows of the pack), one after another."""

    axis: str
    value: float
    model: str
    size: int
    folds: tuple[NDArray[np.int64], ...]


def make_points(problem: SpeedProblem, grid: Grid) -> list[Point]:
    """Return all points, axis by axis. Rows are drawn with replacement, so that a small dataset is enough."""
    rows = np.random.default_rng(0).integers(0, len(problem.pack.index), max(grid.images, *grid.slices))
    epoch, first, channels = rows[: grid.images], next(iter(grid.models)), len(problem.pack.manifest.channels)
    folds = {k: tuple(np.delete(epoch, slice(fold, None, k)) for fold in range(k)) for k in grid.folds}
    flops = {
        name: count_gigaflops(build_model(component, channels), channels, grid.size)
        for name, component in grid.models.items()
    }
    return [
        *(Point("slices", n, first, grid.size, (rows[:n],)) for n in grid.slices),
        *(Point("size", side, first, side, (epoch,)) for side in grid.sizes),
        *(Point("folds", k, first, grid.size, parts) for k, parts in folds.items()),
        *(Point("models", work, name, grid.size, (epoch,)) for name, work in flops.items()),
    ]


def measure_scaling(
    problem: SpeedProblem, *, device: torch.device, grid: Grid | None = None, execution: Execution = "graph"
) -> pd.DataFrame:
    """Return one row per point: axis, value, model, and its times.

    `seconds` of an epoch of all folds are the median over the problem's repeats, `low` and `high` their range;
    `images_per_second` follows from `seconds`; `predicted` seconds are those of the law fitted to the axis. Values
    are slices, pixels per side, folds, and GFLOP per image. Only training is timed, after one epoch that is not.
    """
    configure_torch(device, deterministic=False)
    grid = grid or grid_for(problem, device)
    points = make_points(problem, grid)
    rows = []
    for axis in AXES:
        on_axis = [point for point in points if point.axis == axis]
        times = _time_points(on_axis, problem, device, grid, execution)
        for point, (images, seconds) in zip(on_axis, times, strict=True):
            middle = median(seconds)
            position = {"axis": axis, "value": float(point.value), "model": point.model}
            spread = {"seconds": middle, "low": min(seconds), "high": max(seconds)}
            rows.append(position | spread | {"images_per_second": images / middle})
    frame = pd.DataFrame(rows)
    laws = fit_laws(frame)
    return frame.assign(predicted=[laws[a].at(v) for a, v in zip(frame["axis"], frame["value"], strict=True)])


def _time_points(
    points: Sequence[Point], problem: SpeedProblem, device: torch.device, grid: Grid, execution: Execution
) -> list[tuple[int, list[float]]]:
    """Return, for each point, the images of an epoch and its seconds in every turn."""
    config, channels = RunConfig().completed(), len(problem.pack.manifest.channels)
    settings = Train(epochs=problem.repeats + 1, batch_size=grid.batch)
    loaders = {
        size: SliceLoader(problem.pack, Input(image_size=size), device)
        for size in {point.size for point in points}
    }
    recipe = Recipe(
        config=config.model_copy(update={"train": settings}),
        loss=registry.loss[config.loss.name].bind(config.loss.params),
        augment=tuple(registry.augmentation[name].bind(params) for name, params in config.augment.items()),
        schedule=registry.schedule[settings.schedule.name].bind(settings.schedule.params),
    )
    loops = [
        [
            recipe.train(
                build_model(grid.models[point.model], channels).to(device),
                loaders[point.size],
                rows,
                seed=fold,
                execution=execution,
            )
            for fold, rows in enumerate(point.folds)
        ]
        for point in points
    ]
    turns = [[[next(loop) for loop in folds] for folds in loops] for _ in range(settings.epochs)]
    return [
        (sum(e.images for e in epochs[0]), [sum(e.seconds for e in folds) for folds in epochs[1:]])
        for epochs in zip(*turns, strict=True)
    ]
