"""Turn the runs of one configuration into a row of a board."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bench.analysis.board import BoardRow
from bench.analysis.ranking import RankedModel
from bench.analysis.score_facts import COSTS
from bench.analysis.structure_view import score_names
from bench.formatting import letter
from bench.tracking.tags import Tag, is_derived
from bench.types import RunRecord

CONFIGURATION = "configuration"  # group runs that differ only in their seeds
RUN = "run"  # every run is a row


def row_key(record: RunRecord, group_by: str) -> str:
    """Return what records of one row have in common."""
    if group_by == RUN:
        return record.run_id
    if group_by == CONFIGURATION:
        own = {k: v for k, v in record.settings.items() if not k.startswith(("run.", "plan.", "dataset.folder"))}
        return str(sorted(own.items())) if own else record.run_id
    return str(record.settings.get(group_by, record.run_id))  # a run without the setting is a row of its own


def one_per_seed(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Keep one run per configuration and seed, as a repeated seed would count twice.

    A run of this store is preferred to an imported one, and a newer to an older one; `records` are newest first.
    """
    chosen: dict[tuple[str, str], str] = {}
    for record in sorted(records, key=lambda run: Tag.IMPORTED in run.tags):
        chosen.setdefault((row_key(record, CONFIGURATION), record.settings.get("run.seed", "")), record.run_id)
    return [record for record in records if record.run_id in chosen.values()]


def build_row(
    runs: Sequence[RunRecord], ranked: RankedModel, every: Sequence[RunRecord], group_by: str
) -> BoardRow:
    """Build the row of `runs`, which are those of `every` that count."""
    newest = runs[0]
    seeds = sorted({run.settings.get("run.seed", "?") for run in runs})
    own_name = group_by in (CONFIGURATION, RUN) or len({run.name for run in runs}) == 1
    names = {column: name for run in runs for column, name in score_names(run).items()}
    logged = {column: names[column] for column in sorted(names) if not column.startswith("rank")}
    trained = not is_derived(newest.tags, newest.settings)
    return BoardRow(
        rank=ranked.rank,
        name=newest.name if own_name else _setting(newest, group_by) or "none",
        model=_common(runs, "model.name", "guest.model") or "?",
        encoder=_common(runs, "model.encoder", "guest.encoder"),
        loss=_common(runs, "loss.name", "guest.loss") or "?",
        weights=_common(runs, "model.weights", "guest.weights") or ("scratch" if trained else ""),
        score=ranked.mean,
        low=ranked.interval.low,
        high=ranked.interval.high,
        difference=ranked.difference,
        difference_low=ranked.difference_interval.low,
        difference_high=ranked.difference_interval.high,
        p=ranked.p,
        group=ranked.group,
        letters="".join(letter(number) for number in range(ranked.letters[0], ranked.letters[1] + 1)),
        verdict=ranked.verdict,
        first=ranked.first,
        rank_low=ranked.ranks[0],
        rank_high=ranked.ranks[1],
        seeds=len(seeds),
        folds=newest.cases["fold"].nunique() if "fold" in newest.cases else 0,
        patients=len(newest.cases),
        budget=_budget(newest) if trained else "",
        **{name: _mean(runs, f"cost/{name}") for name in COSTS},
        hardware=_setting(newest, "guest.device") if Tag.GUEST in newest.tags else newest.tags.get(Tag.DEVICE, ""),
        members=max(1 + _setting(run, "ensemble.runs").count(",") for run in runs),
        searched=max(search_trials(run.settings) for run in runs),
        seed=", ".join(seeds),
        data=newest.tags[Tag.DATA][:8],
        split=newest.tags[Tag.SPLIT],
        synthetic=newest.tags.get(Tag.SYNTHETIC) == "true",
        guest=Tag.GUEST in newest.tags,
        imported=any(Tag.IMPORTED in run.tags for run in runs),
        run_id=newest.run_id,
        runs=tuple(run.run_id for run in runs),
        repeats=tuple(run.run_id for run in every if not any(run is one for one in runs)),
        scores={column: _mean(runs, name) for column, name in logged.items()},
    )


def search_trials(settings: Mapping[str, str]) -> int:
    """Return the trials of the search that found a run's settings, or of each search inside a nested one."""
    return max(int(settings.get(key) or 0) for key in ("run.searched", "search.trials"))


def _budget(run: RunRecord) -> str:
    """Return slices seen per fold, to two digits, and their size: '24k x 64 px'."""
    folds = run.cases["fold"].nunique() if "fold" in run.cases else 0
    images = run.metrics.get("cost/images", math.nan) / folds if folds else math.nan
    if math.isnan(images) or images == 0:
        return ""
    digits = max(0, math.floor(math.log10(images)) - 1)
    seen = round(images / 10**digits) * 10**digits
    side = _setting(run, "input.patch.size") or _setting(run, "input.image_size")
    return f"{f'{seen / 1000:g}k' if seen >= 1000 else seen} x {f'{side} px' if side else 'full size'}"


def _mean(runs: Sequence[RunRecord], metric: str) -> float:
    return float(np.mean([run.metrics.get(metric, math.nan) for run in runs]))


def _common(runs: Sequence[RunRecord], *settings: str) -> str:
    """Return the value of the first of the settings that a run has, or 'several'."""
    values = {next(filter(None, (_setting(run, name) for name in settings)), "") for run in runs}
    return values.pop() if len(values) == 1 else "several"


def _setting(run: RunRecord, setting: str) -> str:
    value = run.settings.get(setting)
    return "" if value in (None, "None", "") else str(value)
