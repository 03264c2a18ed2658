"""Save a trained model to a folder, and load it again.

A folder is data: loading it runs no code that it names. Plugins must be loaded before (`--plugin`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from bench import registry
from bench.config import RunConfig
from bench.errors import BadSetting, StoreError
from bench.files import read_json, write_atomically
from bench.settings import first_problem
from bench.structures import Structures

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
_WAY_OUT = "Export or train it again."

Share = Annotated[float, Field(ge=0, le=1)]


class _Patients(BaseModel):
    """What `Participants.anonymise` returns."""

    salt: str
    hashes: list[str]
    images: str | None = None


class _Description(BaseModel):
    """What `model.json` must hold to be used; it may hold more. Earlier versions wrote no `digest`."""

    model_config = ConfigDict(extra="allow", strict=True)

    config: RunConfig
    channels: Annotated[int, Field(ge=1, le=4096)]  # of the network's input
    channel_names: Annotated[list[str], Field(min_length=1)]
    threshold: Share | Annotated[list[Share], Field(min_length=1)]  # one for each structure, if there are several
    structures: Annotated[Structures, BeforeValidator(TypeAdapter(Structures).validate_python)] = Structures()
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    axis: Annotated[int, Field(ge=0, le=2)] = 2  # along which volumes are cut
    padded_to: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None  # height and width
    fold: Annotated[int, Field(ge=0)] = 0
    digest: str | None = None  # of the weights and the rest of the description
    patients: _Patients | None = None  # of an export
    models: int | None = None  # in an export


def build_model(name: str, params: Mapping[str, Any], channels: int, structures: int) -> nn.Module:
    """Build a registered model of images (B, channels, H, W) that returns a logit for each of the structures.

    A function without the argument `structures` has one output. Raises `BenchError`.
    """
    entry = registry.model[name]
    takes = [p for p in signature(entry.fn).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    build = entry.bind(params)
    if len(takes) > 1:
        several: nn.Module = build(channels, structures)
        return several
    if structures > 1 and entry.facts.get("task") != "presence":
        raise BadSetting(
            f"the model '{name}' segments one structure, but the data have {structures}. Define it as "
            f"`def {name}(channels, structures, *, ...)`, with a logit for each, or name one in "
            "dataset.structures."
        )
    one: nn.Module = build(channels)
    return one


def structures_of(description: Mapping[str, Any]) -> Structures:
    """Return the structures of a model by its description; those of earlier versions name none."""
    return TypeAdapter(Structures).validate_python(description.get("structures", Structures()))


def save_model(folder: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write weights and description into `folder`, each atomically; the description holds a digest of both."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    write_atomically(folder / WEIGHTS, weights)
    described = {**description, "digest": _digest(description, weights)}
    write_atomically(folder / DESCRIPTION, json.dumps(described, indent=1).encode())


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description in `folder`, which holds what `_Description` says. Raises `BenchError`."""
    content = read_json(folder / DESCRIPTION, "the model", _WAY_OUT)
    try:
        _Description.model_validate(content)
    except ValidationError as error:
        raise StoreError(f"{folder / DESCRIPTION} is not valid: {first_problem(error)}. {_WAY_OUT}") from None
    return dict(content)


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in evaluation mode and its description.

    Raises `BenchError` for files that are damaged or do not fit each other, and `UnknownName` if the model needs a
    plugin that is not loaded.
    """
    description = read_description(folder)
    try:
        content = (folder / WEIGHTS).read_bytes()
        weights = load(content)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no readable weights: {error}. {_WAY_OUT}") from None
    if description.get("digest") not in (None, _digest(description, content)):
        raise StoreError(f"{WEIGHTS} or {DESCRIPTION} in {folder} has changed since it was written. {_WAY_OUT}")
    if broken := next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None):
        raise StoreError(f"the weights '{broken}' in {folder} are not finite numbers. {_WAY_OUT}")
    config = RunConfig.model_validate(description["config"])
    settings = dict(config.model.params)
    if "weights" in settings:
        settings["weights"] = None  # the trained weights replace the initial ones: fetch nothing
    plugins = f", trained with {', '.join(Path(p).name for p in config.plugins)}," if config.plugins else ""
    structures = len(structures_of(description))
    with registry.errors_named(f"the model in {folder}{plugins} cannot be built", _WAY_OUT):
        model = build_model(config.model.name, settings, description["channels"], structures)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise StoreError(
            f"the weights in {folder} do not fit the model in its {DESCRIPTION}. {_WAY_OUT}"
        ) from None
    return model.eval(), description


def _digest(description: Mapping[str, Any], weights: bytes) -> str:
    described = {key: value for key, value in description.items() if key != "digest"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode() + weights).hexdigest()
