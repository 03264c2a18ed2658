"""The command that judges a run for CI."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli._app import TrackingUri, app


@app.command()
def gate(
    baseline: Annotated[str, typer.Option(help="Run that is good enough: its id, or name.")],
    candidate: Annotated[str, typer.Option(help="Run to judge: its id, or name.")],
    margin: Annotated[
        float | None, typer.Option(help="Loss that is put up with; 0.01 of Dice, 1 pixel by default.")
    ] = None,
    primary: Annotated[str, typer.Option(help="Metric of patients; `bench list metrics`.")] = "dice",
    tracking_uri: TrackingUri = None,
) -> None:
    """Exit 1 when the candidate is worse than the baseline by more than a margin, 2 when nothing can be said.

    Worse is a whole 95% interval of the mean difference, patient by patient, below the margin.
    """
    from bench.reports.gate import gate as judge

    result = judge(baseline, candidate, margin=margin, primary=primary, uri=tracking_uri)
    typer.echo(result.message)
    if result.worse:
        raise typer.Exit(1)
