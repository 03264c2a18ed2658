"""The reference of settings, read from the schema of a run and the signatures of components."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bench import registry
from bench.config import CHAINS, COMPONENTS, Component, RunConfig
from bench.settings import describe_field, models_in

_CHOSEN_BY = {**{kind: kind for kind in COMPONENTS}, "schedule": "train.schedule"}  # kind -> setting
_STEPS_OF = dict(zip(("augmentation", "preprocessing"), CHAINS, strict=True))


@dataclass(frozen=True)
class Setting:
    """One setting of a run: its name for `--set`, what it takes, its default (... if none) and its meaning.

    `of` is the component that has it, '' if every run has it.
    """

    name: str
    takes: str
    default: Any
    meaning: str
    of: str = ""


def run_settings() -> list[Setting]:
    """Return all settings that every run has, in the order of the schema."""
    return list(_walk(RunConfig, ""))


def component_settings(entry: registry.Entry) -> list[Setting]:
    """Return the settings of a component. Those of metrics cannot be set in a run: their names have no dot."""
    prefix = f"{_CHOSEN_BY[entry.kind]}." if entry.kind in _CHOSEN_BY else ""
    prefix = f"{_STEPS_OF[entry.kind]}.{entry.name}." if entry.kind in _STEPS_OF else prefix
    return [
        Setting(f"{prefix}{name}", *_facts(field), field.description or _sentences(entry.doc, name), entry.label)
        for name, field in entry.schema.model_fields.items()
    ]


def find_settings(name: str) -> list[Setting]:
    """Return the settings of this name: 'train.lr', all of 'train', 'model.base' of each model, or 'unet.base'.

    Components whose setting of this name is the same share an entry.
    """
    own = [s for s in run_settings() if s.name == name or s.name.startswith(f"{name}.")]
    if own or "." not in name:
        return own
    shared: dict[str, list[Setting]] = {}
    for entry, setting in _all_component_settings():
        if name in (setting.name, f"{entry.name}.{setting.name.rpartition('.')[2]}"):
            shared.setdefault(repr(replace(setting, of="")), []).append(setting)
    return [replace(same[0], of=", ".join(s.of for s in same)) for same in shared.values()]


def suggest_setting(name: str) -> str:
    """Return " Did you mean 'train.epochs'?" for 'epochs', 'epoch' or 'train.epoch', or '' if none is close."""
    settings = (*run_settings(), *(s for _, s in _all_component_settings()))
    by_last: dict[str, dict[str, None]] = {}  # the last part of a name -> all names that end in it
    for setting in settings:
        by_last.setdefault(setting.name.rpartition(".")[2], {})[setting.name] = None
    close = get_close_matches(name.lower(), [s.name for s in settings], n=1) or [
        full for last in get_close_matches(name.lower(), by_last, n=1, cutoff=0.8) for full in by_last[last]
    ]
    names = list(by_last.get(name, close))[:3]
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def _all_component_settings() -> Iterator[tuple[registry.Entry, Setting]]:
    for kind in registry.REGISTRIES.values():
        if kind.kind in _CHOSEN_BY or kind.kind in _STEPS_OF:
            for entry in (kind[name] for name in kind):
                yield from ((entry, setting) for setting in component_settings(entry))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        groups = [group for group in models_in(field.annotation) if group is not Component]
        meaning = field.description or ""
        if field.annotation is Component or key in CHAINS:
            kind = next(k for k, chooser in (_CHOSEN_BY | _STEPS_OF).items() if chooser == key)
            listed = f"`bench list {getattr(registry, kind).plural}`"
            default = list(field.default) if key in CHAINS else field.default.name
            names = "names" if key in CHAINS else "a name"
            yield Setting(key, f"{names} of {listed}", default, meaning)
        elif not groups:
            yield Setting(key, *_facts(field), meaning + _suggested(key))
        elif field.default is None:
            yield Setting(key, "none, or its settings below", None, meaning)
        for group in groups:
            yield from _walk(group, f"{key}.")


def _facts(field: FieldInfo) -> tuple[str, Any]:
    """Return what a field takes, with its range, and its default."""
    takes = re.sub(r"\bNone\b", "none", re.sub(r"\bbool\b", "true | false", describe_field(field)))
    return takes, ... if field.is_required() else field.default


def _suggested(key: str) -> str:
    """Return the defaults that data sets and models suggest for a setting, such as '; 50 with lgg, pairs'."""
    by_value: dict[Any, list[str]] = {}
    for entry in (kind[name] for kind in (registry.dataset, registry.model) for name in kind):
        if key in (defaults := entry.facts.get("defaults", {})):
            by_value.setdefault(defaults[key], []).append(entry.name)
    return "".join(f"; {value} by default with {', '.join(names)}" for value, names in by_value.items())


def _sentences(doc: str, name: str) -> str:
    """Return the sentences of a docstring that mention a setting in backquotes."""
    sentences = re.split(r"(?<=[.:])\s+(?=[A-Z`])", " ".join(doc.split()))
    return " ".join(s for s in sentences if f"`{name}`" in s)
