"""The command `python -m benchmarks.speed`, run from a clone of the repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def speed(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to measure: data, augment, step, ablation, roof, epoch, folds, eval, track; by default "
            "all of these. Only by name: nnunet (needs the extra 'nnunet') and scaling (what an epoch costs)."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of LGG data; without it, a phantom.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns per side, after one that is not timed.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Use a tiny problem, to check that it runs.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write JSON, tables and curves to this folder.")] = None,
    tracking_uri: Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store.")] = None,
) -> None:
    """Time `bench` side by side with its peers: print each ratio, its spread and the gate that it has to reach."""
    from benchmarks.speed.command import run_speed

    run_speed(figures or [], folder=data, repeats=repeats, quick=quick, device=device, out=out, uri=tracking_uri)


if __name__ == "__main__":
    try:
        app()
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
