"""The gate fails a candidate only if the whole interval of its patients shows that it is worse."""

from __future__ import annotations

from math import nan

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.cli import app, results
from bench.errors import BadSetting, BenchError, UnknownName
from bench.reports.gate import gate
from bench.tracking import Store, open_run

BASE = 0.5 + 0.02 * np.arange(10)
UP_AND_DOWN = np.tile([-0.1, 0.06], 5)  # mean -0.02, with a wide interval


def log(store: Store, name: str, scores, metric: str = "dice", **changes: str) -> str:
    """Log a finished run with these scores."""
    tags = {"data": "d", "split": "s", "convention": "1", "task": "segmentation"} | changes
    rows = pd.DataFrame({"case": [f"p{n:02}" for n in range(len(scores))], metric: scores})
    with open_run(store, name, "test", {f"bench.{key}": value for key, value in tags.items()}) as recorder:
        recorder.table("cases", rows.assign(fold=np.arange(len(rows)) % 2, tp=10, fp=0, fn=0, tn=0))
    return recorder.run_id


@pytest.fixture
def baseline(store: Store) -> str:
    return log(store, "baseline", BASE)


@pytest.mark.parametrize(
    ("change", "margin", "worse"),
    [
        (np.full(10, -0.02), None, True),  # the interval has no width: -0.02 is below -0.01
        (np.full(10, -0.02), 0.03, False),
        (np.full(10, -0.005), None, False),  # certainly worse, but by less than the margin
        (np.full(10, -0.005), 0.0, True),
        (UP_AND_DOWN, None, False),  # the mean is beyond the margin, the interval is not
        (np.full(10, 0.02), 0.0, False),
    ],
)
def test_the_gate_fails_only_if_the_whole_interval_is_below_the_margin(
    store, baseline, change, margin, worse
) -> None:
    log(store, "candidate", BASE + change)
    result = gate("baseline", "candidate", margin=margin, uri=store.uri)
    assert result.worse is worse
    assert result.message.startswith("FAILED: candidate (" if worse else "passed: candidate (")
    assert f"mean dice {change.mean():+.3f} over 10 patients" in result.message


@pytest.mark.parametrize(
    ("change", "margin", "worse"), [(2.0, None, True), (2.0, 3.0, False), (0.9, None, False), (-2.0, 0.0, False)]
)
def test_for_hd95_higher_is_worse_and_the_margin_is_in_pixels(store, change, margin, worse) -> None:
    log(store, "baseline", 10 + BASE, "hd95")
    log(store, "candidate", 10 + BASE + change, "hd95")
    assert gate("baseline", "candidate", margin=margin, primary="hd95", uri=store.uri).worse is worse


def test_runs_that_cannot_be_judged_raise(store, baseline) -> None:
    log(store, "other split", BASE, split="t")
    log(store, "presence", BASE, task="presence")
    log(store, "half", np.where(np.arange(10) < 6, BASE, nan))
    log(store, "five", np.where(np.arange(10) < 5, BASE, nan))
    log(store, "fewer", BASE[:5])
    log(store, "one", BASE[:1])
    log(store, "another", BASE[:1])
    for a, b, message in (
        ("baseline", "other split", "differ in split"),
        ("baseline", "presence", "not a finished segmentation"),
        ("baseline", "half", "4 patients with tumour have no dice in one of"),
        ("baseline", "five", "5 patients are too few to judge: at least 6 are needed"),
        ("baseline", "fewer", "did not test the same patients"),
        ("one", "another", "1 patient is too few to judge"),
        ("baseline", baseline, "are one run"),
    ):
        with pytest.raises(BenchError, match=message):
            gate(a, b, uri=store.uri)
    with pytest.raises(UnknownName, match="no run 'nobody'"):
        gate("baseline", "nobody", uri=store.uri)
    for margin in (-0.1, nan):
        with pytest.raises(BadSetting, match="margin"):
            gate("baseline", "half", margin=margin, uri=store.uri)


def test_patients_without_tumour_are_left_out_and_false_positives_reported(store) -> None:
    """Three of ten have none: the candidate predicts tumour in one of them (Dice 0), the baseline in none."""
    healthy = np.arange(10) < 3
    for name, fp in (("baseline", 0), ("candidate", np.where(np.arange(10) == 0, 7, 0))):
        counts = {"tp": np.where(healthy, 0, 10), "fp": fp, "fn": 0, "tn": 0}
        scores = np.where(healthy, np.where(counts["fp"], 0.0, nan), BASE)
        rows = pd.DataFrame({"case": [f"p{n}" for n in range(10)], "fold": np.arange(10) % 2, "dice": scores})
        tags = {"data": "d", "split": "s", "convention": "1", "task": "segmentation"}
        with open_run(store, name, "test", {f"bench.{key}": value for key, value in tags.items()}) as recorder:
            recorder.table("cases", rows.assign(**counts))
    result = gate("baseline", "candidate", uri=store.uri)
    assert "over 7 patients" in result.message
    assert result.message.endswith(
        "3 patients without tumour are left out: A predicts tumour in 1 of them, B in 0. A is the candidate."
    )


def test_the_exit_code_reports_the_result(store, baseline) -> None:
    assert results.gate in {command.callback for command in app.registered_commands}
    log(store, "candidate", BASE - 0.02)
    arguments = ["gate", "--baseline", "baseline", "--candidate", "candidate", "--tracking-uri", store.uri]
    for options, code in (([], 1), (["--margin", "0.03"], 0)):
        result = CliRunner().invoke(app, [*arguments, *options])
        assert result.exit_code == code
        assert "over 10 patients (95% interval -0.020 to -0.020)" in result.output
    assert isinstance(CliRunner().invoke(app, [*arguments, "--margin", "-1"]).exception, BadSetting)  # `main`: 2


def test_the_gate_judges_one_structure_alone(store) -> None:
    for name, loss in (("baseline", 0.0), ("candidate", 0.05)):
        rows = {"core": BASE - loss, "rim": BASE}
        table = pd.DataFrame({"case": [f"p{n:02}" for n in range(len(BASE))], "dice": BASE})
        columns = {f"dice[{s}]": values for s, values in rows.items()}
        tags = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.task": "segmentation"}
        with open_run(store, f"{name}-two", "test", tags) as recorder:
            recorder.table("cases", table.assign(**columns, fold=0, tp=10, fp=0, fn=0, tn=0))
    core, rim = (gate("baseline-two", "candidate-two", structure=s, uri=store.uri) for s in ("core", "rim"))
    assert (core.worse, rim.worse) == (True, False)
    assert "mean dice[core] -0.050 over 10 patients" in core.message
