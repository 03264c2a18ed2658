"""The command line: text in, text out. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench import __version__
from bench.errors import BenchError

app = typer.Typer(
    help="Benchmark 2D medical image segmentation: honest folds, tracked in MLflow, ranked with intervals.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Check, describe, pack and get data.", no_args_is_help=True)
app.add_typer(data, name="data")


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    html = "html"


TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow store; else MLFLOW_TRACKING_URI, else ./mlruns/mlflow.db."),
]
Folder = Annotated[
    Path, typer.Argument(help="Folder in the Kaggle layout: a folder a patient, x_1.tif, x_1_mask.tif.")
]
Plugin = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file with components of your own.")]


def main() -> None:
    """Run the app; what the user can mend is one line and exit code 2, an interrupt is 130 (typer's doing)."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app()
    except BenchError as error:
        _say(f"error: {error}")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    model: Annotated[str | None, typer.Option(help="Architecture; `bench list models`.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder of the model; `bench list encoders`.")] = None,
    weights: Annotated[str | None, typer.Option(help="Encoder weights: imagenet, or a safetensors file.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data; without it, the synthetic phantom.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set; `bench list datasets`.")] = None,
    loss: Annotated[str | None, typer.Option(help="Loss; `bench list losses`.")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds.")] = None,
    fold: Annotated[int | None, typer.Option(help="Run this fold alone, numbered from 0.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training slices.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Train at this size; scores stay on the original grid.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Slices a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, order and augmentation; the split has its own.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Bitwise repeatable, slower on GPUs.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting, such as train.clip=none.")] = None,
    plugin: Plugin = None,
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and its cost; train nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every epoch.")] = False,
) -> None:
    """Run grouped k-fold cross-validation of one configuration, and rank it.

    Example: `bench run --model unet --encoder resnet50 --data ~/lgg`
    """
    flags = {
        "model": model,
        "model.encoder": encoder,
        "model.weights": weights,
        "dataset.folder": data,
        "dataset": dataset or ("lgg" if data else None),
        "loss": loss,
        "split.folds": folds,
        "train.epochs": epochs,
        "input.image_size": image_size,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "seed": seed,
        "device": device,
        "name": name,
        "train.deterministic": deterministic or None,
        "plugins": [str(p) for p in plugin] if plugin else None,
    }
    from bench.config import configure, load, parse
    from bench.session import dry_run as plan
    from bench.session import execute

    # Flags and --set are one layer, or choosing a component by one would silently drop settings by the other.
    given = {k: v for k, v in flags.items() if v is not None} | dict(parse(a) for a in set_ or [])
    settings = configure(load(config) if config else {}, given)
    if dry_run:
        plan(settings, only=fold, quiet=quiet)
    else:
        execute(settings, only=fold, uri=tracking_uri, quiet=quiet, verbose=verbose)


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="models, encoders, losses, augmentations, preprocessing, metrics, datasets, schedules, splits"
        ),
    ],
    plugin: Plugin = None,
) -> None:
    """List what there is of one kind, one line each."""
    from bench.registry import REGISTRIES

    _plugins(plugin)
    if kind == "encoders":
        from bench.models.encoders import catalogue

        rows = catalogue()
    elif kind in REGISTRIES:
        rows = [(name, REGISTRIES[kind][name].summary) for name in REGISTRIES[kind]]
    else:
        _unknown("kind", kind, [*REGISTRIES, "encoders"])
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A component, such as unet or bce_dice.")], plugin: Plugin = None
) -> None:
    """Show a component: what it is, its paper, its settings and their defaults."""
    from bench.registry import REGISTRIES

    _plugins(plugin)
    found = [registry[name] for registry in REGISTRIES.values() if name in registry]
    if not found:
        _unknown("component", name, [n for registry in REGISTRIES.values() for n in registry])
    for entry in found:
        typer.echo(f"{entry.kind} {entry.name}\n\n{entry.doc}\n")
        for setting, field in entry.schema.model_fields.items():
            default = "required" if field.is_required() else f"= {field.default!r}"
            plain = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
            facts = ", ".join((plain.replace("typing.", ""), *_limits(field.metadata)))
            typer.echo(f"  {setting:<18} {default}  ({facts})")


