"""Slow truths: every metric from its definition, in plain loops over pixels, and tests of one pair at a time.

`METRICS` maps a metric's name to `f(truth, probability, threshold) -> float` with the metric's default settings.
Nothing here may import `bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations, product
from math import ceil, exp, floor, log, nan, sqrt
from statistics import NormalDist

import numpy as np
from scipy import stats

Pixel = tuple[int, int]
Spacing = tuple[float, float]  # from row to row and from column to column
MM: Spacing = (0.8, 1.5)  # of `hd95_mm` and `assd_mm`


def counts(truth: np.ndarray, probability: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    """tp, fp, fn, tn over all pixels of arrays of any shape."""
    tp = fp = fn = tn = 0
    for t, p in zip(truth.ravel(), probability.ravel(), strict=True):
        predicted = p >= threshold
        tp += bool(t and predicted)
        fp += bool(not t and predicted)
        fn += bool(t and not predicted)
        tn += bool(not t and not predicted)
    return tp, fp, fn, tn


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else nan


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan


def dice(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    tp, fp, fn, _ = counts(truth, probability, threshold)
    return ratio(2 * tp, 2 * tp + fp + fn)


def iou(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    tp, fp, fn, _ = counts(truth, probability, threshold)
    return ratio(tp, tp + fp + fn)


def precision(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    tp, fp, _, _ = counts(truth, probability, threshold)
    return ratio(tp, tp + fp)


def recall(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    tp, _, fn, _ = counts(truth, probability, threshold)
    return ratio(tp, tp + fn)


def specificity(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    _, fp, _, tn = counts(truth, probability, threshold)
    return ratio(tn, tn + fp)


def accuracy(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    tp, fp, fn, tn = counts(truth, probability, threshold)
    return (tp + tn) / (tp + fp + fn + tn)


def relative_volume_difference(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    predicted, true = int((probability >= threshold).sum()), int(truth.sum())
    return ratio(predicted - true, true)


def dice_positive_slices(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return mean(dice(t, p, threshold) for t, p in zip(truth, probability, strict=True) if t.any())


def dice_slices_empty1(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return mean(
        dice(t, p, threshold) if t.any() or (p >= threshold).any() else 1.0
        for t, p in zip(truth, probability, strict=True)
    )


def presence(truth: np.ndarray, probability: np.ndarray, threshold: float) -> list[tuple[bool, bool]]:
    """Of each slice: has it tumour, is it called positive."""
    return [(bool(t.any()), bool((p >= threshold).any())) for t, p in zip(truth, probability, strict=True)]


def slice_sensitivity(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return mean(float(called) for present, called in presence(truth, probability, threshold) if present)


def slice_specificity(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return mean(float(not called) for present, called in presence(truth, probability, threshold) if not present)


def missed_slices(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return presence(truth, probability, threshold).count((True, False))


def false_positive_slices(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return presence(truth, probability, threshold).count((False, True))


def surface(mask: np.ndarray) -> list[Pixel]:
    """Mask pixels that have a 4-neighbour outside the mask or outside the image."""
    pixels = {(y, x) for y, x in product(*map(range, mask.shape)) if mask[y, x]}
    around = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return [(y, x) for y, x in sorted(pixels) if any((y + dy, x + dx) not in pixels for dy, dx in around)]


def directed(there: list[Pixel], back: list[Pixel], spacing: Spacing = (1, 1)) -> list[float]:
    """From each pixel of `there` the distance to the nearest of `back`, by trying all pairs."""
    row, column = spacing
    return [min(sqrt((row * (y - v)) ** 2 + (column * (x - u)) ** 2) for v, u in back) for y, x in there]


def percentile(values: list[float], q: float) -> float:
    """With linear interpolation between the two nearest ranks."""
    ranked = sorted(values)
    at = q / 100 * (len(ranked) - 1)
    below, above = ranked[floor(at)], ranked[ceil(at)]
    return below + (above - below) * (at - floor(at))


def over_tumour_slices(
    truth: np.ndarray,
    probability: np.ndarray,
    threshold: float,
    distance: Callable[[list[float], list[float]], float],
    spacing: Spacing,
) -> float:
    found = []
    for t, p in zip(truth, probability >= threshold, strict=True):
        if t.any() and p.any():
            both = directed(surface(t), surface(p), spacing), directed(surface(p), surface(t), spacing)
            found.append(distance(*both))
        elif t.any():
            found.append(sqrt((spacing[0] * t.shape[0]) ** 2 + (spacing[1] * t.shape[1]) ** 2))
    return mean(found)


def hd95(truth: np.ndarray, probability: np.ndarray, threshold: float, spacing: Spacing = (1, 1)) -> float:
    return over_tumour_slices(
        truth, probability, threshold, lambda a, b: max(percentile(a, 95), percentile(b, 95)), spacing
    )


def assd(truth: np.ndarray, probability: np.ndarray, threshold: float, spacing: Spacing = (1, 1)) -> float:
    return over_tumour_slices(truth, probability, threshold, lambda a, b: mean(a + b), spacing)


def hd95_mm(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return hd95(truth, probability, threshold, MM)


def assd_mm(truth: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return assd(truth, probability, threshold, MM)


def around_tumour(
    truth: np.ndarray, probability: np.ndarray, threshold: float, margin: int
) -> list[tuple[bool, float]]:
    """(truth, probability) of every pixel at most `margin` from the union of its slice."""
    pairs = []
    for t, p in zip(truth, probability, strict=True):
        union = [(y, x) for y, x in product(*map(range, t.shape)) if t[y, x] or p[y, x] >= threshold]
        for y, x in product(*map(range, t.shape)):
            if any((y - v) ** 2 + (x - u) ** 2 <= margin**2 for v, u in union):
                pairs.append((bool(t[y, x]), float(p[y, x])))
    return pairs


def brier(truth: np.ndarray, probability: np.ndarray, threshold: float, margin: int = 5) -> float:
    return mean((p - t) ** 2 for t, p in around_tumour(truth, probability, threshold, margin))


def ece(truth: np.ndarray, probability: np.ndarray, threshold: float, margin: int = 5, bins: int = 15) -> float:
    pairs = around_tumour(truth, probability, threshold, margin)
    total = 0.0
    for k in range(bins):
        last = k == bins - 1
        members = [(t, p) for t, p in pairs if k / bins <= p and (p < (k + 1) / bins or last)]
        if members:
            gap = abs(mean(t for t, _ in members) - mean(p for _, p in members))
            total += len(members) / len(pairs) * gap
    return total if pairs else nan


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    f.__name__: f
    for f in (
        *(dice, iou, precision, recall, specificity, accuracy, relative_volume_difference),
        *(dice_positive_slices, dice_slices_empty1),
        *(slice_sensitivity, slice_specificity, missed_slices, false_positive_slices),
        *(hd95, assd, hd95_mm, assd_mm, brier, ece),
    )
}


def ce_dice(logits: np.ndarray, target: np.ndarray, *, ce_weight: float, smooth: float, over: str) -> float:
    """Softmax cross-entropy and Dice loss of exclusive structures (B, K, H, W); the background has the logit 0."""
    images, structures, height, width = logits.shape
    probability = np.zeros(logits.shape)
    entropies = []
    for b, y, x in product(range(images), range(height), range(width)):
        total = 1 + sum(exp(z) for z in logits[b, :, y, x])
        probability[b, :, y, x] = [exp(z) / total for z in logits[b, :, y, x]]
        true = [p for p, t in zip(probability[b, :, y, x], target[b, :, y, x], strict=True) if t]
        entropies.append(-log(true[0] if true else 1 / total))
    units = [[b] for b in range(images)] if over == "image" else [list(range(images))]
    losses = []
    for k, unit in product(range(structures), units):
        p, t = probability[unit, k], target[unit, k]
        losses.append(1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth))
    return ce_weight * mean(entropies) + (1 - ce_weight) * mean(losses)


def bca(values: list[float], level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987)."""
    normal, n, rng = NormalDist(), len(values), np.random.default_rng(seed)
    observed = mean(values)
    replicates = sorted(mean(rng.choice(values, n).tolist()) for _ in range(resamples))
    z0 = normal.inv_cdf(sum(r < observed for r in replicates) / resamples)
    leave_one_out = [mean(values[:i] + values[i + 1 :]) for i in range(n)]
    pull = [mean(leave_one_out) - v for v in leave_one_out]
    acceleration = sum(u**3 for u in pull) / (6 * sum(u**2 for u in pull) ** 1.5)

    def end(alpha: float) -> float:
        z = z0 + normal.inv_cdf(alpha)
        return percentile(replicates, 100 * normal.cdf(z0 + z / (1 - acceleration * z)))

    return end((1 - level) / 2), end((1 + level) / 2)


