"""What an epoch costs against slices, image size, folds and models.

Real epochs of `bench.training.loop` with the default augmentation and loss are timed, the points of an axis in turns, so
that a machine that is busy for a while slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from torch import nn

from bench import registry
from bench.config import Component, Input, RunConfig, Train
from bench.data.loader import SliceLoader
from bench.device import configure_torch
from bench.training.loop import train
from bench.training.step import Execution
from benchmarks.speed.problem import SpeedProblem
from benchmarks.speed.roof import cost


@dataclass(frozen=True)
class Grid:
    """What is measured. The first of `models` stands for all on the other axes."""

    models: Mapping[str, Component]
    slices: tuple[int, ...]  # of an epoch
    sizes: tuple[int, ...]  # pixels a side
    folds: tuple[int, ...]
    size: int  # where it is not the axis
    images: int  # of an epoch, or of all patients that the folds share, where slices are not the axis
    batch: int


def _models(base: int, resnet: str, segformer: str) -> dict[str, Component]:
    hourglasses = [("unet", base // 2), ("unet", base), ("resunet", base), ("attention_unet", base)]
    encoders = [("unet", resnet), ("unet", "efficientnet-b0"), ("segformer", segformer)]
    return {f"{name} {width}": Component(name=name, params={"base": width}) for name, width in hourglasses} | {
        f"{name} {encoder}": Component(name=name, params={"encoder": encoder}) for name, encoder in encoders
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
CPU = Grid(  # their small relations, and what two cores do in a few minutes
    models=_models(16, "resnet18", "mit_b0"),
    slices=(16, 32, 64, 128),
    sizes=(32, 64, 96, 128),
    folds=(2, 3, 5),
    size=64,
    images=240,
    batch=8,
)


def grid_for(given: SpeedProblem, device: torch.device) -> Grid:
    """The grid of such a device, without what is larger than the problem."""
    grid, side = GPU if device.type == "cuda" else CPU, min(given.pack.masks.shape[1:])
    return replace(
        grid,
        slices=tuple(n for n in grid.slices if n <= given.images),
        sizes=tuple(s for s in grid.sizes if s <= side),
        size=min(grid.size, side),
        images=min(grid.images, given.images),
    )


def build(chosen: Component, channels: int) -> nn.Module:
    """The model, initialised from seed 0."""
    torch.manual_seed(0)
    model: nn.Module = registry.model[chosen.name].bind(chosen.params)(channels)
    return model.to(memory_format=torch.channels_last)


def gigaflops(model: nn.Module, channels: int, size: int) -> float:
    """GFLOP an image, forward and backward, 2 a multiply-add."""
    return cost(model, (2, channels, size, size), torch.float32).flops / 2 / 1e9


@dataclass(frozen=True)
class Point:
    """A place on an axis: the model trains an epoch on each of `folds`, rows of the pack, one after another."""

    axis: str
    value: float
    model: str
    size: int
    folds: tuple[NDArray[np.int64], ...]


def points(given: SpeedProblem, grid: Grid) -> list[Point]:
    """All places, axis by axis. Rows are drawn with replacement, so that a small data set will do."""
    rows = np.random.default_rng(0).integers(0, len(given.pack.index), max(grid.images, *grid.slices))
    some, first, channels = rows[: grid.images], next(iter(grid.models)), len(given.pack.manifest.channels)
    without = {k: tuple(np.delete(some, slice(fold, None, k)) for fold in range(k)) for k in grid.folds}
    flops = {name: gigaflops(build(chosen, channels), channels, grid.size) for name, chosen in grid.models.items()}
    return [
        *(Point("slices", n, first, grid.size, (rows[:n],)) for n in grid.slices),
        *(Point("size", side, first, side, (some,)) for side in grid.sizes),
        *(Point("folds", k, first, grid.size, parts) for k, parts in without.items()),
        *(Point("models", work, name, grid.size, (some,)) for name, work in flops.items()),
    ]


def measure_scaling(
    given: SpeedProblem, *, device: torch.device, grid: Grid | None = None, execution: Execution = "graph"
) -> pd.DataFrame:
    """A row a point: axis, value, model, `seconds` of an epoch (of all folds; median over the problem's repeats),
    their `low` and `high`, `images_per_second`, and the seconds `predicted` by the law fitted to its axis.

    Values are slices, pixels a side, folds, and GFLOP an image. Training alone; an untimed epoch goes first.
    """
    configure_torch(device, deterministic=False)
    grid = grid or grid_for(given, device)
    every = points(given, grid)
    rows = []
    for axis in AXES:
        here = [point for point in every if point.axis == axis]
        for point, (images, seconds) in zip(here, _timed(here, given, device, grid, execution), strict=True):
            middle = median(seconds)
            where = {"axis": axis, "value": float(point.value), "model": point.model}
            spread = {"seconds": middle, "low": min(seconds), "high": max(seconds)}
            rows.append(where | spread | {"images_per_second": images / middle})
    frame = pd.DataFrame(rows)
    law = laws(frame)
    return frame.assign(predicted=[law[a].at(v) for a, v in zip(frame["axis"], frame["value"], strict=True)])


def _timed(
    here: Sequence[Point], given: SpeedProblem, device: torch.device, grid: Grid, execution: Execution
) -> list[tuple[int, list[float]]]:
    """Images of an epoch and its seconds in every turn, of each point."""
    config, channels = RunConfig().completed(), len(given.pack.manifest.channels)
    settings = Train(epochs=given.repeats + 1, batch_size=grid.batch)
    loaders = {
        size: SliceLoader(given.pack, Input(image_size=size), device) for size in {point.size for point in here}
    }
    loops = [
        [
            train(
                build(grid.models[point.model], channels).to(device),
                loaders[point.size],
                rows,
                loss=registry.loss[config.loss.name].bind(config.loss.params),
                augment=[registry.augmentation[name].bind(params) for name, params in config.augment.items()],
                schedule=registry.schedule[settings.schedule.name].bind(settings.schedule.params),
                settings=settings,
                seed=fold,
                execution=execution,
            )
            for fold, rows in enumerate(point.folds)
        ]
        for point in here
    ]
    turns = [[[next(loop) for loop in folds] for folds in loops] for _ in range(settings.epochs)]
    return [
        (sum(e.images for e in epochs[0]), [sum(e.seconds for e in folds) for folds in epochs[1:]])
        for epochs in zip(*turns, strict=True)
    ]


@dataclass(frozen=True)
class Line:
    """fixed + each * n seconds."""

    fixed: float
    each: float

    def at(self, n: float) -> float:
        return self.fixed + self.each * n

    def __str__(self) -> str:
        return f"{self.each:.3g} s × n {'+' if self.fixed >= 0 else '−'} {abs(self.fixed):.2g} s"


@dataclass(frozen=True)
class Power:
    """scale * n ** exponent seconds."""

    scale: float
    exponent: float

    def at(self, n: float) -> float:
        return self.scale * float(n**self.exponent)

    def __str__(self) -> str:
        return f"∝ n^{self.exponent:.2f}"


def fit_line(n: ArrayLike, seconds: ArrayLike) -> Line:
    """Least squares of relative errors: what disturbs a time is in proportion to it."""
    x, y = np.asarray(n, float), np.asarray(seconds, float)
    each, fixed = np.polyfit(x, y, 1, w=1 / y)
    return Line(float(fixed), float(each))


def fit_power(n: ArrayLike, seconds: ArrayLike) -> Power:
    """Least squares of the logarithms."""
    exponent, scale = np.polyfit(np.log(np.asarray(n, float)), np.log(np.asarray(seconds, float)), 1)
    return Power(float(np.exp(scale)), float(exponent))


Law = Line | Power
AXES: dict[str, tuple[str, Callable[[ArrayLike, ArrayLike], Law]]] = {
    "slices": ("training slices", fit_line),
    "size": ("image side, pixels", fit_power),
    "folds": ("folds of a cross-validation", fit_line),
    "models": ("GFLOP an image, forward and backward", fit_power),
}


def laws(frame: pd.DataFrame) -> dict[str, Law]:
    """The law of each axis, fitted to its medians."""
    parts = {axis: frame[frame["axis"] == axis] for axis in AXES}
    return {axis: fit(parts[axis]["value"], parts[axis]["seconds"]) for axis, (_, fit) in AXES.items()}


def plot(frame: pd.DataFrame) -> Figure:
    """A panel an axis: medians, the range of turns, and the fitted law, which is its title."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    for panel, (axis, law) in zip(figure.subplots(2, 2).flat, laws(frame).items(), strict=True):
        _panel(panel, frame[frame["axis"] == axis], axis, law)
    return figure


def _panel(panel: Axes, rows: pd.DataFrame, axis: str, law: Law) -> None:
    smooth = np.geomspace(rows["value"].min(), rows["value"].max(), 50)
    panel.plot(smooth, [law.at(n) for n in smooth], "--", color="#888888", zorder=1)
    for marker, (model, part) in zip("osD^vP*Xhd" * 10, rows.groupby("model", sort=False), strict=False):
        spread = np.abs(part[["low", "high"]].to_numpy().T - part["seconds"].to_numpy())
        panel.errorbar(part["value"], part["seconds"], spread, fmt=marker, capsize=3, label=str(model))
    if isinstance(law, Power):
        panel.loglog()
        for scale in (panel.xaxis, panel.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_locator(NullLocator())
    else:
        panel.set_ylim(bottom=0)
    if axis != "models":
        panel.set_xticks(rows["value"], [f"{n:g}" for n in rows["value"]])
    panel.set_title(f"{axis}: {law}", fontsize=11)
    panel.set_xlabel(AXES[axis][0])
    panel.set_ylabel("seconds an epoch" + (" of all folds" if axis == "folds" else ""))
    panel.legend(fontsize=8, frameon=False)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
