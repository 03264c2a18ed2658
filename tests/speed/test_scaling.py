"""Grids, laws and tables of the scaling figure. No test depends on the speed of this machine."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bench.config import Component
from benchmarks.speed.problem import SpeedProblem, make_problem
from benchmarks.speed.scaling import (
    CPU,
    GPU,
    Grid,
    build_model,
    count_gigaflops,
    grid_for,
    make_points,
    measure_scaling,
)
from benchmarks.speed.scaling_laws import AXES, Line, Power, fit_laws, fit_line, fit_power, plot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]

SMALL = {f"unet {base}": Component(name="unet", params={"base": base, "depth": 2}) for base in (4, 8)}
TINY = Grid(SMALL, slices=(8, 16), sizes=(32, 64), folds=(2, 3), size=32, images=16, batch=8)


@pytest.fixture(scope="module")
def small(cache: Path) -> SpeedProblem:
    return make_problem(repeats=2, quick=True)


@pytest.fixture(scope="module")
def measured(small: SpeedProblem) -> pd.DataFrame:
    return measure_scaling(small, device=torch.device("cpu"), grid=TINY)


def exact_measurements() -> pd.DataFrame:
    """Measurements that follow known laws exactly."""
    truth = {"slices": Line(0.5, 0.01), "size": Power(1e-4, 2), "folds": Line(-2, 3), "models": Power(0.2, 0.7)}
    rows = [
        {"axis": axis, "value": n, "model": f"model {n}" if axis == "models" else "unet", "seconds": law.at(n)}
        for axis, law in truth.items()
        for n in (2, 3, 5, 10)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=0.9 * frame["seconds"], high=1.2 * frame["seconds"], images_per_second=50.0)


def test_a_line_is_recovered() -> None:
    line = fit_line([100, 200, 400], [0.5 + 0.01 * n for n in (100, 200, 400)])
    assert (line.fixed, line.each) == pytest.approx((0.5, 0.01))
    assert line.at(1000) == pytest.approx(10.5)


def test_a_power_law_is_recovered() -> None:
    power = fit_power([64, 128, 256], [3e-5 * n**1.9 for n in (64, 128, 256)])
    assert (power.scale, power.exponent) == pytest.approx((3e-5, 1.9))


def test_a_line_weighs_relative_errors_equally() -> None:
    """Two values at 1 and two at 100 each differ by a fifth: both pairs have the same influence."""
    n, seconds = [1, 1, 100, 100], [0.9, 1.1, 90.0, 110.0]
    weights = 1 / np.square(seconds)  # of squared errors; the line passes through the weighted mean of each pair
    first, last = (np.average(seconds[at : at + 2], weights=weights[at : at + 2]) for at in (0, 2))
    line = fit_line(n, seconds)
    assert line.at(1) == pytest.approx(first)
    assert line.at(100) == pytest.approx(last)


def test_five_percent_noise_hardly_changes_an_exponent() -> None:
    """The standard error is 0.05 / (sd of log n * sqrt(points)); the test allows four of them."""
    sides = np.tile([64, 128, 192, 256], 25)
    times = 1e-4 * sides**2.0 * np.exp(np.random.default_rng(0).normal(0, 0.05, 100))
    allowed = 4 * 0.05 / (np.log(sides).std() * 10)
    assert abs(fit_power(sides, times).exponent - 2) < allowed < 0.1


def test_each_axis_has_its_law() -> None:
    laws = fit_laws(exact_measurements())
    assert laws["slices"].at(1000) == pytest.approx(10.5)
    assert laws["size"].at(100) == pytest.approx(1)
    assert laws["folds"].at(1) == pytest.approx(1)
    assert str(laws["size"]) == "∝ n^2.00"
    assert str(laws["folds"]) == "3 s × n − 2 s"
    assert str(laws["slices"]) == "0.01 s × n + 0.5 s"


def test_a_first_layer_costs_its_forward_pass_and_its_weight_gradient() -> None:
    """A 3x3 convolution from 3 to 4 channels on 8x8 pixels: 3 * 9 * 4 * 64 multiply-adds."""
    assert count_gigaflops(nn.Conv2d(3, 4, 3, padding=1), 3, 8) == pytest.approx(2 * 2 * 3 * 9 * 4 * 64 / 1e9)


def test_a_unet_of_base_32_computes_72_gflop_an_image() -> None:
    assert count_gigaflops(build_model(GPU.models["unet 32"], 3), 3, 256) == pytest.approx(72, abs=0.5)


def test_counting_flop_does_not_change_the_model() -> None:
    model = build_model(SMALL["unet 4"], 3)
    before = [p.clone() for p in model.parameters()]
    count_gigaflops(model, 3, 32)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("grid", [GPU, CPU])
def test_every_fold_of_a_grid_has_only_full_batches(grid: Grid) -> None:
    assert all(grid.images * (k - 1) % (k * grid.batch) == 0 for k in grid.folds)
    assert all(n % grid.batch == 0 for n in (*grid.slices, grid.images))
    assert all(side % 32 == 0 for side in (*grid.sizes, grid.size))


def test_a_grid_is_limited_to_the_size_of_its_problem(small: SpeedProblem) -> None:
    for kind, grid in (("cpu", CPU), ("cuda", GPU)):
        limited = grid_for(small, torch.device(kind))
        assert max(limited.slices, default=0) <= limited.images == small.images == 32
        assert max(limited.sizes) <= 64
        assert limited.size == 64
        assert limited.models == grid.models
        assert limited.batch == grid.batch


def test_each_slice_is_left_out_of_exactly_one_fold(small: SpeedProblem) -> None:
    epoch = next(point for point in make_points(small, TINY) if point.axis == "slices" and point.value == 16)
    three = next(point for point in make_points(small, TINY) if point.axis == "folds" and point.value == 3)
    assert [len(rows) for rows in three.folds] == [10, 11, 11]
    assert sorted(np.concatenate(three.folds)) == sorted(np.repeat(epoch.folds[0], 2))


def test_the_table_has_a_row_for_every_point_of_the_grid(measured: pd.DataFrame) -> None:
    assert list(measured.columns) == [
        *("axis", "value", "model", "seconds", "low", "high", "images_per_second", "predicted")
    ]
    values = {str(axis): part["value"].tolist() for axis, part in measured.groupby("axis")}
    work = values.pop("models")
    assert values == {"slices": [8, 16], "size": [32, 64], "folds": [2, 3]}
    assert work == sorted(work)
    assert measured[measured["axis"] == "models"]["model"].tolist() == list(SMALL)
    assert set(measured[measured["axis"] != "models"]["model"]) == {"unet 4"}


def test_times_and_rates_agree(measured: pd.DataFrame) -> None:
    assert ((measured["low"] <= measured["seconds"]) & (measured["seconds"] <= measured["high"])).all()
    assert (measured["low"] > 0).all()
    images = (measured["images_per_second"] * measured["seconds"]).round(6).tolist()
    # Only full batches of 8 count: two folds train on 8 of 16 slices each, three on 10 or 11.
    assert images == [8, 16, 16, 16, 8 + 8, 8 + 8 + 8, 16, 16]


def test_a_law_fitted_to_two_points_passes_through_both(measured: pd.DataFrame) -> None:
    np.testing.assert_allclose(measured["predicted"], measured["seconds"])


def test_the_plot_has_a_panel_per_axis_with_its_law_and_models() -> None:
    figure, laws = plot(exact_measurements()), fit_laws(exact_measurements())
    assert [panel.get_title() for panel in figure.axes] == [f"{axis}: {laws[axis]}" for axis in AXES]
    *others, models = (
        [text.get_text() for text in legend.get_texts()]
        for panel in figure.axes
        if (legend := panel.get_legend()) is not None
    )
    assert others == [["unet"]] * 3
    assert models == ["model 2", "model 3", "model 5", "model 10"]
    low, high = figure.axes[0].collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.9 * 0.52, 1.2 * 0.52))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