def scipy_bca(values: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float]:
    """BCa interval of the mean of one sample in ascending order, as SciPy draws and computes it."""
    options = {"n_resamples": resamples, "batch": 1000, "vectorized": True, "rng": seed}
    ends = stats.bootstrap((np.sort(values),), lambda x, axis: x.sum(axis) / x.shape[axis], **options)
    return ends.confidence_interval.low, ends.confidence_interval.high


def wilcoxon_pairs(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values and signed-rank sums of all pairs of rows, with one SciPy call each."""
    p, sums = np.ones((len(scores), len(scores))), np.zeros((len(scores), len(scores)))
    for a, b in combinations(range(len(scores)), 2):
        d = np.round(scores[a] - scores[b], 12)
        if d.any():
            p[a, b] = p[b, a] = stats.wilcoxon(d).pvalue
            sums[a, b] = np.sign(d[d != 0]) @ stats.rankdata(np.abs(d[d != 0]))
            sums[b, a] = -sums[a, b]
    return p, sums


def bootstrap_p_values(values: np.ndarray, resampled: np.ndarray, patients: int) -> np.ndarray:
    """Two-sided p-values of t-tests of all pairs, one by one; the errors are spreads over resamples."""
    p = np.ones((len(values), len(values)))
    for a, b in combinations(range(len(values)), 2):
        error = np.std(resampled[a] - resampled[b]) * sqrt(patients / (patients - 1))
        p[a, b] = p[b, a] = 2 * stats.t.sf(abs(values[a] - values[b]) / error, patients - 1)
    return p
