"""What a study leaves: trials as child runs, plots, and its best configuration as a file."""

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

from bench.analysis.ranking import ALPHA
from bench.config import RunConfig
from bench.experiments.search.study import COUNTED, SearchPlan, failed, trials_of
from bench.stats import paired
from bench.tracking import KIND, MlflowRecorder

TRIAL = "trial"


def best_trial(study: Study) -> FrozenTrial | None:
    """The complete trial with the best score; of several objectives, the first one decides. None before any."""
    complete = trials_of(study, TrialState.COMPLETE)
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return min(complete, key=lambda t: (sign * t.values[0], t.number)) if complete else None


def describe_counts(study: Study) -> str:
    """'12 trials (9 complete, 3 pruned), 1 failed'."""
    complete, pruned = (len(trials_of(study, state)) for state in COUNTED)
    problems = len(failed(study))
    said = f"{complete + pruned} trials ({complete} complete, {pruned} pruned)"
    return said + (f", {problems} failed" if problems else "")


def finished_trials(study: Study, known: set[int]) -> list[FrozenTrial]:
    """Trials that have ended and are not `known`; one that another worker was faster to begin has never been."""
    every = study.get_trials(deepcopy=False)
    new = [t for t in every if t.state.is_finished() and t.number not in known]
    return [t for t in new if t.params or "problem" in t.user_attrs]


def log_trial(recorder: MlflowRecorder, trial: FrozenTrial, plan: SearchPlan) -> None:
    """A trial as a run below the study's."""
    tags = {KIND: TRIAL, "bench.trial": str(trial.number), "bench.state": trial.state.name.lower()}
    tags |= {"bench.error": str(trial.user_attrs["problem"])} if "problem" in trial.user_attrs else {}
    with recorder.child(f"trial {trial.number}", tags) as child:
        child.settings(trial.params)
        values = {f"inner/{number}": value for number, value in enumerate(trial.user_attrs.get("folds", []))}
        if trial.state == TrialState.COMPLETE:
            values |= dict(zip(plan.objectives, trial.values, strict=True))
        if trial.duration is not None:
            values["cost/seconds"] = trial.duration.total_seconds()
        child.metrics(values)
        for step, value in trial.intermediate_values.items():
            child.metrics({f"reported/{plan.objectives[0]}": value}, step)


def describe_trial(trial: FrozenTrial, plan: SearchPlan) -> str:
    """A trial in a line."""
    what = f"trial {trial.number}: "
    if trial.state == TrialState.COMPLETE:
        what += ", ".join(f"{name} {value:.4g}" for name, value in zip(plan.objectives, trial.values, strict=True))
    else:
        what += str(
            trial.user_attrs.get("problem", "pruned" if trial.state == TrialState.PRUNED else "broken off")
        )
    return f"{what} · " + ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())


def table(study: Study, plan: SearchPlan) -> pd.DataFrame:
    """The best ten trials, or all on the Pareto front of several objectives."""
    chosen = study.best_trials if plan.costs else trials_of(study, TrialState.COMPLETE)
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    chosen = sorted(chosen, key=lambda t: (sign * t.values[0], t.number))
    rows = [
        {"trial": str(t.number)}
        | dict(zip(plan.objectives, t.values, strict=True))
        | {name: _short(value) for name, value in t.params.items()}
        for t in (chosen if plan.costs else chosen[:10])
    ]
    return pd.DataFrame(rows).fillna("")


def figures(study: Study, plan: SearchPlan, say: Callable[[str], None]) -> dict[str, NDArray[np.uint8]]:
    """History, importance, slices, parallel coordinates; and of several objectives, the Pareto front."""
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
    made = {}
    for name, plot in plots.items():
        try:
            with warnings.catch_warnings():  # they are experimental, and a choice that never varied has no width
                warnings.simplefilter("ignore")
                figure = np.ravel(plot())[0].figure
            figure.set_size_inches(max(12, figure.get_size_inches()[0]), 6)
            made[f"plots/{name}"] = _whole(figure)
        except (ValueError, RuntimeError) as error:  # fewer than two trials, or all of one value
            say(f"no plot of {name}: {error}")
        finally:
            pyplot.close("all")
    return made


def _whole(figure: Figure) -> NDArray[np.uint8]:
    """(H, W, 3): all that is drawn, names of settings that reach beyond the figure included."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight")
        pixels = np.frombuffer(file.getvalue(), np.uint8)
    return np.asarray(cv2.imdecode(pixels, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def as_file(config: RunConfig, study: Study, plan: SearchPlan) -> str:
    """The configuration as a file that `bench run --config` takes; where the data lie is left out."""
    flat: dict[str, Any] = {k: v for k, v in config.completed().flat().items() if not k.startswith("run.")}
    flat.pop("dataset.folder", None)
    chains = {"augment": list(config.augment), "input.preprocess": list(config.input.preprocess)}
    trials = len(study.get_trials(states=COUNTED))
    own = {"name": f"{study.study_name}-best", "seed": config.seed, "searched": trials}
    own |= {"plugins": list(config.plugins)}
    lines = [f"{key}: {json.dumps(value)}" for key, value in (own | chains | flat).items()]
    return "\n".join(
        (
            f"# The best of {describe_counts(study)} of the study {study.study_name}: chosen by {plan.objectives[0]} on "
            "validation",
            f"# patients of {plan.inner} inner folds, without the test patients of fold {plan.fold}. They alone "
            "may judge it;",
            "# test patients of other folds were among those that chose it.",
            "#",
            f"#   bench run --config FILE --fold {plan.fold}",
            *lines,
            "",
        )
    )


def verdict(best: pd.Series[float], default: pd.Series[float], sign: int, score: str) -> tuple[str, float]:
    """Whether the best beats the default on the same held-out patients, and by how much; NaN is left out.

    It does so where the mean, its interval, the ranks and most patients say so, as in `bench compare`.
    """
    both = pd.concat([best, default], axis=1, join="inner").dropna().to_numpy(np.float64) * sign
    found = paired(both[:, 0], both[:, 1])
    said = (
        f"{score} {found.difference * sign:+.3f} (95% interval of the gain {found.interval.low:+.3f} to "
        f"{found.interval.high:+.3f}, better in {found.wins:.0%} of {found.n} held-out patients, "
        f"Wilcoxon p = {found.p:.2g})"
    )
    beats = found.interval.low > 0 and found.p < ALPHA and found.wins > np.mean(both[:, 0] < both[:, 1])
    return f"it {'beats' if beats else 'does not beat'} the default: {said}", found.difference


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
