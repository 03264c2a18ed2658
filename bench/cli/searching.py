"""The command `bench search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli._app import OwnDevice, Plugin, Quiet, TrackingUri, app, check_name, refuse_options, without_none

SPACE_HELP = "What to search: train.lr='1e-4..1e-2 log', loss=[dice,bce_dice]; overrides the file."
PRUNER_HELP = "none, median or hyperband (after epochs), wilcoxon (patients, after folds)."
OBJECTIVES_HELP = "The score, then costs (parameters, flops, latency): dice,flops."
DEFAULT_HELP = "Also score the unchanged base on the held-out fold."
STORAGE_HELP = "Optuna storage, such as postgresql://...; default: optuna.db beside the store."


@app.command("search")
def search_(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Search file, such as benchmarks/search/unet.yaml.")] = None,
    space: Annotated[list[str] | None, typer.Option(help=SPACE_HELP)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; the same name resumes it.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; default: the synthetic phantom.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Complete or pruned trials of all workers.")] = 20,
    sampler: Annotated[str, typer.Option(help="tpe, gp, cmaes, random or grid.")] = "tpe",
    pruner: Annotated[str, typer.Option(help=PRUNER_HELP)] = "none",
    objectives: Annotated[str | None, typer.Option(help=OBJECTIVES_HELP)] = None,
    fold: Annotated[int, typer.Option(help="Outer fold; its test patients are held out.")] = 0,
    inner: Annotated[int, typer.Option(min=2, help="Number of inner folds of all other patients.")] = 3,
    nested: Annotated[bool, typer.Option("--nested", help="Run a study inside every outer fold.")] = False,
    against_default: Annotated[bool, typer.Option("--against-default", help=DEFAULT_HELP)] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting of the base.")] = None,
    device: OwnDevice = None,
    plugin: Plugin = None,
    storage: Annotated[str | None, typer.Option(help=STORAGE_HELP)] = None,
    join: Annotated[str | None, typer.Option(help="Add a worker to this study and its settings.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the best configuration to this YAML file.")] = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Search settings by inner folds, and score the best on patients that took no part in the search.

    Example: `bench search benchmarks/search/unet.yaml --data ~/lgg --trials 30 --against-default --out best.yaml`
    """
    if join is not None:
        refuse_options(
            ctx, "--join", "of the study", ("join", "data", "device", "storage", "plugin", "tracking_uri", "quiet")
        )
    from bench.errors import BadSetting
    from bench.experiments.search import space as spaces
    from bench.overrides import parse_assignment, recognise_dataset

    machine = without_none({"dataset.folder": data and str(data.resolve()), "device": device})
    if join is not None:
        from bench.experiments.search.command import join_study

        join_study(join, machine=machine, storage=storage, uri=tracking_uri, quiet=quiet)
        return
    if nested and (out or against_default):
        raise BadSetting("a nested search has a winner in every fold. Leave out --out and --against-default.")
    content = spaces.read_search_file(file) if file else spaces.SearchFile()
    names_dataset = any(key.partition(".")[0] == "dataset" for key in content.base)
    flags: dict[str, Any] = {"dataset": recognise_dataset(data)} if data and not names_dataset else {}
    plugins = {"plugins": [str(path) for path in plugin]} if plugin else {}
    settings = flags | plugins | dict(parse_assignment(a) for a in set_ or [])
    base = [layer for layer in (content.base, settings) if layer]
    searched = content.space | spaces.parse_space_options(space or [])
    spaces.check_search(file, (*base, machine), searched)  # before slow imports
    from bench.experiments.search.command import search, search_nested
    from bench.experiments.search.plan import make_plan

    plan = make_plan(
        base=base,
        space=searched,
        trials=trials,
        fold=fold,
        inner=inner,
        sampler=sampler,
        pruner=pruner,
        objectives=objectives.split(",") if objectives else [],
        seed=seed,
    )
    study_name = check_name(name or (file.stem if file else "search"))
    study: dict[str, Any] = {"name": study_name, "machine": machine, "storage": storage}
    study |= {"uri": tracking_uri, "quiet": quiet}
    if nested:
        search_nested(plan, **study)
    else:
        search(plan, against_default=against_default, out=out, **study)
