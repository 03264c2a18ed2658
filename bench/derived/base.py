"""Runs made from other runs: out-of-fold masks combined or changed, and scored as a run of their own.

Nothing is trained. A derived run stands on the board of the runs that it was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis.board import Board
from bench.analysis.board_rows import search_trials
from bench.analysis.leaderboard import board_of_run, rank_metrics
from bench.analysis.run_summary import headline, model_card
from bench.console import Display, console
from bench.data.pack import Pack, Tick
from bench.masks import Mask, Masks
from bench.metrics.aggregate import summarise
from bench.metrics.confusion import dice_of
from bench.stats import compare_paired
from bench.tracking import PARENT, Run, Store, Tag, log_ranks, open_run, read_config, read_records, read_table
from bench.tracking.tags import SHARED
from bench.training.fold_records import patient_rows, record_masks, slice_table
from bench.training.tasks.segmentation import Segmentation
from bench.types import CaseScore

COSTS = ("wall_seconds", "train_seconds", "device_seconds", "images", "epochs", "parameters")
COSTS_PER_VIEW = ("flops", "latency_p50_ms", "latency_p95_ms")


@dataclass(frozen=True)
class Place:
    """The board that a run stands on: what it shares with the other runs there.

    `folds` has the columns case and fold of the test patients, `split` is the table that runs log; `tags` say what
    the data and the split are, and which run they come from, if any.
    """

    experiment: str
    tags: Mapping[str, str]
    folds: pd.DataFrame
    split: pd.DataFrame
    task: Segmentation


def place_of(store: Store, run: Run) -> Place:
    """Return the place of a run, for runs that are made from it."""
    kept = (*SHARED, Tag.DATASET, Tag.SYNTHETIC, Tag.LICENCE)  # older runs have no licence
    tags = {tag: run.data.tags[tag] for tag in kept if tag in run.data.tags}
    return Place(
        experiment=store.client.get_experiment(run.info.experiment_id).name,
        tags=tags | {Tag.SOURCE: run.data.tags.get(Tag.SOURCE, run.info.run_id)},
        folds=read_table(store, run, "cases")[["case", "fold"]],
        split=read_table(store, run, "split"),
        task=Segmentation(read_config(run).evaluate),
    )


@dataclass(frozen=True)
class DerivedRun:
    """What is to be logged: the scores and masks of all patients, and where they come from.

    `origin` is the tag that says so. `parts` are all runs whose costs add up, besides the run's own `costs`; each
    part predicts a slice in so many `views`. `comparisons` are sentences.
    """

    origin: Mapping[str, str]
    title: str
    place: Place
    parts: Sequence[Run]
    fingerprint: str
    scores: Sequence[CaseScore]
    masks: Masks
    settings: Mapping[str, str]
    facts: Mapping[str, str]  # for its model card
    comparisons: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    views: int = 1
    costs: Mapping[str, float] = field(default_factory=dict)


def log_derived(store: Store, run: DerivedRun, pack: Pack, *, display: Display) -> str:
    """Log it as a finished cross-validation, print its scores and comparisons, and return its id."""
    place, task = run.place, run.place.task
    cases = place.folds.merge(case_rows(run.scores), on="case")
    slices = slice_table(run.scores)
    values = summarise(cases)
    tags = {**place.tags, Tag.TASK: task.name, Tag.FINGERPRINT: run.fingerprint, Tag.KIND: PARENT}
    tags |= {**run.origin, **run.tags}
    with open_run(store, run.title, place.experiment, tags, say=display.say) as recorder:
        # A search for a part counts for the whole. Parts may share a search, so the longest counts, not the sum.
        trials = max((search_trials(part.data.params) for part in run.parts), default=0)
        recorder.settings({"run.searched": str(trials), **run.settings})
        recorder.data(pack.manifest.dataset, pack.manifest.key, pack.profile())
        recorder.metrics(values | _costs(run))
        recorder.table("cases", cases)
        recorder.table("slices", slices)
        recorder.table("split", place.split)
        for fold, members in place.folds.groupby("fold")["case"]:
            with recorder.child(f"fold {fold}", {Tag.FOLD: str(fold)}) as child:
                record_masks(child, run.masks.of(members), run.scores)
        if task.primary in cases:  # overlays are chosen by it, and masks alone have no Brier score
            for name, pixels in task.pictures(pack, cases, slices, run.masks).items():
                recorder.image(name, pixels)
        recorder.tags({"mlflow.note.content": model_card(run.title, run.facts, values)})
    if Tag.POST_HOC not in tags:  # what was chosen after scores were seen gets no rank among the others
        update_ranks(store, recorder.run_id, display)
    console().print("\n".join((run.title, headline(values), *run.comparisons)), markup=False)
    return recorder.run_id


def update_ranks(store: Store, run_id: str, display: Display) -> Board:
    """Rank the board of a finished run again, log the rank of every run as metrics, and return the board."""
    tags = store.client.get_run(run_id).data.tags
    same = {tag: tags[tag] for tag in (Tag.DATA, Tag.SPLIT)}
    records = read_records(store, tags=same, tick=display.reading)
    with display.doing("ranking"):
        board = board_of_run(records, run_id)
    log_ranks(store, rank_metrics(board), partial(display.bar, what="logging ranks", unit="runs"))
    return board


def derive_fingerprint(*parts: str) -> str:
    """Return the fingerprint of a derived run, from the words and fingerprints that define it."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def score_masks(
    task: Segmentation,
    pack: Pack,
    masks: Mapping[str, Mask],
    tick: Tick = lambda done, of: None,
    *,
    probabilities: Mapping[str, NDArray[np.float32]] | None = None,
) -> list[CaseScore]:
    """Score every patient by all metrics, or without `probabilities` (S, K, H, W) by those that need none.

    `tick(done, of)` follows each patient.
    """
    numbers = pack.index["slice"].to_numpy()
    scores = []
    for case, mask in masks.items():
        rows = pack.rows([case])
        own = ..., *pack.own_grid(rows)
        truth, mask = pack.truth(rows)[own], mask[own]
        of_rows = case, numbers[rows].tolist(), pack.structures.names
        probability = None if probabilities is None else probabilities[case][own]
        scores.append(task.score_mask(*of_rows, truth, mask, pack.spacing(rows), probability))
        tick(len(scores), len(masks))
    return scores


