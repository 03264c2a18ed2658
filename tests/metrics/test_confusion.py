"""Overlap is a ratio of pixel counts, and NaN where there is nothing to divide by."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from sklearn import metrics

from bench.metrics import confusion as counts


def test_ratios_of_counts_keep_the_shape_and_are_nan_where_undefined() -> None:
    tp, fp, fn, tn = np.array([[3, 0, 0], [0, 2, 0], [1, 0, 0], [4, 6, 8]])
    assert counts.dice_of(tp, fp, fn) == pytest.approx([6 / 7, 0, nan], nan_ok=True)
    assert counts.iou_of(tp, fp, fn) == pytest.approx([3 / 4, 0, nan], nan_ok=True)
    assert counts.precision_of(tp, fp) == pytest.approx([1, 0, nan], nan_ok=True)
    assert counts.recall_of(tp, fn) == pytest.approx([3 / 4, nan, nan], nan_ok=True)
    assert counts.specificity_of(tn, fp) == pytest.approx([1, 6 / 8, 1])
    assert counts.accuracy_of(tp, fp, fn, tn) == pytest.approx([7 / 8, 6 / 8, 1])
    assert counts.dice_of(3, 0, 1) == pytest.approx(6 / 7)
    assert isnan(counts.dice_of(0, 0, 0))


def test_a_pool_of_huge_counts_does_not_overflow() -> None:
    """110 patients of 256 x 256 x 36 are 2.6e8 pixels; a billion times that still fits."""
    many = np.array(2**61)
    assert counts.dice_of(many, np.array(0), many) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_ratios_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.random((2, 200)) < 0.4
    (tn, fp), (fn, tp) = metrics.confusion_matrix(truth, prediction)
    assert counts.dice_of(tp, fp, fn) == pytest.approx(metrics.f1_score(truth, prediction))
    assert counts.iou_of(tp, fp, fn) == pytest.approx(metrics.jaccard_score(truth, prediction))
    assert counts.precision_of(tp, fp) == pytest.approx(metrics.precision_score(truth, prediction))
    assert counts.recall_of(tp, fn) == pytest.approx(metrics.recall_score(truth, prediction))
    assert counts.specificity_of(tn, fp) == pytest.approx(metrics.recall_score(~truth, ~prediction))
    assert counts.accuracy_of(tp, fp, fn, tn) == pytest.approx(metrics.accuracy_score(truth, prediction))
