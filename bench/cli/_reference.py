"""What can be chosen and set, for `bench list` and `bench show`: as text, and as plain values for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from bench.cli.training import FLAGS
from bench.errors import UnknownName, did_you_mean
from bench.formatting import join_first
from bench.models.encoder_names import list_encoders
from bench.overrides import written
from bench.reference import Setting, component_settings, find_settings, run_settings, suggest_setting
from bench.registry import REGISTRIES, Entry

KINDS = (*REGISTRIES, "encoders", "settings")
MORE = {
    "": "`bench list models`, then `bench show unet`.",
    "settings": "`bench show train.lr`. Components have settings of their own: `bench show unet`.",
}


def list_kind(kind: str) -> list[tuple[str, str]]:
    """Return the name and the summary of all there is of one kind, or for '' of every kind."""
    if not kind:
        names = {each: [name for name, _ in list_kind(each)] for each in KINDS}
        return [(each, f"{len(own)}: {join_first(own)}") for each, own in names.items()]
    if kind == "settings":
        return [(setting.name, f"{setting.meaning} ({_default(setting)})") for setting in run_settings()]
    if kind == "encoders":
        return list_encoders()
    if kind not in REGISTRIES:
        _refuse("kind", kind, KINDS)
    return [(name, REGISTRIES[kind][name].summary) for name in REGISTRIES[kind]]


def explain(name: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return what a name means, for each component, setting or column: texts, and the same as plain values."""
    entries = [registry[name] for registry in REGISTRIES.values() if name in registry]
    settings = find_settings(name)
    if entries or settings:
        texts = [*map(_entry_text, entries), *map(_setting_text, settings)]
        return texts, [*map(_entry_values, entries), *map(_setting_values, settings)]
    from bench.reports.columns import explain_column  # slow

    if not (texts := explain_column(name)):
        names = [name for registry in REGISTRIES.values() for name in registry]
        _refuse("component, setting or column", name, names, suggest_setting(name))
    return texts, [{"kind": "column", "name": name, "meaning": text} for text in texts]


def _refuse(what: str, name: str, names: Sequence[str], suggestion: str = "") -> NoReturn:
    way_out = f"There are: {', '.join(sorted(names))}." if len(names) < 20 else "`bench list` shows what there is."
    raise UnknownName(f"no {what} '{name}'.{did_you_mean(name, names) or suggestion} {way_out}")


def _entry_values(entry: Entry) -> dict[str, Any]:
    settings = [_setting_values(setting) for setting in component_settings(entry)]
    return {"kind": entry.kind, "name": entry.name, "meaning": entry.doc, "settings": settings}


def _setting_values(setting: Setting) -> dict[str, Any]:
    required = setting.default is ...
    default = None if required else setting.default
    return {"kind": "setting", **vars(setting), "required": required, "default": default}


def _default(setting: Setting) -> str:
    return "required" if setting.default is ... else f"default: {written(setting.default)}"


def _entry_text(entry: Entry) -> str:
    """Return the description of a component: its docstring, its settings, their types, ranges and defaults."""
    settings = component_settings(entry)
    lines = [f"{entry.kind} {entry.name}", "", entry.doc]
    if settings:
        lines += ["", "Settings:" if "." in settings[0].name else "Fixed values, which a run cannot change:"]
        width = max(len(setting.name) for setting in settings)
        lines += [f"  {s.name:<{width}}  {_default(s)}  ({s.takes})" for s in settings]
    return "\n".join(lines)


def _setting_text(setting: Setting) -> str:
    """Return the description of a setting, and how to set it."""
    rows = [("of", setting.of), ("meaning", setting.meaning), ("takes", setting.takes)]
    rows += [("default", "none: it is required" if setting.default is ... else written(setting.default))]
    flag = f", or {FLAGS[setting.name]} of `bench run`" if setting.name in FLAGS else ""
    rows += [("set it", f"--set {setting.name}=VALUE{flag}")]
    return "\n".join([setting.name, *(f"  {name:<8} {text}" for name, text in rows if text)])
