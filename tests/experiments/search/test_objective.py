"""The objective: scores of inner folds without any test patient, pruning, costs, and the comparison at the end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from bench.data.loader import SliceLoader
from bench.errors import TrainingError
from bench.experiments.search.command import compare_with_default
from bench.experiments.search.objective import EpochScore, InnerFold, Objective, inner_folds, train_and_validate
from bench.experiments.search.plots import plot_study
from bench.experiments.search.space import build_space
from bench.experiments.search.storage import best_trial
from bench.experiments.search.study_run import trial_table
from bench.experiments.search.workers import run_trials
from bench.overrides import configure
from bench.stats import compare_paired
from bench.training.experiment import Experiment
from tests.experiments.search.fakes import epochs, scripted, small_plan


def make_objective(experiment: Experiment, evaluator, inner: int = 2, pruner: str = "none", costs=()) -> Objective:
    return Objective(
        space=build_space({"train.lr": "1e-3..1e-2 log"}),
        resolve=lambda chosen: replace(experiment, config=configure(experiment.config.model_dump(), chosen)),
        folds=inner_folds(experiment.pack.index, experiment.folds[0], inner, 0),
        pruner=pruner,
        costs=costs,
        execution="eager",
        evaluator=evaluator,
    )


def test_inner_folds_score_each_development_patient_once_and_no_test_patient(experiment) -> None:
    outer = experiment.folds[0]
    folds = inner_folds(experiment.pack.index, outer, 3, 0)
    scored = [case for fold in folds for case in sorted(fold.test)]
    assert sorted(scored) == sorted(outer.train | outer.val)
    assert all(not (f.train | f.val | f.test) & outer.test for f in folds)


def test_the_objective_is_the_mean_of_the_best_epochs(experiment, connect) -> None:
    scores = {0: epochs(0.2, 0.6, 0.4), 1: epochs(0.3, 0.1, 0.2)}
    study = connect(small_plan())
    study.optimize(make_objective(experiment, scripted(scores)), n_trials=1)
    assert study.best_value == pytest.approx(0.45)
    assert study.trials[0].user_attrs["folds"] == [0.6, 0.3]


def test_a_trial_with_an_undefined_score_fails(experiment, connect) -> None:
    study, evaluator = connect(small_plan()), scripted({0: [EpochScore(1, math.nan, True)]})
    with pytest.raises(TrainingError, match="dice of inner fold 0 is not defined"):
        study.optimize(make_objective(experiment, evaluator), n_trials=1)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_median_and_hyperband_see_the_epochs_of_the_first_inner_fold(pruner: str, experiment, connect) -> None:
    study = connect(small_plan(pruner=pruner))
    evaluator = scripted({0: epochs(0.1, 0.2), 1: epochs(1.1, 1.2)})
    study.optimize(make_objective(experiment, evaluator, pruner=pruner), n_trials=1)
    assert study.trials[0].intermediate_values == pytest.approx({1: 0.1, 2: 0.2})


def test_a_trial_below_the_median_of_five_is_pruned_and_counts(experiment, connect) -> None:
    plan = small_plan(trials=6, pruner="median")
    study, evaluated = connect(plan), []

    def evaluate(experiment, fold, loader, **more):
        evaluated.append(fold.number)
        yield from epochs(0.1 if len(study.trials) == 6 else 0.5)

    run_trials(study, plan, make_objective(experiment, evaluate, pruner="median"), owner=True)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    assert evaluated == [0, 1] * 5 + [0]


def test_wilcoxon_sees_patients_by_number_and_prunes_after_an_inner_fold(experiment, connect) -> None:
    plan = small_plan(trials=2, pruner="wilcoxon")
    study, outer = connect(plan), experiment.folds[0]
    numbers = {case: number for number, case in enumerate(sorted(outer.train | outer.val))}
    evaluated = []

    def evaluate(experiment, fold, loader, *, per_patient, **more):
        assert per_patient
        evaluated.append(fold.number)
        level = 0.8 if len(study.trials) == 1 else 0.1
        scores = {case: level + numbers[case] / 100 for case in fold.val}
        yield EpochScore(1, float(np.mean(list(scores.values()))), True, scores)

    run_trials(study, plan, make_objective(experiment, evaluate, inner=3, pruner="wilcoxon"), owner=True)
    assert study.trials[0].intermediate_values == pytest.approx({n: 0.8 + n / 100 for n in range(6)})
    # With two differences of one sign p = 1/4; with four p = 1/16, which is below 0.1.
    assert evaluated == [0, 1, 2, 0, 1]
    assert study.trials[1].state == TrialState.PRUNED


def test_training_a_trial_yields_the_mean_of_its_patients_and_marks_the_best(experiment) -> None:
    fold = inner_folds(experiment.pack.index, experiment.folds[0], 2, 0)[0]
    inner = InnerFold(0, fold.train | fold.val, fold.test)
    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    scores = list(train_and_validate(experiment, inner, loader, execution="eager", per_patient=True))
    assert [s.epoch for s in scores] == [1, 2]
    for score in scores:
        assert set(score.patients) == (set(inner.val) if score.best else set())
        if score.best:
            assert np.mean(list(score.patients.values())) == pytest.approx(score.value)
    assert scores[0].best
    assert scores[1].best == (scores[1].value > scores[0].value)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "same"), [("test", True), ("train", False)])
def test_the_images_of_test_patients_change_no_objective(side: str, same: bool, experiment, connect) -> None:
    rows = experiment.pack.rows(getattr(experiment.folds[0], side))
    images, masks = np.array(experiment.pack.images), np.array(experiment.pack.masks)
    images[rows], masks[rows] = 255 - images[rows], 1 - masks[rows]
    changed = replace(experiment, pack=replace(experiment.pack, images=images, masks=masks))
    values = []
    for number, each in enumerate((experiment, changed)):
        study = connect(small_plan()) if number == 0 else optuna.create_study(direction="maximize")
        study.sampler = RandomSampler(seed=0)
        study.optimize(make_objective(each, train_and_validate), n_trials=1)
        values.append(study.trials[0].values)
    assert (values[0] == values[1]) == same


def test_a_search_with_costs_shows_the_pareto_front(connect, experiment) -> None:
    plan = small_plan(trials=4, objectives=["dice", "parameters"])
    values = [(0.5, 10.0), (0.6, 20.0), (0.4, 5.0), (0.5, 12.0)]  # the first beats the last
    study = connect(plan)
    run_trials(study, plan, lambda trial: (trial.suggest_float("x", 0, 1), values[trial.number])[1], owner=True)
    assert trial_table(study, plan)["trial"].tolist() == ["1", "0", "2"]
    assert best_trial(study).number == 1
    assert "plots/pareto" in plot_study(study, plan, pytest.fail)
    evaluator = scripted({0: epochs(0.5), 1: epochs(0.5)})
    objective = make_objective(experiment, evaluator, costs=("parameters", "flops"))
    score, parameters, flops = objective(
        optuna.create_study(directions=["maximize", "minimize", "minimize"]).ask()
    )
    assert (score, parameters) == (0.5, sum(p.numel() for p in experiment.model(0).parameters()))
    assert flops > 32 * 32


def test_the_best_beats_the_default_only_if_the_interval_is_above_zero() -> None:
    cases = list("abcdefgh")
    default = pd.Series([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, math.nan], cases)
    gain = np.array([0.1, 0.12, 0.08, 0.11, 0.1, 0.09, 0.1, 0.0])
    expected = compare_paired(gain[:7], np.zeros(7))
    text, difference = compare_with_default(default + gain, default, 1, "dice")
    assert text.startswith("it beats the default: dice +0.100")
    assert f"of {expected.n} held-out patients" in text
    assert difference == pytest.approx(gain[:7].mean())
    worse, _ = compare_with_default(default + gain, default, -1, "hd95")
    assert worse.startswith("it does not beat the default: hd95 +0.100")
    assert compare_with_default(default, default, 1, "dice")[0].startswith("it does not beat")
