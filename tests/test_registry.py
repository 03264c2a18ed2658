"""Registries: look up components by name, validate settings by signature, load plugins."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
from pydantic import Field

from bench import registry
from bench.errors import BadSetting, UnknownName
from bench.registry import REGISTRIES, Registry, load_plugin
from bench.settings import describe_field

PLUGIN = '''
from torch import nn

from bench.registry import model


@model
def one_by_one(channels: int, *, bias: bool = True) -> nn.Module:
    """A single 1x1 convolution."""
    return nn.Conv2d(channels, 1, 1, bias=bias)
'''


@pytest.fixture
def tool():
    """A registry of tools; its home `bench.data.splits` adds nothing to it."""
    tools = Registry("tool", "bench.data.splits")

    @tools(unit="mm")
    def saw(wood, *, teeth: Annotated[int, Field(ge=1)] = 24, handle: str | None = None, length: float):
        """Cuts across
        the grain.

        From a paper.
        """
        return wood, teeth, handle, length

    @tools(name="nail-gun")
    def _gun():
        return "bang"

    return tools


@pytest.fixture
def plugin(tmp_path):
    """A plugin file; the model that it registers is removed afterwards."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    yield path
    registry.model._entries.pop("one_by_one", None)


def test_a_component_is_found_by_its_function_name_or_the_name_argument(tool):
    assert list(tool) == ["nail-gun", "saw"]
    assert "saw" in tool
    assert "axe" not in tool
    assert tool["nail-gun"].fn() == "bang"


def test_the_decorator_returns_the_function_unchanged(tool):
    def plane():
        return 1

    assert tool(plane) is plane


def test_an_entry_has_a_summary_and_facts(tool):
    assert tool["saw"].summary == "Cuts across the grain."
    assert tool["saw"].facts["unit"] == "mm"
    assert tool["nail-gun"].summary == ""


def test_registering_a_name_twice_raises_and_names_both_modules(tool):
    def saw(): ...

    saw.__module__ = "somewhere.else"
    with pytest.raises(BadSetting, match=f"the tool 'saw': {__name__} and somewhere.else. Rename one"):
        tool(saw)


def test_an_unknown_name_raises_with_a_suggestion_and_the_list_command(tool):
    with pytest.raises(
        UnknownName, match=r"^no tool named 'sew'. Did you mean 'saw'\? `bench list tools` shows all"
    ):
        tool["sew"]


def test_settings_are_validated_and_filled_with_defaults(tool):
    assert tool["saw"].settings({"length": "2.5"}) == {"teeth": 24, "handle": None, "length": 2.5}
    assert tool["saw"].bind({"length": 1, "teeth": 3})("oak") == ("oak", 3, None, 1)
    assert tool["nail-gun"].settings({}) == {}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "saw",
            {"length": 1, "tooth": 3},
            "tool 'saw' has no setting 'tooth'; it has teeth, handle, length.*'teeth'",
        ),
        (
            "saw",
            {"length": 1, "teeth": 0},
            "tool 'saw': teeth = 0 is refused: input should be greater than or equal",
        ),
        ("saw", {"length": "long"}, "tool 'saw': length = 'long' is refused: input should be a valid number"),
        ("saw", {}, "tool 'saw' needs the setting 'length'"),
        ("nail-gun", {"x": 1}, "tool 'nail-gun' has no setting 'x'; it has no settings"),
    ],
)
def test_a_wrong_setting_raises_a_readable_error(tool, name, settings, message):
    with pytest.raises(BadSetting, match=message):
        tool[name].settings(settings)


@pytest.mark.parametrize("kind", registry.REGISTRIES.values(), ids=registry.REGISTRIES)
def test_every_builtin_component_has_a_summary_and_default_settings(kind):
    assert list(kind)
    for name in kind:
        entry = kind[name]
        assert entry.summary.endswith((".", ")")), name
        required = {n for n, f in entry.schema.model_fields.items() if f.is_required()}
        assert required <= {"folder", "path"}, f"{kind.kind} {name} has no default for {required}"


