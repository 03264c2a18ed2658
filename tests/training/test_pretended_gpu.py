"""What runs on a GPU, tried where there is none: on tensors that have a device and a shape, but no values.

Whoever asks such a tensor for a value would make a GPU wait, and what mixes devices fails as it would there
(`torch._subclasses.FakeTensorMode`). The backward pass and the optimizer are PyTorch's own, and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.config import Input, RunConfig
from bench.data.augment.warp import _blur_weights
from bench.data.loader import SliceLoader
from bench.data.slice_random import SliceRandom
from bench.inference.predict import Predictor
from bench.overrides import configure
from bench.training import step
from bench.training.experiment import _augmentations, task_of
from bench.training.loop import Recipe
from bench.training.step import Stepper
from tests.fakes import tiny_pack
from tests.models.test_models import build, every_model, side

GPU = torch.device("cuda", 0)
STEPS = 2


class Copies(TorchDispatchMode):
    """Notes what is sent from the host to the device: all of it within a step, else what is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_step = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            waits = not ((kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2]))
            source = args[0 if func.overloadpacket is torch.ops.aten._to_copy else 1]
            if source.device.type == "cpu" and result.device.type == "cuda" and (waits or self.in_step):
                self.found.append(f"{func} {'in the step' if self.in_step else 'before it'}")
        return result


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    def optimizer(parameters: list[nn.Parameter], *rest: object) -> Any:
        idle = SimpleNamespace(param_groups=[{"lr": torch.zeros((), device=GPU)}])
        idle.step, idle.zero_grad = (lambda: None), (lambda set_to_none: None)
        return idle

    monkeypatch.setattr(step, "_optimizer", optimizer)
    monkeypatch.setattr(Tensor, "backward", lambda value: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda value: value)  # there is no driver to ask for it
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, clip: None)
    _blur_weights.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield GPU
    _blur_weights.cache_clear()


def moved(model: nn.Module) -> nn.Module:
    """Parameters and buffers on the pretended GPU; whatever a model keeps beside them stays behind."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in list(held.items()):
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                    held[name] = nn.Parameter(there) if isinstance(value, nn.Parameter) else there
    return model


def epoch(model: nn.Module, config: RunConfig, *, size: int = 48, resident: bool = True, loss: Any = None) -> list:
    """An epoch of `STEPS` steps, up to where its losses are fetched. Gives the copies that should not be."""
    copies = Copies()
    steps = []
    loader = SliceLoader(tiny_pack(size=size), config.input, GPU, resident=resident)
    loader.load_batches = lambda batches: map(loader.load, batches)  # type: ignore[method-assign]  # a reader has a stream
    taken = Stepper._step

    def watched(self: Stepper, images: Tensor, masks: Tensor) -> Tensor:
        copies.in_step = True
        value = taken(self, images, masks)
        copies.in_step = False
        steps.append(value.device)
        return value

    with pytest.MonkeyPatch.context() as patch, copies:
        patch.setattr(Stepper, "_step", watched)
        short = config.train.model_copy(update={"batch_size": 2, "epochs": 1})
        recipe = Recipe(
            config=config.model_copy(update={"train": short}),
            loss=loss or registry.loss[config.loss.name].bind(config.loss.params),
            augment=_augmentations(config),
            schedule=registry.schedule["cosine"].bind({}),
            target=task_of(config).target,
        )
        loop = recipe.train(model, loader, np.arange(2 * STEPS), seed=0)
        with pytest.raises(DataDependentOutputException):
            next(loop)
    assert steps == [GPU] * STEPS, "waited for before the epoch's end"
    return copies.found


def plain() -> nn.Module:
    return build("unet", base=2, depth=1)


@every_model
def test_no_model_waits_or_mixes_devices(name: str, request: pytest.FixtureRequest) -> None:
    model = build(name)  # on the CPU, as a run builds it
    request.getfixturevalue("gpu")
    assert epoch(moved(model), configure({"model": name}), size=side(name)) == []


@pytest.mark.parametrize("name", registry.loss)
def test_no_loss_brings_anything_from_the_host(name: str, gpu: torch.device) -> None:
    assert epoch(moved(plain()), configure({"loss": name})) == []


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"input.image_size": 16},
        {"input.normalise": "image", "input.neighbours": 1},
        {"input.channels": ["flair"]},
        {"input.patch": {"size": 32}, "input.image_size": None},
        {"augment": {"warp": {"elastic": 0.5, "turn": 0.5, "flip_vertical": 0.5}, "intensity": {"noise": 0.1}}},
        {"augment": {"modality_dropout": {"by": "flair"}}},
        {"train.precision": "float32"},
    ],
    ids=str,
)
def test_what_a_step_is_fed_is_on_its_way_without_waiting(
    settings: dict[str, Any], resident: bool, gpu: torch.device
) -> None:
    config = configure(settings)
    channels = (1 if config.input.channels == ("flair",) else 3) * (2 * config.input.neighbours + 1)
    assert epoch(moved(build("unet", channels, base=2, depth=1)), config, resident=resident) == []


@pytest.mark.parametrize("patch", [None, {"size": 32}])
def test_prediction_stays_on_the_device(patch: dict[str, int] | None, gpu: torch.device) -> None:
    loader = SliceLoader(
        tiny_pack(size=48), Input(patch=patch, image_size=None if patch else 24), gpu, resident=True
    )
    models = [moved(plain()), moved(plain())]
    with torch.inference_mode():
        for probability, truth in Predictor(models, loader, 4)._batches(np.arange(5), loader.shape):
            assert (probability.device, truth.device) == (gpu, gpu)
            assert probability.shape == truth.shape


# That it would be seen


def nosy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target) * logits.mean().item()


def from_the_host(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target) * torch.tensor(2.0, device=logits.device)


def mixed(logits: Tensor, target: Tensor) -> Tensor:
    return (logits * torch.ones(logits.shape)).mean()


def test_a_loss_that_waits_is_seen(gpu: torch.device) -> None:
    with pytest.raises(AssertionError, match="waited for before"):
        epoch(moved(plain()), configure({}), loss=nosy)


def test_a_loss_that_sends_a_number_is_seen(gpu: torch.device) -> None:
    found = epoch(moved(plain()), configure({}), loss=from_the_host)
    assert found == ["aten._to_copy.default in the step"] * STEPS


def test_a_loss_that_mixes_devices_is_seen(gpu: torch.device) -> None:
    with pytest.raises(RuntimeError, match="device"):
        epoch(moved(plain()), configure({}), loss=mixed)


def test_a_list_of_rows_is_seen(gpu: torch.device) -> None:
    with Copies() as copies:
        torch.zeros(3, device=gpu)[[0, 1]]
        SliceRandom(0, 0, [1, 2], gpu).uniform()
    assert copies.found == ["aten._to_copy.default before it"], "the list is waited for, what is drawn is not"
