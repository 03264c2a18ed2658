"""Commands for other tools: folds and data to train them on, and their predictions scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli._app import Plugin, TrackingUri, app, check_name, data, split
from bench.cli.datasets import DataSet

Folder = Annotated[Path, typer.Option("--data", help="Data folder.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, such as split.seed=1.")]


@split.command("export")
def write_split(
    data: Folder,
    format_: Annotated[
        Literal["csv", "json", "nnunet"], typer.Option("--format", help="nnunet writes splits_final.json.")
    ] = "csv",
    out: Annotated[Path | None, typer.Option(help="File to write; by default named after the split.")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds.")] = None,
    dataset: DataSet = None,
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Write the folds that `bench run` makes of a data set, for other tools or other people.

    Example: `bench split export --data ~/lgg --format nnunet`
    """
    from bench.experiments.other_tools import export_split
    from bench.overrides import configure_data

    settings = {} if folds is None else {"split.folds": folds}
    export_split(configure_data(data, dataset, set_, plugin, settings), format_, out)


@split.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="CSV or JSON of folds, or nnU-Net's splits_final.json.")],
    data: Folder,
    dataset: DataSet = None,
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Check folds that someone else made: leaks, unknown or missing patients. The exit code is 1 for errors.

    Train on them with `bench run --set split=file --set split.path=FILE`.
    """
    from bench.experiments.other_tools import verify_split
    from bench.overrides import configure_data

    if not verify_split(configure_data(data, dataset, set_, plugin, {"split": "file", "split.path": str(file)})):
        raise typer.Exit(1)


@data.command("export")
def write_data(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write, such as $nnUNet_raw/Dataset501_Lgg.")],
    format_: Annotated[Literal["nnunet"], typer.Option("--format", help="Layout of the files.")] = "nnunet",
    dataset: DataSet = None,
    set_: Set = None,
    plugin: Plugin = None,
) -> None:
    """Write a data set for nnU-Net, to train it on the same images and folds.

    Example: `bench data export ~/lgg --format nnunet --out $nnUNet_raw/Dataset501_Lgg`
    """
    from bench.experiments.other_tools import export_data
    from bench.overrides import configure_data

    export_data(configure_data(folder, dataset, set_, plugin), out)


@app.command()
def score(
    masks: Annotated[Path, typer.Argument(help="Folder of masks that another tool predicted.")],
    data: Folder,
    name: Annotated[str, typer.Option(callback=check_name, help="Name of the new run, such as nnunet-2d.")],
    fold_folders: Annotated[
        bool,
        typer.Option("--fold-folders", help="The folder has fold_0, fold_1 ..., each with its test patients."),
    ] = False,
    about: Annotated[
        Path | None, typer.Option(help="YAML with what is known: model, epochs, images, train_seconds ...")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also score nnU-Net's <name>.npz beside the masks.")
    ] = False,
    ignore_headers: Annotated[
        bool,
        typer.Option(
            "--ignore-headers", help="Compare volumes pixel by pixel, wherever their headers place them."
        ),
    ] = False,
    dataset: DataSet = None,
    set_: Set = None,
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score masks of another tool on the folds of this suite, as a run on the same leaderboard.

    Example: `bench score predictions --data ~/lgg --name nnunet-2d --fold-folders`
    """
    from bench.derived.guest import score_files
    from bench.overrides import configure_data

    score_files(
        configure_data(data, dataset, set_, plugin),
        masks,
        name=name,
        by_fold=fold_folders,
        about=about,
        check_headers=not ignore_headers,
        probabilities=probabilities,
        uri=tracking_uri,
    )
