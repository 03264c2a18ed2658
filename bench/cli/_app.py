"""The typer app, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

PANELS = {  # of `bench --help`, with their commands
    "Train": ("run", "suite", "search", "list", "show"),
    "Compare": ("leaderboard", "compare", "gate", "power", "rescore", "ensemble", "cascade"),
    "Use a model": ("predict", "evaluate"),
    "Share": ("report", "export", "publish", "import"),
    "Data": ("data",),
    "Serve": ("ui", "demo"),
}


class Commands(TyperGroup):
    """The commands in the order of their panels."""

    def list_commands(self, ctx: Any) -> list[str]:
        panels = {name: panel for panel, names in PANELS.items() for name in names if name in self.commands}
        for name, panel in panels.items():
            self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
        return list(dict.fromkeys((*panels, *self.commands)))


app = typer.Typer(
    cls=Commands,
    help="Benchmark 2D medical image segmentation: honest folds, tracked in MLflow, ranked with intervals.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Check, describe, pack and download data.", no_args_is_help=True)
app.add_typer(data, name="data")

URI_HELP = "MLflow store; default: MLFLOW_TRACKING_URI, else ./mlruns/mlflow.db."
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help=URI_HELP)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
OwnDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:1; default: auto.")]
LoggedData = Annotated[Path | None, typer.Option("--data", help="Data folder; default: that of the run.")]
Where = Annotated[list[str] | None, typer.Option("--where", help="Only such runs: model=unet, parameters<5e6.")]
STRUCTURE_HELP = "Score by this structure alone; default: the mean over structures."
Structure = Annotated[str | None, typer.Option("--structure", help=STRUCTURE_HELP)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; train nothing.")]
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
    from bench.errors import BadSetting
    from bench.formatting import join_and

    options = {p.name: p.opts[0] for p in ctx.command.params if p.name and p.name not in allowed}
    sources = {shown: ctx.get_parameter_source(name) for name, shown in options.items()}
    if extra := [shown for shown, given in sources.items() if given and given.name == "COMMANDLINE"]:
        raise BadSetting(f"{option} uses the settings {source}: leave out {join_and(extra)}.")


def say(text: str) -> None:
    typer.echo(text, err=True)
