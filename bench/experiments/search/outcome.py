"""What a study shows: descriptions of its trials, a table, plots, and its best settings as a file."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as draw

from bench.config import RunConfig
from bench.experiments.search.plan import SearchPlan
from bench.experiments.search.study import COUNTED, PROBLEM, failed_trials, ranked, trials_of


def describe_counts(study: Study) -> str:
    """Return '12 trials (9 complete, 3 pruned), 1 failed'."""
    complete, pruned = (len(trials_of(study, state)) for state in COUNTED)
    failed = len(failed_trials(study))
    text = f"{complete + pruned} trials ({complete} complete, {pruned} pruned)"
    return text + (f", {failed} failed" if failed else "")


def describe_trial(trial: FrozenTrial, plan: SearchPlan) -> str:
    """Return one line: number, objectives or how the trial ended, and settings."""
    if trial.state == TrialState.COMPLETE:
        pairs = zip(plan.objectives, trial.values, strict=True)
        outcome = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
    else:
        end = "pruned" if trial.state == TrialState.PRUNED else "interrupted"
        outcome = str(trial.user_attrs.get(PROBLEM, end))
    settings = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
    return f"trial {trial.number}: {outcome} · {settings}"


def trial_table(study: Study, plan: SearchPlan) -> pd.DataFrame:
    """Return the best ten trials, or with several objectives all on the Pareto front."""
    trials = ranked(study, study.best_trials if plan.costs else trials_of(study, TrialState.COMPLETE))
    rows = [
        {"trial": str(t.number)}
        | dict(zip(plan.objectives, t.values, strict=True))
        | {name: _short(value) for name, value in t.params.items()}
        for t in (trials if plan.costs else trials[:10])
    ]
    return pd.DataFrame(rows).fillna("")


def plot_study(study: Study, plan: SearchPlan, say: Callable[[str], None]) -> dict[str, NDArray[np.uint8]]:
    """Plot history, importance, slices, parallel coordinates, and the Pareto front of two or three objectives."""
    first: dict[str, Any] = {"target_name": plan.objectives[0]}
    if plan.costs:
        first["target"] = lambda trial: trial.values[0]
    plots: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study, **first),
        "importance": lambda: draw.plot_param_importances(study, **first),
        "slices": lambda: draw.plot_slice(study, **first),
        "parallel": lambda: draw.plot_parallel_coordinate(study, **first),
    }
    if 2 <= len(plan.objectives) <= 3:
        plots["pareto"] = lambda: draw.plot_pareto_front(study, target_names=list(plan.objectives))
    images = {}
    for name, plot in plots.items():
        try:
            with warnings.catch_warnings():  # plots are experimental, and a choice that never varied has no width
                warnings.simplefilter("ignore")
                figure = np.ravel(plot())[0].figure
            figure.set_size_inches(max(12, figure.get_size_inches()[0]), 6)
            images[f"plots/{name}"] = _render(figure)
        except (ValueError, RuntimeError) as error:  # fewer than two trials, or all with the same value
            say(f"no plot of {name}: {error}")
        finally:
            pyplot.close("all")
    return images


def config_file(config: RunConfig, study: Study, plan: SearchPlan) -> str:
    """Return the settings as the text of a file for `bench run --config`, without the folder of the data."""
    flat: dict[str, Any] = {k: v for k, v in config.completed().flat().items() if not k.startswith("run.")}
    flat.pop("dataset.folder", None)
    settings = {
        "name": f"{study.study_name}-best",
        "seed": config.seed,
        "searched": len(trials_of(study, *COUNTED)),
        "plugins": list(config.plugins),
        "augment": list(config.augment),
        "input.preprocess": list(config.input.preprocess),
    }
    lines = (
        f"# The best of {describe_counts(study)} of the study {study.study_name}, chosen by the validation",
        f"# {plan.objectives[0]} of {plan.inner} inner folds without the test patients of fold {plan.fold}.",
        "# Test it on that fold only: test patients of the other folds took part in the choice.",
        "#",
        f"#   bench run --config FILE --fold {plan.fold}",
        *(f"{key}: {json.dumps(value)}" for key, value in (settings | flat).items()),
    )
    return "".join(f"{line}\n" for line in lines)


def _render(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure as (H, W, 3), large enough for the names of settings beyond its border."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight")
        pixels = np.frombuffer(file.getvalue(), np.uint8)
    return np.asarray(cv2.imdecode(pixels, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
