"""The schema of every setting of a run. `bench.overrides` applies changes to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from bench import registry
from bench.settings import Name, Settings

MANY = 100_000  # a bound for counts that have no natural one


class Component(Settings):
    """One choice from a registry: `unet`, or `{name: unet, base: 64}`."""

    name: str
    params: dict[str, Any] = Field({})

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


def as_steps(value: Any) -> Any:
    """Turn None, a name or a list of names into a mapping from names to settings."""
    names = [] if value in (None, "none") else [value] if isinstance(value, str) else value
    return {str(name): {} for name in names} if isinstance(names, list) else value


Channels = Annotated[tuple[str, ...], Field(min_length=1)]
Steps = Annotated[dict[str, dict[str, Any]], BeforeValidator(as_steps)]  # applied in turn: name -> settings


class Patch(Settings):
    """Training on one random patch per slice, and inference by a sliding window of the same size."""

    size: int = Field(128, ge=32, le=4096)  # pixels per side
    overlap: float = Field(0.5, ge=0, lt=0.95)  # share of a window's side that the next one covers too
    tumour_share: float = Field(0.5, ge=0, le=1)  # of patches of slices with tumour: chosen to contain some


class Input(Settings):
    """How packed slices become model input."""

    image_size: int | None = Field(None, ge=16, le=4096)  # None: as packed. Scores are always on the packed grid.
    crop: Literal["foreground"] | None = None  # to the non-zero pixels of a patient, before image_size
    channels: str | Channels = "all"  # 'all', or names of the data set's channels, such as 'flair'
    neighbours: int = Field(0, ge=0, le=8)  # slices on either side that the model also sees ("2.5D")
    normalise: Literal["patient", "image", "imagenet"] = "patient"
    patch: Patch | None = None  # None: whole slices
    preprocess: Steps = Field({})  # applied once to the packed slices, before grey levels are measured


class Train(Settings):
    """How a model is trained, and for how long."""

    epochs: int = Field(30, ge=1, le=MANY)
    batch_size: int = Field(16, ge=1, le=MANY)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, ge=1e-10, le=1e3)
    weight_decay: float = Field(1e-2, ge=0, le=1e3)
    momentum: float = Field(0.9, ge=0, lt=1)  # SGD only
    schedule: Component = Component(name="cosine")
    warmup_epochs: float = Field(0, ge=0, le=MANY)
    clip: float | None = Field(1.0, ge=1e-6, le=1e6)  # largest gradient norm
    freeze_epochs: int = Field(0, ge=0, le=MANY)  # the first epochs, with the encoder frozen
    freeze_lr: float | None = Field(None, ge=1e-10, le=1e3)  # None: lr
    positive_fraction: float | None = Field(None, ge=1e-3, lt=1)  # of slices with tumour; None: as in the data
    patience: int | None = Field(None, ge=1, le=MANY)  # stop after so many epochs without improvement
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    deterministic: bool = False


class Evaluate(Settings):
    """What is measured, and by which score validation chooses."""

    primary: str = "dice"
    metrics: tuple[str, ...] = ()  # empty: all that are registered
    threshold: float | Literal["validation"] = 0.5
    batch_size: int = Field(32, ge=1, le=MANY)

    @field_validator("threshold")
    @classmethod
    def _in_range(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 1e-6 <= value < 1:
            raise ValueError("a threshold lies between 1e-6 and 1, or is 'validation'")
        return value


class RunConfig(Settings):
    """All settings of a run; those in `NOT_DECISIVE` do not change its result."""

    name: Name | None = None
    dataset: Component = Component(name="phantom")
    input: Input = Input()
    split: Component = Component(name="patients")
    model: Component = Component(name="unet")
    loss: Component = Component(name="bce_dice")
    augment: Steps = Field({"warp": {}, "intensity": {}})
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "auto"
    threads: int | None = Field(None, ge=1, le=1024)  # of CPU kernels; None: one per physical core
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"  # of a training step (`bench.training.step`)
    folds_at_once: int = Field(1, ge=1, le=1024)
    checkpoint_every: float = Field(30, ge=0, le=1e6)  # seconds between checkpoints, to resume a killed run
    searched: int = Field(0, ge=0, le=10**9)  # trials of the search that found these settings, for the leaderboard
    plugins: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name, by default made of the model, its encoder and the loss."""
        encoder = self.model.params.get("encoder")
        return self.name or "-".join(p for p in (self.model.name, encoder, self.loss.name) if p)

    def completed(self) -> RunConfig:
        """Return the same with all defaults of the components filled in. Raises `BenchError` for unknown names."""

        def full(kind: registry.Registry, component: Component) -> dict[str, Any]:
            return {"name": component.name, **kind[component.name].settings(component.params)}

        def each(kind: registry.Registry, steps: Steps) -> dict[str, dict[str, Any]]:
            return {name: kind[name].settings(params) for name, params in steps.items()}

        tree = self.model_dump()
        tree |= {name: full(getattr(registry, name), getattr(self, name)) for name in COMPONENTS}
        tree["input"]["preprocess"] = each(registry.preprocessing, self.input.preprocess)
        tree["augment"] = each(registry.augmentation, self.augment)
        tree["train"]["schedule"] = full(registry.schedule, self.train.schedule)
        return RunConfig.model_validate(tree)

    def flat(self) -> dict[str, Any]:
        """Return `{dotted.key: value}`; single values of the run itself are under `run.`.

        `input.preprocess` lists the steps, as their order matters.
        """
        nested = self.model_dump(mode="json")
        own = {f"run.{k}": nested.pop(k) for k in ("seed", *NOT_DECISIVE)}
        return dict(flatten(nested)) | {"input.preprocess": list(self.input.preprocess)} | own

    def fingerprint(self) -> str:
        """Hash everything that a result depends on: equal fingerprints on equal data are the same experiment."""
        decisive = self.completed().model_dump(mode="json", exclude=set(NOT_DECISIVE))
        decisive["dataset"].pop("folder", None)  # the key of the pack identifies its content
        decisive["input"]["preprocess"] = list(decisive["input"]["preprocess"].items())  # keeps their order
        for group, earlier in LATER.items():
            decisive[group] = {k: v for k, v in decisive[group].items() if v not in earlier.get(k, ())}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


COMPONENTS = ("dataset", "split", "model", "loss")
NOT_DECISIVE = (
    *("name", "device", "threads", "execution", "folds_at_once", "checkpoint_every", "searched", "plugins"),
)
# Settings added later, with the values that mean what earlier versions did: not hashed at these, or earlier runs
# would not be found.
LATER: dict[str, dict[str, tuple[Any, ...]]] = {
    "input": {"crop": (None,), "neighbours": (0,), "patch": (None,), "preprocess": ([],)},
    "loss": {"over": ("image",)},
    "dataset": {"structures": (None, 1), "exclusive": (None, False), "axis": (None,)},
}
CHAINS = ("augment", "input.preprocess")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield f"{prefix}{key}", True if prefix.removesuffix(".") in CHAINS else {}
        else:
            yield f"{prefix}{key}", value
