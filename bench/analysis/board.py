from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One configuration on a board: a run, or the mean of several that differ in their seeds.

    `score` is the board's primary metric and `low` to `high` its 95% interval; how it stands to the others is
    explained at `bench.analysis.ranking.RankedModel`. `scores` are all that the runs have logged of all patients together.
    """

    rank: int
    name: str
    model: str
    encoder: str
    loss: str
    weights: str
    score: float
    low: float
    high: float
    difference: float  # to the leader
    difference_low: float
    difference_high: float
    p: float
    group: int
    first: float
    rank_low: int
    rank_high: int
    seeds: int
    folds: int
    patients: int
    budget: str  # slices seen in a fold and their size: rows of unlike budgets tell of budgets, too
    epochs: float  # of a fold, on average
    images: float
    parameters: float
    flops: float  # of one slice, a forward pass
    wall_seconds: float
    device_seconds: float  # of training, times the threads or GPUs
    peak_memory_mb: float
    latency_p50_ms: float  # of one slice by itself
    latency_p95_ms: float
    hardware: str
    members: int  # runs that its masks were put together from, 1 for a model by itself
    searched: int  # trials of the search that found the configuration
    seed: str
    data: str
    split: str
    synthetic: bool
    run_id: str  # the newest
    runs: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()  # runs of seeds of which another one counts: a newer one, or one of this store
    imported: bool = False  # any of its runs was scored elsewhere
    scores: Mapping[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Every column by its name."""
        own = asdict(self) | {"runs": " ".join(self.runs), "repeats": " ".join(self.repeats)}
        return own | {k: v for k, v in own.pop("scores").items() if k not in own}


@dataclass(frozen=True)
class Board:
    """Rows that may be compared, and what they have in common.

    `primary` is the score that ranks, `left_out` the patients for whom it is not defined in some row: they count
    for no row.
    """

    task: str
    primary: str
    dataset: str
    data_key: str
    split_hash: str
    patients: int
    synthetic: bool
    post_hoc: bool
    left_out: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        judged = f"{self.patients - len(self.left_out)} of " if self.left_out else ""
        what = f"{self.dataset}{' (SYNTHETIC, not patients)' if self.synthetic else ''}"
        what += " · presence of tumour" if self.task == "presence" else ""
        what += " · RESCORED after the test scores were seen: no fair competitors" if self.post_hoc else ""
        return f"{what} · data {self.data_key[:8]} · split {self.split_hash} · {judged}{self.patients} patients"

    @property
    def counts_healthy(self) -> bool:
        """Some patients have no tumour, and rows say for how many of them they predict one."""
        return any("false_positive_patients" in row.scores for row in self.rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing the ranks."""
        said = []
        if len({row.budget for row in self.rows}) > 1:
            said.append("Budgets differ between rows: so may their scores, whatever the model.")
        if len(self.rows) > 1:
            one = all(row.seeds == 1 for row in self.rows)
            seeds = "One seed a row" if one else "However many seeds a row has"
            said.append(f"{seeds}: p speaks of these fitted models; trained anew, ranks may change.")
        if searched := [row.name for row in self.rows if row.searched]:
            who = _listed(searched, self.rows)
            said.append(f"Found by a search: {who}. Unless nested, it may have looked at patients tested here.")
        if joined := [row.name for row in self.rows if row.members > 1]:
            who = _listed(joined, self.rows)
            said.append(f"Put together from finished runs, whose test scores could be seen before: {who}.")
        if imported := [row.name for row in self.rows if row.imported]:
            said.append(f"Imported, not scored in this store: {_listed(imported, self.rows)}.")
        if self.left_out:
            who = ", ".join(self.left_out[:3]) + (" ..." if len(self.left_out) > 3 else "")
            count = "1 patient counts" if len(self.left_out) == 1 else f"{len(self.left_out)} patients count"
            seen = "shows in the counts of false positives alone" if self.counts_healthy else "does not show"
            others = f" What other rows got wrong there {seen}." if len(self.rows) > 1 else ""
            said.append(f"{count} for no row, as {self.primary} is undefined: {who}.{others}")
        return tuple(said)


def _listed(names: Sequence[str], rows: Sequence[Row]) -> str:
    return "all rows" if len(names) == len(rows) > 1 else ", ".join(names)
