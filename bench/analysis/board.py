"""A leaderboard as plain values: a `Board` of `BoardRow`s, with the notes that a reader needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.analysis.ranking import LEADER, MEAN_ONLY, TIED
from bench.analysis.task_rules import TaskRules, rules_of
from bench.structures import noun_of, structures_in


@dataclass(frozen=True)
class BoardRow:
    """One configuration on a board: a run, or the mean of several runs that differ only in their seeds.

    `score` is the board's primary metric and `low` to `high` its 95% interval; `difference` to `rank_high` are
    explained at `bench.analysis.ranking.RankedModel`. `scores` holds what the runs logged over all patients.
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
    budget: str  # slices seen per fold and their size
    epochs: float  # per fold, on average
    images: float
    parameters: float
    flops: float  # of one slice, forward
    wall_seconds: float
    device_seconds: float  # of training, times threads or GPUs
    peak_memory_mb: float
    latency_p50_ms: float  # of one slice at a time
    latency_p95_ms: float
    hardware: str
    members: int  # runs in an ensemble, 1 for a single model
    searched: int  # trials of the search that found the configuration
    seed: str
    data: str
    split: str
    synthetic: bool
    run_id: str  # the newest
    runs: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()  # runs whose seed is already represented by another run
    imported: bool = False  # at least one of its runs was scored elsewhere
    verdict: str = ""  # how it stands to the leader, in words
    letters: str = ""  # of a compact letter display; `group` is the number of the first
    guest: bool = False  # masks of another tool
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        """Whether the row leads, or cannot be distinguished from the leader."""
        return self.verdict in (LEADER, TIED, MEAN_ONLY)

    def flat(self) -> dict[str, Any]:
        """Return every column by its name."""
        own = asdict(self) | {"runs": " ".join(self.runs), "repeats": " ".join(self.repeats)}
        return own | {k: v for k, v in own.pop("scores").items() if k not in own}


@dataclass(frozen=True)
class Board:
    """Rows that may be compared, and what they have in common.

    `primary` is the score that ranks. `left_out` names patients for whom it is undefined in some row: they are
    left out of every row. `structure` is the only one that counts, '' if all do.
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
    rows: tuple[BoardRow, ...]
    structure: str = ""

    @property
    def rules(self) -> TaskRules:
        """How runs of this task are ranked."""
        return rules_of(self.task)

    @property
    def higher_is_better(self) -> bool:
        """The direction of the primary score."""
        return self.rules.higher_is_better(self.primary)

    @property
    def title(self) -> str:
        """Data, split and number of patients in one line."""
        scored = f"{self.patients - len(self.left_out)} of " if self.left_out else ""
        name = f"{self.dataset}{' (SYNTHETIC, not patients)' if self.synthetic else ''}{self.rules.label}"
        name += f" · {self.structure} only" if self.structure else ""
        name += " · RESCORED after the test scores were seen: no fair competitors" if self.post_hoc else ""
        return f"{name} · data {self.data_key[:8]} · split {self.split_hash} · {scored}{self.patients} patients"

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures that have scores of their own; none if there is only one."""
        return tuple(dict.fromkeys(s for row in self.rows for s in structures_in(row.scores)))

    @property
    def noun(self) -> str:
        """What is segmented, as a word."""
        return noun_of((column for row in self.rows for column in row.scores), self.structure)

    @property
    def counts_healthy(self) -> bool:
        """Whether some patients have no tumour, so that rows count false-positive patients."""
        return any("false_positive_patients" in row.scores for row in self.rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing the ranks."""
        notes = []
        if len({row.budget for row in self.rows}) > 1:
            notes.append("Budgets differ between rows, which alone can make scores differ.")
        if len(self.rows) > 1:
            single = all(row.seeds == 1 for row in self.rows)
            seeds = "With one seed per row" if single else "Whatever the number of seeds"
            notes.append(
                f"{seeds}, verdicts are about these trained models; after training again, ranks may change."
            )
        if searched := [row.name for row in self.rows if row.searched]:
            names = self._names(searched)
            notes.append(f"Found by a search: {names}. Unless nested, it may have used patients tested here.")
        if combined := [row.name for row in self.rows if row.members > 1]:
            names = self._names(combined)
            notes.append(f"Combined from finished runs, whose test scores could be seen before: {names}.")
        if imported := [row.name for row in self.rows if row.imported]:
            notes.append(f"Imported, not scored in this store: {self._names(imported)}.")
        if guests := [row.name for row in self.rows if row.guest]:
            notes.append(f"Scored from files, training not seen: {self._names(guests)}.")
        if self.left_out:
            names = ", ".join(self.left_out[:3]) + (" ..." if len(self.left_out) > 3 else "")
            count = "1 patient is" if len(self.left_out) == 1 else f"{len(self.left_out)} patients are"
            shown = "shows only in the false-positive counts" if self.counts_healthy else "does not show"
            others = f" What other rows got wrong there {shown}." if len(self.rows) > 1 else ""
            notes.append(f"{count} left out of every row, as {self.primary} is undefined: {names}.{others}")
        return tuple(notes)

    def _names(self, names: Sequence[str]) -> str:
        return "all rows" if len(names) == len(self.rows) > 1 else ", ".join(names)
