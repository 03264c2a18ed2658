"""What a model costs in use: operations and time of one slice by itself, as predicted for a patient."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.data.loader import SliceLoader
from bench.inference.predict import predict
from bench.training.experiment import Experiment

REPEATS = 30


LONG_ENOUGH = 2.0  # seconds, after which five repeats will do


def inference_costs(experiment: Experiment, loader: SliceLoader) -> dict[str, float]:
    """`flops` of one slice (two for a multiply-add, convolutions and matrix products), and its latency in ms.

    The slice goes all the way from packed bytes to probabilities on the host, tiles and interpolation included.
    """
    settings, model = experiment.config, experiment.model(0).eval()
    rows = experiment.pack.rows(experiment.folds[0].test)[:1]
    shape = (1, 1) if experiment.task.name == "presence" else None

    def once() -> None:
        predict([model], loader, rows, batch_size=1, precision=settings.train.precision, shape=shape)

    # Written out, for not every device's own attention is counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        once()  # warms up, too
    taken = timed(once)
    return {
        "flops": float(counter.get_total_flops()),
        "latency_p50_ms": float(np.percentile(taken, 50)) * 1000,
        "latency_p95_ms": float(np.percentile(taken, 95)) * 1000,
    }


def timed(once: Callable[[], None]) -> list[float]:
    """Seconds of each of up to `REPEATS` calls; the probabilities' way to the host waits for the device."""
    taken: list[float] = []
    while len(taken) < REPEATS and (len(taken) < 5 or sum(taken) < LONG_ENOUGH):
        started = time.perf_counter()
        once()
        taken.append(time.perf_counter() - started)
    return taken
