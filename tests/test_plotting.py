"""Ticks of figures: round and few on logarithmic axes, whole for counts."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from bench.plotting import log_ticks, set_log_ticks, set_whole_ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1300, 2300, [1400, 1600, 1800, 2000, 2200]),
        (1, 30, [1, 2, 5, 10, 20]),
        (1, 300, [1, 3, 10, 30, 100, 300]),
        (1, 1e5, [1, 10, 100, 1e3, 1e4, 1e5]),
        (1, 1e9, [1, 100, 1e4, 1e6, 1e8]),
        (2e-4, 0.02, [3e-4, 1e-3, 3e-3, 1e-2]),
    ],
)
def test_a_logarithmic_axis_has_few_round_ticks(low, high, expected):
    assert log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (2, 2)])
def test_a_logarithmic_axis_from_zero_is_refused(low, high):
    with pytest.raises(ValueError, match=f"no logarithmic axis goes from {low} to {high}"):
        log_ticks(low, high)


def test_a_logarithmic_axis_is_labelled_with_plain_numbers():
    figure = Figure()
    axes = figure.subplots()
    axes.set(xscale="log", xlim=(900, 110_000))
    set_log_ticks(axes, "x")
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [
        "1,000",
        "3,000",
        "10,000",
        "30,000",
        "100,000",
    ]
    assert axes.get_xticklabels(minor=True) == []


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_an_axis_that_counts_has_whole_ticks(most):
    axes = Figure().subplots()
    axes.set_ylim(0, most)
    set_whole_ticks(axes, "y")
    assert all(float(tick).is_integer() for tick in axes.get_yticks())
