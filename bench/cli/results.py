"""Commands on runs that have ended: rank, compare, score again, use."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import Device, TrackingUri, app, say


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    html = "html"


@app.command()
def leaderboard(
    primary: Annotated[
        str | None, typer.Option(help="Score to rank by; else Dice, or AUROC where presence was asked for.")
    ] = None,
    group_by: Annotated[
        str, typer.Option(help="What is a row: configuration (seeds averaged), run, or a setting like loss.name.")
    ] = "configuration",
    where: Annotated[
        list[str] | None, typer.Option(help="Only runs of which this holds: model=unet, parameters<5e6.")
    ] = None,
    pareto: Annotated[
        str | None, typer.Option(help="Only rows that none beats in score and in this cost: parameters, flops ...")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to order rows by; their ranks stay.")] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    cases: Annotated[
        Path | None, typer.Option(help="Write a CSV file with every patient's scores by every run shown.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Print the ranked runs: one board for each data set, split and convention, never ranked together.

    Example: `bench leaderboard --primary hd95 --where model=unet --pareto flops`
    """
    from bench.analysis.leaderboard import build_boards
    from bench.reports import tables
    from bench.tracking import connect, read_records

    found = read_records(connect(tracking_uri))
    made = build_boards(found, primary=primary, sort=sort, group_by=group_by, where=where or (), pareto=pareto)
    if cases is not None:
        cases.parent.mkdir(parents=True, exist_ok=True)
        cases.write_text(tables.cases_csv(made, found), encoding="utf-8")
    match format:
        case Format.csv:
            typer.echo(tables.board_csv(made), nl=False)
        case Format.json:
            typer.echo(tables.board_json(made))
        case Format.markdown:
            typer.echo(tables.board_markdown(made), nl=False)
        case Format.html:
            typer.echo("\n".join(map(tables.board_html, made)))
        case Format.table:
            from bench.console import console

            if not found:
                say("no finished run yet. `bench run --model unet` makes one.")
            elif not made:
                say(f"none of {len(found)} runs is left by {' and '.join(where or ())}.")
            for board in made:
                console().print(tables.board_table(board))
                console().print(tables.board_table(board, tables.cost_columns(board)))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Name or id of a run.")],
    b: Annotated[str, typer.Argument(help="Name or id of another run on the same split.")],
    primary: Annotated[str, typer.Option(help="Any score of patients: dice, iou, hd95 ...")] = "dice",
    data: Annotated[Path | None, typer.Option(help="Folder of the data; else where the runs found it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure (PNG) and all numbers (JSON).")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Compare two runs patient by patient, and say in a sentence what may be claimed."""
    from bench.reports.comparison import compare as command

    command(a, b, primary=primary, data=data, out=out, uri=tracking_uri)


@app.command()
def rescore(
    run: Annotated[str, typer.Argument(help="Name or id of a segmentation run.")],
    threshold: Annotated[float | None, typer.Option(help="0.01, 0.02 ... 0.99; else the run's own.")] = None,
    largest: Annotated[
        bool, typer.Option("--largest", help="Keep the largest component of each patient.")
    ] = False,
    min_size: Annotated[int, typer.Option(min=0, help="Remove smaller components (pixels, each slice).")] = 0,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Fill holes in each slice.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the data; else where the run found it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score a run's logged masks anew: cleaned, at another threshold, or as metrics are defined now. No GPU.

    The new run is linked to the old one, and stands on a board of its own: the choice came after the scores.
    """
    from bench.derived.rescore import rescore as command
    from bench.inference.postprocess import Postprocess

    chosen = Postprocess(largest=largest, min_size=min_size, fill_holes=fill_holes)
    command(run, threshold=threshold, postprocess=chosen, data=data, name=name, uri=tracking_uri)


@app.command()
def ensemble(
    runs: Annotated[list[str], typer.Argument(help="Names or ids of segmentation runs on the same split.")],
    tta: Annotated[
        str, typer.Option(help="Average over turned slices as well: none, flips (4), turns (8).")
    ] = "none",
    threshold: Annotated[
        float | None,
        typer.Option(help="Else a lone run's own, for several by validation; given, a board of its own."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data; else where the runs found it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Average runs, and their slices flipped or turned, out of fold: a row of its own on the board."""
    from bench.derived.ensemble import ensemble as command

    command(runs, tta=tta, threshold=threshold, data=data, name=name, device=device, uri=tracking_uri)


@app.command()
def power(
    patients: Annotated[
        int | None, typer.Option(min=5, help="Patients of the study; else those of the board.")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Folds; else those of the runs.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds that a row averages.")] = 1,
    models: Annotated[int, typer.Option(min=2, help="Models that will be compared.")] = 2,
    power: Annotated[float, typer.Option(min=0.05, max=0.99, help="Share of studies that find the gap.")] = 0.8,
    tracking_uri: TrackingUri = None,
) -> None:
    """The smallest Dice gap that a study can resolve, by simulation from the runs in the store."""
    from bench.reports.power import show_power

    show_power(tracking_uri, patients=patients, folds=folds, seeds=seeds, models=models, power=power)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    data: Annotated[Path | None, typer.Option(help="Folder of the data; else where the runs found it.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only runs of which this holds: model=unet.")] = None,
    primary: Annotated[str | None, typer.Option(help="Score to rank by, as in `bench leaderboard`.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the whole leaderboard as one HTML file that opens from disk: tables, figures, every patient."""
    from bench.reports.html.report import write_report

    write_report(out, data=data, where=where or (), primary=primary, title=title, uri=tracking_uri)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Name or id of a run, or a folder that `bench export` wrote.")],
    data: Annotated[Path, typer.Option(help="Folder of another data set in the same layout.")],
    fold: Annotated[int | None, typer.Option(help="Use this fold's model alone, not the mean of all.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Else the one that the run chose.")] = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Score a logged model on another folder (an external test set), logged as a child of the run."""
    from bench.experiments.evaluate import evaluate_external

    evaluate_external(run, data, fold=fold, threshold=threshold, device=device, uri=tracking_uri)


@app.command()
def cascade(
    presence: Annotated[str, typer.Argument(help="Name or id of a presence run (--model classifier).")],
    segmentation: Annotated[str, typer.Argument(help="Name or id of a segmentation run on the same split.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data; else where the runs found it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Segment only the slices that a classifier calls positive, scored as a system against segmentation alone."""
    from bench.derived.cascade import cascade as command

    command(presence, segmentation, data=data, name=name, uri=tracking_uri)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name or id of a run.")],
    out: Annotated[Path, typer.Option(help="A new folder for the models and their card.")],
    fold: Annotated[int | None, typer.Option(help="This fold's model alone.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Weights in 16 bits: half the size.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a run's models to a folder that `bench predict` and `bench evaluate` take without the store."""
    from bench.tracking.export import export_run

    export_run(run, out, fold=fold, half=half, uri=tracking_uri)


@app.command()
def publish(
    out: Annotated[Path, typer.Argument(help="A folder, new or of runs published before, which stay.")],
    where: Annotated[list[str] | None, typer.Option(help="Only runs of which this holds: model=unet.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write runs' scores, patient by patient, settings, costs and folds to files that `bench import` takes.

    No masks, models or images; but the tables name the patients.
    """
    from bench.derived.publish import publish_runs

    publish_runs(out, where=where or (), uri=tracking_uri)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder that `bench publish` wrote.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Take published runs into the store: ranked beside your own, and done where a suite asks for them.

    What contradicts itself is refused: scores and patients, Dice and pixels, folds and their hash.
    """
    from bench.derived.publish import import_runs

    import_runs(folder, uri=tracking_uri)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="Name or id of a run, or a folder that `bench export` wrote.")],
    input: Annotated[Path, typer.Argument(help="An image or a volume, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")],
    fold: Annotated[int | None, typer.Option(help="Use this fold's model alone, not the mean of all.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Else the one that the run chose.")] = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write masks and overlays (PNG): for images as TIFF of 0 and 255, for volumes as volumes of 0 and 1."""
    from bench.experiments.predict import predict_folder

    predict_folder(run, input, out, fold=fold, threshold=threshold, device=device, uri=tracking_uri)
