"""The one way to change settings.

A YAML file, command-line flags, `--set train.lr=1e-4`, `mlflow run -P` values and a search trial all become layers
of `{dotted.key: value}`, which `override` applies before it validates the whole configuration again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench import registry
from bench.config import CHAINS, COMPONENTS, RunConfig, as_steps, flatten
from bench.errors import BadSetting, DataError
from bench.files import check_folder, read_small
from bench.reference import suggest_setting
from bench.settings import refusal, shorten

_COMPONENTS = (*COMPONENTS, "train.schedule")
_GROUPS = ("input.patch",)  # None turns them off, and any of their settings turns them on
_CHOICES = (*_COMPONENTS, *CHAINS)
DEEPEST, MOST_VALUES = 50, 100_000  # levels and values of a YAML file, aliases followed
KINDS = {  # of YAML files: the keys that only such a file has, and the command that takes it
    "benchmark": (("entries",), "`bench suite FILE`"),
    "search": (("base", "space"), "`bench search FILE`"),
    "settings": ((), "`bench run --config FILE`"),
}


class _Reader(yaml.SafeLoader):
    """A YAML loader in which 1e-4 is a number, and 007, 2024_1, 2024-01-31, 12:30 and off are text.

    YAML 1.1 reads these as text, 7, 20241, a date, 750 and False. Repeated keys are refused, and so is content
    that is too deep or too large: a few hundred bytes of aliases can stand for 10 to the power of 9 values.
    """

    _depth = _values = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}  # of every finished node: the number of its values

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._values, self._depth + 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"it is over {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        # An alias counts as all values that it repeats; inside its own anchor it would never end.
        self._values += self._sizes.get(id(node), MOST_VALUES + 1) if is_alias else 1
        if self._values > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases repeat values without end, or over {MOST_VALUES} times")
        self._sizes.setdefault(id(node), self._values - before)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if repeated := next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"'{repeated}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Reader.yaml_implicit_resolvers = {}
for _tag, _pattern in (
    ("null", "~|[Nn]ull|NULL|[Nn]one|"),
    ("bool", "[Tt]rue|TRUE|[Ff]alse|FALSE"),
    ("int", r"[-+]?(0|[1-9]\d*)"),
    ("float", r"[-+]?(\.\d+|(0|[1-9]\d*)(\.\d*)?)([eE][-+]?\d+)?"),
    ("merge", "<<"),
):
    _Reader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})$"), None)


def load_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, nested or dotted, as `{dotted.key: value}`."""
    return dict(flatten(read_yaml(path)))


