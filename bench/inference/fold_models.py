"""The trained fold models of a run, loaded from their folders, with the preprocessing they were trained with.

`mlflow.pyfunc.load_model` calls `_load_pyfunc` (through `bench.serving`) on a logged model folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import registry
from bench.config import RunConfig
from bench.data.loader import SliceLoader
from bench.data.pack import Pack, Tick, pack_in_memory
from bench.data.preprocessed import preprocess_pack
from bench.data.readers.images import resize_image
from bench.data.source import Pixels
from bench.inference.predict import Predictor
from bench.models.io import load_model, structures_of

VIEWS = {  # of test-time augmentation (TTA): quarter turns, and whether mirrored before
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "turns": tuple((quarters, mirrored) for quarters in range(4) for mirrored in (False, True)),
}


class TurnedModel(nn.Module):
    """A model of (B, C, H, W) whose input is mirrored or not, then turned, and whose logits are turned back."""

    def __init__(self, model: nn.Module, quarters: int, mirrored: bool) -> None:
        super().__init__()
        self.model, self.quarters, self.mirrored = model, quarters, mirrored

    def forward(self, images: Tensor) -> Tensor:
        seen = images.flip(-1) if self.mirrored else images
        logits: Tensor = self.model(seen.rot90(self.quarters, (-2, -1))).rot90(-self.quarters, (-2, -1))
        return logits.flip(-1) if self.mirrored else logits


def tta_views(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the model in all views of `name`, a key of `VIEWS`; without TTA, the model itself."""
    return [model] if name == "none" else [TurnedModel(model, *view) for view in VIEWS[name]]


class FoldModels:
    """The models of several folds of one run, averaged when they predict."""

    def __init__(self, folders: list[Path], device: str = "cpu") -> None:
        loaded = [load_model(folder) for folder in folders]
        self.device = torch.device(device)
        self.models: list[nn.Module] = [model.to(self.device) for model, _ in loaded]
        self.descriptions = [description for _, description in loaded]
        self.config = RunConfig.model_validate(self.descriptions[0]["config"])
        first = self.descriptions[0]
        self.structures = structures_of(first)
        self.activation: str = first.get("activation", "sigmoid")
        self.axis: int = first.get("axis", 2)  # along which volumes are cut
        self.padded_to: list[int] = first.get("padded_to") or [0, 0]
        self.thresholds = mean_thresholds(self.descriptions)

    @property
    def presence(self) -> bool:
        """Whether the models classify slices instead of segmenting them."""
        return registry.model[self.config.model.name].facts.get("task") == "presence"

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the input channels."""
        return tuple(self.descriptions[0]["channel_names"])

    def predictor(self, pack: Pack, *, tta: str = "none", tick: Tick = lambda done, of: None) -> Predictor:
        """Return a predictor on a raw pack, preprocessed as in training; `tick(done, of)` follows each slice."""
        config = self.config
        loader = SliceLoader(preprocess_pack(pack, config.input.preprocess, tick=tick), config.input, self.device)
        models = [view for model in self.models for view in tta_views(model, tta)]
        return Predictor(models, loader, config.evaluate.batch_size, config.train.precision, self.activation)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Return probabilities (S, H, W) for the slices of one patient, uint8 (S, H, W, C).

        With several structures they are (S, K, H, W). Presence models return one per slice, (S, 1, 1). If slices
        were resized for training, these are resized too, and the probabilities are resized back.
        """
        probability = self.probabilities(np.asarray(model_input, np.uint8))
        return probability[:, 0] if probability.shape[1] == 1 else probability

    def probabilities(self, images: Pixels) -> NDArray[np.float32]:
        """Return probabilities (S, K, H, W) for the slices of one patient, uint8 (S, H, W, C).

        Where slices were padded for training, the model sees these padded to the same size; grey levels are
        normalised without the padding.
        """
        height, width = images.shape[1:3]
        side = self.config.dataset.params.get("resize")
        if side is not None and images.shape[1:3] != (side, side):
            images = np.stack([resize_image(image, side) for image in images])
        pack = pack_in_memory(images, self.channels, structures=self.structures)
        below, right = (max(0, most - own) for most, own in zip(self.padded_to, (height, width), strict=True))
        if below or right:
            more = (0, 0), (0, below), (0, right)
            pack = replace(pack, images=np.pad(images, (*more, (0, 0))), masks=np.pad(pack.masks, more))
        shape = (1, 1) if self.presence else (height + below, width + right)
        return self.predictor(pack).probabilities(np.arange(len(images)), shape)[..., :height, :width]


def mean_thresholds(descriptions: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return the mean threshold of the models for each structure."""
    return tuple(np.mean([np.atleast_1d(d["threshold"]) for d in descriptions], axis=0).tolist())


def _load_pyfunc(path: str) -> FoldModels:
    return FoldModels([Path(path)])
