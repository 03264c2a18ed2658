"""Commands on finished runs: rank, compare, judge, score again, combine and apply."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli._app import (
    Device,
    Format,
    LoggedData,
    OneFold,
    Plugin,
    RunName,
    RunOrExport,
    Structure,
    TrackingUri,
    Where,
    Wide,
    app,
    print_json,
    print_logged,
    say,
)
from bench.outputs import check_outputs, write_output

GROUP_HELP = "What one row is: configuration (seeds averaged), run, or a setting such as loss.name."
PARETO_HELP = "Only rows that no other row beats in both score and this cost: parameters, flops ..."
ENSEMBLE_HELP = "Default: that of a single run, chosen on validation patients for several runs."
EVALUATE_SET_HELP = "Where its layout differs from that of the run: dataset.images=scans."
PRIMARY_HELP = "Score to rank by; default: Dice, AUROC for presence runs."
Threshold = Annotated[float | None, typer.Option(help="Default: the threshold that the run chose.")]
Primary = Annotated[str | None, typer.Option("--primary", help=PRIMARY_HELP)]
BoardFormat = Annotated[
    Literal["table", "csv", "json", "markdown", "html"], typer.Option("--format", help="Output format.")
]


@app.command()
def leaderboard(
    primary: Primary = None,
    structure: Structure = None,
    group_by: Annotated[str, typer.Option(help=GROUP_HELP)] = "configuration",
    where: Where = None,
    pareto: Annotated[str | None, typer.Option(help=PARETO_HELP)] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; the ranks do not change.")] = None,
    format: BoardFormat = "table",
    wide: Wide = False,
    cases: Annotated[Path | None, typer.Option(help="CSV file for the scores of every patient and run.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Print the ranked runs, with a separate board for each data set, split and metric convention.

    Example: `bench leaderboard --primary hd95 --where model=unet --pareto flops`
    """
    from bench import api
    from bench.reports import tables

    check_outputs([cases] if cases else [])
    options = {"primary": primary, "sort": sort, "pareto": pareto, "structure": structure}
    ranked = api.leaderboard(**options, group_by=group_by, where=where or (), tracking_uri=tracking_uri)
    made, found = ranked.boards, ranked.records
    if cases is not None:
        write_output(cases, tables.cases_csv(made, found))
    match format:
        case "csv":
            typer.echo(tables.board_csv(made), nl=False)
        case "json":
            print_json([tables.board_values(board) for board in made])
        case "markdown":
            typer.echo(tables.board_markdown(made), nl=False)
        case "html":
            from bench.reports.html.board_page import boards_page

            typer.echo(boards_page(made))
        case "table":
            from bench.console import console

            if not found:
                say("no finished run yet. `bench run --model unet` makes one.")
            elif not made:
                say(f"none of {len(found)} runs matches {' and '.join(where or ())}.")
            for board in made:
                tables.print_board(console(), board, wide=wide)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Name or id of a run.")],
    b: Annotated[str, typer.Argument(help="Name or id of another run on the same split.")],
    primary: Annotated[str, typer.Option(help="Any metric of patients: dice, iou, hd95 ...")] = "dice",
    structure: Structure = None,
    data: LoggedData = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a figure (PNG) and all numbers (JSON).")] = None,
    format: Format = "table",
    wide: Wide = False,
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Compare two runs patient by patient, and print one sentence on what the comparison supports."""
    from bench import api
    from bench.reports.comparison import print_comparison

    comparison = api.compare(
        a, b, primary=primary, structure=structure, data=data, out=out, tracking_uri=tracking_uri
    )
    if format == "json":
        print_json(comparison.as_json())
        return
    print_comparison(comparison, wide=wide)
    if out is not None:
        typer.echo(f"comparison.json and comparison.png are in {out}")


@app.command()
def gate(
    baseline: Annotated[str, typer.Option(help="Name or id of the reference run.")],
    candidate: Annotated[str, typer.Option(help="Name or id of the run to judge.")],
    margin: Annotated[float | None, typer.Option(help="Accepted loss; default: 0.01 (Dice) or 1 pixel.")] = None,
    primary: Annotated[str, typer.Option(help="Metric of patients; `bench list metrics`.")] = "dice",
    structure: Structure = None,
    format: Format = "table",
    tracking_uri: TrackingUri = None,
) -> None:
    """Exit with 1 if the candidate is worse than the baseline by a margin, with 2 if they cannot be compared.

    Worse: the whole 95% interval of the mean difference, patient by patient, is below minus the margin.
    """
    from bench.reports.gate import gate as judge

    result = judge(baseline, candidate, margin=margin, primary=primary, structure=structure, uri=tracking_uri)
    if format == "json":
        print_json(asdict(result))
    else:
        typer.echo(result.message)
    if result.worse:
        raise typer.Exit(1)


@app.command()
def rescore(
    run: Annotated[str, typer.Argument(help="Name or id of a segmentation run.")],
    threshold: Annotated[float | None, typer.Option(help="0.01 to 0.99; default: the run's own masks.")] = None,
    largest: Annotated[bool, typer.Option("--largest", help="Keep each patient's largest component.")] = False,
    min_size: Annotated[int, typer.Option(min=0, help="Remove smaller components (pixels, in each slice).")] = 0,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Fill holes in each slice.")] = False,
    data: LoggedData = None,
    name: RunName = None,
    format: Format = "table",
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score the logged masks of a run again: cleaned, at another threshold, or with the current metrics. No GPU.

    The new run links to the old one. If masks were changed, it is ranked on a separate board, because the change
    was chosen after the test scores were known.
    """
    from bench.derived.rescore import rescore as command
    from bench.inference.postprocess import Postprocess

    chosen = Postprocess(largest=largest, min_size=min_size, fill_holes=fill_holes)
    log = partial(command, run, threshold=threshold, postprocess=chosen, data=data, name=name, uri=tracking_uri)
    print_logged(format, tracking_uri, log)


