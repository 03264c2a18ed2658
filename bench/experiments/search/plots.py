"""Plots of a study by Optuna, with labels that can be read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna import Study
from optuna.visualization import matplotlib as draw

from bench.experiments.search.plan import SearchPlan
from bench.plotting import SHARP, set_log_ticks

SETTING = 2.5  # inches for each setting, as most names of components fit beside their tick
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}


def plot_study(study: Study, plan: SearchPlan, say: Callable[[str], None]) -> dict[str, NDArray[np.uint8]]:
    """Plot history, importance, slices, parallel coordinates, and the Pareto front of two or three objectives."""
    first: dict[str, Any] = {"target_name": plan.objectives[0]}
    if plan.costs:
        first["target"] = lambda trial: trial.values[0]
    plots: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study, **first),
        "importance": lambda: draw.plot_param_importances(study, **first),
        "slices": lambda: draw.plot_slice(study, **first),
        "parallel": lambda: draw.plot_parallel_coordinate(study, **first),
    }
    if 2 <= len(plan.objectives) <= 3:
        plots["pareto"] = lambda: draw.plot_pareto_front(study, target_names=list(plan.objectives))
    images = {}
    for name, plot in plots.items():
        try:
            with warnings.catch_warnings():  # plots are experimental, and a choice that never varied has no width
                warnings.simplefilter("ignore")
                figure = np.ravel(plot())[0].figure
                figure.set_size_inches(max(12, SETTING * len(figure.axes)), 6)
                make_readable(figure)
            images[f"plots/{name}"] = _render(figure)
        except (ValueError, RuntimeError) as error:  # fewer than two trials, or all with the same value
            say(f"no plot of {name}: {error}")
        finally:
            pyplot.close("all")
    return images


def make_readable(figure: Figure) -> None:
    """Give names of settings and values a place of their own, and logarithms few plain numbers."""
    for axes in figure.axes:
        if axes.get_xscale() == "log":
            set_log_ticks(axes, "x", most=4)
        if axes.get_yscale() == "log":
            set_log_ticks(axes, "y")
        if axes.yaxis.get_ticks_position() == "right":  # of parallel coordinates, inside the plot
            axes.grid(visible=False)
            axes.tick_params(axis="y", labelsize=9)
            for label in axes.get_yticklabels():
                label.set_bbox(BEHIND)
    figure.canvas.draw()  # names of ticks exist from here on
    slices = [axes for axes in figure.axes if axes.get_xlabel()]
    for axes in figure.axes:
        _slant_names(axes)
    for axes in slices if len(slices) > 1 else ():  # below the axes, they would be among the names of the next
        axes.set_title(axes.get_xlabel(), fontsize=10)
        axes.set_xlabel("")


def _slant_names(axes: Axes) -> None:
    names = [label.get_text().strip("'") for label in axes.get_xticklabels()]
    if axes.get_xscale() == "log" or any(name.strip("−-.0123456789") for name in names):
        axes.tick_params(axis="x", labelsize=9)
        axes.set_xticks(axes.get_xticks(), names, rotation=35, ha="right", rotation_mode="anchor")


def _render(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure as (H, W, 3), large enough for the names of settings beyond its border."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight", dpi=SHARP)
        pixels = np.frombuffer(file.getvalue(), np.uint8)
    return np.asarray(cv2.imdecode(pixels, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
