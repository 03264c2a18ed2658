"""A step in parts, as a graph or eagerly is the same step; what does not fit is cut, and said."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import registry
from bench.config import Input, Train
from bench.data.loader import SliceLoader
from bench.data.slice_random import SliceRandom
from bench.errors import TrainingError
from bench.training.cross_validation import run_in_parallel
from bench.training.step import EAGER_STEPS, Stepper
from bench.types import SILENT, Watch
from tests.fakes import tiny_pack

CPU = torch.device("cpu")
GPU = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def net() -> nn.Module:
    """Without batch norm: its statistics are those of a part, not of the batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return images, (torch.rand(count, 1, 32, 32, generator=generator) < 0.2).float()


class Fits(nn.Module):
    """A model for which memory ends at so many slices."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.net, self.slices, self.seen = net(), slices, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.slices:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.net(images)


def plain_step(model: nn.Module, images: Tensor, masks: Tensor, lr: float) -> float:
    """The reference: unclipped SGD on the whole batch, written out."""
    value = F.binary_cross_entropy_with_logits(model(images), masks)
    value.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad
    return value.item()


PLAIN = Train(optimizer="sgd", momentum=0, weight_decay=0, clip=None)


def test_a_step_is_forward_loss_backward_update_at_the_rate_given() -> None:
    ours, theirs = net(), net()
    step = Stepper(ours, F.binary_cross_entropy_with_logits, PLAIN, 1.0, CPU)
    for lr in (0.5, 0.1):
        expected = plain_step(theirs, *batch(), lr)
        theirs.zero_grad()
        assert step(*batch(), lr).item() == pytest.approx(expected, rel=1e-6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("slices", "parts"), [(8, 1), (7, 2), (4, 2), (3, 4), (1, 8)])
def test_what_does_not_fit_is_taken_in_parts_that_add_up_to_the_whole(slices: int, parts: int) -> None:
    said: list[str] = []
    model, theirs = Fits(slices), net()
    step = Stepper(model, F.binary_cross_entropy_with_logits, PLAIN, 1.0, CPU, say=said.append)
    expected = plain_step(theirs, *batch(), 0.5)
    assert step(*batch(), 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert step.parts == parts
    for a, b in zip(model.net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(said) == {1: 0, 2: 1, 4: 2, 8: 3}[parts]
    assert all("out of memory" in text for text in said)
    model.seen.clear()
    step(*batch(), 0.5)
    assert model.seen == [8 // parts] * parts, "what was learnt about the memory is kept"


def test_parts_of_unequal_size_count_by_their_slices() -> None:
    model, theirs = Fits(3), net()
    step = Stepper(model, F.binary_cross_entropy_with_logits, PLAIN, 1.0, CPU)
    expected = plain_step(theirs, *batch(5), 0.5)
    assert step(*batch(5), 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert model.seen == [5, 3, 2]
    for a, b in zip(model.net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("smallest", "left"), [(1, 1), (2, 2), (3, 4)])
def test_when_not_even_the_smallest_part_fits_there_is_a_sentence(smallest: int, left: int) -> None:
    model = Fits(0)
    step = Stepper(model, F.binary_cross_entropy_with_logits, PLAIN, 1.0, CPU, smallest=smallest)
    before = copy.deepcopy(model.net.state_dict())
    with pytest.raises(
        TrainingError, match=rf"^{left} slices of 32x32 do not fit .*CUDA out of memory.* smaller --image-size"
    ):
        step(*batch(), 0.5)
    assert all(torch.equal(before[name], value) for name, value in model.net.state_dict().items())


def test_clipping_is_of_the_gradient_of_the_whole_batch() -> None:
    """A gradient of norm n is scaled by clip / n: with SGD at rate 1 the step is as long as the clip."""
    for slices in (8, 2):
        model = Fits(slices)
        before = [p.detach().clone() for p in model.parameters()]
        settings = PLAIN.model_copy(update={"clip": 0.01})
        Stepper(model, lambda z, t: 100 * F.binary_cross_entropy_with_logits(z, t), settings, 1.0, CPU)(
            *batch(), 1.0
        )
        moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
        assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_what_cannot_be_repeated_is_a_sentence_and_other_errors_are_themselves() -> None:
    def broken(text: str) -> Stepper:
        def loss(logits: Tensor, target: Tensor) -> Tensor:
            raise RuntimeError(text)

        return Stepper(net(), loss, PLAIN, 1.0, CPU)

    with pytest.raises(
        TrainingError,
        match=r"deterministically on this device \(bend does not have .*\)\. Leave out --deterministic",
    ):
        broken("bend does not have a deterministic implementation, but you set\nmore")(*batch(), 0.1)
    with pytest.raises(RuntimeError, match=r"^other$"):
        broken("other")(*batch(), 0.1)


def test_a_model_that_cannot_be_compiled_runs_as_it_is_and_says_why() -> None:
    from torch._dynamo.exc import TorchDynamoException

    said: list[str] = []
    step = Stepper(
        net(), F.binary_cross_entropy_with_logits, PLAIN, 1.0, CPU, execution="compile", say=said.append
    )

    def compiler(images: Tensor) -> Tensor:
        raise TorchDynamoException("no C++ compiler\nand more")

    step._forward = compiler
    assert step(*batch(), 0.5).item() == pytest.approx(plain_step(net(), *batch(), 0.5), rel=1e-6)
    assert step.how == "eager (not compiled: no C++ compiler)"
    assert said == ["the model cannot be compiled here (no C++ compiler); it runs uncompiled"]


def test_on_a_cpu_a_graph_is_an_eager_step_and_says_so() -> None:
    assert Stepper(net(), F.binary_cross_entropy_with_logits, PLAIN, 1.0, CPU, execution="graph").how == "eager"


# A step asks the device for nothing


@pytest.mark.parametrize("name", registry.loss)
def test_no_loss_asks_the_device_for_a_value(name: str) -> None:
    """On the meta device there are no values: whoever needs one there would stall a GPU, or break its graph."""
    images, masks = (t.to("meta") for t in batch())
    logits = images[:, :1].clone().requires_grad_()
    value = registry.loss[name].bind({})(logits, masks)
    assert value.shape == ()
    value.backward()


@pytest.mark.parametrize("name", ["warp", "intensity", "modality_dropout"])
def test_no_augmentation_of_ours_asks_the_device_for_a_value(name: str) -> None:
    images, masks = (t.to("meta") for t in batch())
    everything = {"warp": {"elastic": 0.5, "turn": 0.5, "flip_vertical": 0.5}, "intensity": {"noise": 0.1}}
    moved, marked = registry.augmentation[name].bind(everything.get(name, {}))(
        images, masks, SliceRandom(0, 0, range(8), "meta")
    )
    assert (moved.shape, marked.shape) == (images.shape, masks.shape)


# On a GPU


@needs_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_replayed_step_is_the_eager_step(optimizer: str) -> None:
    losses, weights = {}, {}
    for how in ("eager", "graph"):
        model = net().to(GPU)
        settings = Train(optimizer=optimizer, precision="float32")
        step = Stepper(model, F.binary_cross_entropy_with_logits, settings, 0.01, GPU, execution=how)
        images, masks = (t.to(GPU) for t in batch())
        losses[how] = [
            step(images.roll(k, 0), masks.roll(k, 0), 0.01 / (1 + k)).item() for k in range(3 * EAGER_STEPS)
        ]
        weights[how] = [p.detach().clone() for p in model.parameters()]
        assert step.how == how
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-4)
    for a, b in zip(weights["graph"], weights["eager"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@needs_gpu
def test_a_loss_that_asks_the_device_for_a_value_runs_eagerly_and_is_named() -> None:
    said: list[str] = []

    def nosy(logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target) * (1 + 0 * logits.sum().item())

    step = Stepper(net().to(GPU), nosy, Train(), 0.01, GPU, execution="graph", say=said.append)
    images, masks = (t.to(GPU) for t in batch())
    values = [step(images, masks, 0.01).item() for _ in range(2 * EAGER_STEPS)]
    assert values[-1] < values[0]
    assert step.how.startswith("eager (no graph: ")
    assert len(said) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream(), "the stream is put back"
    assert F.dropout(images, 0.5).sum().isfinite(), "random numbers are to be had again"
    again = Stepper(net().to(GPU), F.binary_cross_entropy_with_logits, Train(), 0.01, GPU, execution="graph")
    for _ in range(2 * EAGER_STEPS):
        again(images, masks, 0.01)
    assert again.how == "graph", "and so are graphs"


@needs_gpu
def test_two_folds_at_once_draw_and_replay_while_either_captures() -> None:
    def fold(number: int, watch: Watch) -> str:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 1, 1)).to(GPU)
        step = Stepper(model, F.binary_cross_entropy_with_logits, Train(), 0.01, GPU, execution="graph")
        images, masks = (t.to(GPU) for t in batch())
        values = [step(images, masks, 0.01) for _ in range(50 * EAGER_STEPS)]
        assert torch.stack(values).isfinite().all()
        return step.how

    assert run_in_parallel(fold, range(4), 2, GPU, SILENT) == ["graph"] * 4


@needs_gpu
@pytest.mark.parametrize("resident", [True, False])
def test_nothing_in_an_epoch_waits_for_the_device(resident: bool) -> None:
    loader = SliceLoader(tiny_pack(), Input(channels=("flair",)), GPU, resident=resident)
    model = nn.Conv2d(1, 1, 3, padding=1).to(GPU)
    step = Stepper(model, F.binary_cross_entropy_with_logits, Train(), 0.01, GPU)
    change = registry.augmentation["warp"].bind({}), registry.augmentation["intensity"].bind({})
    rows = np.arange(8)

    def whole_step() -> Tensor:
        images, masks = loader.load(rows)
        draws = SliceRandom(0, 0, rows.tolist(), GPU)
        for each in change:
            images, masks = each(images, masks, draws)
        return step(loader.normalise(images, rows), masks, 0.01)

    whole_step()  # what is made once, such as the kernel that blurs, may be waited for
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = whole_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.isfinite()
