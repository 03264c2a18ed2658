"""The typer app, and the options that several commands share."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from bench.errors import BadSetting
from bench.formatting import join_and, to_json

PANELS = {  # of `bench --help`, with their commands
    "Train": ("run", "suite", "search", "list", "show"),
    "Compare": ("leaderboard", "compare", "gate", "power", "rescore", "ensemble", "cascade", "score"),
    "Use a model": ("predict", "evaluate"),
    "Share": ("report", "export", "publish", "import"),
    "Data": ("data", "split"),
    "Serve": ("ui", "demo"),
}


class Commands(TyperGroup):
    """The commands in the order of their panels."""

    def list_commands(self, ctx: Any) -> list[str]:
        panels = {name: panel for panel, names in PANELS.items() for name in names if name in self.commands}
        for name, panel in panels.items():
            self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
        return list(dict.fromkeys((*panels, *self.commands)))


EXIT_CODES = """
Exit codes: 0 success; 1 the answer is no (a failed gate, unusable data, failed cells of a suite); 2 an error that
you can fix, in one sentence; 3 an error of bench itself, with a traceback; 130 interrupted.
"""
app = typer.Typer(
    cls=Commands,
    help="Benchmark 2D medical image segmentation: honest folds, tracked in MLflow, ranked with intervals.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Check, describe, pack and download data.", no_args_is_help=True)
app.add_typer(data, name="data")
split = typer.Typer(help="Write folds for other tools, and check folds that others made.", no_args_is_help=True)
app.add_typer(split, name="split")

URI_HELP = "MLflow store; default: MLFLOW_TRACKING_URI, else ./mlruns/mlflow.db."
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help=URI_HELP)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
OwnDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:1; default: auto.")]
LoggedData = Annotated[Path | None, typer.Option("--data", help="Data folder; default: that of the run.")]
Where = Annotated[list[str] | None, typer.Option("--where", help="Only such runs: model=unet, parameters<5e6.")]
STRUCTURE_HELP = "Score by this structure alone; default: the mean over structures."
Structure = Annotated[str | None, typer.Option("--structure", help=STRUCTURE_HELP)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; train nothing.")]
Output = Literal["table", "json"]
Format = Annotated[Output, typer.Option("--format", help="table, or json for programs.")]
Wide = Annotated[bool, typer.Option("--wide", help="Print all columns, in parts that fit the terminal.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every epoch.")]
RunOrExport = Annotated[str, typer.Argument(help="Name or id of a run, or a folder that `bench export` wrote.")]
OneFold = Annotated[int | None, typer.Option("--fold", help="Use the model of this fold only.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port.")]
Host = Annotated[str, typer.Option(help="Address to listen on; by default only this machine can connect.")]


def check_name(name: str | None) -> str | None:
    """Return the name of a run unchanged. Raises `BadSetting` if the settings of a run could not have it."""
    if name is not None:
        from bench.config import RunConfig
        from bench.overrides import override

        override(RunConfig(), {"name": name})
    return name


RunName = Annotated[str | None, typer.Option("--name", callback=check_name, help="Name of the new run.")]


def load_plugins(paths: list[Path] | None) -> list[Path] | None:
    """Load plugins before the command starts; it may ignore what is returned."""
    for path in paths or ():
        from bench.registry import load_plugin

        load_plugin(path)
    return paths


PLUGIN_HELP = "Python file with your own components."
Plugin = Annotated[list[Path] | None, typer.Option("--plugin", callback=load_plugins, help=PLUGIN_HELP)]


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that have a value."""
    return {key: value for key, value in options.items() if value is not None}


def refuse_options(ctx: typer.Context, option: str, source: str, allowed: Collection[str]) -> None:
    """Raise `BadSetting` if settings were given beside an option that uses those of another `source`."""
    options = {p.name: p.opts[0] for p in ctx.command.params if p.name and p.name not in allowed}
    sources = {shown: ctx.get_parameter_source(name) for name, shown in options.items()}
    if extra := [shown for shown, given in sources.items() if given and given.name == "COMMANDLINE"]:
        raise BadSetting(f"{option} uses the settings {source}: leave out {join_and(extra)}.")


@contextmanager
def text_aside(format: Output) -> Iterator[None]:
    """Send what a command prints for people to standard error if its result is printed as JSON."""
    if format == "json":
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def print_json(value: object) -> None:
    """Print plain values as JSON."""
    typer.echo(to_json(value))


def print_logged(format: Output, uri: str | None, log: Callable[[], str]) -> None:
    """Call what logs a run and returns its id; if JSON is wanted, print what the run has logged."""
    with text_aside(format):
        run_id = log()
    if format == "json":
        from bench.tracking import connect
        from bench.tracking.reader import run_values

        print_json(run_values(connect(uri), run_id))


def say(text: str) -> None:
    """Print a message on standard error: wrapped between words on a terminal, unchanged elsewhere."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = (
            textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
        )
        text = "\n".join("\n".join(each) for each in lines)
    typer.echo(text, err=True)
