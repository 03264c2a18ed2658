"""`bench ensemble`: the mean prediction of several runs, or of one run with test-time augmentation, out of fold.

The test patients of a fold are predicted only by the models that this fold of each run has trained: the models of
other folds were trained on them. A threshold is chosen on the validation patients of the fold. Nothing is trained.

A run that was scored from files takes part by its logged probabilities, or by its masks as probabilities of 0 and
1. It has predicted no validation patients, so the threshold is then 0.5: the majority, for masks alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.console import Display
from bench.data.pack import Pack
from bench.derived.base import DerivedRun, case_rows, derive_fingerprint, describe_change, log_derived, place_of
from bench.device import find_device
from bench.errors import BadSetting, UnknownName, did_you_mean
from bench.inference.fold_models import VIEWS, FoldModels
from bench.inference.predict import MeanPredictor
from bench.masks import Masks
from bench.structures import per_structure
from bench.tracking import (
    Run,
    Store,
    connect_to_write,
    download_models,
    find_run,
    read_masks,
    read_probabilities,
    read_table,
    run_label,
)
from bench.tracking.selection import load_run_pack, require_comparable, require_finished
from bench.tracking.tags import Tag, is_derived
from bench.training.tasks.segmentation import Segmentation, choose_thresholds
from bench.types import CaseScore

TAKES = "An ensemble takes segmentation runs that have trained all their folds."
VALIDATION = "validation"


@dataclass(frozen=True)
class LoggedPredictor:
    """What a run scored from files has logged of its patients, (S, K, H, W) each, in the place of a model."""

    logged: Mapping[str, NDArray[np.uint8] | NDArray[np.bool_]]
    cases: NDArray[np.str_]  # of each row of the pack
    scale: int  # of probability 1

    def probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (S, K, H, W) of all slices of one patient."""
        return self.logged[self.cases[rows[0]]].astype(np.float32) / np.float32(self.scale)


def ensemble(
    wanted: Sequence[str],
    *,
    tta: str = "none",
    threshold: float | None = None,
    data: Path | None = None,
    device: str = "auto",
    name: str | None = None,
    uri: str | None = None,
) -> str:
    """Predict every patient by the models of these runs that have not seen it, log that as a run, return its id.

    `tta` lets each model see a slice in several views: none, flips (4) or turns (8). `data` is the folder of the
    data set, by default where the first run found it. Without a `threshold`, `threshold_rule` applies; with
    another, the run stands on a board of its own like a rescored one, as test scores could be seen before.
    Raises `BenchError`.
    """
    store = connect_to_write(uri)
    runs = [find_run(store, one) for one in wanted]
    _check(runs, tta)
    rule = threshold_rule(runs) if threshold is None else str(threshold)
    with Display() as display:
        pack = load_run_pack(runs[0], data, display)
        scored = _predict_folds(store, runs, pack, tta, rule, str(find_device(device)), display)
        cases = case_rows([score for score, _ in scored])
        names = ", ".join(str(run.info.run_name) for run in runs)
        title = names if len(runs) == 1 else f"ensemble of {names}"
        changes = [describe_change(cases, read_table(store, run, "cases"), run_label(run)) for run in runs]
        run = DerivedRun(
            origin={Tag.DERIVED: "ensemble"},
            title=name or title + (f" with {tta}" if tta != "none" else ""),
            place=place_of(store, runs[0]),
            parts=runs,
            fingerprint=fingerprint([run.data.tags[Tag.FINGERPRINT] for run in runs], tta, rule),
            scores=[score for score, _ in scored],
            masks=Masks.joined(masks for _, masks in scored),
            settings=_settings(runs, tta, rule),
            facts=_facts(runs, tta, rule, cases) | {"Compared": "; ".join(changes)},
            comparisons=changes,
            tags={} if rule == threshold_rule(runs) else {Tag.POST_HOC: "threshold"},
            views=len(VIEWS[tta]),
        )
        return log_derived(store, run, pack, display=display)


