"""The one way to change settings.

A YAML file, command-line flags, `--set train.lr=1e-4`, `mlflow run -P` values and a search trial all become layers
of `{dotted.key: value}`, which `override` applies before it validates the whole configuration again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from bench import registry
from bench.config import CHAINS, COMPONENTS, RunConfig, as_steps, flatten
from bench.errors import BadSetting, DataError, did_you_mean

_COMPONENTS = (*COMPONENTS, "train.schedule")
_GROUPS = ("input.patch",)  # None turns them off, and any of their settings turns them on
_CHOICES = (*_COMPONENTS, *CHAINS)
KINDS = {  # of YAML files: the keys that only such a file has, and the command that takes it
    "benchmark": (("entries",), "`bench suite FILE`"),
    "search": (("base", "space"), "`bench search FILE`"),
    "settings": ((), "`bench run --config FILE`"),
}


class _Reader(yaml.SafeLoader):
    """A YAML loader in which 1e-4 is a number, and 007, 2024_1, 2024-01-31, 12:30 and off are text.

    YAML 1.1 reads these as text, 7, 20241, a date, 750 and False. Repeated keys are refused.
    """

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
        content = yaml.load(path.read_text(), _Reader)
    except OSError:
        raise DataError(f"the settings file {path} cannot be read. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the settings file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"the settings file {path} must hold 'key: value' lines.")
    actual = next((name for name, (keys, _) in KINDS.items() if any(key in content for key in keys)), "settings")
    if actual != kind:
        missing = "".join(f" It has no '{key}'." for key in KINDS[kind][0][-1:])
        raise DataError(f"{path} is a {actual} file, not a {kind} file: it is for {KINDS[actual][1]}.{missing}")
    return content


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Split 'train.lr=1e-4' into ('train.lr', 0.0001); the value is read as YAML. Raises `BadSetting`."""
    key, sign, text = assignment.partition("=")
    if not sign or not key.strip():
        raise BadSetting(f"'{assignment}' is not of the form key=value, such as train.lr=1e-4.")
    try:
        return key.strip(), yaml.load(text, _Reader)
    except yaml.YAMLError:
        raise BadSetting(f"the value of '{assignment}' is not YAML. Put it in quotes.") from None


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

    Plugins are loaded first. Raises `BenchError`.
    """
    first = override(RunConfig(), *layers)
    for plugin in first.plugins:
        registry.load_plugin(Path(plugin))
    chosen = registry.dataset[first.dataset.name], registry.model[first.model.name]
    return override(RunConfig(), *(entry.facts.get("defaults", {}) for entry in chosen), *layers)


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
        if part not in node and above not in CHAINS:
            raise BadSetting(f"no setting '{key}'.{did_you_mean(part, node)}")
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
        *parents, last = key.split(".")
        model: Any = RunConfig
        for part in parents:
            annotation = model.model_fields[part].annotation
            model = next(a for a in (*get_args(annotation), annotation) if a is not type(None))
        names = list(model.model_fields)
        return f"no setting '{key}'; there are {', '.join(names)}.{did_you_mean(last, names)}"
    return registry.refusal(key, first)