@app.command()
def leaderboard(
    primary: Annotated[
        str | None, typer.Option(help="Score to rank by; else Dice, or AUROC where presence was asked for.")
    ] = None,
    group_by: Annotated[
        str, typer.Option(help="What is a row: configuration (seeds averaged), run, or a setting like loss.name.")
    ] = "configuration",
    where: Annotated[
        list[str] | None, typer.Option(help="Only runs of which this holds: model=unet, parameters<5e6.")
    ] = None,
    pareto: Annotated[
        str | None, typer.Option(help="Only rows that none beats in score and in this cost: parameters, flops ...")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to order rows by; their ranks stay.")] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    tracking_uri: TrackingUri = None,
) -> None:
    """Print the ranked runs: one board for each data set, split and convention, never ranked together.

    Example: `bench leaderboard --primary hd95 --where model=unet --pareto flops`
    """
    from bench import tables
    from bench.leaderboard import boards
    from bench.tracking import connect, records

    found = records(connect(tracking_uri))
    made = boards(found, primary=primary, sort=sort, group_by=group_by, where=where or (), pareto=pareto)
    match format:
        case Format.csv:
            typer.echo(tables.board_csv(made), nl=False)
        case Format.json:
            typer.echo(tables.board_json(made))
        case Format.markdown:
            typer.echo(tables.board_markdown(made), nl=False)
        case Format.html:
            typer.echo("\n".join(map(tables.board_html, made)))
        case Format.table:
            from bench.console import console

            if not found:
                _say("no finished run yet. `bench run --model unet` makes one.")
            elif not made:
                _say(f"none of {len(found)} runs is left by {' and '.join(where or ())}.")
            for board in made:
                console().print(tables.board_table(board))
                console().print(tables.board_table(board, tables.cost_columns(board)))


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="Benchmark file, such as benchmarks/published/unet-detect.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data.")] = None,
    budget: Annotated[str, typer.Option(help="A budget of the file, such as smoke; full: as it is.")] = "full",
    status: Annotated[bool, typer.Option("--status", help="Only say what is done, failed and missing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run what has failed again, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the page to this Markdown file.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    tracking_uri: TrackingUri = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every epoch.")] = False,
) -> None:
    """Run the cells of a benchmark file that are missing, and rank them beside what others have published.

    Exit code 1 when a cell has failed.
    """
    from bench.published import show
    from bench.suite import FAILED, read_suite, run_suite, states
    from bench.tracking import connect

    flags = {"dataset.folder": data and str(data), "device": device}
    made = read_suite(file, budget=budget, given={k: v for k, v in flags.items() if v is not None})
    store = connect(tracking_uri)
    if status:
        found = states(made, store)
    else:
        found = run_suite(made, uri=tracking_uri, retry=retry_failed, quiet=quiet, verbose=verbose)
    command = f"bench suite {file} --data DIR" if data else f"bench suite {file}"
    show(made, found, store, command=command if budget == "full" else f"{command} --budget {budget}", out=out)
    if not status and any(s.state == FAILED for s in found):
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Name or id of a run.")],
    data: Annotated[Path, typer.Option(help="Folder of another data set in the same layout.")],
    fold: Annotated[int | None, typer.Option(help="Use this fold's model alone, not the mean of all.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Else the one that the run chose.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Score a logged model on another folder (an external test set), logged as a child of the run."""
    from bench.apply import evaluate_external

    evaluate_external(run, data, fold=fold, threshold=threshold, device=device, uri=tracking_uri)


@app.command()
def cascade(
    presence: Annotated[str, typer.Argument(help="Name or id of a presence run (--model classifier).")],
    segmentation: Annotated[str, typer.Argument(help="Name or id of a segmentation run on the same split.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data; else where the runs found it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Segment only the slices that a classifier calls positive, scored as a system against segmentation alone."""
    from bench.cascade import cascade as command

    command(presence, segmentation, data=data, name=name, uri=tracking_uri)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="Name or id of a run, or a folder with model.json.")],
    input: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")],
    fold: Annotated[int | None, typer.Option(help="Use this fold's model alone, not the mean of all.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Else the one that the run chose.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Write masks (TIFF, 0 and 255) and overlays (PNG) for images without a truth."""
    from bench.apply import predict_folder

    predict_folder(run, input, out, fold=fold, threshold=threshold, device=device, uri=tracking_uri)


@app.command()
def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default answers this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 5000,
    tracking_uri: TrackingUri = None,
) -> None:
    """Open MLflow's UI on the store of this folder."""
    import subprocess

    from bench.tracking import connect, ui_command

    store = connect(tracking_uri)
    if store.uri.startswith("http"):
        typer.echo(f"the store is a server already: open {store.uri}")
        return
    command, environment = ui_command(store, host, port)
    typer.echo(f"MLflow UI on {store.uri} (Ctrl-C ends it; it takes some seconds to start)")
    for experiment, path in store.views().items():
        typer.echo(f"  leaderboard of {experiment}: http://{host}:{port}{path}")
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


@app.command()
def demo(
    run: Annotated[str | None, typer.Argument(help="Name or id of the run to open with; else the newest.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of patients with their truth; without it, files are dropped.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default answers this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 7860,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    tracking_uri: TrackingUri = None,
) -> None:
    """Show logged models on a web page: patients out of fold, or scans dropped on it (needs the extra `demo`)."""
    from bench.demo.command import open_demo

    open_demo(run, data, host=host, port=port, device=device, uri=tracking_uri)


@app.command()
def speed(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            help="data, augment, step, ablation, roof, epoch, folds, eval, track; all of these if none is named. "
            "Or nnunet (with the extra of that name), or scaling: what an epoch costs, and a large suite would."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data; without it, a phantom.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side, after one that is not timed.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny problem: to see that it works.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write JSON, tables and curves to this folder.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Time the suite side by side with its peers: ratio, spread, and the gate it has to reach."""
    from bench.speed.command import speed as command

    command(figures or [], folder=data, repeats=repeats, quick=quick, device=device, out=out, uri=tracking_uri)


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


def _plugins(paths: list[Path] | None) -> None:
    from bench.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def _limits(metadata: list[Any]) -> list[str]:
    """Pydantic's bounds as people write them."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return [
        f"{sign} {getattr(bound, name)}"
        for bound in metadata
        for name, sign in signs.items()
        if hasattr(bound, name)
    ]


def _unknown(what: str, name: str, names: list[str]) -> NoReturn:
    from bench.errors import UnknownName, did_you_mean

    raise UnknownName(
        f"no {what} '{name}'.{did_you_mean(name, names)} There are: {', '.join(sorted(set(names)))}."
    )


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _as_interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
