"""Measure speed figures, print them, log them and write them to files."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from bench.console import console, frame_table
from bench.environment import environment
from bench.tracking import KIND, connect, open_run
from benchmarks.speed import FIGURES, SCALING, check, measure
from benchmarks.speed.figure import SpeedFigure, dump
from benchmarks.speed.problem import problem
from benchmarks.speed.scaling import measure_scaling, plot
from benchmarks.speed.table import table


def speed(
    names: list[str],
    *,
    folder: Path | None,
    repeats: int,
    quick: bool,
    device: str,
    out: Path | None,
    uri: str | None,
) -> None:
    """Measure the figures named, or all of `FIGURES`; print them, log them, and write them to `out`."""
    check(names)
    given = problem(folder, repeats=repeats, quick=quick, device=device)
    facts, screen = environment(given.device), console()
    raced = [name for name in names if name != SCALING] or ([] if names else list(FIGURES))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as workspace:
        made = Path(workspace)
        found = measure(raced, given) if raced else []
        if found:
            screen.print(table(found))
            (made / "speed.json").write_text(dump(found, facts) + "\n")
        if SCALING in names:
            curves = measure_scaling(given, device=given.device)
            plot(curves).savefig(made / "scaling.png", dpi=110)
            screen.print(frame_table(SCALING, curves))
            curves.to_csv(made / "scaling.csv", index=False, float_format="%.6g")
        if out is not None:
            shutil.copytree(made, out, dirs_exist_ok=True)
        tags = {KIND: "speed", **{f"env.{k}": v for k, v in facts.items()}}
        with open_run(connect(uri), f"speed {' '.join(names) or 'all'}", "bench speed", tags) as run:
            run.settings({"data": given.source.name, "repeats": repeats, "quick": quick, "device": given.device})
            run.metrics({_metric(f): f.ratio for f in found if f.ratio is not None})
            run.files(made, "speed")


def _metric(figure: SpeedFigure) -> str:
    """A name that MLflow takes, such as 'step/eager float32 NCHW U-Net 32 batch 16 of 256x256'."""
    said = (
        f"{figure.peer} {figure.note.partition(';')[0]}" if figure.name not in ("eval", "track") else figure.peer
    )
    return f"{figure.name}/" + re.sub(r"[^\w ./-]+", "", said).strip()[:200]
