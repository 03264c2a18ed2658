"""Servers and stopwatches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import TrackingUri, app


@app.command()
def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default answers this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 5000,
    tracking_uri: TrackingUri = None,
) -> None:
    """Open MLflow's UI on the store of this folder."""
    import subprocess

    from bench.tracking import connect, ui_command

    store = connect(tracking_uri)
    if store.uri.startswith("http"):
        typer.echo(f"the store is a server already: open {store.address}")
        return
    command, environment = ui_command(store, host, port)
    typer.echo(f"MLflow UI on {store.address} (Ctrl-C ends it; it takes some seconds to start)")
    for experiment, path in store.views().items():
        typer.echo(f"  leaderboard of {experiment}: http://{host}:{port}{path}")
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


@app.command()
def demo(
    run: Annotated[str | None, typer.Argument(help="Name or id of the run to open with; else the newest.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of patients with their truth; without it, files are dropped.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default answers this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 7860,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Show logged models on a web page: patients out of fold, or scans dropped on it (needs the extra `demo`)."""
    from bench.demo.command import open_demo

    open_demo(run, data, host=host, port=port, device=device, uri=tracking_uri)
