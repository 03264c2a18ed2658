"""Side-by-side speed: each figure times what the suite does against what it would otherwise be done with.

Both sides run in one process and take turns, A B A B, so that a busy machine slows both alike. What is printed is
the median of several turns and their range; a figure that is lost is printed like one that is won.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.device import keep_memory
from bench.errors import UnknownName, did_you_mean
from benchmarks.speed import epochs, loading, nnunet, recording, scoring, training, warping
from benchmarks.speed.figure import SpeedFigure, race
from benchmarks.speed.problem import SpeedProblem, problem

FIGURES: dict[str, Callable[[SpeedProblem], list[SpeedFigure]]] = {
    "data": loading.figures,
    "augment": warping.figures,
    "step": training.figures,
    "ablation": training.ablation,
    "roof": training.roofs,
    "epoch": epochs.figures,
    "folds": epochs.folds,
    "eval": scoring.figures,
    "track": recording.figures,
}
BY_NAME: dict[str, Callable[[SpeedProblem], list[SpeedFigure]]] = {
    "nnunet": nnunet.figures
}  # a minute; only when asked for

SCALING = "scaling"  # no race but curves: `benchmarks.speed.scaling`

__all__ = ["FIGURES", "SpeedFigure", "SpeedProblem", "measure", "problem", "race"]


def check(names: Iterable[str]) -> None:
    """Raise `UnknownName` unless there is such a figure."""
    known = [*FIGURES, *BY_NAME, SCALING]
    for name in names:
        if name not in known:
            raise UnknownName(
                f"no speed figure '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}."
            )


def measure(names: Iterable[str], given: SpeedProblem) -> list[SpeedFigure]:
    """The named figures, in this order, in a process that is set up as `bench run` sets it up."""
    keep_memory()
    return [figure for name in names for figure in (FIGURES | BY_NAME)[name](given)]
