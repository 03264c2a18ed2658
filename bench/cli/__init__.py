"""The command line: text in, text out. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

from bench import __version__
from bench.cli import components, datasets, gating, results, searching, training, viewing
from bench.cli._app import app, say
from bench.errors import BenchError

__all__ = ["app", "components", "datasets", "gating", "main", "results", "searching", "training", "viewing"]


def main() -> None:
    """Run the app; what the user can mend is one line and exit code 2, an interrupt is 130 (typer's doing)."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app()
    except BenchError as error:
        say(f"error: {error}")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _as_interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
