"""`bench compare`: tables, a figure and a claim about two logged runs, paired by patient.

Nothing is trained or predicted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.analysis.claims import Side
from bench.analysis.comparison import STRUCTURE, Comparison, compare_cases
from bench.analysis.strata import groups_of
from bench.console import Display, console, print_text
from bench.data.readers.patient_folders import parse_case_name
from bench.errors import BenchError
from bench.formatting import SYNTHETIC_WARNING, between, decimal, p_value, plain, signed, to_json
from bench.outputs import check_outputs, new_output, write_output
from bench.stats import Interval
from bench.text_table import print_frame
from bench.tracking import Run, connect, read_table
from bench.tracking.selection import comparable_pair, load_shared_pack
from bench.tracking.tags import Tag, is_derived

SEGMENTATION_ONLY = "Compare segmentation runs: presence is scored over slices, not per patient."
CAPTIONS = {
    "patients": "A better: the probability of superiority. Effect sizes above 0 favour A. "
    "p is for this pair alone: it is too small for a pair that was picked out of many.",
    "structures": "Over the patients for whom both runs have the score of the structure.",
    "folds": "Corrected resampled t-test, and the posterior of the same distribution.",
    "strata": "Exploratory: the groups are small and many, so nothing is tested.",
}
COLOURS = {"A better": "#4059ad", "B better": "#d1495b", "equal": "0.5"}


def compare(
    a: str,
    b: str,
    *,
    primary: str = "dice",
    structure: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
    uri: str | None = None,
) -> Comparison:
    """Compare two logged runs, and write comparison.json and comparison.png to `out`.

    `primary` is any metric that both have logged per patient; `structure` is the only one that counts, by default
    the mean over structures does. `data` is the folder of the data set, by default
    where a run read it; it is needed to find missing sequences. Raises `BenchError`.
    """
    files = [out / "comparison.json", out / "comparison.png"] if out is not None else []
    check_outputs(files)
    store = connect(uri)
    runs = comparable_pair(store, a, b, SEGMENTATION_ONLY)
    cases = read_table(store, runs[0], "cases"), read_table(store, runs[1], "cases")
    names = [str(case) for case in cases[0]["case"]]
    groups = pd.DataFrame({"institution": [parse_case_name(Path(name))[1] for name in names]}, index=names)
    with Display() as display:
        try:
            groups = groups_of(load_shared_pack(store, runs, data, display))
        except BenchError as error:
            if data is not None:
                raise
            reason = f"the data set is not available: {plain(str(error))}"
            display.say(f"missing sequences are left out, because {reason}")
    sides = _side(runs[0]), _side(runs[1])
    comparison = compare_cases(*cases, sides=sides, primary=primary, structure=structure, groups=groups)
    if runs[0].data.tags.get(Tag.SYNTHETIC) == "true":
        comparison = replace(comparison, claim=f"{comparison.claim} {SYNTHETIC_WARNING}")
    if out is not None:
        write_output(files[0], to_json(comparison.as_json()))
        with new_output(files[1]) as png:
            draw_comparison(comparison).savefig(png, dpi=150)
    return comparison


WEIGHTS: dict[str | None, str | None] = {
    "None": "",
    "scratch": "",
    "not stated": None,
}  # a setting, and what a tool's author states


def _side(run: Run) -> Side:
    params = run.data.params
    derived = is_derived(run.data.tags, params)
    weights = params.get("model.weights", params.get("guest.weights", None if derived else ""))
    return Side(
        name=plain(str(run.info.run_name)),
        run_id=run.info.run_id,
        images=run.data.metrics.get("cost/images", math.nan),
        weights=WEIGHTS.get(weights, weights),
        derived=derived,
        post_hoc=Tag.POST_HOC in run.data.tags,
    )


def print_comparison(comparison: Comparison, *, wide: bool = False) -> None:
    """Print the patients, the folds, the groups, the extreme patients, and last the claim.

    Of each table the columns that fit the terminal, or all of them.
    """
    out, metric = console(), comparison.scale.metric
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        print_text(f"{name}: {side.name} ({side.run_id[:8]})")
    for title, rows, caption in (
        (f"{metric} of patients: the fitted models", [_patient_row(comparison)], CAPTIONS["patients"]),
        (f"{metric} of each structure", _group_rows(comparison, structures=True), CAPTIONS["structures"]),
        ("means of folds: the training procedures", [_fold_row(comparison)], CAPTIONS["folds"]),
        ("where each is better", _group_rows(comparison, structures=False), CAPTIONS["strata"]),
        ("patients with the largest gains and losses of A", _extreme_rows(comparison), ""),
    ):
        if rows:
            out.print()
            print_frame(out, title, pd.DataFrame(rows), fixed=2, wide=wide)
            print_text(caption)
    if comparison.undefined:
        print_text(f"{metric} is not defined in both runs for {', '.join(comparison.undefined)}")
    print_text(comparison.claim)


def _patient_row(comparison: Comparison) -> dict[str, str]:
    digits, paired = comparison.scale.digits, comparison.paired
    return {
        "patients": str(paired.n),
        **_means(*comparison.means, paired.difference, digits),
        "95% interval": _ends(paired.interval, digits),
        "Wilcoxon p": p_value(paired.p),
        "A better": f"{paired.wins:.0%}",
        "B better": f"{comparison.losses:.0%}",
        "ties": f"{comparison.ties:.0%}",
        "rank-biserial": signed(comparison.rank_biserial, 2),
        "d_z": signed(comparison.d_z, 2),
    }


def _fold_row(comparison: Comparison) -> dict[str, str]:
    digits, folds = comparison.scale.digits, comparison.procedure
    return {
        "folds": str(folds.n),
        "A - B": signed(folds.difference, digits),
        "95% interval": _ends(folds.interval, digits),
        "p": p_value(folds.p),
        "P(A better)": decimal(folds.better, 2),
        f"P(within {comparison.scale.rope:g})": decimal(folds.same, 2),
        "P(B better)": decimal(folds.worse, 2),
    }


def _group_rows(comparison: Comparison, *, structures: bool) -> list[dict[str, str]]:
    """Return the rows of structures, or of groups of patients."""
    digits = comparison.scale.digits
    return [
        ({"structure": group.name} if structures else {"patients by": group.kind, "group": group.name})
        | {"n": str(group.n)}
        | _means(group.a, group.b, group.difference, digits)
        | {"95% interval": _ends(group.interval, digits), "A better": f"{group.wins:.0%}"}
        for group in comparison.strata
        if (group.kind == STRUCTURE) == structures
    ]


def _extreme_rows(comparison: Comparison) -> list[dict[str, str]]:
    return [
        {"A": effect, "patient": row["case"], "fold": str(row["fold"])}
        | _means(row["a"], row["b"], row["difference"], comparison.scale.digits, "A's", "B's")
        | {f"{comparison.noun} pixels": f"{row['tumour_pixels']:,}"}
        for effect, side in (("gains", 1), ("loses", -1))
        for row in comparison.largest(side).to_dict("records")
    ]


def _means(a: float, b: float, difference: float, digits: int, *names: str) -> dict[str, str]:
    first, second = names or ("A", "B")
    return {first: decimal(a, digits), second: decimal(b, digits), "A - B": signed(difference, digits)}


def _ends(interval: Interval, digits: int) -> str:
    return between(interval.low, interval.high, partial(signed, digits=digits))


def draw_comparison(comparison: Comparison) -> Figure:
    """Draw the two scores of each patient (left), and the sorted differences with mean and interval (right)."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    metric, mean, interval = comparison.scale.metric, comparison.paired.difference, comparison.paired.interval
    ordered = comparison.patients.sort_values("difference", ignore_index=True)
    gain, places = comparison.scale.sign * ordered["difference"], np.arange(len(ordered))
    scores = ordered[["a", "b"]].to_numpy(np.float64)
    margin = 0.04 * np.ptp(scores) or 0.04
    limits = scores.min() - margin, scores.max() + margin
    left.plot(limits, limits, color="0.7", linestyle=":", zorder=1)
    for (winner, colour), selected in zip(COLOURS.items(), (gain > 0, gain < 0, gain == 0), strict=True):
        rows = ordered[selected]
        left.scatter(rows["b"], rows["a"], s=18, color=colour, alpha=0.8, label=f"{winner}: {len(rows)}")
        right.bar(places[selected], rows["difference"], width=1.0, color=colour)
    left.set(xlim=limits, ylim=limits, aspect="equal")
    left.set_xlabel(f"B: {comparison.b.name}", parse_math=False)
    left.set_ylabel(f"A: {comparison.a.name}", parse_math=False)
    left.set_title(f"{metric} of patients{'' if comparison.scale.higher else ' (lower is better)'}", fontsize=10)
    right.axhline(0, color="0.3", linewidth=0.8)
    right.axhline(mean, color="black", linestyle="--", label=f"mean {mean:+.{comparison.scale.digits}f}")
    if not math.isnan(interval.low):
        right.axhspan(interval.low, interval.high, color="black", alpha=0.2, linewidth=0, label="95% interval")
    right.set(xlabel="patients, sorted", ylabel=f"A - B in {metric}", xticks=[])
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
