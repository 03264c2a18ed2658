"""The command line. Commands import heavy packages when they run, so that `--help` is quick."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from bench import __version__
from bench.cli import components, datasets, other_tools, results, searching, sharing, training
from bench.cli._app import app, say
from bench.errors import BenchError
from bench.files import explain, temporary_files
from bench.signals import interrupt_on_signals

__all__ = ["app", "components", "datasets", "main", "other_tools", "results", "searching", "sharing", "training"]


def main() -> None:
    """Run the app. Exits with 2 for an error that the user can fix, 3 for any other, and 130 for an interrupt."""
    interrupt_on_signals()
    with temporary_files():
        try:
            app()
        except (BenchError, OSError, MemoryError) as error:
            said = explain(error) if isinstance(error, OSError) else str(error)
            if isinstance(error, MemoryError):
                said = f"there is too little memory ({error}). Free some, then repeat the command."
            # No name from a file or a folder can command the terminal.
            say("error: " + "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in said))
            sys.exit(2)
        except Exception:
            traceback.print_exc()
            sys.exit(3)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
