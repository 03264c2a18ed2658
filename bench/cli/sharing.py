"""Commands that show or share runs: web pages, exported models and published scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import Device, Host, OneFold, Plugin, Port, TrackingUri, Where, app

ALLOW_HELP = "Further name by which the page may be opened, such as that of a proxy."


@app.command()
def ui(
    host: Host = "127.0.0.1",
    port: Port = 5000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the leaderboard in a browser.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve MLflow's UI for the tracking store, and print the links to its leaderboards once it answers."""
    import webbrowser

    from bench.servers import check_address, run_server
    from bench.tracking import connect, leaderboards, ui_command

    store = connect(tracking_uri)

    def show(url: str) -> None:
        links = {name: f"{url}{path}" for name, path in leaderboards(store).items()}
        for name, link in reversed(links.items()):  # the newest last, where it is seen
            typer.echo(f"leaderboard of {name}: {link}")
        if open_browser:
            webbrowser.open(next(iter(links.values()), url))

    if store.uri.startswith("http"):
        typer.echo(f"the store is already a server: open {store.address}")
        show(store.address.rstrip("/"))
        return
    address = check_address(host, port)
    typer.echo(f"starting MLflow's UI of {store.address} ...")

    def ready() -> None:
        address.announce("MLflow's UI", "see and change these runs", typer.echo)
        show(address.url)

    run_server(*ui_command(store, address.host, port), address, ready)


@app.command()
def demo(
    run: Annotated[str | None, typer.Argument(help="Run to show first; default: the newest.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; default: only dropped files.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    allow_host: Annotated[list[str] | None, typer.Option(help=ALLOW_HELP)] = None,
    device: Device = "auto",
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show out-of-fold predictions, or predictions of dropped scans, on a web page (needs the extra `demo`)."""
    from bench.demo.command import open_demo

    open_demo(run, data, host=host, port=port, allowed_hosts=allow_host or (), device=device, uri=tracking_uri)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name or id of a run.")],
    out: Annotated[Path, typer.Option(help="New folder for the models and their model card.")],
    fold: OneFold = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights in 16 bits: half the size.")] = False,
    plugin: Plugin = None,
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
