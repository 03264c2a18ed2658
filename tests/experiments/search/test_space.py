"""The search space and the plan: what may be searched, and what is refused before any trial."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from bench.errors import BadSetting, BenchError
from bench.experiments.search.plan import resolve_search
from bench.experiments.search.space import build_space, read_search_file
from bench.overrides import configure
from tests.experiments.search.fakes import BASE, small_plan

X = {"x": {"low": 0.0, "high": 1.0}}
SILENT_DISPLAY = SimpleNamespace(packing=lambda done, of: None)


def test_a_range_in_short_form_equals_the_long_form() -> None:
    short = build_space({"a": "1e-4..1e-2 log", "b": "4..32 step 4", "c": "0.0..0.5", "d": "1..3"})
    full = {
        "a": {"low": 1e-4, "high": 1e-2, "log": True},
        "b": {"low": 4, "high": 32, "step": 4},
        "c": {"low": 0.0, "high": 0.5},
        "d": {"low": 1, "high": 3},
    }
    assert short == build_space(full)
    trial = optuna.trial.FixedTrial({"a": 1e-3, "b": 8, "c": 0.25, "d": 2})
    assert [type(v) for v in short.suggest(trial).values()] == [float, int, float, int]


def test_a_setting_with_when_is_drawn_only_if_the_condition_holds() -> None:
    space = build_space({"loss": ["dice", "bce_dice"], "loss.w": {"values": [1, 2], "when": {"loss": "bce_dice"}}})
    assert space.suggest(optuna.trial.FixedTrial({"loss": "dice"})) == {"loss": "dice"}
    assert space.grid() == [
        {"loss": "dice"},
        {"loss": "bce_dice", "loss.w": 1},
        {"loss": "bce_dice", "loss.w": 2},
    ]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "nothing to search"),
        ({"train.lr": {"low": 1e-2, "high": 1e-4}}, "low must be below high"),
        ({"train.lr": {"low": 0, "high": 1, "log": True}}, "must start above 0"),
        ({"train.batch_size": "4..9 step 4"}, "whole number of steps"),
        ({"train.lr": 0.1}, "Write a list of values, or a range"),
        ({"train.lrr": "1e-4..1e-2"}, r"train.lrr.*Did you mean 'train.lr'"),
        ({"train.lr": "-1.0..1.0"}, "greater than or equal to"),
        ({"train.lr": {"low": 0.1, "high": True}}, "true is no number"),
        ({"train.lr": {"low": 0, "high": 1, "step": 1e-320}}, "over 100000 steps"),
        ({"model": ["unet", "unnet"]}, "Did you mean 'unet'"),
        ({"split.folds": "2..5"}, "cannot be searched"),
        ({"evaluate.primary": ["dice", "iou"]}, "cannot be searched"),
        ({"seed": "0..9"}, "cannot be searched"),
        ({"model": ["unet", "classifier"]}, "scored by auroc"),
        ({"loss": ["dice", "bce_dice"], "loss.bce_weight": "0.1..0.9"}, "with loss: dice; add a 'when'"),
        ({"train.lr": {"low": 0.1, "high": 1, "when": {"loss": "dice"}}}, "not a list of values above it"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_any_trial(space, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        resolve_search(small_plan(space=space), {}, SILENT_DISPLAY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ["dice", "flops"], "pruner": "median"}, "cannot be pruned"),
        ({"objectives": ["flops"]}, "flops is not valid: the first must be dice"),
        ({"objectives": ["dice", "beauty"]}, "dice,beauty is not valid"),
        ({"objectives": ["dice", "flops"], "sampler": "cmaes"}, "one objective only"),
        ({"sampler": "grid"}, "a grid needs a list of values"),
        ({"fold": 7}, "no fold 7"),
        ({"base": [BASE, {"split": "leaky_slices"}]}, "leaks"),
        ({"base": [BASE, {"model": "classifier"}], "pruner": "wilcoxon", "space": X}, "single patients"),
    ],
)
def test_a_plan_with_conflicting_options_is_refused(changes, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        resolve_search(small_plan(**changes), {}, SILENT_DISPLAY)


def test_an_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(BadSetting, match="sampler = 'annealing' is not valid"):
        small_plan(sampler="annealing")


@pytest.mark.parametrize("name", ["unet", "leaderboard", "cpu"])
def test_the_search_files_of_the_repository_are_valid(name: str) -> None:
    file = read_search_file(Path(__file__).parents[3] / f"benchmarks/search/{name}.yaml")
    space = build_space(file.space)
    space.check(lambda chosen: configure(file.base, {"dataset.folder": "anywhere"}, chosen))
    assert {"loss.bce_weight", "train.lr", "augment.warp.rotate"} <= set(space.dimensions)
