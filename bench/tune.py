"""How to run the training step of a model here: measured once, by a few steps of each way, and remembered."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from bench.device import hardware
from bench.feed import Feed
from bench.pack import cache_folder
from bench.recipe import Recipe
from bench.step import EAGER_STEPS, Execution

STEPS = 3 * EAGER_STEPS  # measured, after as many that are not
COMPILE_WORTH = 1800.0  # seconds of training from which on compiling, 60 to 165 s a model, is tried at all


@dataclass(frozen=True)
class Plan:
    """How the steps of a run are taken, why, and the images a second that were measured of each way."""

    execution: Execution
    why: str
    rates: Mapping[str, float]


def choose(recipe: Recipe, feed: Feed, *, rate: Callable[[Recipe, Feed, Execution], float] | None = None) -> Plan:
    """The plan asked for by `execution`; with 'auto', the fastest way on this device, from the cache if it knows.

    On a CPU there is nothing to measure: graphs are for GPUs, and compiling pays only when it is asked for.
    `rate(recipe, feed, execution)` gives images a second; by default they are measured.
    """
    asked, rate = recipe.config.execution, rate or throughput
    if asked != "auto":
        return Plan(asked, "asked for", {})
    if recipe.device.type != "cuda":
        return Plan("eager", "the device is a CPU", {})
    file = cache_folder() / "plans.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        try:
            known = TypeAdapter(dict[str, Plan]).validate_json(file.read_bytes())
        except (OSError, ValidationError):  # none yet, or another version's
            known = {}
        key = _key(recipe)
        if key not in known:
            known[key] = _measured(recipe, feed, rate)
            file.write_text(json.dumps({k: asdict(v) for k, v in known.items()}, indent=1))
    return known[key]


def throughput(recipe: Recipe, feed: Feed, execution: Execution) -> float:
    """Images a second of a throwaway model, over `STEPS` steps on the slices of the first fold."""
    batch = recipe.config.train.batch_size
    rows = recipe.pack.rows(recipe.folds[0].train)[: STEPS * batch]
    once = recipe.config.train.model_copy(
        update={"epochs": 2, "batch_size": min(batch, len(rows)), "freeze_epochs": 0, "positive_fraction": None}
    )
    loop = recipe.train(recipe.model(0), feed, rows, settings=once, seed=0, execution=execution)
    return [epoch.images / epoch.seconds for epoch in loop][-1]  # the first one warms up


def _measured(recipe: Recipe, feed: Feed, rate: Callable[[Recipe, Feed, Execution], float]) -> Plan:
    rates = {how: rate(recipe, feed, how) for how in ("eager", "graph")}
    best: Execution = "graph" if rates["graph"] > rates["eager"] else "eager"
    images = sum(recipe.images_per_fold(fold) for fold in recipe.folds)
    seconds = images / rates[best]
    if seconds < COMPILE_WORTH:
        return Plan(best, "the fastest here; too short a run to compile", rates)
    started = time.perf_counter()
    rates["compile"] = rate(recipe, feed, "compile")
    spent = time.perf_counter() - started
    if images / rates["compile"] + spent < seconds:
        return Plan("compile", "saves more than compiling costs", rates)
    return Plan(best, "compiling costs more than it saves", rates)


def _key(recipe: Recipe) -> str:
    """What the choice depends on, hashed."""
    config = recipe.config.model_dump(mode="json", include={"model", "loss", "input", "augment", "train"})
    shape = recipe.pack.images.shape[1:3]
    what = (config, recipe.channels, shape, str(torch.__version__), hardware(recipe.device))
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
