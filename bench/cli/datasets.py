"""Commands on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import Folder, data


@data.command("check")
def check(folder: Folder) -> None:
    """Audit a folder: every trap by file and patient. Exit code 1 when there are errors."""
    from bench import inspection

    if not inspection.check(folder):
        raise typer.Exit(1)


@data.command("describe")
def describe(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures (PNG) and tables (CSV).")] = None,
    html: Annotated[Path | None, typer.Option(help="File for all of it as one page that needs no other.")] = None,
) -> None:
    """Counts, class balance, institutions, tumour sizes and grey levels, as tables, figures or a page."""
    from bench.inspection import show_description

    show_description(folder, out, html)


@data.command("pack")
def pack(
    folder: Folder,
    verify: Annotated[bool, typer.Option("--verify", help="Compare checksums of the pack.")] = False,
) -> None:
    """Pack a folder into memory-mapped arrays; `bench run` does it by itself and finds the pack again."""
    from bench.inspection import show_pack

    show_pack(folder, verify=verify)


@data.command("phantom")
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the phantom, such as patients=40.")
    ] = None,
) -> None:
    """Write the synthetic data set, in the same layout as the real one."""
    from bench import registry
    from bench.config import parse
    from bench.datasets.phantom import write_phantom

    settings = registry.dataset["phantom"].settings(dict(parse(s) for s in set_ or []))
    write_phantom(folder, **settings)
    typer.echo(f"synthetic volumes of {settings['patients']} patients are in {folder}")


@data.command("download")
def download(folder: Annotated[Path, typer.Argument(help="Folder for the data.")]) -> None:
    """Get the LGG data from Kaggle (needs the extra `data`, a network, and perhaps a Kaggle account)."""
    from bench.datasets.download import download_lgg

    typer.echo(f"the data is in {download_lgg(folder)}. Next: bench data check {folder}")
