"""Commands that list and describe what can be chosen and set."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli._app import Format, Plugin, app, print_json

KINDS = "models, encoders, losses, augmentations, preprocessing, metrics, datasets, schedules, splits or settings"


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=f"{KINDS}; default: list these.")] = "",
    format: Format = "table",
    plugin: Plugin = None,
) -> None:
    """List what there is of one kind, one per line: components to choose from, or settings of a run."""
    from bench.cli._reference import MORE, list_kind

    rows = list_kind(kind)
    if format == "json":
        print_json([{"name": name, "summary": summary} for name, summary in rows])
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}")
    if kind in MORE:
        typer.echo(f"\nMore: {MORE[kind]}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Such as unet, bce_dice, train.lr, model.base or 'P(1st)'.")],
    format: Format = "table",
    plugin: Plugin = None,
) -> None:
    """Show what a component, a setting or a column of the leaderboard means, with types, ranges and defaults."""
    from bench.cli._reference import explain

    texts, values = explain(name)
    if format == "json":
        print_json(values)
        return
    kinds = [value["kind"] for value in values if value["kind"] not in ("setting", "column")]
    if len(kinds) > 1:
        typer.echo(f"{len(kinds)} components are named {name}: {', '.join(f'a {kind}' for kind in kinds)}.\n")
    typer.echo("\n\n".join(texts))
