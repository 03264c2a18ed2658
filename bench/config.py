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

    size: int = Field(128, ge=32, le=4096, description="pixels per side")
    overlap: float = Field(0.5, ge=0, lt=0.95, description="share of a window's side that the next one covers too")
    tumour_share: float = Field(
        0.5, ge=0, le=1, description="share of the patches of slices with tumour that must contain some"
    )


class Input(Settings):
    """How packed slices become model input."""

    image_size: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="pixels per side in training; none: as packed. Scores are at the packed size",
    )
    crop: Literal["foreground"] | None = Field(
        None, description="crop to the non-zero pixels of a patient, then resize to image_size"
    )
    channels: str | Channels = Field("all", description="all, or names of the data set's channels, such as flair")
    neighbours: int = Field(0, ge=0, le=8, description="slices on either side that the model also sees (2.5D)")
    normalise: Literal["patient", "image", "imagenet"] = Field(
        "patient",
        description="normalise grey levels over a patient, over an image, or by the statistics of ImageNet",
    )
    patch: Patch | None = Field(None, description="train on random patches; none: whole slices")
    preprocess: Steps = Field(
        {}, description="steps applied once to the packed slices, before grey levels are measured"
    )


class Train(Settings):
    """How a model is trained, and for how long."""

    epochs: int = Field(30, ge=1, le=MANY, description="passes over the training slices")
    batch_size: int = Field(16, ge=1, le=MANY, description="slices per training step")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="optimizer")
    lr: float = Field(1e-3, ge=1e-10, le=1e3, description="learning rate, before the schedule changes it")
    weight_decay: float = Field(1e-2, ge=0, le=1e3, description="weight decay of the optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, of sgd only")
    schedule: Component = Field(Component(name="cosine"), description="how the learning rate changes")
    warmup_epochs: float = Field(0, ge=0, le=MANY, description="epochs in which the learning rate rises from 0")
    clip: float | None = Field(1.0, ge=1e-6, le=1e6, description="largest gradient norm; none: no limit")
    freeze_epochs: int = Field(0, ge=0, le=MANY, description="first epochs in which the encoder is frozen")
    freeze_lr: float | None = Field(
        None, ge=1e-10, le=1e3, description="learning rate while the encoder is frozen; none: lr"
    )
    positive_fraction: float | None = Field(
        None, ge=1e-3, lt=1, description="share of training slices with tumour; none: as in the data"
    )
    patience: int | None = Field(
        None, ge=1, le=MANY, description="stop after so many epochs without improvement; none: never"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="numbers of training; auto: what the device computes fast"
    )
    deterministic: bool = Field(False, description="repeat bit by bit on the same machine; slower")


class Evaluate(Settings):
    """What is measured, and by which score validation chooses."""

    primary: str = Field(
        "dice", description="score by which validation chooses the epoch and the leaderboard ranks"
    )
    metrics: tuple[str, ...] = Field((), description="metrics to compute; empty: all that are registered")
    threshold: float | Literal["validation"] = Field(
        0.5,
        description="probability from which a pixel is tumour; validation: chosen on validation patients",
    )
    batch_size: int = Field(32, ge=1, le=MANY, description="slices per step of inference")

    @field_validator("threshold")
    @classmethod
    def _in_range(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 1e-6 <= value < 1:
            raise ValueError("a threshold lies between 1e-6 and 1, or is 'validation'")
        return value


class RunConfig(Settings):
    """All settings of a run; those in `NOT_DECISIVE` do not change its result."""

    name: Name | None = Field(
        None, description="name of the run; none: made of the model, its encoder and the loss"
    )
    dataset: Component = Field(Component(name="phantom"), description="data set")
    input: Input = Field(Input(), description="how packed slices become model input")
    split: Component = Field(Component(name="patients"), description="how patients are divided into folds")
    model: Component = Field(Component(name="unet"), description="architecture")
    loss: Component = Field(Component(name="bce_dice"), description="loss that training minimises")
    augment: Steps = Field({"warp": {}, "intensity": {}}, description="augmentations of training, in their order")
    train: Train = Field(Train(), description="how a model is trained, and for how long")
    evaluate: Evaluate = Field(Evaluate(), description="what is measured")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of training; split.seed draws the folds")
    device: str = Field("auto", description="auto, cpu, cuda, or one GPU such as cuda:1")
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of CPU kernels; none: one per physical core"
    )
    execution: Literal["auto", "eager", "graph", "compile"] = Field(
        "auto", description="how a training step runs; auto: what is fastest on the device"
    )
    folds_at_once: int = Field(1, ge=1, le=1024, description="folds that are trained at the same time")
    checkpoint_every: float = Field(
        30, ge=0, le=1e6, description="seconds between checkpoints, from which a killed run is resumed"
    )
    searched: int = Field(
        0, ge=0, le=10**9, description="trials of the search that found these settings, for the leaderboard"
    )
    plugins: tuple[str, ...] = Field((), description="Python files with components of your own")

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
