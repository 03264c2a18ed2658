"""Measure speed figures, print them, log them to MLflow and write them to files."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.console import console
from bench.device import keep_memory
from bench.environment import environment
from bench.errors import UnknownName, did_you_mean
from bench.text_table import print_frame
from bench.tracking import connect, open_run
from bench.tracking.tags import Tag
from benchmarks.speed import epochs, loading, nnunet, ranking, recording, scoring, training, warping
from benchmarks.speed.figure import SpeedFigure, dump
from benchmarks.speed.problem import SpeedProblem, make_problem
from benchmarks.speed.scaling import measure_scaling
from benchmarks.speed.scaling_laws import plot
from benchmarks.speed.table import make_table

Measure = Callable[[SpeedProblem], list[SpeedFigure]]
DEFAULT: dict[str, Measure] = {
    "data": loading.measure,
    "augment": warping.measure,
    "step": training.measure_steps,
    "ablation": training.measure_ablation,
    "roof": training.measure_roofs,
    "epoch": epochs.measure,
    "folds": epochs.measure_folds,
    "eval": scoring.measure,
    "track": recording.measure,
    "rank": ranking.measure,
}
BY_NAME: dict[str, Measure] = {"nnunet": nnunet.measure}  # takes a minute: measured only when named
SCALING = "scaling"  # curves instead of comparisons


def run_speed(
    names: list[str],
    *,
    folder: Path | None,
    repeats: int,
    quick: bool,
    device: str,
    out: Path | None,
    uri: str | None,
) -> None:
    """Measure the named figures, or all of `DEFAULT`; print them, log them, and write them to `out`."""
    check_names(names)
    problem = make_problem(folder, repeats=repeats, quick=quick, device=device)
    machine, screen = environment(problem.device), console()
    compared = [name for name in names if name != SCALING] or ([] if names else list(DEFAULT))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        figures = measure_figures(compared, problem)
        if figures:
            screen.print(make_table(figures))
            (workspace / "speed.json").write_text(dump(figures, machine) + "\n")
        if SCALING in names:
            curves = measure_scaling(problem, device=problem.device)
            plot(curves).savefig(workspace / "scaling.png", dpi=110)
            print_frame(screen, SCALING, curves, wide=True)
            curves.to_csv(workspace / "scaling.csv", index=False, float_format="%.6g")
        if out is not None:
            shutil.copytree(workspace, out, dirs_exist_ok=True)
        tags = {Tag.KIND: "speed", **{f"env.{k}": v for k, v in machine.items()}}
        with open_run(connect(uri), f"speed {' '.join(names) or 'all'}", "bench speed", tags) as run:
            run.settings(
                {"data": problem.source.name, "repeats": repeats, "quick": quick, "device": problem.device}
            )
            run.metrics({_metric_name(f): f.ratio for f in figures if f.ratio is not None})
            run.files(workspace, "speed")


def check_names(names: Iterable[str]) -> None:
    """Raise `UnknownName` for the first name that is not a figure."""
    known = [*DEFAULT, *BY_NAME, SCALING]
    for name in names:
        if name not in known:
            raise UnknownName(
                f"no speed figure named '{name}'.{did_you_mean(name, known)} Choose from: {', '.join(known)}."
            )


def measure_figures(names: Iterable[str], problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure the named figures in this order, with memory handled as in `bench run`."""
    keep_memory()
    return [figure for name in names for figure in (DEFAULT | BY_NAME)[name](problem)]


def _metric_name(figure: SpeedFigure) -> str:
    """Return a name that MLflow accepts, such as 'step/eager float32 NCHW U-Net 32 batch 16 of 256x256'."""
    label = figure.peer if figure.name in ("eval", "track") else f"{figure.peer} {figure.note.partition(';')[0]}"
    return f"{figure.name}/" + re.sub(r"[^\w ./-]+", "", label).strip()[:200]
