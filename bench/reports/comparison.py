"""`bench compare`: two logged runs, patient by patient, as tables, a figure and what may be claimed of them.

Nothing is trained or predicted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from bench.analysis.claims import Side
from bench.analysis.comparison import Comparison, compare_cases
from bench.analysis.strata import groups_of
from bench.console import Display, console
from bench.data.readers.patient_folders import identify
from bench.errors import BenchError
from bench.formatting import SYNTHETIC_WARNING, between, decimal, p_value, plain, signed
from bench.stats import Interval
from bench.tracking import Run, connect, read_table
from bench.tracking.run_data import shared_pack
from bench.tracking.selection import comparable_pair

TAKES = "Compare segmentation runs: presence is judged over slices, not scored patient by patient."


CAPTION = {
    "patients": "A better: the probability of superiority. Effect sizes above 0 favour A. "
    "p is of this pair alone: it is too small for a pair picked out of many.",
    "folds": "Corrected resampled t-test, and the posterior of the same distribution.",
    "strata": "Exploratory: the groups are small and many, so nothing is tested.",
}


COLOURS = {"A better": "#4059ad", "B better": "#d1495b", "equal": "0.5"}


def compare(
    a: str,
    b: str,
    *,
    primary: str = "dice",
    data: Path | None = None,
    out: Path | None = None,
    uri: str | None = None,
) -> Comparison:
    """Compare two logged runs and print it; `out` gets comparison.json and comparison.png.

    `primary` is any metric that both have logged of patients. `data` is the folder of the data set, by default
    where a run found it; missing sequences are known from there. Raises `BenchError`.
    """
    store = connect(uri)
    runs = comparable_pair(store, a, b, TAKES)
    cases = read_table(store, runs[0], "cases"), read_table(store, runs[1], "cases")
    names = [str(case) for case in cases[0]["case"]]
    groups = pd.DataFrame({"institution": [identify(Path(name))[1] for name in names]}, index=names)
    with Display() as display:
        try:
            groups = groups_of(shared_pack(store, runs, data, display))
        except BenchError as error:
            if data is not None:
                raise
            display.say(f"missing sequences are left out, as the data are not at hand: {plain(str(error))}")
    found = compare_cases(*cases, sides=(_side(runs[0]), _side(runs[1])), primary=primary, groups=groups)
    if runs[0].data.tags.get("bench.synthetic") == "true":
        found = replace(found, claim=f"{found.claim} {SYNTHETIC_WARNING}")
    show(found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.json").write_text(json.dumps(found.as_json(), indent=1, allow_nan=False))
        comparison_figure(found).savefig(out / "comparison.png", dpi=150)
        console().print(f"comparison.json and comparison.png are in {plain(str(out))}", markup=False)
    return found


def _side(run: Run) -> Side:
    params = run.data.params
    derived = "dataset.name" not in params
    weights = params.get("model.weights", None if derived else "")
    return Side(
        name=plain(str(run.info.run_name)),
        run_id=run.info.run_id,
        images=run.data.metrics.get("cost/images", math.nan),
        weights="" if weights == "None" else weights,
        derived=derived,
        post_hoc="bench.post_hoc" in run.data.tags,
    )


def show(found: Comparison) -> None:
    """Print it: patients, folds, strata, those who gain and lose most, and last what may be claimed."""
    out, scale, one, folds = console(), found.scale, found.paired, found.procedure
    score, change = partial(decimal, digits=scale.digits), partial(signed, digits=scale.digits)

    def ends(of: Interval) -> str:
        return between(of.low, of.high, change)

    for name, side in (("A", found.a), ("B", found.b)):
        out.print(f"{name}: {side.name} ({side.run_id[:8]})", markup=False, soft_wrap=True)
    patients = {
        "patients": str(one.n),
        "A": score(found.means[0]),
        "B": score(found.means[1]),
        "A - B": change(one.difference),
        "95% interval": ends(one.interval),
        "Wilcoxon p": p_value(one.p),
        "A better": f"{one.wins:.0%}",
        "ties": f"{found.ties:.0%}",
        "B better": f"{found.losses:.0%}",
        "rank-biserial": signed(found.rank_biserial, 2),
        "d_z": signed(found.d_z, 2),
    }
    trained = {
        "folds": str(folds.n),
        "A - B": change(folds.difference),
        "95% interval": ends(folds.interval),
        "p": p_value(folds.p),
        "P(A better)": decimal(folds.better, 2),
        f"P(within {scale.rope:g})": decimal(folds.same, 2),
        "P(B better)": decimal(folds.worse, 2),
    }
    strata = [
        {
            "patients by": s.kind,
            "": s.name,
            "n": str(s.n),
            "A": score(s.a),
            "B": score(s.b),
            "A - B": change(s.difference),
            "95% interval": ends(s.interval),
            "A better": f"{s.wins:.0%}",
        }
        for s in found.strata
    ]
    extremes = [
        {
            "A": what,
            "patient": row["case"],
            "fold": str(row["fold"]),
            "A's": score(row["a"]),
            "B's": score(row["b"]),
            "A - B": change(row["difference"]),
            "tumour pixels": f"{row['tumour_pixels']:,}",
        }
        for what, rows in (("gains", found.gains), ("loses", found.falls))
        for row in rows.to_dict("records")
    ]
    for title, rows, caption in (
        (f"{scale.metric} of patients: the models as they were fitted", [patients], CAPTION["patients"]),
        ("means of folds: the ways to train them", [trained], CAPTION["folds"]),
        ("where each is better", strata, CAPTION["strata"]),
        ("who gains and loses most by A", extremes, ""),
    ):
        if rows:
            out.print(_table(title, rows, caption))
    if found.undefined:
        names = plain(", ".join(found.undefined))
        out.print(f"{scale.metric} is not defined in both for {names}", markup=False, soft_wrap=True)
    out.print(plain(found.claim), markup=False, soft_wrap=True)


def comparison_figure(found: Comparison) -> Figure:
    """Left the two scores of each patient, right their differences in order, with the mean and its interval."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    metric, mean, ends = found.scale.metric, found.paired.difference, found.paired.interval
    ordered = found.patients.sort_values("difference", ignore_index=True)
    gain, places = found.scale.sign * ordered["difference"], np.arange(len(ordered))
    scores = ordered[["a", "b"]].to_numpy(np.float64)
    margin = 0.04 * np.ptp(scores) or 0.04
    limits = scores.min() - margin, scores.max() + margin
    left.plot(limits, limits, color="0.7", linestyle=":", zorder=1)
    for (who, colour), among in zip(COLOURS.items(), (gain > 0, gain < 0, gain == 0), strict=True):
        some = ordered[among]
        left.scatter(some["b"], some["a"], s=18, color=colour, alpha=0.8, label=f"{who}: {len(some)}")
        right.bar(places[among], some["difference"], width=1.0, color=colour)
    left.set(xlim=limits, ylim=limits, aspect="equal")
    left.set_xlabel(f"B: {found.b.name}", parse_math=False)
    left.set_ylabel(f"A: {found.a.name}", parse_math=False)
    left.set_title(f"{metric} of patients{'' if found.scale.higher else ' (low is good)'}", fontsize=10)
    right.axhline(0, color="0.3", linewidth=0.8)
    right.axhline(mean, color="black", linestyle="--", label=f"mean {mean:+.{found.scale.digits}f}")
    if not math.isnan(ends.low):
        right.axhspan(ends.low, ends.high, color="black", alpha=0.2, linewidth=0, label="95% interval")
    right.set(xlabel="patients in order", ylabel=f"A - B in {metric}", xticks=[])
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _table(title: str, rows: Sequence[Mapping[str, str]], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for heading, cell in rows[0].items():
        words = cell[:1].isalpha() or not heading
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row.values()))
    return table
