"""What a suite says: the state of its cells, its boards, and its own figures beside published ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.live import Live
from rich.table import Table

from bench.analysis.board import Board
from bench.analysis.score_facts import HEADLINE
from bench.config import RunConfig
from bench.console import console, frame_table
from bench.experiments.suite import (
    DONE,
    RUNNING,
    Estimate,
    State,
    Told,
    board_of,
    makespan,
    states,
    whereabouts,
)
from bench.experiments.suite_file import Cell, Suite
from bench.formatting import duration
from bench.reports.tables import board_markdown, board_table, frame_markdown
from bench.tracking import KIND, LEAKY, Run, Store

NOTE = (
    "same definition: our run by the metric that is defined as the published score is; per patient: mean Dice "
    "over patients (AUROC over slices where presence is asked for), 95% interval; –: not run, or no score of ours "
    "is defined so. A LEAKY row is no result: slices of its test patients were trained on."
)


def status(found: Sequence[State]) -> pd.DataFrame:
    """A row a cell: entry, state, run, score with interval, time, and what went wrong if it has failed."""
    return pd.DataFrame([_row(s) for s in found])


def planned(found: Sequence[Estimate], workers: int) -> tuple[pd.DataFrame, str]:
    """A row a cell with the time that it would take, and a sentence on all of them."""
    rows = [
        {
            **{k: v for k, v in _row(e.found).items() if k in ("entry", "state", "epochs")},
            "training": "–" if e.seconds is None else duration(e.seconds),
            "problem": e.problem,
        }
        for e in found
    ]
    seconds = [e.seconds for e in found if e.seconds is not None]
    unknown = sum(bool(e.problem) for e in found)
    said = [
        f"{len(seconds)} cells to run: {duration(sum(seconds))} of training, "
        f"about {duration(makespan(seconds, workers))} with {workers} worker{'s' * (workers > 1)}"
    ]
    said += [f"{unknown} more cannot be estimated, and would fail"] * bool(unknown)
    return pd.DataFrame(rows), "; ".join(said)


@contextmanager
def watched(suite: Suite, store: Store) -> Iterator[Told]:
    """What `run_suite` tells, printed; on a terminal also a table of all cells, with where those at work are."""
    screen = console()
    now = {s.cell.name: s.state for s in states(suite, store)}

    def table() -> Table:
        rows = [
            {"entry": c.name, "state": now[c.name], "at": whereabouts(c, store) if now[c.name] == RUNNING else ""}
            for c in suite.cells
        ]
        return frame_table(suite.title, pd.DataFrame(rows))

    def told(cell: Cell, state: str, text: str) -> None:
        now[cell.name] = state
        screen.print(text, markup=False)

    if not screen.is_terminal:
        yield told
        return
    with Live(get_renderable=table, console=screen, refresh_per_second=0.5):
        yield told


def counted(found: Sequence[State]) -> str:
    """'3 done, 1 missing', in the order in which they are met."""
    return ", ".join(f"{count} {state}" for state, count in Counter(s.state for s in found).items())


def comparison(suite: Suite, found: Sequence[State]) -> pd.DataFrame:
    """A row a published figure: what was printed, ours under the same definition, ours per patient."""
    runs = {s.cell.name: s.run for s in found if s.state == DONE}
    rows = []
    for figure in suite.published:
        run = runs.get(figure.entry)
        ours = run.data.metrics.get(figure.metric or "") if run is not None else None
        rows.append(
            {
                "entry": figure.entry,
                "score": figure.what,
                "published": f"{figure.value:.4g}",
                "same definition": "–" if ours is None else f"{ours:.4f} ({figure.metric})",
                "per patient": "–" if run is None else _score(run),
                "where": figure.where,
            }
        )
    return pd.DataFrame(rows)


def page(suite: Suite, found: Sequence[State], made: Sequence[Board], command: str) -> str:
    """All of it as Markdown, with the command that prints it again."""
    parts = [
        f"# {suite.title}",
        f"Budget `{suite.budget}`: {counted(found)}. Printed by:",
        f"```sh\n{command}\n```",
    ]
    machine = [s.run for s in found if s.run is not None and "env.device" in s.run.data.tags]
    if machine:
        tags = machine[0].data.tags
        parts.append(f"On {tags['env.device']}; bench {tags['env.bench']}, torch {tags['env.torch']}.")
    parts += ["## Cells", frame_markdown(status(found)), "## Leaderboard", board_markdown(made).strip()]
    if suite.published:
        parts += ["## Beside the published figures", frame_markdown(comparison(suite, found)), NOTE]
    return "\n\n".join(parts) + "\n"


def show(suite: Suite, found: Sequence[State], store: Store, *, command: str, out: Path | None = None) -> None:
    """Print the page; with `out`, write it there as well."""
    screen, made = console(), board_of(found, store)
    screen.print(frame_table(f"{suite.title} · budget {suite.budget}: {counted(found)}", status(found)))
    for board in made:
        screen.print(board_table(board))
    if suite.published:
        screen.print(frame_table("beside the published figures", comparison(suite, found)))
        screen.print(NOTE, markup=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(suite, found, made, command))
        screen.print(f"the page is in {out}", markup=False)


def _row(found: State) -> dict[str, str]:
    run = found.run
    problem = "" if run is None or found.state == DONE else run.data.tags.get("bench.error", run.info.status)
    return {
        "entry": found.cell.name,
        "state": found.state,
        "run": "" if run is None else run.info.run_id[:8],
        "score": "" if run is None or found.state != DONE else _score(run),
        "epochs": f"{found.cell.what.train.epochs}" if isinstance(found.cell.what, RunConfig) else "",
        "time": "" if run is None else duration(run.data.metrics.get("cost/wall_seconds", math.nan)),
        "problem": problem,
    }


def _score(run: Run) -> str:
    """'Dice 0.812 [0.790, 0.830]', and LEAKY where it is."""
    name = HEADLINE[run.data.tags.get("bench.task", "segmentation")]
    value, low, high = (run.data.metrics.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
    leaky = "LEAKY " if run.data.tags.get(KIND) == LEAKY else ""
    return f"{leaky}{'Dice' if name == 'dice' else 'AUROC'} {value:.3f} [{low:.3f}, {high:.3f}]"