def test_a_plugin_file_registers_its_model(plugin):
    load_plugin(plugin)
    assert "one_by_one" in registry.model
    net = registry.model["one_by_one"].bind({"bias": False})(3)
    assert [tuple(p.shape) for p in net.parameters()] == [(1, 3, 1, 1)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (registry.model, r"the model 'own' cannot be called with \(channels\).*def own\(channels, \*,"),
        (registry.loss, r"the loss 'own' cannot be called with \(logits, target\)"),
    ],
)
def test_registering_a_function_with_a_wrong_signature_raises(kind, message):
    with pytest.raises(BadSetting, match=message):

        @kind
        def own(*, width: int = 3):
            return width

    assert "own" not in kind


def test_a_plugin_may_be_loaded_twice(plugin, monkeypatch):
    load_plugin(plugin)
    monkeypatch.chdir(plugin.parent)
    load_plugin(plugin.relative_to(plugin.parent))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise ZeroDivisionError", r"cannot be imported \(mine\.py, line 2\): ZeroDivisionError\. Fix"),
        ("def (:", r"cannot be imported \(mine\.py, line 1\): SyntaxError"),
        ("import absent_package", r"ModuleNotFoundError: .*Install 'absent_package', or remove"),
        (f"{PLUGIN}\n1 / 0", r"cannot be imported \(mine\.py, line 12\): ZeroDivisionError"),
        (PLUGIN + "\nraise SystemExit", r"mine\.py cannot be imported .*SystemExit"),
    ],
)
def test_a_plugin_that_cannot_be_imported_raises_one_sentence_at_every_load(plugin, text, message):
    plugin.write_text(text)
    for _ in range(2):
        with pytest.raises(BadSetting, match=message):
            load_plugin(plugin)
    assert "one_by_one" not in registry.model
    assert registry.model["unet"].built_in


@pytest.mark.parametrize("kind", REGISTRIES.values(), ids=REGISTRIES)
def test_a_plugin_cannot_take_the_name_of_a_builtin_that_is_not_imported_yet(kind, plugin, monkeypatch):
    taken = next(iter(kind))
    fresh = Registry(kind.kind, kind.group, home=kind._home)
    monkeypatch.setattr(registry, kind.kind, fresh)
    entries = dict(kind._entries)
    monkeypatch.setattr(fresh, "_discover", lambda: fresh._entries.update(entries))  # imports register only once
    arguments = ", ".join(registry.ARGUMENTS.get(kind.kind, ()))
    plugin.write_text(f"from bench.registry import {kind.kind}\n\n@{kind.kind}\ndef {taken}({arguments}): ...\n")
    with pytest.raises(BadSetting, match=rf"\(mine\.py, line 3\): two components .* {kind.kind} '{taken}': bench"):
        load_plugin(plugin)
    assert fresh[taken].built_in


def test_a_plugin_that_is_missing_or_not_python_raises(tmp_path):
    with pytest.raises(UnknownName, match=r"absent\.py does not exist"):
        load_plugin(tmp_path / "absent.py")
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(UnknownName, match=r"notes\.txt is not a Python file: its name must end in \.py"):
        load_plugin(tmp_path / "notes.txt")


NUMBERS = [
    (entry, setting)
    for kind in REGISTRIES.values()
    for entry in map(kind.__getitem__, kind)
    if entry.fn.__module__.startswith("bench.")
    for setting, field in entry.schema.model_fields.items()
    if re.match(r"int|float|str \| int|tuple", describe_field(field))
]


@pytest.mark.parametrize(("entry", "setting"), NUMBERS, ids=lambda value: getattr(value, "name", value))
def test_every_number_of_a_component_has_a_range(entry, setting):
    needed = {name: "x" for name in ("folder", "path") if name in entry.schema.model_fields}
    length = {"blocks_down": 4, "depths": 4}.get(
        setting, 2 if isinstance(entry.settings(needed)[setting], tuple) else 0
    )
    for value in (True, float("nan"), float("inf"), 1e308, -1e308, 10**20):
        with pytest.raises(BadSetting, match=f"{setting} = .* is refused"):
            entry.settings({**needed, setting: [value] * length if length else value})
