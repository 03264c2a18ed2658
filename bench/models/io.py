"""Save a trained model to a folder, and load it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from bench import registry
from bench.errors import StoreError
from bench.files import write_atomically

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"


def save_model(folder: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write weights and description into `folder`, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(weights))
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1).encode())


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in evaluation mode and its description. Raises `StoreError`."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        weights = load_file(folder / WEIGHTS)
        plugins, settings = description["config"]["plugins"], dict(description["config"]["model"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no readable model: {error}.") from None
    for plugin in plugins:
        registry.load_plugin(Path(plugin))
    entry = registry.model[settings.pop("name")]
    if "weights" in settings:
        settings["weights"] = None  # the trained weights replace the initial ones: fetch nothing
    model: nn.Module = entry.bind(settings)(description["channels"])
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise StoreError(f"the weights in {folder} do not fit the model in its {DESCRIPTION}.") from None
    return model.eval(), description
