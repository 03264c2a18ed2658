"""What a model costs in use, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import registry
from bench.data.loader import SliceLoader
from bench.overrides import configure
from bench.training.execution import REPEATS, inference_costs, time_repeats
from bench.training.experiment import Experiment, resolve

PHANTOM = {"dataset.patients": 6, "dataset.size": 32, "dataset.slices": 6, "dataset.institutions": 2}


def recipe_of(**settings: object) -> Experiment:
    return resolve(configure(PHANTOM | {"split.folds": 3, "device": "cpu"} | settings))


def by_hand(model: nn.Module, channels: int, size: int) -> int:
    """Two for each multiply-add of every convolution, of one slice."""
    total = 0

    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        # A pixel of the one side meets every channel of the other under the kernel.
        forward = isinstance(layer, nn.Conv2d)
        pixels, other = (output, layer.in_channels) if forward else (inputs[0], layer.out_channels)
        total += 2 * pixels.numel() * other * layer.kernel_size[0] * layer.kernel_size[1]

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    model.eval()(torch.zeros(1, channels, size, size))
    return total


@pytest.mark.parametrize("image_size", [None, 64])
def test_flops_are_those_of_all_convolutions_of_one_slice(tmp_path, monkeypatch, image_size):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    experiment = recipe_of(**{"model.base": 4, "model.depth": 2, "input.image_size": image_size})
    found = inference_costs(experiment, SliceLoader(experiment.pack, experiment.config.input, experiment.device))
    assert found["flops"] == by_hand(experiment.model(0), experiment.channels, image_size or 32) > 0


def test_a_patch_model_pays_for_every_tile(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    settings = {"model.base": 4, "model.depth": 2, "dataset.size": 64, "input.patch.size": 32}
    experiment = recipe_of(**settings, **{"input.patch.overlap": 0.5})
    found = inference_costs(experiment, SliceLoader(experiment.pack, experiment.config.input, experiment.device))
    assert found["flops"] == 9 * by_hand(
        experiment.model(0), experiment.channels, 32
    )  # tiles start at 0, 16 and 32


def test_attention_counts_as_its_two_matrix_products(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.flatten(2).mT[:, None]  # (B, 1, 1024, 3): a token a pixel
            seen = nn.functional.scaled_dot_product_attention(pixels, pixels, pixels)
            return self.scale * seen[:, 0].mT.reshape(images.shape)[:, :1]

    @registry.model(name="test_attends")
    def attends(channels: int) -> nn.Module:
        """A layer of attention and nothing else."""
        return Attends()

    try:
        experiment = recipe_of(model="test_attends")
        found = inference_costs(
            experiment, SliceLoader(experiment.pack, experiment.config.input, experiment.device)
        )
    finally:
        del registry.model._entries["test_attends"]
    assert found["flops"] == 2 * (2 * 1024 * 1024 * 3)


def test_the_median_is_no_longer_than_the_tail(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    experiment = recipe_of(**{"model": "classifier", "model.encoder": "mobilenetv3_small_050"})
    found = inference_costs(experiment, SliceLoader(experiment.pack, experiment.config.input, experiment.device))
    assert 0 < found["latency_p50_ms"] <= found["latency_p95_ms"]
    assert found["flops"] > 0


def test_quick_calls_are_repeated_and_slow_ones_are_not(monkeypatch):
    now = iter(range(1000))
    assert len(time_repeats(lambda: None)) == REPEATS
    monkeypatch.setattr("bench.training.execution.time.perf_counter", lambda: float(next(now)))
    assert time_repeats(lambda: None) == [1.0] * 5
