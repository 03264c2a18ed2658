"""Runs made of other runs: masks that were predicted out of fold, put together or changed, and scored as a run.

Nothing is trained. Such a run stands on the board of the runs that it is made of, with its own masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bench.config import configure
from bench.console import Display
from bench.counts import dice_of
from bench.errors import BadSetting, DataError
from bench.leaderboard import trials_behind
from bench.masks import Mask, Masks
from bench.pack import Pack
from bench.recipe import raw_pack
from bench.records import CaseScore
from bench.runner import record_masks, slice_table
from bench.stats import paired
from bench.summary import summarise
from bench.tables import model_card
from bench.tasks.segmentation import Segmentation
from bench.tracking import KIND, PARENT, Run, Store, find_run, open_run, rank_anew, read_table, settings_of

SOURCE = "bench.source"  # of a run made of others: the one that was run on the data
SHARED = ("bench.data", "bench.split", "bench.convention")  # what runs must have in common to be put together
COSTS = ("wall_seconds", "train_seconds", "device_seconds", "images", "epochs", "parameters")
LOOKING = ("flops", "latency_p50_ms", "latency_p95_ms")  # costs of every look at a slice


@dataclass(frozen=True)
class Derived:
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
    store: Store, made: Derived, pack: Pack, *, display: Display
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
        rank_anew(store, recorder.run_id)
    return recorder.run_id, cases, values


def _costs(made: Derived) -> dict[str, float]:
    """All parts have to be trained and to be run; what one of them has not logged is not known."""
    logged = [run.data.metrics for run in made.parts]
    times = dict.fromkeys(COSTS, 1) | dict.fromkeys(LOOKING, made.sides)
    return {
        f"cost/{name}": times[name] * sum(metrics[f"cost/{name}"] for metrics in logged)
        for name in times
        if all(f"cost/{name}" in metrics for metrics in logged)
    }


def pack_of(run: Run, data: Path | None, display: Display) -> Pack:
    """The data of a logged run, in `data` or where the run found them. Raises `DataError` if they have changed."""
    config = configure(settings_of(run), {} if data is None else {"dataset.folder": str(data)})
    pack = raw_pack(config, tick=display.packing)
    if pack.manifest.key != run.data.tags["bench.data"]:
        raise DataError(
            f"the data are not those of run {run.info.run_name}. Give --data the folder it was run on."
        )
    return pack


def shared_pack(store: Store, runs: Sequence[Run], data: Path | None, display: Display) -> Pack:
    """The data that these runs share, by the first that knows them, itself or through the run it was made of."""
    known = [store.client.get_run(r.data.tags[SOURCE]) if SOURCE in r.data.tags else r for r in runs]
    for run in known:
        if "dataset.name" in run.data.params:
            return pack_of(run, data, display)
    raise DataError("none of these runs knows its data: all are made of others. Name one that was trained.")


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


def compared(after: pd.DataFrame, before: pd.DataFrame, than: str) -> str:
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


def finished(run: Run, task: str, wanted: str) -> None:
    """Raise `BadSetting` unless the run is a finished cross-validation of this task; `wanted` is the way out."""
    found = run.data.tags.get("bench.task", "segmentation")
    if run.data.tags.get(KIND) != PARENT or found != task or run.info.status != "FINISHED":
        raise BadSetting(
            f"run {run.info.run_name} ({run.info.run_id[:8]}) is no finished {task} cross-validation. {wanted}"
        )


def pair_of(store: Store, first: str, second: str, takes: str) -> tuple[Run, Run]:
    """Two finished segmentation runs that may be compared. Raises `BenchError`; `takes` is the way out."""
    runs = find_run(store, first), find_run(store, second)
    for run in runs:
        finished(run, "segmentation", takes)
    if runs[0].info.run_id == runs[1].info.run_id:
        raise BadSetting(
            f"'{first}' and '{second}' are one run ({runs[0].info.run_id[:8]}). Name two, by id if need be."
        )
    alike(runs)
    return runs


def alike(runs: Sequence[Run]) -> None:
    """Raise `BadSetting` unless all runs share data, split and metric convention."""
    first, *others = runs
    for other in others:
        for tag in SHARED:
            if first.data.tags[tag] != other.data.tags[tag]:
                raise BadSetting(
                    f"{first.info.run_name} and {other.info.run_name} differ in {tag.removeprefix('bench.')} "
                    f"({first.data.tags[tag]} and {other.data.tags[tag]}): what one has learnt from, the other "
                    "would be tested on. Run both alike."
                )