@app.command()
def ensemble(
    runs: Annotated[list[str], typer.Argument(help="Names or ids of segmentation runs on the same split.")],
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none, flips (4 views) or turns (8).")] = "none",
    threshold: Annotated[float | None, typer.Option(help=ENSEMBLE_HELP)] = None,
    data: LoggedData = None,
    name: RunName = None,
    device: Device = "auto",
    format: Format = "table",
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Average the out-of-fold predictions of runs, or of flipped and turned slices, and log that as a new run.

    With --threshold, the new run is ranked on a separate board, because test scores may have been known before.
    """
    from bench.derived.ensemble import ensemble as command

    log = partial(command, runs, tta=tta, threshold=threshold, data=data, name=name, device=device)
    print_logged(format, tracking_uri, partial(log, uri=tracking_uri))


@app.command()
def power(
    patients: Annotated[
        int | None, typer.Option(min=5, max=100_000, help="Patients; default: the board's.")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, max=1000, help="Folds; default: those of the runs.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds per model, whose scores are averaged.")] = 1,
    models: Annotated[int, typer.Option(min=2, max=1000, help="Models to compare.")] = 2,
    power: Annotated[float, typer.Option(min=0.05, max=0.99, help="Probability of finding the difference.")] = 0.8,
    structure: Structure = None,
    format: Format = "table",
    wide: Wide = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Print the smallest Dice difference that a study can detect, simulated from the runs in the store."""
    from bench.reports.power import print_power, study_power

    study = study_power(
        tracking_uri,
        patients=patients,
        folds=folds,
        seeds=seeds,
        models=models,
        power=power,
        structure=structure,
    )
    if format == "json":
        print_json(vars(study) | {"table": study.table.to_dict("records")})
    else:
        print_power(study, wide=wide)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    data: LoggedData = None,
    where: Where = None,
    primary: Primary = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the whole leaderboard to one HTML file that opens from disk: tables, figures and every patient."""
    from bench.reports.html.report import write_report

    write_report(out, data=data, where=where or (), primary=primary, title=title, uri=tracking_uri)


@app.command()
def evaluate(
    run: RunOrExport,
    data: Annotated[Path, typer.Option(help="Folder of another data set in the same layout.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help=EVALUATE_SET_HELP)] = None,
    fold: OneFold = None,
    threshold: Threshold = None,
    device: Device = "auto",
    format: Format = "table",
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score a logged model on another data set (an external test set), and log that as a child of the run."""
    from bench.experiments.evaluate import evaluate_external
    from bench.overrides import parse_assignment

    changes = dict(parse_assignment(a) for a in set_ or [])
    log = partial(evaluate_external, run, data, fold=fold, threshold=threshold, device=device, changes=changes)
    print_logged(format, tracking_uri, partial(log, uri=tracking_uri))


@app.command()
def cascade(
    presence: Annotated[str, typer.Argument(help="Name or id of a presence run (--model classifier).")],
    segmentation: Annotated[str, typer.Argument(help="Name or id of a segmentation run on the same split.")],
    data: LoggedData = None,
    name: RunName = None,
    format: Format = "table",
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Segment only the slices that a classifier calls positive, and compare with segmentation alone."""
    from bench.derived.cascade import cascade as command

    log = partial(command, presence, segmentation, data=data, name=name, uri=tracking_uri)
    print_logged(format, tracking_uri, log)


@app.command()
def predict(
    run: RunOrExport,
    input: Annotated[list[Path], typer.Argument(help="Images, volumes, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")],
    fold: OneFold = None,
    threshold: Threshold = None,
    device: Device = "auto",
    format: Format = "table",
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Predict masks and overlays (PNG).

    Masks of one structure hold 0 and 255 in images (TIFF), and 0 and 1 in volumes. Masks of several structures
    hold the labels of the data set, or are a file for each if structures may overlap.
    """
    from bench import api

    predictions = api.predict(
        run, input, out, fold=fold, threshold=threshold, device=device, tracking_uri=tracking_uri
    )
    if format == "json":
        print_json({"out": out, "images": predictions.images.to_dict("records")})
    else:
        typer.echo(predictions)
