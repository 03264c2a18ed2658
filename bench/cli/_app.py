"""The app, and what its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Benchmark 2D medical image segmentation: honest folds, tracked in MLflow, ranked with intervals.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


data = typer.Typer(help="Check, describe, pack and get data.", no_args_is_help=True)


app.add_typer(data, name="data")


TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow store; else MLFLOW_TRACKING_URI, else ./mlruns/mlflow.db."),
]


Plugin = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file with components of your own.")]


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


def load_plugins(paths: list[Path] | None) -> None:
    from bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def say(text: str) -> None:
    typer.echo(text, err=True)
