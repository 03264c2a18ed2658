"""Side-by-side speed: each figure times what the suite does against what it would otherwise be done with.

Both sides run in one process and take turns, A B A B, so that a busy machine slows both alike. What is printed is
the median of several turns and their range; a figure that is lost is printed like one that is won.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bench.errors import UnknownName, did_you_mean
from bench.speed import loading, recording, scoring, warping
from bench.speed.figure import Figure, race
from bench.speed.problem import Problem, problem

FIGURES: dict[str, Callable[[Problem], list[Figure]]] = {
    "data": loading.figures,
    "augment": warping.figures,
    "eval": scoring.figures,
    "track": recording.figures,
}

__all__ = ["FIGURES", "Figure", "Problem", "measure", "problem", "race"]


def measure(
    names: Iterable[str] = (), *, folder: Path | None = None, repeats: int = 7, quick: bool = False
) -> list[Figure]:
    """The named figures, or all, on the data of `folder`, or on the phantom. Raises `UnknownName`."""
    chosen = list(names) or list(FIGURES)
    for name in chosen:
        if name not in FIGURES:
            raise UnknownName(
                f"no speed figure '{name}'.{did_you_mean(name, FIGURES)} There are: {', '.join(FIGURES)}."
            )
    given = problem(folder, repeats=repeats, quick=quick)
    return [figure for name in chosen for figure in FIGURES[name](given)]