def case_rows(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """Return one row per patient: case, every metric, pixel counts."""
    return pd.DataFrame(patient_rows(scores))


def describe_change(after: pd.DataFrame, before: pd.DataFrame, name: str) -> str:
    """Return one sentence on the change from the run called `name`: Dice of pixel counts, patient by patient."""
    both = after.merge(before, on="case", suffixes=("", "_before"))
    new, old = (dice_of(*both[[f"{c}{end}" for c in ("tp", "fp", "fn")]].to_numpy().T) for end in ("", "_before"))
    defined = ~np.isnan(new + old)
    paired = compare_paired(new[defined], old[defined])
    counts = "".join(
        f"; {column.replace('_', ' ')} {before[column].sum():.0f} to {after[column].sum():.0f}"
        for column in ("false_positive_slices", "missed_slices")
        if column in before
    )
    return (
        f"against {name}: Dice {paired.difference:+.3f} (95% interval {paired.interval.low:+.3f} to "
        f"{paired.interval.high:+.3f}), better in {paired.wins:.0%} of {paired.n} patients, "
        f"Wilcoxon p = {paired.p:.2g}{counts}"
    )


def _costs(run: DerivedRun) -> dict[str, float]:
    """Return the costs of a run and of all its parts; a cost that one part has not logged is left out."""
    logged = [part.data.metrics for part in run.parts]
    own = {f"cost/{name}": value for name, value in run.costs.items()}
    times = dict.fromkeys(COSTS, 1) | dict.fromkeys(COSTS_PER_VIEW, run.views)
    return own | {
        f"cost/{name}": times[name] * sum(metrics[f"cost/{name}"] for metrics in logged)
        for name in times
        if logged and all(f"cost/{name}" in metrics for metrics in logged)
    }
