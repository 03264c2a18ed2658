"""How MLflow loads a model of ours: `mlflow.pyfunc.load_model` calls `_load_pyfunc` on the logged folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench.checkpoint import load_model
from bench.config import RunConfig
from bench.evaluate import predict
from bench.feed import Feed
from bench.pack import transient


class Segmenter:
    """Models that belong together, with the preprocessing they were trained with."""

    def __init__(self, folders: list[Path], device: str = "cpu") -> None:
        loaded = [load_model(folder) for folder in folders]
        self.device = torch.device(device)
        self.models: list[nn.Module] = [model.to(self.device) for model, _ in loaded]
        self.descriptions = [description for _, description in loaded]
        self.config = RunConfig.model_validate(self.descriptions[0]["config"])
        self.threshold = float(np.mean([d["threshold"] for d in self.descriptions]))

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self.descriptions[0]["channel_names"])

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Probabilities (S, H, W) for the slices of one patient, uint8 (S, H, W, C), averaged over the models."""
        images = np.asarray(model_input, np.uint8)
        feed = Feed(transient(images, self.channels), self.config.input, self.device)
        rows = np.arange(len(images))
        size, precision = self.config.evaluate.batch_size, self.config.train.precision
        return predict(self.models, feed, rows, batch_size=size, precision=precision)


def _load_pyfunc(path: str) -> Segmenter:
    return Segmenter([Path(path)])
