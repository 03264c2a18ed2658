"""The choice between ways to run a step: the fastest measured, measured once."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from bench.config import RunConfig
from bench.data.loader import SliceLoader
from bench.overrides import override
from bench.training.execution import COMPILE_WORTH, ExecutionPlan, choose_execution, throughput, training_speed
from bench.training.experiment import Experiment, resolve
from tests.training.test_cross_validation import TINY


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    return resolve(override(RunConfig(), TINY))


class Machine:
    """Says what each way makes of this machine, and remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **rates: float) -> None:
        self.rates, self.asked = rates, []
        monkeypatch.setattr("bench.training.execution.throughput", self)

    def __call__(self, experiment: Experiment, loader: SliceLoader, execution: str) -> tuple[float, int]:
        self.asked.append(execution)
        return self.rates[execution], 1


def on_gpu(experiment: Experiment) -> Experiment:
    return replace(experiment, device=torch.device("cuda"))


def feed_of(experiment: Experiment) -> SliceLoader:
    return SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))


def total(experiment: Experiment) -> int:
    return sum(experiment.images_per_fold(fold) for fold in experiment.folds)


def test_on_a_cpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, experiment: Experiment) -> None:
    machine = Machine(monkeypatch)
    assert choose_execution(experiment, feed_of(experiment)) == ExecutionPlan("eager", "the device is a CPU", {})
    assert machine.asked == []


@pytest.mark.parametrize("asked", ["eager", "graph", "compile"])
def test_what_is_asked_for_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment, asked: str
) -> None:
    config = experiment.config.model_copy(update={"execution": asked})
    Machine(monkeypatch)
    plan = choose_execution(on_gpu(replace(experiment, config=config)), feed_of(experiment))
    assert plan == ExecutionPlan(asked, "asked for", {})


@pytest.mark.parametrize(("eager", "graph", "best"), [(100, 500, "graph"), (500, 400, "eager")])
def test_the_fastest_is_chosen_once_and_remembered(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment, eager: float, graph: float, best: str
) -> None:
    machine = Machine(monkeypatch, eager=eager, graph=graph)
    first = choose_execution(on_gpu(experiment), feed_of(experiment))
    assert (first.execution, dict(first.rates)) == (best, {"eager": eager, "graph": graph})
    assert machine.asked == ["eager", "graph"]  # far too short to compile
    assert choose_execution(on_gpu(experiment), feed_of(experiment)) == first
    assert len(machine.asked) == 2


def test_another_batch_size_is_measured_anew_and_a_damaged_cache_too(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, eager=1e6, graph=2e6)
    choose_execution(on_gpu(experiment), feed_of(experiment))
    choose_execution(
        on_gpu(replace(experiment, config=override(experiment.config, {"train.batch_size": 2}))),
        feed_of(experiment),
    )
    assert len(machine.asked) == 4
    (tmp_path / "plans.json").write_text("{")
    choose_execution(on_gpu(experiment), feed_of(experiment))
    assert len(machine.asked) == 6


@pytest.mark.parametrize(("gain", "best"), [(1.5, "compile"), (0.9, "graph")])
def test_compiling_is_tried_where_the_run_is_long_and_kept_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment, gain: float, best: str
) -> None:
    slow = total(experiment) / (2 * COMPILE_WORTH)  # images a second that make the run as long as this
    Machine(monkeypatch, eager=slow / 2, graph=slow, compile=slow * gain)
    assert choose_execution(on_gpu(experiment), feed_of(experiment)).execution == best


def test_throughput_trains_a_throwaway_model(experiment: Experiment) -> None:
    rate, images = throughput(experiment, feed_of(experiment), "eager")
    assert rate > 0
    assert images > 0


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every look at the clock be `seconds` after the one before."""
    now = count()
    monkeypatch.setattr("bench.training.execution.time.perf_counter", lambda: next(now) * seconds)


def test_a_slow_step_ends_the_measurement_after_the_limit(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment
) -> None:
    clock(monkeypatch, 4.0)
    # Batches of 4; the first step ends at 0 s, the others 4, 8 and 12 s later: the limit of 10 s has passed.
    assert throughput(experiment, feed_of(experiment), "eager", batch=4, limit=10) == (1.0, 12)


def test_a_slow_model_is_timed_on_its_smallest_batch(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment
) -> None:
    train = experiment.config.train.model_copy(update={"batch_size": 4})
    experiment = replace(experiment, config=experiment.config.model_copy(update={"train": train}))
    clock(monkeypatch, 4.0)  # a batch of 1 takes 4 s: one of 4 would take 16 s
    assert training_speed(experiment, feed_of(experiment), 10) == (0.25, 1)
    clock(monkeypatch, 0.3)  # 0.3 s: one of 4 would take 1.2 s, and four batches of 1 are timed for over a second
    rate, images = training_speed(experiment, feed_of(experiment), 1)
    assert (rate, images) == (pytest.approx(1 / 0.3), 4)
    clock(monkeypatch, 1.0)  # one of 4 would take 4 s, so whole batches are timed, until 11 s after the first
    assert training_speed(experiment, feed_of(experiment), 10)[1] % 4 == 0
