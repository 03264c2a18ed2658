"""Weights as safetensors beside a JSON that rebuilds the model through the registry: nothing is unpickled."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from bench import registry
from bench.errors import StoreError

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"


class Best:
    """The weights with the highest validation score so far, kept in memory. The first of equals stays."""

    def __init__(self) -> None:
        self.score = float("-inf")
        self.epoch = 0
        self._weights: dict[str, torch.Tensor] = {}

    def consider(self, model: nn.Module, score: float, epoch: int) -> bool:
        """Keep the model's weights if `score` beats all before; the first epoch is always kept."""
        if self._weights and (math.isnan(score) or score <= self.score):  # a number beats an earlier NaN
            return False
        self.score, self.epoch = score, epoch
        self._weights = copy.deepcopy(model.state_dict())
        return True

    def restore(self, model: nn.Module) -> None:
        model.load_state_dict(self._weights)


def save_model(folder: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write weights and description into `folder`; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _write(folder / WEIGHTS, save(weights))
    _write(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in evaluation mode and its description. Raises `StoreError`."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        weights = load_file(folder / WEIGHTS)
        plugins, chosen = description["config"]["plugins"], dict(description["config"]["model"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no model that can be read: {error}.") from None
    for plugin in plugins:
        registry.load_plugin(Path(plugin))
    entry = registry.model[chosen.pop("name")]
    if "weights" in chosen:
        chosen["weights"] = None  # the trained weights follow; nothing is fetched
    model: nn.Module = entry.bind(chosen)(description["channels"])
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise StoreError(f"{folder} holds weights of another model than its {DESCRIPTION} describes.") from None
    return model.eval(), description


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.writing")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
