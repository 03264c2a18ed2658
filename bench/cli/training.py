"""Commands that train: `bench run` and `bench suite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.api import SETTINGS
from bench.cli._app import (
    DryRun,
    Format,
    OwnDevice,
    Plugin,
    Quiet,
    TrackingUri,
    Verbose,
    Wide,
    app,
    print_json,
    print_logged,
    refuse_options,
    say,
    text_aside,
    without_none,
)
from bench.errors import BadSetting
from bench.outputs import check_outputs, write_output

RETRY_HELP = "Also run failed cells again, or only missing ones."
WORKERS_HELP = "Parallel cells, each in its own process; GPUs are assigned in turn."
DATASET_HELP = "Layout of --data, of `bench list datasets`; default: lgg, pairs or volumes, by its folders."
FLAGS = {setting: f"--{name.replace('_', '-')}" for name, setting in SETTINGS.items()} | {"plugins": "--plugin"}
LAUNCH_HELP = "Option of the launcher: address=auto, slurm_partition=gpu."


@app.command()
def run(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Architecture; `bench list models`; default: unet.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder; `bench list encoders`; default: that of the model.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Encoder weights: imagenet or a safetensors file; default: none.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; default: the synthetic phantom.")] = None,
    dataset: Annotated[str | None, typer.Option(help=DATASET_HELP)] = None,
    loss: Annotated[str | None, typer.Option(help="Loss; `bench list losses`; default: bce_dice.")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds; default: 5, phantom 3.")] = None,
    fold: Annotated[int | None, typer.Option(help="Run only this fold, numbered from 0; default: all.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training slices; default: 50, phantom 4.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Train at this size; scores use the original. Default: as packed.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Slices per step; default: 16, phantom 8.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: 0.001.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of training; split.seed is another. Default: 0.")] = None,
    device: OwnDevice = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; default: its model, encoder and loss.")
    ] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bitwise repeatable; slower.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags override it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any of `bench list settings`, such as train.clip=none.")
    ] = None,
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
    resume: Annotated[str | None, typer.Option(help="Resume this run, as repeating its command does.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again, and abandon an interrupted run.")] = False,
    dry_run: DryRun = False,
    format: Format = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run grouped k-fold cross-validation of one configuration, and rank it.

    Example: `bench run --model unet --encoder resnet50 --data ~/lgg`
    """
    from bench import api
    from bench.overrides import check_data_folder, parse_assignment

    if resume is not None:
        refuse_options(
            ctx, "--resume", "of the run", ("resume", "plugin", "tracking_uri", "format", "quiet", "verbose")
        )
    changes = dict(parse_assignment(a) for a in set_ or [])
    _refuse_flags(changes)
    given = {k: v for k, v in ctx.params.items() if k not in ("dry_run", "set_", "format")}
    given |= {"settings": changes, "plugin": plugin or ()}
    if dry_run:
        settings = check_data_folder(api.configure_run(given))
        from bench.experiments.run import dry_run as print_plan  # slow, so after the settings were checked

        print_plan(settings, only=fold, quiet=quiet)
        return

    def log() -> str:
        finished = api.run(**given)
        from bench.experiments.run import print_finished

        print_finished(finished)
        return finished.run_id

    print_logged(format, tracking_uri, log)


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="Benchmark file, such as benchmarks/published/unet-detect.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Data folder.")] = None,
    budget: Annotated[str, typer.Option(help="Budget of the file, such as smoke; full: no changes.")] = "full",
    status: Annotated[bool, typer.Option("--status", help="Only print what is done, failed and missing.")] = False,
    dry_run: DryRun = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed/--only-missing", help=RETRY_HELP)] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Abandon and repeat interrupted runs.")] = False,
    max_failures: Annotated[int | None, typer.Option(min=1, help="Failures before the suite stops.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help=WORKERS_HELP)] = None,
    launcher: Annotated[str, typer.Option(help="Where the workers are: local, ray or slurm.")] = "local",
    launch: Annotated[list[str] | None, typer.Option(help=LAUNCH_HELP)] = None,
    retries: Annotated[int, typer.Option(min=0, help="Repetitions of a cell whose worker is lost.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Also write the page to this Markdown file.")] = None,
    device: OwnDevice = None,
    tracking_uri: TrackingUri = None,
    format: Format = "table",
    wide: Wide = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the missing cells of a benchmark file, and rank them beside published scores.

    The exit code is 1 if a cell has failed. With workers on other machines, give a server as --tracking-uri; a
    SQLite store serves the processes of one machine.
    """
    from bench.experiments.suite_file import read_suite
    from bench.overrides import parse_assignment

    check_outputs([out] if out else [])
    flags = {"dataset.folder": data and str(data), "device": device}
    cells = read_suite(file, budget=budget, given=without_none(flags))  # before slow imports
    from bench.experiments import suite_page
    from bench.experiments.launch import make_launcher
    from bench.experiments.launch.local import threads_per_worker
    from bench.experiments.suite import FAILED, CellState, run_suite, states
    from bench.tracking import connect

    store = connect(tracking_uri)
    command = f"bench suite {file}" + " --data DIR" * bool(data) + f" --budget {budget}" * (budget != "full")
    if dry_run:
        threads = workers and threads_per_worker(workers)
        suite_page.print_plan(cells, store, retry=retry_failed, workers=workers or 1, threads=threads)
        return

    def show(found: Sequence[CellState]) -> None:
        boards = suite_page.suite_boards(found, store)
        if format == "json":
            print_json(suite_page.suite_json(cells, found, boards))
        else:
            suite_page.print_suite(cells, found, boards, wide=wide)
        if out is not None:
            write_output(out, suite_page.page(cells, found, boards, command))
            say(f"the page is in {out}")

    if status:
        show(states(cells, store))
        return
    run_cells = partial(
        run_suite, cells, uri=tracking_uri, fresh=fresh, retries=retries, max_failures=max_failures
    )
    with text_aside(format):
        if workers is None and launcher == "local" and not launch:
            found = run_cells(retry=retry_failed, quiet=quiet, verbose=verbose)
        else:
            parallel = make_launcher(launcher, workers, dict(parse_assignment(option) for option in launch or []))
            with suite_page.live_report(cells, store) as report:
                found = run_cells(retry=retry_failed, launcher=parallel, report=report, quiet=True)
    show(found)
    if any(s.state == FAILED for s in found):
        raise typer.Exit(1)


def _refuse_flags(changes: Mapping[str, Any]) -> None:
    """Raise `BadSetting` if an option of `bench run`, such as epochs, was given as a setting."""
    settings = {flag.removeprefix("--").replace("-", "_"): setting for setting, flag in FLAGS.items()}
    for key in changes:
        if settings.get(key, key) != key:
            raise BadSetting(f"no setting '{key}'. Did you mean {settings[key]}, or {FLAGS[settings[key]]}?")
