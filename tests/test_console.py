"""Progress: bars on a terminal and in a notebook, elsewhere a line now and then, and nothing with --quiet."""

from __future__ import annotations

import re
import sys
from itertools import count
from types import ModuleType

import pytest
from rich.console import Console

from bench.console import Display, progress_line


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every look at the clock be `seconds` after the one before."""
    now = count()
    monkeypatch.setattr("bench.console.monotonic", lambda: next(now) * seconds)


def evaluate(display: Display, patients: int) -> None:
    with display:
        for done in range(1, patients + 1):
            display.bar(done, patients, "evaluating", "patients")


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (3, "evaluating: 3 of 12 patients, 6 min 00 s left"),
        (12, "evaluating: 12 of 12 patients, 0 s left"),
        (0, "evaluating: 0 of 12 patients"),
    ],
)
def test_a_line_of_progress_says_how_long_the_rest_takes(done: int, line: str) -> None:
    assert progress_line("evaluating", done, 12, "patients", 120) == line


def test_a_slow_command_writes_a_line_a_patient_into_a_file(monkeypatch, capsys) -> None:
    clock(monkeypatch, 20)
    evaluate(Display(), 4)
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 1 of 4 patients, 1 min 00 s left",
        "evaluating: 2 of 4 patients, 40 s left",
        "evaluating: 3 of 4 patients, 20 s left",
        "evaluating: 4 of 4 patients, 0 s left",
    ]


@pytest.mark.parametrize(("seconds", "quiet"), [(0.1, False), (20, True)])
def test_quick_and_quiet_commands_write_no_progress(monkeypatch, capsys, seconds: float, quiet: bool) -> None:
    clock(monkeypatch, seconds)
    evaluate(Display(quiet=quiet), 50)
    assert capsys.readouterr().err == ""


def test_ten_hours_of_progress_are_about_a_hundred_lines(monkeypatch, capsys) -> None:
    clock(monkeypatch, 1)
    evaluate(Display(), 36_000)
    assert 80 < len(capsys.readouterr().err.splitlines()) < 200


def test_epochs_are_named_in_the_lines_of_a_fold(monkeypatch, capsys) -> None:
    clock(monkeypatch, 6)
    with Display() as display:
        display.fold(1, 5, 40)
        display.images(10)
        display.epoch(1, 4, 0.25, 0.5)
        display.images(10)
    line = "fold 1 of 5: 20 of 40 images, epoch 1/4, loss 0.250, validation 0.500, 12 s left"
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_notebook_shows_one_area_that_is_updated_and_emptied(monkeypatch) -> None:
    shown: list[object] = []

    class Area:
        def update(self, content: object) -> None:
            shown.append(content)

    fake = ModuleType("IPython.display")
    fake.display = lambda *_, **__: Area()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    display = Display()
    display.console = Console(force_jupyter=True, quiet=True)
    clock(monkeypatch, 1)
    evaluate(display, 3)
    assert shown[:-1] == [display.progress] * 3
    assert not str(shown[-1])


def test_a_terminal_shows_the_bar_and_what_has_no_steps(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display() as display:
        display.bar(1, 2, "evaluating", "patients")
        with display.doing("ranking"):
            display.progress.refresh()
    shown = capsys.readouterr().err
    for part in ("evaluating", "1/2", "patients", "ranking"):
        assert part in shown
    assert "?" not in re.sub(r"\x1b\[\?", "", shown)  # what has no steps has no count
