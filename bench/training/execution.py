"""What is measured of a model on this machine: the fastest way to train it, cached, and its cost in use."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.data.loader import SliceLoader
from bench.device import hardware
from bench.files import cache_folder, lock_if_writable, write_atomically
from bench.training.experiment import Experiment
from bench.training.step import EAGER_STEPS, Execution
from bench.types import Watch

STEPS = 3 * EAGER_STEPS  # timed, after as many untimed ones
COMPILE_WORTH = 1800.0  # seconds of training above which compiling, 60 to 165 s per model, is tried at all
REPEATS = 30
LONG_ENOUGH = 2.0  # seconds, after which five repeats are enough


@dataclass(frozen=True)
class ExecutionPlan:
    """How the steps of a run are executed, why, and the measured images per second of each way."""

    execution: Execution
    why: str
    rates: Mapping[str, float]


def choose_execution(experiment: Experiment, loader: SliceLoader) -> ExecutionPlan:
    """Return the plan that the setting `execution` asks for; with 'auto', the fastest way on this device.

    A measured plan is cached by model, data shape and hardware. On a CPU nothing is measured: graphs are for GPUs,
    and compiling must be asked for.
    """
    if (asked := experiment.config.execution) != "auto":
        return ExecutionPlan(asked, "asked for", {})
    if experiment.device.type != "cuda":
        return ExecutionPlan("eager", "the device is a CPU", {})
    file = cache_folder() / "plans.json"
    with lock_if_writable(file.with_suffix(".lock")):
        try:
            known = TypeAdapter(dict[str, ExecutionPlan]).validate_json(file.read_bytes())
        except (OSError, ValidationError):  # no file yet, or one of another version
            known = {}
        key = _key(experiment)
        if key not in known:
            known[key] = _measure(experiment, loader)
            with suppress(OSError):  # a full or read-only cache: measured again next time
                write_atomically(file, json.dumps({k: asdict(v) for k, v in known.items()}, indent=1).encode())
    return known[key]


class _Stopwatch(Watch):
    """Notes when each training step ends; stops the training `limit` seconds after the first step."""

    def __init__(self, limit: float) -> None:
        self.limit, self.ends, self.counts = limit, list[float](), list[int]()

    def images(self, count: int) -> None:
        self.ends.append(time.perf_counter())
        self.counts.append(count)
        if len(self.ends) > 1 and self.ends[-1] - self.ends[0] > self.limit:
            raise TimeoutError


def throughput(
    experiment: Experiment,
    loader: SliceLoader,
    execution: Execution,
    *,
    batch: int | None = None,
    limit: float = math.inf,
) -> tuple[float, int]:
    """Train a throwaway model on slices of the first fold, for two epochs of `STEPS` steps.

    Returns images per second of the second epoch, and how many images were timed. On a CPU the measurement stops
    `limit` seconds after the first step, and all later steps are timed.
    """
    batch = batch or experiment.config.train.batch_size
    rows = experiment.pack.rows(experiment.folds[0].train)[: STEPS * batch]
    once = experiment.config.train.model_copy(
        update={"epochs": 2, "batch_size": min(batch, len(rows)), "freeze_epochs": 0, "positive_fraction": None}
    )
    shortened = replace(experiment, config=experiment.config.model_copy(update={"train": once}))
    watch = _Stopwatch(limit if experiment.device.type == "cpu" else math.inf)  # a GPU answers before it is done
    loop = shortened.train(experiment.model(0), loader, rows, seed=0, execution=execution, watch=watch)
    try:
        epoch = list(loop)[-1]  # the first one warms up
    except TimeoutError:
        images = sum(watch.counts[1:])
        return images / (watch.ends[-1] - watch.ends[0]), images
    return epoch.images / epoch.seconds, epoch.images


def training_speed(experiment: Experiment, loader: SliceLoader, limit: float) -> tuple[float, int]:
    """Return what `throughput` returns for the plan of the experiment, within about three times `limit` on a CPU.

    If one step would take longer than `limit`, smaller batches are timed in its place, for about a second, as a
    single step is far off on a busy machine.
    """
    execution, batch = choose_execution(experiment, loader).execution, experiment.config.train.batch_size
    if experiment.device.type == "cpu" and execution == "eager":
        smallest = min(batch, experiment.smallest_batch)
        small = throughput(experiment, loader, execution, batch=smallest, limit=min(limit, 1.0))
        if batch / small[0] > limit:
            return small
    return throughput(experiment, loader, execution, limit=limit)


def _measure(experiment: Experiment, loader: SliceLoader) -> ExecutionPlan:
    rates = {how: throughput(experiment, loader, how)[0] for how in ("eager", "graph")}
    best: Execution = "graph" if rates["graph"] > rates["eager"] else "eager"
    images = sum(experiment.images_per_fold(fold) for fold in experiment.folds)
    seconds = images / rates[best]
    if seconds < COMPILE_WORTH:
        return ExecutionPlan(best, "the fastest here; too short a run to compile", rates)
    started = time.perf_counter()
    rates["compile"], _ = throughput(experiment, loader, "compile")
    spent = time.perf_counter() - started
    if images / rates["compile"] + spent < seconds:
        return ExecutionPlan("compile", "saves more than compiling costs", rates)
    return ExecutionPlan(best, "compiling costs more than it saves", rates)


def _key(experiment: Experiment) -> str:
    """Hash everything that the choice depends on."""
    config = experiment.config.model_dump(mode="json", include={"model", "loss", "input", "augment", "train"})
    shape = experiment.pack.images.shape[1:3]
    what = (config, experiment.channels, shape, str(torch.__version__), hardware(experiment.device))
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


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
