"""The one door into settings.

A YAML file, command-line flags, `--set train.lr=1e-4`, `mlflow run -P` values and a search trial all
become `{dotted.key: value}` and pass through `override`, which validates the whole configuration again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
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


class Input(Settings):
    """How packed slices become model input."""

    image_size: int | None = Field(None, ge=16, le=4096)  # None: as packed. Scores are always on the packed grid.
    channels: str | tuple[str, ...] = "all"  # 'all', or names of the data set's channels, such as 'flair'
    normalise: Literal["patient", "image", "imagenet"] = "patient"


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
    augment: dict[str, dict[str, Any]] = {"warp": {}, "intensity": {}}
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "auto"
    threads: int | None = Field(None, ge=1)  # of the CPU's kernels; None: one a physical core
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"  # of a training step (`bench.step`)
    folds_at_once: int = Field(1, ge=1)
    plugins: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _no_augmentation(cls, value: Any) -> Any:
        """`augment: none` and `augment: warp` are the mappings that they stand for."""
        if isinstance(value, Mapping) and "augment" in value:
            return {**value, "augment": _augmentations(value["augment"])}
        return value

    @property
    def title(self) -> str:
        """The name given, or one made of the model, its encoder and the loss."""
        encoder = self.model.params.get("encoder")
        return self.name or "-".join(p for p in (self.model.name, encoder, self.loss.name) if p)

    def completed(self) -> RunConfig:
        """The same with every component's defaults written out. Raises `BenchError` for what is not there."""

        def full(kind: registry.Registry, component: Component) -> dict[str, Any]:
            return {"name": component.name, **kind[component.name].settings(component.params)}

        return RunConfig.model_validate(
            self.model_dump()
            | {
                "dataset": full(registry.dataset, self.dataset),
                "split": full(registry.split, self.split),
                "model": full(registry.model, self.model),
                "loss": full(registry.loss, self.loss),
                "augment": {n: registry.augmentation[n].settings(p) for n, p in self.augment.items()},
                "train": self.train.model_dump() | {"schedule": full(registry.schedule, self.train.schedule)},
            }
        )

    def flat(self) -> dict[str, Any]:
        """`{dotted.key: value}`; single values of the run itself are under `run.`."""
        nested = self.model_dump(mode="json")
        own = {f"run.{k}": nested.pop(k) for k in ("seed", *NOT_DECISIVE)}
        return dict(_flatten(nested)) | own

    def fingerprint(self) -> str:
        """What a result depends on, hashed: equal fingerprints on equal data are the same experiment."""
        decisive = self.completed().model_dump(mode="json", exclude=set(NOT_DECISIVE))
        decisive["dataset"].pop("folder", None)  # the pack's own key says what was in it
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


NOT_DECISIVE = ("name", "device", "threads", "execution", "folds_at_once", "plugins")
_COMPONENTS = ("dataset", "split", "model", "loss", "train.schedule")
_CHOICES = (*_COMPONENTS, "augment")


class _Reader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and 007, 2024_1, 2024-01-31, 12:30 and off are the text they look like.

    YAML 1.1 has these the other way round: 7, 20241, a date, 750 and False.
    """


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
    try:
        content = yaml.load(path.read_text(), _Reader)
    except OSError:
        raise DataError(f"the settings file {path} cannot be read. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the settings file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"the settings file {path} must hold 'key: value' lines.")
    return dict(_flatten(content))


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
        # Choices come before the settings of what was chosen, whatever the order in which they were given.
        for key in sorted(changes, key=lambda key: (key not in _CHOICES, key)):
            _place(tree, key, changes[key])
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise BadSetting(_sentence(error)) from None


def _augmentations(given: Any) -> Any:
    """None, a name or a list of names as the mapping that it stands for."""
    names = [] if given in (None, "none") else [given] if isinstance(given, str) else given
    return {str(name): {} for name in names} if isinstance(names, list) else given


def _canonical(key: str) -> str:
    """`model` and `model.name` are the same choice."""
    return key.removesuffix(".name") if key.removesuffix(".name") in _COMPONENTS else key


def _place(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = _descend(tree, parents, key)
    if key in _COMPONENTS:
        if node[last]["name"] != value:
            node[last] = {"name": value}
        return
    if key == "augment":
        node[last] = _augmentations(value)
    elif parents == ["augment"] and value in (None, "none", False):
        node.pop(last, None)
    else:
        node[last] = {} if parents == ["augment"] and value is True else value


def _descend(tree: dict[str, Any], parents: list[str], key: str) -> dict[str, Any]:
    node: Any = tree
    for depth, part in enumerate(parents):
        if part not in node:
            if parents[0] == "augment" and depth == 1:
                node[part] = {}
            else:
                raise BadSetting(f"no setting '{key}'.{did_you_mean(part, node)}")
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
            yield f"{prefix}{key}", True if prefix == "augment." else {}
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
            model = model.model_fields[part].annotation
        names = list(model.model_fields)
        return f"no setting '{key}'; there are {', '.join(names)}.{did_you_mean(last, names)}"
    reason = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{key} = {first['input']!r} is refused: {reason[:1].lower()}{reason[1:]}."