def read_yaml(path: Path, kind: str = "settings") -> dict[str, Any]:
    """Return the mapping in a YAML file of this kind, a key of `KINDS`. Raises `DataError`."""
    try:
        content = _parse(read_small(path, "the settings file", "Give the path of a YAML file.").decode())
    except ValueError as error:
        raise DataError(f"the settings file {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"the settings file {path} must hold 'key: value' lines.")
    actual = next((name for name, (keys, _) in KINDS.items() if any(key in content for key in keys)), "settings")
    if actual != kind:
        missing = "".join(f" It has no '{key}'." for key in KINDS[kind][0][-1:])
        raise DataError(f"{path} is a {actual} file, not a {kind} file: it is for {KINDS[actual][1]}.{missing}")
    return content


def _parse(text: str) -> Any:
    """Return the content of YAML text. Raises `ValueError`, which says where and why it cannot be read."""
    try:
        return yaml.load(text, _Reader)
    except (yaml.YAMLError, LookupError, ValueError) as error:  # the last two: !!bool maybe, or 5,000 digits
        raise ValueError(" ".join(str(error).split())) from None


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Split 'train.lr=1e-4' into ('train.lr', 0.0001); the value is read as YAML. Raises `BadSetting`."""
    key, sign, text = assignment.partition("=")
    if not sign or not key.strip():
        raise BadSetting(f"'{assignment}' is not of the form key=value, such as train.lr=1e-4.")
    try:
        return key.strip(), _parse(text)
    except ValueError as error:
        raise BadSetting(
            f"the value of '{shorten(assignment)}' is not YAML. Put it in quotes. {shorten(str(error))}"
        ) from None


def written(value: Any) -> str:
    """Return a plain value as it is written after `--set key=`; `parse_assignment` reads it back."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{written(k)}: {written(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    text = str(value)
    plain = not isinstance(value, str) or (re.fullmatch(r"[\w./*+-]+", text) and _parse(text) == value)
    return text if plain else json.dumps(text)


def override(config: RunConfig, *layers: Mapping[str, Any]) -> RunConfig:
    """Return a new configuration with each layer of `{dotted.key: value}` applied in turn, validated at the end.

    Choosing another component drops the settings of the previous one, including those of earlier layers.
    Raises `BadSetting`.
    """
    tree = config.model_dump()
    for layer in layers:
        # `model.name` is the same choice as `model`.
        named = {f"{component}.name": component for component in _COMPONENTS}
        changes = {named.get(key, key): value for key, value in flatten(layer)}
        for key in _ordered(changes):
            _place(tree, key, changes[key])
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise BadSetting(_sentence(error)) from None


def configure(*layers: Mapping[str, Any]) -> RunConfig:
    """Return the defaults, changed by what the chosen data set and model suggest, then by each layer in turn.

    The data set of a folder that is given without one is recognised by its subfolders. Plugins are loaded first.
    Raises `BenchError`.
    """
    first = override(RunConfig(), *layers)
    for plugin in first.plugins:
        registry.load_plugin(Path(plugin))
    given = {key: value for layer in layers for key, value in flatten(layer)}
    if "dataset.folder" in given and not given.keys() & {"dataset", "dataset.name"}:
        layers = {"dataset": recognise_dataset(Path(str(given["dataset.folder"])))}, *layers
        first = override(RunConfig(), *layers)
    chosen = registry.dataset[first.dataset.name], registry.model[first.model.name]
    return override(RunConfig(), *(entry.facts.get("defaults", {}) for entry in chosen), *layers)


def recognise_dataset(folder: Path) -> str:
    """Return the name of the data set whose subfolders (`folders` of its decorator) a folder has, else 'lgg'."""
    root = folder.expanduser()
    expected = {name: registry.dataset[name].facts.get("folders", ()) for name in registry.dataset}
    fitting = (name for name, parts in expected.items() if parts and all((root / p).is_dir() for p in parts))
    return next(fitting, "lgg")


def check_data_folder(config: RunConfig) -> RunConfig:
    """Return the configuration. Raises `DataError` if its data folder does not exist: before slow imports."""
    folder = config.dataset.params.get("folder")
    if folder is not None and not Path(folder).expanduser().exists():
        check_folder(Path(folder))
    return config


def _ordered(keys: Collection[str]) -> list[str]:
    """Put choices before the settings of what they choose; steps of a chain keep their order."""
    places = {step: place for place, step in enumerate(dict.fromkeys(map(_step, keys)))}
    return sorted(keys, key=lambda key: (key not in _CHOICES, places[_step(key)], key))


def _step(key: str) -> str:
    """Return the step of a chain that a key belongs to, such as `input.preprocess.clahe`; otherwise ''."""
    for chain in CHAINS:
        if key.startswith(f"{chain}."):
            return f"{chain}.{key.removeprefix(f'{chain}.').partition('.')[0]}"
    return ""


def _place(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key in the nested settings. Raises `BadSetting`."""
    *parents, last = key.split(".")
    node: Any = tree
    above = ""
    for part in parents:
        here = f"{above}.{part}".removeprefix(".")
        if part not in node and above not in (*CHAINS, *_COMPONENTS):
            raise BadSetting(f"no setting '{key}'.{suggest_setting(key)} `bench list settings` shows all.")
        if part not in node or (node[part] is None and here in _GROUPS):
            node[part] = {}
        node, above = node[part], here
        if not isinstance(node, dict):
            raise BadSetting(f"'{here}' is a single value and has no '{key}'.")
    if key in _COMPONENTS:
        if node[last]["name"] != value:
            node[last] = {"name": value}
    elif key in CHAINS:
        node[last] = as_steps(value)
    elif above in CHAINS and value in (None, "none", False):
        node.pop(last, None)
    else:
        node[last] = {} if above in CHAINS and value is True else value


def _sentence(error: ValidationError) -> str:
    """Return the first validation error as a sentence that names the setting."""
    first = error.errors()[0]
    parts = map(str, first["loc"])
    key = ".".join(part for part in parts if not part.startswith(("function", "literal", "float")))
    if first["type"] == "extra_forbidden":
        return f"no setting '{key}'.{suggest_setting(key)} `bench list settings` shows all."
    return refusal(key, first, RunConfig)


def configure_data(
    folder: Path,
    dataset: str | None,
    assignments: Sequence[str] | None,
    plugins: Sequence[Path] | None,
    more: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the configuration that `bench run` would use for a data folder, with `more` settings."""
    loaded = {"plugins": [str(path) for path in plugins]} if plugins else {}
    layout = {} if dataset is None else {"dataset": dataset}
    given = {**layout, "dataset.folder": str(folder), **(more or {}), **loaded}
    return check_data_folder(configure(given | dict(parse_assignment(a) for a in assignments or ())))
