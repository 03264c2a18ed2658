"""Commands that list and describe the components to choose from."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from bench.cli._app import Plugin, app

KINDS = "models, encoders, losses, augmentations, preprocessing, metrics, datasets, schedules, splits"


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(help=KINDS)], plugin: Plugin = None) -> None:
    """List the components of one kind, one per line."""
    from bench.registry import REGISTRIES

    if kind == "encoders":
        from bench.models.encoder_names import list_encoders

        rows = list_encoders()
    elif kind in REGISTRIES:
        rows = [(name, REGISTRIES[kind][name].summary) for name in REGISTRIES[kind]]
    else:
        unknown("kind", kind, [*REGISTRIES, "encoders"])
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="Such as unet or bce_dice.")], plugin: Plugin = None) -> None:
    """Show the description, the paper, the settings and the defaults of a component."""
    from bench.registry import REGISTRIES
    from bench.settings import describe_field

    found = [registry[name] for registry in REGISTRIES.values() if name in registry]
    if not found:
        unknown("component", name, [n for registry in REGISTRIES.values() for n in registry])
    for entry in found:
        typer.echo(f"{entry.kind} {entry.name}\n\n{entry.doc}\n")
        for setting, field in entry.schema.model_fields.items():
            default = "required" if field.is_required() else f"= {field.default!r}"
            typer.echo(f"  {setting:<18} {default}  ({describe_field(field)})")


def unknown(what: str, name: str, names: list[str]) -> NoReturn:
    from bench.errors import UnknownName, did_you_mean

    raise UnknownName(
        f"no {what} '{name}'.{did_you_mean(name, names)} There are: {', '.join(sorted(set(names)))}."
    )
