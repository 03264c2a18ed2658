"""The expected time of a run before it starts, and a smaller first run if that is hours."""

from __future__ import annotations

from collections.abc import Iterator

from bench.console import Display
from bench.formatting import duration
from bench.training.cross_validation import estimate_time
from bench.training.experiment import Experiment

LONG = 3600.0  # seconds above which a smaller first run is suggested
FIRST_RUN = 900.0  # seconds that a first run should take


def say_expected_time(experiment: Experiment, only: int | None, display: Display) -> None:
    """Measure a few training steps and predictions for some seconds, and say how long the run will take."""
    with display.doing("measuring the time of a training step"):
        seconds = estimate_time(experiment, only, limit=1.0).seconds
    display.say(f"expected time: about {duration(seconds)} on {experiment.device}")
    if seconds > LONG:
        flags, shorter = smaller_run(
            seconds,
            size=max(experiment.config.input.image_size or 0, *experiment.pack.images.shape[1:3]),
            epochs=experiment.config.train.epochs,
            folds=1 if only is not None else len(experiment.folds),
            resizes=experiment.config.input.patch is None,
        )
        if flags:
            display.say(f"for a first run of about {duration(shorter)}, add {flags}")


def smaller_run(seconds: float, *, size: int, epochs: int, folds: int, resizes: bool = True) -> tuple[str, float]:
    """Return the fewest flags that make a run of so many seconds a quick first run, and its expected time.

    Time is proportional to pixels, epochs and folds. The image size is reduced first and all folds are kept if
    possible, because such a run is ranked on the same board as the full one.
    """
    flags, shorter = "", seconds
    for more, share in _reductions(size if resizes else 0, epochs, folds):
        flags, shorter = more, seconds * share
        if shorter <= FIRST_RUN:
            break
    return flags, shorter


def _reductions(size: int, epochs: int, folds: int) -> Iterator[tuple[str, float]]:
    """Yield flags and the share of the time that is left with them, from the mildest to the strongest."""
    resize, share = "", 1.0
    for smaller in (128, 64):
        if smaller < size:
            resize, share = f"--image-size {smaller}", (smaller / size) ** 2
            yield resize, share
    for fewer in (10, 5, 2):
        if fewer < epochs:
            yield f"{resize} --epochs {fewer}".strip(), share * fewer / epochs
    fewest = min(2, epochs)
    if folds > 1:
        short = f" --epochs {fewest}" * (fewest < epochs)
        yield f"{resize}{short} --fold 0".strip(), share * fewest / epochs / folds
