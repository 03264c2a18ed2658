"""Registries of components: every choice that a run can make is a function with a name.

The keyword-only parameters of a component are its settings: the signature is the schema. Pydantic validates them,
so `Annotated[float, Field(gt=0)]` states a range and a wrong value raises a readable error.

    from bench.registry import loss

    @loss
    def my_loss(logits, target, *, smooth: float = 1.0):
        '''One line that `bench list losses` shows.'''

The folder of a registry (`bench/training/losses` for losses) is read when a name is first looked up; a module in
it is imported when one of its functions is first needed (`bench.signatures`). Installed packages add components
through an entry point group such as `bench.losses`, a single file through `--plugin`.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from bench.errors import BadSetting, BenchError, UnknownName, did_you_mean
from bench.settings import Settings, refusal
from bench.signatures import declare_components, is_declared, load_function

F = TypeVar("F", bound=Callable[..., Any])


class _Parameters(Settings):
    """The keyword-only parameters of a component; their types may be any class."""

    model_config = ConfigDict(coerce_numbers_to_str=False, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Entry:
    """One registered component: its name, its function and the facts passed to the decorator.

    Until its module is imported, `declared` is the function without its body.
    """

    kind: str
    name: str
    declared: Callable[..., Any]
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def fn(self) -> Callable[..., Any]:
        return load_function(self.declared)

    @property
    def module(self) -> str:
        return self.declared.__module__

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.declared) or ""

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, as one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def built_in(self) -> bool:
        return self.module.startswith("bench.")

    @property
    def label(self) -> str:
        """The kind and the name, for messages; of a plugin's component also the file and the line."""
        place = ""
        if self.module.startswith(_PLUGIN):
            place = f" ({Path(inspect.getfile(self.fn)).name}, line {inspect.getsourcelines(self.fn)[1]})"
        return f"the {self.kind} '{self.name}'{place}"

    @property
    def fixed(self) -> tuple[str, ...]:
        """The arguments with a default that are no settings, because they can be passed by position."""
        parameters = inspect.signature(self.declared).parameters.values()
        given = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "structures"]
        return tuple(p.name for p in given if p.default is not p.empty)

    @cached_property
    def schema(self) -> type[BaseModel]:
        """A pydantic model of the keyword-only parameters."""
        hints = get_type_hints(self.declared, include_extras=True)
        fields: dict[str, Any] = {
            p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
            for p in inspect.signature(self.declared).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        return create_model(self.name, __base__=_Parameters, **fields)

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings: `params` validated, the others at their defaults. Raises `BadSetting`."""
        try:
            checked = self.schema.model_validate(dict(params))
        except ValidationError as error:
            raise BadSetting(self._explain(error)) from None
        return {name: getattr(checked, name) for name in self.schema.model_fields}

    def bind(self, params: Mapping[str, Any]) -> Callable[..., Any]:
        """Return the function with its settings filled in. What that of others raises becomes a `BenchError`."""
        settings, fn = self.settings(params), self.fn
        if not self.built_in:
            way_out = MUST.get(self.kind, "Fix the plugin, or leave it out.")
            fn = errors_named(f"{self.label} fails", way_out)(fn)
        return partial(fn, **settings)

    def _explain(self, error: ValidationError) -> str:
        known = ", ".join(self.schema.model_fields) or "no settings"
        first = error.errors()[0]
        setting = str(first["loc"][0]) if first["loc"] else ""
        if setting in self.fixed:
            return (
                f"{setting} is no setting of the {self.kind} '{self.name}', because it can be passed by position. "
                f"Write `*` before it: `*, {setting}=...`."
            )
        if first["type"] == "extra_forbidden":
            return (
                f"{self.kind} '{self.name}' has no setting '{setting}'; it has {known}."
                f"{did_you_mean(setting, self.schema.model_fields)}"
            )
        if first["type"] == "missing":
            way_out = " Give it as --data." if setting == "folder" else ""
            return f"{self.kind} '{self.name}' needs the setting '{setting}'.{way_out}"
        return f"{self.kind} '{self.name}': {refusal(setting, first, self.schema)}"


_PLUGIN = "bench_plugin_"  # before the path of a plugin file in the name of its module
MUST = {  # what components of these kinds must do, for messages
    "loss": "It takes logits, not probabilities, and the target, and must return the mean over the batch.",
    "metric": "It takes a `Stack` and must return one number, NaN where it is undefined.",
}
ARGUMENTS = {"model": ("channels",), "loss": ("logits", "target")}  # the positional arguments of these kinds


class Registry:
    """The components of one kind. Iterates over their names, sorted."""

    def __init__(self, kind: str, group: str, *, home: str | None = None, plural: str | None = None) -> None:
        """`group` is the entry point group of installed packages, `home` our package with components."""
        self.kind, self.group = kind, group
        self.plural = plural or f"{kind}s"
        self._home = home or group
        self._entries: dict[str, Entry] = {}
        self._discovered = False

    @overload
    def __call__(self, fn: F, /) -> F: ...
    @overload
    def __call__(self, fn: None = None, /, *, name: str | None = None, **facts: Any) -> Callable[[F], F]: ...
    def __call__(self, fn: F | None = None, /, *, name: str | None = None, **facts: Any) -> F | Callable[[F], F]:
        """Register `fn` under `name` or else its own name, together with `facts` about it."""

        def add(fn: F) -> F:
            entry = Entry(self.kind, name or fn.__name__, fn, MappingProxyType(facts))
            arguments = ARGUMENTS.get(self.kind, ())
            try:
                inspect.signature(fn).bind_partial(*arguments)
            except TypeError:
                names = ", ".join(arguments)
                raise BadSetting(
                    f"the {self.kind} '{entry.name}' cannot be called with ({names}). Define it as "
                    f"`def {entry.name}({names}, *, any_setting: float = 1.0)`."
                ) from None
            if not f"{fn.__module__}.".startswith(f"{self._home}."):
                self._discover()  # or a component of others could take the name of one of ours
            known = self._entries.get(entry.name)
            if known is not None and not (is_declared(known.declared) and known.module == fn.__module__):
                raise BadSetting(
                    f"two components are registered as the {self.kind} '{entry.name}': "
                    f"{known.module} and {entry.module}. Rename one of them."
                )
            self._entries[entry.name] = entry
            return fn

        return add if fn is None else add(fn)

    def __getitem__(self, name: str) -> Entry:
        if name not in self:
            raise UnknownName(
                f"no {self.kind} named '{name}'.{did_you_mean(name, self._entries)} "
                f"`bench list {self.plural}` shows all; that of a plugin needs --plugin FILE, "
                "or in a YAML file `plugins: [FILE]`."
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._discover()
        return name in self._entries

    def forget(self, module: str) -> None:
        """Remove the components that a module registered."""
        self._entries = {name: e for name, e in self._entries.items() if e.module != module}

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        home = importlib.util.find_spec(self._home)
        folders = home and home.submodule_search_locations
        inside = [module.name for module in pkgutil.iter_modules(folders or [], f"{self._home}.")]
        for module in inside if folders else [self._home]:
            if module not in sys.modules and not module.rpartition(".")[2].startswith("_"):
                declare_components(module)
        for point in entry_points(group=self.group):
            point.load()


model = Registry("model", "bench.models")
loss = Registry("loss", "bench.losses", home="bench.training.losses", plural="losses")
augmentation = Registry("augmentation", "bench.augment", home="bench.data.augment")
metric = Registry("metric", "bench.metrics")
dataset = Registry("dataset", "bench.datasets", home="bench.data.datasets")
schedule = Registry("schedule", "bench.schedules", home="bench.training.schedules")
split = Registry("split", "bench.splits", home="bench.data.splits")
preprocessing = Registry("preprocessing", "bench.preprocess", home="bench.data.preprocess", plural="preprocessing")
REGISTRIES = {r.plural: r for r in (model, loss, augmentation, preprocessing, metric, dataset, schedule, split)}


def loaded_plugins() -> dict[str, str]:
    """Return the paths of all plugin files that were loaded, by the name of the file."""
    paths = (name.removeprefix(_PLUGIN) for name in sys.modules if name.startswith(_PLUGIN))
    return {Path(path).name: path for path in paths}


def load_plugin(path: Path) -> None:
    """Import one Python file, which registers the components that it defines.

    Raises `UnknownName` if it is no Python file, and `BadSetting` if its import fails, with nothing registered.
    """
    if not path.is_file():
        raise UnknownName(f"the plugin file {path} does not exist. Pass the path of a Python file.")
    name = f"{_PLUGIN}{path.resolve()}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UnknownName(f"the plugin file {path} is not a Python file: its name must end in .py.")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        with errors_named(f"the plugin file {path} cannot be imported", "Fix the file."):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # a half-imported plugin would make the next attempt succeed silently
        for registry in REGISTRIES.values():
            registry.forget(name)
        raise


@contextmanager
def errors_named(what: str, way_out: str) -> Iterator[None]:
    """Turn what the code of others raises into a `BadSetting`: what failed, in which line, and the way out.

    A `BenchError` keeps its type and its own way out. Running out of memory is not the fault of the code.
    """
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        from bench.device import out_of_memory  # here, because it imports PyTorch

        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        message, kind = str(error), type(error).__name__
        raised: type[BenchError] = BadSetting
        if isinstance(error, BenchError):
            way_out, kind, raised = "", "", type(error)
        elif isinstance(error, SyntaxError):
            message = error.msg
        elif isinstance(error, ModuleNotFoundError):
            way_out = f"Install '{error.name}', or remove the import."
        reason = (message.strip().splitlines() or [""])[0].rstrip(".")
        why = ": ".join(part for part in (kind, reason) if part)
        raise raised(f"{what}{_line_of_plugin(error)}: {why}. {way_out}".rstrip()) from error


def _line_of_plugin(error: BaseException) -> str:
    """Return the last place in a plugin that an exception passed through, such as ' (mine.py, line 3)'."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    own = [(file, line) for file, line in places if f"{_PLUGIN}{file}" in sys.modules]
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