def _predict_folds(
    store: Store, runs: Sequence[Run], pack: Pack, tta: str, rule: str, device: str, display: Display
) -> list[tuple[CaseScore, Masks]]:
    """Score the test patients of every fold by the models that this fold of each run has trained."""
    split, task = read_table(store, runs[0], "split"), Segmentation()
    parts = ["test"] if rule != VALIDATION else ["val", "test"]
    done, of = count(1), int(split["part"].isin(parts).sum())
    guests = [_logged_predictor(store, run, pack) for run in runs if Tag.GUEST in run.data.tags]
    trained = [run for run in runs if Tag.GUEST not in run.data.tags]
    scored: list[tuple[CaseScore, Masks]] = []
    with tempfile.TemporaryDirectory() as workspace:
        folders = {
            fold: [download_models(store, r, Path(workspace) / r.info.run_id, fold=fold)[0] for r in trained]
            for fold in split["fold"].unique()
        }
        for fold, members in split.groupby("fold"):
            models = [FoldModels([folder], device) for folder in folders[fold]]
            predictor = MeanPredictor(
                [*(each.predictor(pack, tta=tta, tick=display.packing) for each in models), *guests],
                pack,
                device,
                lambda: display.bar(next(done), of, "predicting", "patients"),
            )
            thresholds = fold_thresholds(predictor, rule, members)
            columns = per_structure("threshold", pack.structures.names, thresholds)
            for score, masks in task.score(predictor, members["case"][members["part"] == "test"], thresholds):
                scored.append((replace(score, values={**columns, **score.values}), masks))
    return scored


def _logged_predictor(store: Store, run: Run, pack: Pack) -> LoggedPredictor:
    cases = pack.index["case"].to_numpy()
    if run.data.tags[Tag.GUEST] == "probabilities":
        return LoggedPredictor(read_probabilities(store, run), cases, 100)
    return LoggedPredictor(read_masks(store, run), cases, 1)


def fold_thresholds(predictor: MeanPredictor, rule: str, members: pd.DataFrame) -> tuple[float, ...]:
    """Return the threshold of `rule` for each structure, or the best for a fold's validation patients.

    `members` has the columns case and part.
    """
    if rule != VALIDATION:
        return (float(rule),) * len(predictor.pack.structures)
    return choose_thresholds(predictor, members["case"][members["part"] == "val"])


def threshold_rule(runs: Sequence[Run]) -> str:
    """Return the threshold of a single run; 'validation' for several, as their probabilities differ in meaning.

    With a run that was scored from files it is 0.5.
    """
    if any(Tag.GUEST in run.data.tags for run in runs):
        return "0.5"
    return str(runs[0].data.params["evaluate.threshold"]) if len(runs) == 1 else VALIDATION


def fingerprint(parts: Iterable[str], tta: str, rule: str) -> str:
    """Return the fingerprint of an ensemble, from those of its runs in any order."""
    return derive_fingerprint("ensemble", tta, rule, *sorted(parts))


def _check(runs: Sequence[Run], tta: str) -> None:
    """Raise `BenchError` for what cannot be combined."""
    if tta not in VIEWS:
        raise UnknownName(
            f"no test-time augmentation '{tta}'; there are {', '.join(VIEWS)}.{did_you_mean(tta, VIEWS)}"
        )
    ids = [run.info.run_id for run in runs]
    for run in runs:
        require_finished(run, "segmentation", TAKES)
        if Tag.GUEST in run.data.tags and (tta != "none" or len(runs) == 1):
            raise BadSetting(
                f"run {run.info.run_name} was scored from files and has no models to see other views. "
                "Name it beside other runs, without --tta."
            )
        if is_derived(run.data.tags, run.data.params):
            raise BadSetting(f"run {run.info.run_name} was made from other runs. Name those runs instead.")
        if ids.count(run.info.run_id) > 1:
            raise BadSetting(f"run {run_label(run)} is named twice and would count twice. Name it once.")
    require_comparable(runs)
    if len(runs) < 2 and tta == "none":
        raise BadSetting("one run alone is no ensemble. Name another run, or give --tta flips or --tta turns.")


def _settings(runs: Sequence[Run], tta: str, rule: str) -> Mapping[str, str]:
    def common(key: str) -> str:
        values = {run.data.params.get(key, "") for run in runs}
        return values.pop() if len(values) == 1 else "several"

    names = " + ".join(str(run.info.run_name) for run in runs)
    return {
        "model.name": "ensemble",
        "model.encoder": names + (f" ({tta})" if tta != "none" else ""),
        "loss.name": common("loss.name"),
        "run.seed": common("run.seed"),
        "ensemble.runs": ", ".join(run.info.run_id for run in runs),
        "ensemble.tta": tta,
        "ensemble.threshold": rule,
    }


def _facts(runs: Sequence[Run], tta: str, rule: str, cases: pd.DataFrame) -> dict[str, str]:
    thresholds = pd.unique(cases.filter(regex=r"^threshold").to_numpy().ravel())
    chosen = ", chosen on the validation patients of each fold" if rule == VALIDATION else ""
    return {
        "Mean probability of": ", ".join(map(run_label, runs)),
        "Predictions per slice": f"{len(runs) * len(VIEWS[tta])}, out of fold",
        "Threshold": ", ".join(f"{threshold:.2f}" for threshold in thresholds) + chosen,
    }
