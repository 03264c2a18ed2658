"""`bench ensemble`: what the models of several runs, or one run's from several sides, predict together.

The test patients of a fold are predicted only by the models that this fold of each run has trained: those of other
folds have seen them. A threshold is chosen on the validation patients of the fold. Nothing is trained.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.analysis.run_summary import headline
from bench.config import Evaluate
from bench.console import Display, console
from bench.data.pack import Pack
from bench.derived.base import DerivedRun, case_rows, describe_change, log_derived
from bench.device import find_device
from bench.errors import BadSetting, UnknownName, did_you_mean
from bench.inference.fold_models import FoldModels
from bench.inference.predict import predict
from bench.inference.scoring import choose_threshold, score_case
from bench.inference.tta import VIEWS, tta_views
from bench.masks import Masks, to_hundredths
from bench.tracking import Run, connect, find_run, model_folders, read_table
from bench.tracking.run_data import pack_of
from bench.tracking.selection import require_comparable, require_finished
from bench.training.tasks.segmentation import Segmentation
from bench.types import CaseScore, Stack

TAKES = "An ensemble takes segmentation runs that have trained all their folds."


VALIDATION = "validation"


Predictor = Callable[[NDArray[np.int64]], NDArray[np.float32]]  # rows of a pack: probabilities (S, H, W)


@dataclass(frozen=True)
class Panel:
    """Predictors whose probabilities are averaged, patient by patient. `tick()` is called after each."""

    predictors: Sequence[Predictor]
    pack: Pack
    device: str = "cpu"  # where distances between outlines are found
    tick: Callable[[], None] = lambda: None

    def stacks(self, cases: Iterable[str], threshold: float) -> Iterator[tuple[str, NDArray[np.int64], Stack]]:
        for case in sorted(cases):
            rows = self.pack.rows([case])
            probability = np.mean([predicted(rows) for predicted in self.predictors], axis=0)
            yield case, rows, Stack(self.pack.masks[rows].astype(bool), probability, threshold, self.device)
            self.tick()

    def threshold(self, rule: str, validation: Iterable[str]) -> float:
        """The one that `rule` names, or the best for the validation patients."""
        if rule != VALIDATION:
            return float(rule)
        return choose_threshold(stack for _, _, stack in self.stacks(validation, 0.5))

    def score(self, cases: Iterable[str], threshold: float) -> Iterator[tuple[CaseScore, Masks]]:
        """All metrics of each patient, and its mask with the probabilities it was called from."""
        numbers, metrics = self.pack.index["slice"].to_numpy(), Segmentation(Evaluate(), "auto").metrics
        for case, rows, stack in self.stacks(cases, threshold):
            scored = score_case(case, numbers[rows].tolist(), stack, metrics)
            told = replace(scored, values={"threshold": threshold, **scored.values})
            yield told, Masks([(case, stack.prediction)], [(case, to_hundredths(stack.probability))])


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
    """Predict every patient by the models of these runs that have not seen it, log that as a run. Gives its id.

    `tta` lets each model look from several sides: none, flips (4) or turns (8). `data` is the folder of the data
    set, by default where the first run found it. Without a `threshold`, see `threshold_rule`; with another, the
    run stands on a board of its own like a rescored one, as test scores had been seen. Raises `BenchError`.
    """
    store = connect(uri)
    runs = [find_run(store, one) for one in wanted]
    _refuse(runs, tta)
    where, rule = str(find_device(device)), threshold_rule(runs) if threshold is None else str(threshold)
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        split = read_table(store, runs[0], "split")
        models = {
            fold: [model_folders(store, r, Path(workspace) / r.info.run_id, fold=fold)[0] for r in runs]
            for fold in split["fold"].unique()
        }
        pack = pack_of(runs[0], data, display)
        done, of = count(1), int(split["part"].isin(["test"] if rule != VALIDATION else ["val", "test"]).sum())
        scored: list[tuple[CaseScore, Masks]] = []
        for fold, parts in split.groupby("fold"):
            panel = Panel(
                [predictor(FoldModels([folder], where), pack, tta, display) for folder in models[fold]],
                pack,
                where,
                lambda: display.bar(next(done), of, "predicting", "patients"),
            )
            validation, test = (parts.loc[parts["part"] == part, "case"] for part in ("val", "test"))
            scored += panel.score(test, panel.threshold(rule, validation))
        cases = case_rows([score for score, _ in scored])
        said = [describe_change(cases, read_table(store, run, "cases"), _label(run)) for run in runs]
        made = DerivedRun(
            title=name or _title(runs, tta),
            source=runs[0],
            parts=runs,
            fingerprint=fingerprint([run.data.tags["bench.fingerprint"] for run in runs], tta, rule),
            scores=[score for score, _ in scored],
            masks=Masks.joined(masks for _, masks in scored),
            settings=_settings(runs, tta, rule),
            tags={} if rule == threshold_rule(runs) else {"bench.post_hoc": "threshold"},
            sides=len(VIEWS[tta]),
            facts=_facts(runs, tta, rule, cases["threshold"].unique()) | {"Compared": "; ".join(said)},
        )
        run_id, _, values = log_derived(store, made, pack, display=display)
    console().print("\n".join((made.title, headline(values), *said)), markup=False)
    return run_id


def predictor(segmenter: FoldModels, pack: Pack, tta: str, display: Display) -> Predictor:
    """What a run's models say of rows of the pack, on the input that they were trained on."""
    config = segmenter.config
    return partial(
        predict,
        [side for model in segmenter.models for side in tta_views(model, tta)],
        segmenter.loader(pack, tick=display.packing),
        batch_size=config.evaluate.batch_size,
        precision=config.train.precision,
    )


