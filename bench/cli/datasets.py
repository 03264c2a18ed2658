"""Commands on data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli._app import Plugin, data

if TYPE_CHECKING:
    from bench.config import RunConfig


Folder = Annotated[Path, typer.Argument(help="Folder of the data.")]


DataSet = Annotated[str, typer.Option("--dataset", help="What it is laid out as; `bench list datasets`.")]


Set = Annotated[list[str] | None, typer.Option("--set", help="A setting of it, such as dataset.resize=256.")]


def _config(folder: Path, dataset: str, set_: list[str] | None, plugin: list[Path] | None) -> RunConfig:
    """As `bench run` would have it."""
    from bench.overrides import configure, parse_assignment

    plugins = {"plugins": [str(path) for path in plugin]} if plugin else {}
    given = {"dataset": dataset, "dataset.folder": str(folder), **plugins}
    return configure(given | dict(parse_assignment(a) for a in set_ or []))


@data.command("check")
def check(folder: Folder, dataset: DataSet = "lgg", set_: Set = None, plugin: Plugin = None) -> None:
    """Audit a folder: every trap by file and patient. Exit code 1 when there are errors.

    Example: `bench data check ~/polyps --dataset pairs --set 'dataset.patient=(P[0-9]+)_.*'`
    """
    from bench.reports.dataset.printing import show_audit

    if not show_audit(_config(folder, dataset, set_, plugin)):
        raise typer.Exit(1)


@data.command("describe")
def describe(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures (PNG) and tables (CSV).")] = None,
    html: Annotated[Path | None, typer.Option(help="File for all of it as one page that needs no other.")] = None,
    dataset: DataSet = "lgg",
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Counts, class balance, institutions, tumour sizes and grey levels, as tables, figures or a page."""
    from bench.reports.dataset.printing import show_description

    show_description(_config(folder, dataset, set_, plugin), out, html)


@data.command("pack")
def pack(
    folder: Folder,
    verify: Annotated[bool, typer.Option("--verify", help="Compare checksums of the pack.")] = False,
    dataset: DataSet = "lgg",
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Pack a folder into memory-mapped arrays; `bench run` does it by itself and finds the pack again."""
    from bench.reports.dataset.printing import show_pack

    show_pack(_config(folder, dataset, set_, plugin), verify=verify)


@data.command("phantom")
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the phantom, such as patients=40.")
    ] = None,
) -> None:
    """Write the synthetic data set, in the same layout as the real one."""
    from bench import registry
    from bench.data.datasets.phantom import write_phantom
    from bench.overrides import parse_assignment

    settings = registry.dataset["phantom"].settings(dict(parse_assignment(s) for s in set_ or []))
    write_phantom(folder, **settings)
    typer.echo(f"synthetic volumes of {settings['patients']} patients are in {folder}")


@data.command("download")
def download(folder: Annotated[Path, typer.Argument(help="Folder for the data.")]) -> None:
    """Get the LGG data from Kaggle (needs the extra `data`, a network, and perhaps a Kaggle account)."""
    from bench.data.datasets.lgg import download_lgg

    typer.echo(f"the data is in {download_lgg(folder)}. Next: bench data check {folder}")
