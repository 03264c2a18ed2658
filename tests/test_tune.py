"""The choice between ways to run a step: the fastest measured, measured once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.config import RunConfig, override
from bench.feed import Feed
from bench.recipe import Recipe, resolve
from bench.tune import COMPILE_WORTH, Plan, choose, throughput
from tests.test_runner import TINY


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    return resolve(override(RunConfig(), TINY))


class Machine:
    """Says what each way makes of this machine, and remembers what it was asked."""

    def __init__(self, **rates: float) -> None:
        self.rates, self.asked = rates, []

    def __call__(self, recipe: Recipe, feed: Feed, execution: str) -> float:
        self.asked.append(execution)
        return self.rates[execution]


def on_gpu(recipe: Recipe) -> Recipe:
    return replace(recipe, device=torch.device("cuda"))


def feed_of(recipe: Recipe) -> Feed:
    return Feed(recipe.pack, recipe.config.input, torch.device("cpu"))


def total(recipe: Recipe) -> int:
    return sum(recipe.images_per_fold(fold) for fold in recipe.folds)


def test_on_a_cpu_nothing_is_measured(recipe: Recipe) -> None:
    machine = Machine()
    assert choose(recipe, feed_of(recipe), rate=machine) == Plan("eager", "the device is a CPU", {})
    assert machine.asked == []


@pytest.mark.parametrize("asked", ["eager", "graph", "compile"])
def test_what_is_asked_for_is_not_measured(recipe: Recipe, asked: str) -> None:
    config = recipe.config.model_copy(update={"execution": asked})
    plan = choose(on_gpu(replace(recipe, config=config)), feed_of(recipe), rate=Machine())
    assert plan == Plan(asked, "asked for", {})


@pytest.mark.parametrize(("eager", "graph", "best"), [(100, 500, "graph"), (500, 400, "eager")])
def test_the_fastest_is_chosen_once_and_remembered(recipe: Recipe, eager: float, graph: float, best: str) -> None:
    machine = Machine(eager=eager, graph=graph)
    first = choose(on_gpu(recipe), feed_of(recipe), rate=machine)
    assert (first.execution, dict(first.rates)) == (best, {"eager": eager, "graph": graph})
    assert machine.asked == ["eager", "graph"]  # far too short to compile
    assert choose(on_gpu(recipe), feed_of(recipe), rate=machine) == first
    assert len(machine.asked) == 2


def test_another_batch_size_is_measured_anew_and_a_damaged_cache_too(recipe: Recipe, tmp_path: Path) -> None:
    machine = Machine(eager=1e6, graph=2e6)
    choose(on_gpu(recipe), feed_of(recipe), rate=machine)
    choose(
        on_gpu(replace(recipe, config=override(recipe.config, {"train.batch_size": 2}))),
        feed_of(recipe),
        rate=machine,
    )
    assert len(machine.asked) == 4
    (tmp_path / "plans.json").write_text("{")
    choose(on_gpu(recipe), feed_of(recipe), rate=machine)
    assert len(machine.asked) == 6


@pytest.mark.parametrize(("gain", "best"), [(1.5, "compile"), (0.9, "graph")])
def test_compiling_is_tried_where_the_run_is_long_and_kept_where_it_pays(
    recipe: Recipe, gain: float, best: str
) -> None:
    slow = total(recipe) / (2 * COMPILE_WORTH)  # images a second that make the run as long as this
    machine = Machine(eager=slow / 2, graph=slow, compile=slow * gain)
    assert choose(on_gpu(recipe), feed_of(recipe), rate=machine).execution == best


def test_throughput_trains_a_throwaway_model(recipe: Recipe) -> None:
    assert throughput(recipe, feed_of(recipe), "eager") > 0
