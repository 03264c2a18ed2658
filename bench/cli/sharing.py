"""Commands that show or share runs: web pages, exported models and published scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import Device, Host, OneFold, TrackingUri, Where, app


@app.command()
def ui(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 5000,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve MLflow's UI for the tracking store."""
    import subprocess

    from bench.tracking import connect, ui_command

    store = connect(tracking_uri)
    if store.uri.startswith("http"):
        typer.echo(f"the store is already a server: open {store.address}")
        return
    command, environment = ui_command(store, host, port)
    typer.echo(f"MLflow UI on {store.address} (Ctrl-C ends it; it takes some seconds to start)")
    for experiment, path in store.views().items():
        typer.echo(f"  leaderboard of {experiment}: http://{host}:{port}{path}")
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


@app.command()
def demo(
    run: Annotated[str | None, typer.Argument(help="Run to show first; default: the newest.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; default: only dropped files.")] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 7860,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Show out-of-fold predictions, or predictions of dropped scans, on a web page (needs the extra `demo`)."""
    from bench.demo.command import open_demo

    open_demo(run, data, host=host, port=port, device=device, uri=tracking_uri)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name or id of a run.")],
    out: Annotated[Path, typer.Option(help="New folder for the models and their model card.")],
    fold: OneFold = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights in 16 bits: half the size.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the models of a run to a folder that `bench predict` and `bench evaluate` read without the store."""
    from bench.tracking.export import export_run

    export_run(run, out, fold=fold, half=half, uri=tracking_uri)


@app.command()
def publish(
    out: Annotated[Path, typer.Argument(help="Folder to write; runs that it already holds are kept.")],
    where: Where = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the scores of every patient, settings, costs and folds of runs to files that `bench import` reads.

    Masks, models and images are not written. The tables contain the patients' names.
    """
    from bench.derived.publish import publish_runs

    publish_runs(out, where=where or (), uri=tracking_uri)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder that `bench publish` wrote.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Import published runs into the store. They are ranked with your own, and count as done in a suite.

    Runs are refused if mean scores and patients, Dice and pixel counts, or folds and their hash disagree.
    """
    from bench.derived.publish import import_runs

    import_runs(folder, uri=tracking_uri)
