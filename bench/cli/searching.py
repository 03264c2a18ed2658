"""The command that searches settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli._app import Plugin, TrackingUri, app


@app.command()
def search(
    file: Annotated[
        Path | None, typer.Argument(help="Search file with 'base' and 'space': benchmarks/search/unet.yaml.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="What to search: train.lr='1e-4..1e-2 log', loss=[dice,bce_dice]; wins over the file."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; the same name goes on with it.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data; without it, the synthetic phantom.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials complete or pruned, over all workers.")] = 20,
    sampler: Annotated[str, typer.Option(help="tpe, gp, cmaes, random or grid.")] = "tpe",
    pruner: Annotated[
        str, typer.Option(help="none, median, hyperband (by epochs), wilcoxon (by patients, fold by fold).")
    ] = "none",
    objectives: Annotated[
        str | None, typer.Option(help="The score, then costs: dice,flops; parameters, flops, latency.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Outer fold whose test patients are held back.")] = 0,
    inner: Annotated[int, typer.Option(min=2, help="Inner folds among all other patients.")] = 3,
    nested: Annotated[
        bool, typer.Option("--nested", help="A study inside every outer fold, and the honest outer score.")
    ] = False,
    against_default: Annotated[
        bool, typer.Option("--against-default", help="Judge the unchanged base on the held-out fold, too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting of the base.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    plugin: Plugin = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage, such as postgresql://...; else optuna.db beside the store.")
    ] = None,
    join: Annotated[
        str | None, typer.Option(help="Add a worker to this study; it brings its own space and settings.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the best configuration to this YAML file.")] = None,
    tracking_uri: TrackingUri = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
) -> None:
    """Search settings by inner folds; patients that had no part in it judge the best.

    Example: `bench search benchmarks/search/unet.yaml --data ~/lgg --trials 30 --against-default --out best.yaml`
    """
    from bench.errors import BadSetting
    from bench.experiments import search as searching
    from bench.overrides import parse_assignment

    here = {"dataset.folder": data and str(data.resolve()), "device": device}
    own = {key: value for key, value in here.items() if value is not None}
    if join is not None:
        searching.join(join, here=own, storage=storage, uri=tracking_uri, quiet=quiet)
        return
    read = searching.read_file(file) if file else searching.SpaceFile()
    chosen = any(key.partition(".")[0] == "dataset" for key in read.base)
    flags = {
        "dataset": "lgg" if data and not chosen else None,
        "plugins": [str(p) for p in plugin] if plugin else None,
    }
    given = {key: value for key, value in flags.items() if value is not None} | dict(
        parse_assignment(a) for a in set_ or []
    )
    plan = searching.search_plan(
        base=[layer for layer in (read.base, given) if layer],
        space=read.space | searching.parse_space(space or []),
        trials=trials,
        fold=fold,
        inner=inner,
        sampler=sampler,
        pruner=pruner,
        objectives=objectives.split(",") if objectives else [],
        seed=seed,
    )
    title = name or (file.stem if file else "search")
    if not nested:
        searching.search(
            plan,
            name=title,
            here=own,
            storage=storage,
            uri=tracking_uri,
            against_default=against_default,
            out=out,
            quiet=quiet,
        )
        return
    if out or against_default:
        raise BadSetting("a nested search has a winner in every fold. Leave out --out and --against-default.")
    searching.nested(plan, name=title, here=own, storage=storage, uri=tracking_uri, quiet=quiet)
