"""Commands that check, describe, pack and download data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import Format, Plugin, Wide, data, print_json

Folder = Annotated[Path, typer.Argument(help="Data folder.")]
LAYOUT_HELP = "Layout of the folder, of `bench list datasets`; default: lgg, pairs or volumes, by its folders."
DataSet = Annotated[str | None, typer.Option("--dataset", help=LAYOUT_HELP)]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, such as dataset.resize=256.")]
PhantomSet = Annotated[list[str] | None, typer.Option("--set", help="A setting, such as patients=40.")]


@data.command("check")
def check(
    folder: Folder,
    dataset: DataSet = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print each finding on a line of its own.")] = False,
    format: Format = "table",
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Find every problem of a data folder, by file and patient. The exit code is 1 if there are errors.

    Example: `bench data check ~/polyps --dataset pairs --set 'dataset.patient=(P[0-9]+)_.*'`
    """
    from bench.overrides import configure_data

    config = configure_data(folder, dataset, set_, plugin)  # before slow imports
    from bench.reports.dataset.printing import audit_config, print_audit

    report = audit_config(config)
    if format == "json":
        warnings, errors = ([vars(finding) for finding in found] for found in (report.warnings, report.errors))
        usable = not errors
        print_json({"usable": usable, "facts": report.facts, "warnings": warnings, "errors": errors})
    else:
        print_audit(report, verbose=verbose)
    if report.errors:
        raise typer.Exit(1)


@data.command("describe")
def describe(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Folder to write figures (PNG) and tables (CSV) to.")] = None,
    html: Annotated[Path | None, typer.Option(help="File to write everything to as one HTML page.")] = None,
    dataset: DataSet = None,
    format: Format = "table",
    wide: Wide = False,
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Describe a data set: counts, class balance, institutions, tumour sizes and grey levels."""
    from bench.overrides import configure_data

    config = configure_data(folder, dataset, set_, plugin)  # before slow imports
    from bench.reports.dataset.printing import describe_config, description_values, print_description

    description = describe_config(config, out, html)
    if format == "json":
        print_json(description_values(description))
    else:
        print_description(description, out, html, wide=wide)


@data.command("pack")
def pack(
    folder: Folder,
    verify: Annotated[bool, typer.Option("--verify", help="Check the checksums of the pack.")] = False,
    dataset: DataSet = None,
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Pack a folder into memory-mapped arrays. `bench run` does this itself if no pack exists."""
    from bench.overrides import configure_data

    config = configure_data(folder, dataset, set_, plugin)  # before slow imports
    from bench.reports.dataset.printing import show_pack

    show_pack(config, verify=verify)


@data.command("cache")
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all that no running process needs.")] = False,
) -> None:
    """List what is in the cache, the folder BENCH_CACHE or else ~/.cache/bench. It is written again when needed.

    Example: `bench data cache --clear`
    """
    from bench.reports.dataset.printing import show_cache

    show_cache(clear=clear)


@data.command("phantom")
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must be empty or not exist.")],
    set_: PhantomSet = None,
) -> None:
    """Write the synthetic data set in the layout of the real one.

    With `--set structures=2` lesions have a core: masks are label maps of 1 (rim) and 2 (core), and the structures
    are tumour and core, or with `--set exclusive=true` rim and core. `--dataset lgg` reads the folder accordingly.
    """
    from bench import registry
    from bench.data.datasets.phantom import write_phantom
    from bench.overrides import parse_assignment

    settings = registry.dataset["phantom"].settings(dict(parse_assignment(s) for s in set_ or []))
    write_phantom(folder, **settings)
    typer.echo(f"synthetic volumes of {settings['patients']} patients are in {folder}")


@data.command("download")
def download(folder: Annotated[Path, typer.Argument(help="Folder to download to.")]) -> None:
    """Download the LGG data from Kaggle (needs the extra `data`, a network, and possibly a Kaggle account)."""
    from bench.data.datasets.lgg import download_lgg

    typer.echo(f"the data is in {download_lgg(folder)}. Next: bench data check {folder}")
