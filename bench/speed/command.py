"""`bench speed`: measure, print, keep."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from bench.console import console, frame_table
from bench.environment import environment
from bench.speed import FIGURES, SCALING, check, measure
from bench.speed.figure import Figure, dump
from bench.speed.forecast import PLAN, costs, forecast
from bench.speed.problem import problem
from bench.speed.scaling import measure_scaling, plot
from bench.speed.table import table
from bench.tracking import KIND, connect, open_run


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
            suites = {"as measured here": forecast(costs(curves)), "half of the roof of an H200": forecast(PLAN)}
            for title, frame in {SCALING: curves, **suites}.items():
                screen.print(frame_table(title, frame))
                frame.to_csv(made / f"{title.replace(' ', '-').lower()}.csv", index=False, float_format="%.6g")
        if out is not None:
            shutil.copytree(made, out, dirs_exist_ok=True)
        tags = {KIND: "speed", **{f"env.{k}": v for k, v in facts.items()}}
        with open_run(connect(uri), f"speed {' '.join(names) or 'all'}", "bench speed", tags) as run:
            run.settings({"data": given.source.name, "repeats": repeats, "quick": quick, "device": given.device})
            run.metrics({_metric(f): f.ratio for f in found if f.ratio is not None})
            run.files(made, "speed")


def _metric(figure: Figure) -> str:
    """A name that MLflow takes, such as 'step/eager float32 NCHW U-Net 32 batch 16 of 256x256'."""
    said = (
        f"{figure.peer} {figure.note.partition(';')[0]}" if figure.name not in ("eval", "track") else figure.peer
    )
    return f"{figure.name}/" + re.sub(r"[^\w ./-]+", "", said).strip()[:200]
