"""Commands that list and describe what can be chosen and set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bench.cli._app import Format, Output, Plugin, app, print_json

if TYPE_CHECKING:
    from bench.reference import Setting
    from bench.registry import Entry

KINDS = "models, encoders, losses, augmentations, preprocessing, metrics, datasets, schedules, splits or settings"


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=f"{KINDS}; default: list these.")] = "",
    format: Format = Output.table,
    plugin: Plugin = None,
) -> None:
    """List what there is of one kind, one per line: components to choose from, or settings of a run."""
    from bench.registry import REGISTRIES

    more = ""
    if kind == "settings":
        rows = [(setting.name, _summary(setting)) for setting in _settings()]
        more = "\nMore: `bench show train.lr`. Components have settings of their own: `bench show unet`."
    elif kind == "encoders":
        from bench.models.encoder_names import list_encoders

        rows = list_encoders()
    elif kind in REGISTRIES:
        rows = [(name, REGISTRIES[kind][name].summary) for name in REGISTRIES[kind]]
    elif kind:
        unknown("kind", kind, [*REGISTRIES, "encoders", "settings"])
    else:
        rows, more = list(_kinds()), "\nMore: `bench list models`, then `bench show unet`."
    if format is Output.json:
        print_json([{"name": name, "summary": summary} for name, summary in rows])
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}")
    if more:
        typer.echo(more)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Such as unet, bce_dice, train.lr, model.base or 'P(1st)'.")],
    format: Format = Output.table,
    plugin: Plugin = None,
) -> None:
    """Show what a component, a setting or a column of the leaderboard means, with types, ranges and defaults."""
    from bench.reference import find_settings, suggest_setting
    from bench.registry import REGISTRIES

    found = [registry[name] for registry in REGISTRIES.values() if name in registry]
    settings = find_settings(name)
    texts = [*map(_entry_text, found), *map(_setting_text, settings)]
    if not texts:
        from bench.reports.columns import explain_column

        texts = explain_column(name)
    if not texts:
        names = [name for registry in REGISTRIES.values() for name in registry]
        unknown("component, setting or column", name, names, suggest_setting(name))
    if format is Output.json:
        columns = (
            [] if found or settings else [{"kind": "column", "name": name, "meaning": text} for text in texts]
        )
        print_json([*map(_entry_values, found), *map(_setting_values, settings), *columns])
        return
    if len(found) > 1:
        typer.echo(f"{len(found)} components are named {name}: {', '.join(f'a {e.kind}' for e in found)}.\n")
    typer.echo("\n\n".join(texts))


def unknown(what: str, name: str, names: Sequence[str], suggestion: str = "") -> NoReturn:
    from bench.errors import UnknownName, did_you_mean

    suggestion = did_you_mean(name, names) or suggestion
    listed = (
        f" There are: {', '.join(sorted(set(names)))}."
        if len(names) < 20
        else " `bench list` shows what there is."
    )
    raise UnknownName(f"no {what} '{name}'.{suggestion}{listed}")


def _kinds() -> Iterator[tuple[str, str]]:
    """Yield every kind, and what it holds in short."""
    from bench.formatting import join_first
    from bench.models.encoder_names import list_encoders
    from bench.registry import REGISTRIES

    for kind, registry in REGISTRIES.items():
        yield kind, f"{len(registry)}: {join_first(list(registry))}"
    encoders = [name for name, _ in list_encoders()]
    yield "encoders", f"{len(encoders)}: {join_first(encoders)}"
    names = [setting.name for setting in _settings()]
    yield "settings", f"{len(names)}: {join_first(names)}"


def _settings() -> list[Setting]:
    from bench.reference import run_settings

    return run_settings()


def _entry_values(entry: Entry) -> dict[str, Any]:
    from bench.reference import component_settings

    settings = [_setting_values(setting) for setting in component_settings(entry)]
    return {"kind": entry.kind, "name": entry.name, "meaning": entry.doc, "settings": settings}


def _setting_values(setting: Setting) -> dict[str, Any]:
    required = setting.default is ...
    return {
        "kind": "setting",
        **vars(setting),
        "required": required,
        "default": None if required else setting.default,
    }


def _summary(setting: Setting) -> str:
    return f"{setting.meaning} ({_default(setting)})"


def _default(setting: Setting) -> str:
    from bench.overrides import written

    return "required" if setting.default is ... else f"default: {written(setting.default)}"


def _entry_text(entry: Entry) -> str:
    """Return the description of a component: its docstring, its settings, their types, ranges and defaults."""
    from bench.reference import component_settings

    settings = component_settings(entry)
    lines = [f"{entry.kind} {entry.name}", "", entry.doc]
    if settings:
        lines += ["", "Settings:" if "." in settings[0].name else "Fixed values, which a run cannot change:"]
        width = max(len(setting.name) for setting in settings)
        lines += [f"  {s.name:<{width}}  {_default(s)}  ({s.takes})" for s in settings]
    return "\n".join(lines)


def _setting_text(setting: Setting) -> str:
    """Return the description of a setting, and how to set it."""
    from bench.cli.training import FLAGS
    from bench.overrides import written

    rows = [("of", setting.of), ("meaning", setting.meaning), ("takes", setting.takes)]
    rows += [("default", "none: it is required" if setting.default is ... else written(setting.default))]
    flag = f", or {FLAGS[setting.name]} of `bench run`" if setting.name in FLAGS else ""
    rows += [("set it", f"--set {setting.name}=VALUE{flag}")]
    return "\n".join([setting.name, *(f"  {name:<8} {text}" for name, text in rows if text)])
