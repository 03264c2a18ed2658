"""Overlap scores from pixel counts, against values by hand and scikit-learn."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from sklearn import metrics

from bench.metrics.confusion import dice_of, overlap_scores


def test_scores_keep_the_shape_of_the_counts_and_are_nan_where_undefined() -> None:
    tp, fp, fn, tn = np.array([[3, 0, 0], [0, 2, 0], [1, 0, 0], [4, 6, 8]])
    scores = overlap_scores(tp, fp, fn, tn)
    assert scores["dice"] == pytest.approx([6 / 7, 0, nan], nan_ok=True)
    assert scores["iou"] == pytest.approx([3 / 4, 0, nan], nan_ok=True)
    assert scores["precision"] == pytest.approx([1, 0, nan], nan_ok=True)
    assert scores["recall"] == pytest.approx([3 / 4, nan, nan], nan_ok=True)
    assert scores["specificity"] == pytest.approx([1, 6 / 8, 1])
    assert scores["accuracy"] == pytest.approx([7 / 8, 6 / 8, 1])
    assert dice_of(3, 0, 1) == pytest.approx(6 / 7)
    assert isnan(dice_of(0, 0, 0))


def test_large_pooled_counts_do_not_overflow() -> None:
    """110 patients of 256 x 256 x 36 are 2.6e8 pixels; a billion times that still fits."""
    many = np.array(2**61)
    assert dice_of(many, np.array(0), many) == pytest.approx(2 / 3)


def test_scores_agree_with_scikit_learn() -> None:
    truth, prediction = np.random.default_rng(0).random((2, 200)) < 0.4
    (tn, fp), (fn, tp) = metrics.confusion_matrix(truth, prediction)
    scores = overlap_scores(tp, fp, fn, tn)
    assert scores["dice"] == pytest.approx(metrics.f1_score(truth, prediction))
    assert scores["iou"] == pytest.approx(metrics.jaccard_score(truth, prediction))
    assert scores["precision"] == pytest.approx(metrics.precision_score(truth, prediction))
    assert scores["recall"] == pytest.approx(metrics.recall_score(truth, prediction))
    assert scores["specificity"] == pytest.approx(metrics.recall_score(~truth, ~prediction))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, prediction))
