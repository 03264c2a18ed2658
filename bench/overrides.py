from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import (
    ValidationError,
)

from bench import registry
from bench.config import (
    CHAINS,
    RunConfig,
    as_steps,
    flatten,
)
from bench.errors import BadSetting, DataError, did_you_mean

_COMPONENTS = ("dataset", "split", "model", "loss", "train.schedule")


_GROUPS = ("input.patch",)  # off as None, and turned on by any of their settings


_CHOICES = (*_COMPONENTS, *CHAINS)


class _Reader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and 007, 2024_1, 2024-01-31, 12:30 and off are the text they look like.

    YAML 1.1 has these the other way round: 7, 20241, a date, 750 and False. A key that is there twice is refused.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if again := next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"'{again}' is there twice", node.start_mark)
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


KINDS = {  # of files, with the keys that only such a file has
    "benchmark": (("entries",), "`bench suite FILE`"),
    "search": (("base", "space"), "`bench search FILE`"),
    "settings": ((), "`bench run --config FILE`"),
}


def read_yaml(path: Path, kind: str = "settings") -> dict[str, Any]:
    """The mapping that a YAML file of this kind, one of `KINDS`, holds. Raises `DataError`."""
    try:
        content = yaml.load(path.read_text(), _Reader)
    except OSError:
        raise DataError(f"the settings file {path} cannot be read. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the settings file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"the settings file {path} must hold 'key: value' lines.")
    found = next((name for name, (keys, _) in KINDS.items() if any(key in content for key in keys)), "settings")
    if found != kind:
        lacks = "".join(f" It has no '{key}'." for key in KINDS[kind][0][-1:])
        raise DataError(f"{path} is a {found} file, not a {kind} file: it is for {KINDS[found][1]}.{lacks}")
    return content


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """`'train.lr=1e-4'` as `('train.lr', 0.0001)`; the value is read as YAML."""
    key, sign, text = assignment.partition("=")
    if not sign or not key.strip():
        raise BadSetting(f"'{assignment}' is not of the form key=value, such as train.lr=1e-4.")
    try:
        return key.strip(), yaml.load(text, _Reader)
    except yaml.YAMLError:
        raise BadSetting(f"the value of '{assignment}' is not YAML. Put it in quotes.") from None


def override(config: RunConfig, *layers: Mapping[str, Any]) -> RunConfig:
    """A new configuration with each layer of `{dotted.key: value}` applied in turn, validated again at the end.

    Choosing another component drops the settings of the one before, those of earlier layers included.
    Raises `BadSetting`.
    """
    tree = config.model_dump()
    for layer in layers:
        changes = {_canonical(key): value for key, value in flatten(layer)}
        for key in _in_turn(changes):
            _place(tree, key, changes[key])
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise BadSetting(_sentence(error)) from None


def configure(*layers: Mapping[str, Any]) -> RunConfig:
    """A configuration of defaults, then what the chosen data set and model suggest, then each layer in turn.

    Plugins are loaded on the way. Raises `BenchError`.
    """
    first = override(RunConfig(), *layers)
    for plugin in first.plugins:
        registry.load_plugin(Path(plugin))
    chosen = registry.dataset[first.dataset.name], registry.model[first.model.name]
    return override(RunConfig(), *(entry.facts.get("defaults", {}) for entry in chosen), *layers)


def _canonical(key: str) -> str:
    """`model` and `model.name` are the same choice."""
    return key.removesuffix(".name") if key.removesuffix(".name") in _COMPONENTS else key


def _in_turn(keys: Iterable[str]) -> list[str]:
    """Choices before the settings of what was chosen, whatever the order given; steps of a chain as given."""
    keys = list(keys)
    places = {step: place for place, step in enumerate(dict.fromkeys(map(_step, keys)))}
    return sorted(keys, key=lambda key: (key not in _CHOICES, places[_step(key)], key))


def _step(key: str) -> str:
    """`input.preprocess.clahe` for that and for what is below it; nothing for a key outside of chains."""
    for chain in CHAINS:
        if key.startswith(f"{chain}."):
            return f"{chain}.{key.removeprefix(f'{chain}.').partition('.')[0]}"
    return ""


def _place(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = _descend(tree, parents, key)
    if key in _COMPONENTS:
        if node[last]["name"] != value:
            node[last] = {"name": value}
        return
    in_chain = ".".join(parents) in CHAINS
    if key in CHAINS:
        node[last] = as_steps(value)
    elif in_chain and value in (None, "none", False):
        node.pop(last, None)
    else:
        node[last] = {} if in_chain and value is True else value


def _descend(tree: dict[str, Any], parents: list[str], key: str) -> dict[str, Any]:
    node: Any = tree
    for depth, part in enumerate(parents):
        if part not in node:
            if ".".join(parents[:depth]) in CHAINS:
                node[part] = {}
            else:
                raise BadSetting(f"no setting '{key}'.{did_you_mean(part, node)}")
        if node[part] is None and ".".join(parents[: depth + 1]) in _GROUPS:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise BadSetting(f"'{'.'.join(parents[: depth + 1])}' is a single value and has no '{key}'.")
    found: dict[str, Any] = node
    return found


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("function", "literal", "float"))
    )
    if first["type"] == "extra_forbidden":
        *parents, last = key.split(".")
        model: Any = RunConfig
        for part in parents:
            annotation = model.model_fields[part].annotation
            model = next(a for a in (*get_args(annotation), annotation) if a is not type(None))
        names = list(model.model_fields)
        return f"no setting '{key}'; there are {', '.join(names)}.{did_you_mean(last, names)}"
    reason = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{key} = {first['input']!r} is refused: {reason[:1].lower()}{reason[1:]}."
