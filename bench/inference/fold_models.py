"""How MLflow loads a model of ours: `mlflow.pyfunc.load_model` calls `_load_pyfunc` on the logged folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench import registry
from bench.config import RunConfig
from bench.data.loader import SliceLoader
from bench.data.pack import Pack, pack_in_memory
from bench.data.preprocessed import Tick, preprocessed
from bench.data.source import by_area
from bench.inference.predict import predict
from bench.models.io import load_model


class FoldModels:
    """Models that belong together, with the preprocessing they were trained with."""

    def __init__(self, folders: list[Path], device: str = "cpu") -> None:
        loaded = [load_model(folder) for folder in folders]
        self.device = torch.device(device)
        self.models: list[nn.Module] = [model.to(self.device) for model, _ in loaded]
        self.descriptions = [description for _, description in loaded]
        self.config = RunConfig.model_validate(self.descriptions[0]["config"])
        self.threshold = float(np.mean([d["threshold"] for d in self.descriptions]))

    @property
    def presence(self) -> bool:
        """Whether the models say that a slice shows tumour, rather than where."""
        return registry.model[self.config.model.name].facts.get("task") == "presence"

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self.descriptions[0]["channel_names"])

    def loader(self, pack: Pack, *, tick: Tick = lambda done, of: None) -> SliceLoader:
        """A raw pack as these models' input, `prepared` as in their run. `tick(done, of)` after each slice."""
        return SliceLoader(
            preprocessed(pack, self.config.input.preprocess, tick=tick), self.config.input, self.device
        )

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Probabilities (S, H, W) for the slices of one patient, uint8 (S, H, W, C), averaged over the models.

        Models of the presence task give one a slice, (S, 1, 1). Where slices were resized when they were packed,
        these are too; the answer has their own size.
        """
        images = np.asarray(model_input, np.uint8)
        shape = (1, 1) if self.presence else images.shape[1:3]
        side = self.config.dataset.params.get("resize")
        if side is not None and images.shape[1:3] != (side, side):
            images = np.stack([by_area(image, side) for image in images])
        loader = self.loader(pack_in_memory(images, self.channels))
        rows = np.arange(len(images))
        size, precision = self.config.evaluate.batch_size, self.config.train.precision
        return predict(self.models, loader, rows, batch_size=size, precision=precision, shape=shape)


def _load_pyfunc(path: str) -> FoldModels:
    return FoldModels([Path(path)])
