"""Learning-rate schedules, against those of torch and values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from bench import registry
from bench.errors import BadSetting


def factor(name, progress, scores=(), **settings):
    return registry.schedule[name].bind(settings)(progress, scores)


def torch_rates(make, steps):
    """Return the rate that torch uses in each step, from a base rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", registry.schedule)
def test_every_schedule_returns_a_factor_between_0_and_1(name):
    for progress in (0.0, 0.3, 0.999, 1.0):
        assert 0 <= factor(name, progress) <= 1
        assert 0 <= factor(name, progress, [0.5, 0.4, float("nan")]) <= 1


def test_constant_is_always_one():
    assert [factor("constant", p) for p in (0, 0.5, 1)] == [1, 1, 1]


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_agrees_with_torch(floor):
    theirs = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=floor), 41)
    assert [factor("cosine", i / 40, floor=floor) for i in range(41)] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_poly_agrees_with_torch(power):
    theirs = torch_rates(lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=power), 41)
    assert [factor("poly", i / 40, power=power) for i in range(41)] == pytest.approx(theirs, abs=1e-9)


def test_one_cycle_agrees_with_torch():
    """torch ends the rise one step early, so the curves agree only for many steps."""
    steps = 4000
    settings = {"rise": 0.3, "start_div": 10.0, "final_div": 100.0}
    theirs = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, 1.0, steps, 0.3, cycle_momentum=False, div_factor=10.0, final_div_factor=100.0
        ),
        steps - 1,
    )
    ours = [factor("one_cycle", i / (steps - 1), **settings) for i in range(steps - 1)]
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1 / 25), (0.15, (1 + 1 / 25) / 2), (0.3, 1.0), (1.0, 1 / 25e4)]
)
def test_one_cycle_passes_through_its_corners(progress, expected):
    assert factor("one_cycle", progress) == pytest.approx(expected)


@pytest.mark.parametrize(("patience", "threshold"), [(0, 1e-4), (2, 0.0), (3, 0.15)])
def test_plateau_agrees_with_torch_after_every_epoch(patience, threshold):
    scores = np.random.default_rng(0).uniform(0.3, 0.9, 80).round(1).tolist()  # rounded, so that ties occur
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience, threshold=threshold, min_lr=0.01, eps=0
    )
    settings = {"factor": 0.5, "patience": patience, "threshold": threshold, "floor": 0.01}
    for epoch, score in enumerate(scores, start=1):
        theirs.step(score)
        ours = factor("plateau", 0.5, scores[:epoch], **settings)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_treats_nan_as_no_improvement():
    nan = math.nan
    assert factor("plateau", 0.1, [0.5, nan, nan], patience=1) == pytest.approx(0.1)
    assert factor("plateau", 0.1, [0.5, nan, 0.6], patience=1) == 1.0
    assert factor("plateau", 0.1, [nan, nan], patience=1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cosine", {"floor": 1.5}),
        ("poly", {"power": 0}),
        ("one_cycle", {"rise": 1.0}),
        ("one_cycle", {"start_div": 0}),
        ("plateau", {"factor": 1.0}),
        ("plateau", {"patience": -1}),
        ("constant", {"floor": 0.1}),
    ],
)
def test_a_setting_out_of_range_raises(name, settings):
    with pytest.raises(BadSetting, match=next(iter(settings))):
        registry.schedule[name].settings(settings)
