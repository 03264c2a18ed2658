"""The expected time of a run, and the flags that make a first run small."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.config import RunConfig
from bench.console import Display
from bench.experiments import expected_time
from bench.experiments.expected_time import say_expected_time, smaller_run
from bench.overrides import override
from bench.training.experiment import Experiment, resolve
from tests.training.test_cross_validation import TINY


@pytest.mark.parametrize(
    ("hours", "size", "epochs", "folds", "flags", "minutes"),
    [
        (1, 256, 20, 5, "--image-size 128", 15),  # a quarter of the pixels
        (4, 256, 20, 5, "--image-size 64", 15),
        (8, 256, 20, 5, "--image-size 64 --epochs 10", 15),
        (40, 256, 20, 5, "--image-size 64 --epochs 2", 15),
        (200, 256, 20, 5, "--image-size 64 --epochs 2 --fold 0", 15),
        (2000, 256, 20, 5, "--image-size 64 --epochs 2 --fold 0", 150),  # no smaller run is known
        (2, 64, 20, 5, "--epochs 2", 12),
        (2, 64, 2, 5, "--fold 0", 24),
        (2, 64, 1, 1, "", 120),
    ],
)
def test_the_fewest_flags_make_a_first_run_of_a_quarter_of_an_hour(
    hours: float, size: int, epochs: int, folds: int, flags: str, minutes: float
) -> None:
    found, seconds = smaller_run(hours * 3600, size=size, epochs=epochs, folds=folds)
    assert (found, seconds) == (flags, pytest.approx(minutes * 60))


def test_runs_on_patches_are_not_made_smaller_by_the_image_size() -> None:
    assert smaller_run(7200, size=256, epochs=20, folds=5, resizes=False)[0] == "--epochs 2"


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    return resolve(override(RunConfig(), TINY))


@pytest.mark.parametrize(("seconds", "said"), [(75, 1), (36_000, 2)])
def test_a_run_of_hours_is_announced_with_a_smaller_one(experiment, monkeypatch, capsys, seconds, said) -> None:
    monkeypatch.setattr(expected_time, "estimate_time", lambda *_, **__: SimpleNamespace(seconds=seconds))
    with Display() as display:
        say_expected_time(experiment, None, display)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said
    assert lines[0] == f"expected time: about {'1 min 15 s' if said == 1 else '10 h 00 min'} on cpu"
    assert said == 1 or lines[1].startswith("for a first run of about ")
