"""What a model costs in use: operations and latency of one slice, predicted as for a patient."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.data.loader import SliceLoader
from bench.training.experiment import Experiment

REPEATS = 30
LONG_ENOUGH = 2.0  # seconds, after which five repeats are enough


def inference_costs(experiment: Experiment, loader: SliceLoader) -> dict[str, float]:
    """Return `flops` of one slice (a multiply-add is two; convolutions and matrix products), and latencies in ms.

    The slice is timed from packed bytes to probabilities on the host, tiles and interpolation included.
    """
    predictor = replace(experiment.predictor([experiment.model(0).eval()], loader), batch_size=1)
    rows = experiment.pack.rows(experiment.folds[0].test)[:1]

    def predict_once() -> None:
        predictor.probabilities(rows, experiment.task.output_shape)

    # The math backend, since the counter does not know every fused attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        predict_once()  # warms up as well
    seconds = time_repeats(predict_once)
    return {
        "flops": float(counter.get_total_flops()),
        "latency_p50_ms": float(np.percentile(seconds, 50)) * 1000,
        "latency_p95_ms": float(np.percentile(seconds, 95)) * 1000,
    }


def time_repeats(call: Callable[[], None]) -> list[float]:
    """Return the seconds of up to `REPEATS` calls; copying the result to the host waits for the device."""
    seconds: list[float] = []
    while len(seconds) < REPEATS and (len(seconds) < 5 or sum(seconds) < LONG_ENOUGH):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds
