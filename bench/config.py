"""The one door into settings.

A YAML file, command-line flags, `--set train.lr=1e-4`, `mlflow run -P` values and a search trial all
become `{dotted.key: value}` and pass through `override`, which validates the whole configuration again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from bench import registry
from bench.errors import BadSetting, DataError, did_you_mean


class Settings(BaseModel):
    # A run may be named 12; a rate may not be infinite.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )


class Component(Settings):
    """One choice from a registry: `unet`, or `{name: unet, base: 64}`."""

    name: str
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "params" not in value:
            return {"name": value.get("name"), "params": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        return {"name": self.name, **self.params}


def _steps(given: Any) -> Any:
    """None, a name or a list of names as the mapping that it stands for."""
    names = [] if given in (None, "none") else [given] if isinstance(given, str) else given
    return {str(name): {} for name in names} if isinstance(names, list) else given


Steps = Annotated[dict[str, dict[str, Any]], BeforeValidator(_steps)]  # one after another: name -> settings


class Patch(Settings):
    """Training on one random patch a slice, prediction by overlapping tiles of the same size."""

    size: int = Field(128, ge=32, le=4096)  # pixels a side
    overlap: float = Field(0.5, ge=0, lt=0.95)  # share of a tile's side that its neighbour covers too
    tumour_share: float = Field(0.5, ge=0, le=1)  # patches of slices with tumour that are sure to hold some


class Input(Settings):
    """How packed slices become model input."""

    image_size: int | None = Field(None, ge=16, le=4096)  # None: as packed. Scores are always on the packed grid.
    channels: str | tuple[str, ...] = "all"  # 'all', or names of the data set's channels, such as 'flair'
    neighbours: int = Field(0, ge=0, le=8)  # slices on either side whose channels the model sees as well ("2.5D")
    normalise: Literal["patient", "image", "imagenet"] = "patient"
    patch: Patch | None = None  # None: whole slices
    preprocess: Steps = {}  # of the packed slices, once, before their grey levels are measured


class Train(Settings):
    """The budget and how it is spent."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(16, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # SGD only
    schedule: Component = Component(name="cosine")
    warmup_epochs: float = Field(0, ge=0)
    clip: float | None = Field(1.0, gt=0)  # largest gradient norm
    freeze_epochs: int = Field(0, ge=0)  # first so many epochs with the encoder frozen
    freeze_lr: float | None = Field(None, gt=0)  # None: lr
    positive_fraction: float | None = Field(None, gt=0, lt=1)  # share of slices with tumour; None: as they are
    patience: int | None = Field(None, ge=1)  # stop after so many epochs without a better validation score
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False


class Evaluate(Settings):
    """What is measured, and by which score validation chooses."""

    primary: str = "dice"
    metrics: tuple[str, ...] = ()  # empty: all that are registered
    threshold: float | Literal["validation"] = 0.5
    batch_size: int = Field(32, ge=1)

    @field_validator("threshold")
    @classmethod
    def _in_range(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a threshold lies between 0 and 1, or is 'validation'")
        return value


class RunConfig(Settings):
    """Everything that decides the result of a run, and `NOT_DECISIVE`, which does not."""

    name: str | None = None
    dataset: Component = Component(name="phantom")
    input: Input = Input()
    split: Component = Component(name="patients")
    model: Component = Component(name="unet")
    loss: Component = Component(name="bce_dice")
    augment: Steps = {"warp": {}, "intensity": {}}
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "auto"
    threads: int | None = Field(None, ge=1)  # of the CPU's kernels; None: one a physical core
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"  # of a training step (`bench.step`)
    folds_at_once: int = Field(1, ge=1)
    checkpoint_every: float = Field(30, ge=0)  # seconds between checkpoints, from which a killed run goes on
    searched: int = Field(0, ge=0)  # trials of the search that found these settings, for the leaderboard
    plugins: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name given, or one made of the model, its encoder and the loss."""
        encoder = self.model.params.get("encoder")
        return self.name or "-".join(p for p in (self.model.name, encoder, self.loss.name) if p)

    def completed(self) -> RunConfig:
        """The same with every component's defaults written out. Raises `BenchError` for what is not there."""

        def full(kind: registry.Registry, component: Component) -> dict[str, Any]:
            return {"name": component.name, **kind[component.name].settings(component.params)}

        def each(kind: registry.Registry, steps: Steps) -> dict[str, dict[str, Any]]:
            return {name: kind[name].settings(params) for name, params in steps.items()}

        return RunConfig.model_validate(
            self.model_dump()
            | {
                "dataset": full(registry.dataset, self.dataset),
                "split": full(registry.split, self.split),
                "model": full(registry.model, self.model),
                "loss": full(registry.loss, self.loss),
                "input": self.input.model_dump()
                | {"preprocess": each(registry.preprocessing, self.input.preprocess)},
                "augment": each(registry.augmentation, self.augment),
                "train": self.train.model_dump() | {"schedule": full(registry.schedule, self.train.schedule)},
            }
        )

    def flat(self) -> dict[str, Any]:
        """`{dotted.key: value}`; single values of the run itself are under `run.`.

        `input.preprocess` lists the steps in their order, which keys alone would not tell.
        """
        nested = self.model_dump(mode="json")
        own = {f"run.{k}": nested.pop(k) for k in ("seed", *NOT_DECISIVE)}
        return dict(_flatten(nested)) | {"input.preprocess": list(self.input.preprocess)} | own

    def fingerprint(self) -> str:
        """What a result depends on, hashed: equal fingerprints on equal data are the same experiment."""
        decisive = self.completed().model_dump(mode="json", exclude=set(NOT_DECISIVE))
        decisive["dataset"].pop("folder", None)  # the pack's own key says what was in it
        decisive["input"]["preprocess"] = list(decisive["input"]["preprocess"].items())  # in their order
        for (group, name), before in LATER.items():
            if decisive[group].get(name) == before:
                decisive[group].pop(name, None)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


NOT_DECISIVE = (
    *("name", "device", "threads", "execution", "folds_at_once", "checkpoint_every", "searched", "plugins"),
)
# Settings that came later: not hashed where they say what was done before, or older runs were not found.
LATER: dict[tuple[str, str], Any] = {
    ("input", "neighbours"): 0,
    ("input", "patch"): None,
    ("input", "preprocess"): [],
    ("loss", "over"): "image",
}
_COMPONENTS = ("dataset", "split", "model", "loss", "train.schedule")
_CHAINS = ("augment", "input.preprocess")
_GROUPS = ("input.patch",)  # off as None, and turned on by any of their settings
_CHOICES = (*_COMPONENTS, *_CHAINS)


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


def load(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, nested or dotted, as `{dotted.key: value}`."""
    return dict(_flatten(read_yaml(path)))


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


def parse(assignment: str) -> tuple[str, Any]:
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
        changes = {_canonical(key): value for key, value in _flatten(layer)}
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
    for chain in _CHAINS:
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
    in_chain = ".".join(parents) in _CHAINS
    if key in _CHAINS:
        node[last] = _steps(value)
    elif in_chain and value in (None, "none", False):
        node.pop(last, None)
    else:
        node[last] = {} if in_chain and value is True else value


def _descend(tree: dict[str, Any], parents: list[str], key: str) -> dict[str, Any]:
    node: Any = tree
    for depth, part in enumerate(parents):
        if part not in node:
            if ".".join(parents[:depth]) in _CHAINS:
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


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield f"{prefix}{key}", True if prefix.removesuffix(".") in _CHAINS else {}
        else:
            yield f"{prefix}{key}", value


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