def threshold_rule(runs: Sequence[Run]) -> str:
    """The threshold of a run alone; of several, whose probabilities differ in meaning, 'validation' chooses."""
    return str(runs[0].data.params["evaluate.threshold"]) if len(runs) == 1 else VALIDATION


def fingerprint(parts: Iterable[str], tta: str, rule: str) -> str:
    """That of an ensemble, from those of its runs in whatever order."""
    return hashlib.sha256(" ".join(("ensemble", tta, rule, *sorted(parts))).encode()).hexdigest()[:16]


def _refuse(runs: Sequence[Run], tta: str) -> None:
    """Raise `BenchError` for what cannot be put together."""
    if tta not in VIEWS:
        raise UnknownName(f"no turns '{tta}'; there are {', '.join(VIEWS)}.{did_you_mean(tta, VIEWS)}")
    ids = [run.info.run_id for run in runs]
    for run in runs:
        require_finished(run, "segmentation", TAKES)
        if "dataset.name" not in run.data.params:
            raise BadSetting(f"run {run.info.run_name} is made of other runs. Name those that it is made of.")
        if ids.count(run.info.run_id) > 1:
            raise BadSetting(f"run {_label(run)} is named twice and would count twice. Name it once.")
    require_comparable(runs)
    if len(runs) < 2 and tta == "none":
        raise BadSetting("one run alone is no ensemble. Name another, or give --tta flips or --tta turns.")


def _title(runs: Sequence[Run], tta: str) -> str:
    names = ", ".join(str(run.info.run_name) for run in runs)
    return (names if len(runs) == 1 else f"ensemble of {names}") + (f" with {tta}" if tta != "none" else "")


def _label(run: Run) -> str:
    return f"{run.info.run_name} ({run.info.run_id[:8]})"


def _settings(runs: Sequence[Run], tta: str, rule: str) -> Mapping[str, str]:
    def common(key: str) -> str:
        found = {run.data.params[key] for run in runs}
        return found.pop() if len(found) == 1 else "several"

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


def _facts(runs: Sequence[Run], tta: str, rule: str, thresholds: Iterable[float]) -> dict[str, str]:
    chosen = ", chosen on the validation patients of each fold" if rule == VALIDATION else ""
    return {
        "Mean probability of": ", ".join(map(_label, runs)),
        "Predictions of a slice": f"{len(runs) * len(VIEWS[tta])}, out of fold",
        "Threshold": ", ".join(f"{threshold:.2f}" for threshold in thresholds) + chosen,
    }
