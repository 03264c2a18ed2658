"""Runs made of other runs: masks that were predicted out of fold, put together or changed, and scored as a run.

Nothing is trained. Such a run stands on the board of the runs that it is made of, with its own masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench.analysis.leaderboard import trials_behind
from bench.analysis.run_summary import model_card
from bench.console import Display
from bench.data.pack import Pack
from bench.derived.ranks import update_ranks
from bench.masks import Mask, Masks
from bench.metrics.aggregate import summarise
from bench.metrics.confusion import dice_of
from bench.overrides import configure
from bench.stats import paired
from bench.tracking import KIND, PARENT, Run, Store, open_run, read_table, settings_of
from bench.tracking.selection import SHARED, SOURCE
from bench.training.fold import record_masks, slice_table
from bench.training.tasks.segmentation import Segmentation
from bench.types import CaseScore

COSTS = ("wall_seconds", "train_seconds", "device_seconds", "images", "epochs", "parameters")


LOOKING = ("flops", "latency_p50_ms", "latency_p95_ms")  # costs of every look at a slice


@dataclass(frozen=True)
class DerivedRun:
    """What is to be logged: the scores and masks of all patients, and what they were made of.

    `source` is the run whose data, split and folds it shares; `parts` all runs whose cost it bears, each of which
    looks at a slice from so many `sides`.
    """

    title: str
    source: Run
    parts: Sequence[Run]
    fingerprint: str
    scores: Sequence[CaseScore]
    masks: Masks
    settings: Mapping[str, str]
    facts: Mapping[str, str]  # for its model card
    tags: Mapping[str, str] = field(default_factory=dict)
    sides: int = 1


def log_derived(
    store: Store, made: DerivedRun, pack: Pack, *, display: Display
) -> tuple[str, pd.DataFrame, dict[str, float]]:
    """Log it as a finished cross-validation. Gives the run's id, a row a patient, and what they say together."""
    source, task = made.source, Segmentation(configure(settings_of(made.source)).evaluate, "auto")
    folds = read_table(store, source, "cases")[["case", "fold"]]
    cases = folds.merge(case_rows(made.scores), on="case")
    values = summarise(cases)
    tags = {tag: source.data.tags[tag] for tag in (*SHARED, "bench.dataset", "bench.synthetic")}
    tags |= {"bench.task": task.name, "bench.fingerprint": made.fingerprint, KIND: PARENT, **made.tags}
    tags[SOURCE] = source.data.tags.get(SOURCE, source.info.run_id)
    experiment = store.client.get_experiment(source.info.experiment_id).name
    with open_run(store, made.title, experiment, tags, say=display.say) as recorder:
        # What was searched for a part was for the whole. Parts may share a search: the longest counts.
        trials = max(trials_behind(run.data.params) for run in made.parts)
        recorder.settings({**made.settings, "run.searched": str(trials)})
        recorder.data(pack.manifest.dataset, pack.manifest.key, pack.profile())
        recorder.metrics(values | _costs(made))
        recorder.table("cases", cases)
        recorder.table("slices", slice_table(made.scores))
        recorder.table("split", read_table(store, source, "split"))
        for fold, members in folds.groupby("fold")["case"]:
            with recorder.child(f"fold {fold}", {"bench.fold": str(fold)}) as child:
                record_masks(child, made.masks.of(members), made.scores)
        if task.primary in cases:  # masks alone have no Brier score, by which to choose patients
            for name, pixels in task.pictures(pack, cases, slice_table(made.scores), made.masks).items():
                recorder.image(name, pixels)
        recorder.tags({"mlflow.note.content": model_card(made.title, made.facts, values)})
    if "bench.post_hoc" not in tags:  # what was chosen after scores were seen has no rank among them
        update_ranks(store, recorder.run_id)
    return recorder.run_id, cases, values


def _costs(made: DerivedRun) -> dict[str, float]:
    """All parts have to be trained and to be run; what one of them has not logged is not known."""
    logged = [run.data.metrics for run in made.parts]
    times = dict.fromkeys(COSTS, 1) | dict.fromkeys(LOOKING, made.sides)
    return {
        f"cost/{name}": times[name] * sum(metrics[f"cost/{name}"] for metrics in logged)
        for name in times
        if all(f"cost/{name}" in metrics for metrics in logged)
    }


def score_masks(task: Segmentation, pack: Pack, masks: Mapping[str, Mask]) -> list[CaseScore]:
    """Every patient by all metrics that need no probability."""
    numbers = pack.index["slice"].to_numpy()
    scores = []
    for case, mask in masks.items():
        rows = pack.rows([case])
        scores.append(task.score_mask(case, numbers[rows].tolist(), pack.masks[rows].astype(bool), mask))
    return scores


def case_rows(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """A row a patient."""
    return pd.DataFrame([{"case": s.case, **s.values, **s.counts} for s in scores])


def describe_change(after: pd.DataFrame, before: pd.DataFrame, than: str) -> str:
    """One sentence: what has changed from `before`, patient by patient; Dice is that of the pixel counts."""
    both = after.merge(before, on="case", suffixes=("", "_before"))
    new, old = (dice_of(*both[[f"{c}{end}" for c in ("tp", "fp", "fn")]].to_numpy().T) for end in ("", "_before"))
    defined = ~np.isnan(new + old)
    found = paired(new[defined], old[defined])
    changes = "".join(
        f"; {name.replace('_', ' ')} {before[name].sum():.0f} to {after[name].sum():.0f}"
        for name in ("false_positive_slices", "missed_slices")
        if name in before
    )
    return (
        f"against {than}: Dice {found.difference:+.3f} (95% interval {found.interval.low:+.3f} to "
        f"{found.interval.high:+.3f}), better in {found.wins:.0%} of {found.n} patients, "
        f"Wilcoxon p = {found.p:.2g}{changes}"
    )
