"""FLOP, bytes and roofs against sums done by hand. No test depends on the speed of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import registry
from benchmarks.speed.roof import compute_roof, measure_ceilings
from benchmarks.speed.work import Pass, Work, count_work

pytestmark = pytest.mark.slow

IMAGES = (2, 3, 8, 6)
C = 5  # channels in the middle of the nets below
N = 2 * C * 8 * 6  # elements of a tensor in the middle
FLOAT = 4  # bytes


def flops(work: Work, name: str) -> list[int]:
    return [each.flops for each in work.eager if each.name == name]


def elements(passes: Sequence[Pass], name: str) -> list[int]:
    """Return the number of float32 values that each pass of this name moves."""
    return [each.bytes // FLOAT for each in passes if each.name == name]


def moves(passes: Sequence[Pass], name: str) -> list[int]:
    """Return the same in tensors of N elements, rounded down: the per-channel values of a norm do not count."""
    return [count // N for count in elements(passes, name)]


def build(name: str, **params: Any) -> nn.Module:
    net: nn.Module = registry.model[name].bind(params)(3)
    return net


class Net(nn.Module):
    """A convolution to C channels, the `middle` (N elements in and out), and a convolution to one channel."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, C, 1, bias=False), middle, nn.Conv2d(C, 1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.middle(self.first(images)))
        return logits


class Residual(nn.Module):
    """norm, ReLU, convolution, norm, adding the input of the convolution, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv, self.norm = nn.BatchNorm2d(C), nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        return F.relu(self.norm(self.conv(x)) + x)


class Attention(nn.Module):
    """Attention between pixels: two heads of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 24, 1)

    def forward(self, images: Tensor) -> Tensor:
        query, key, value = self.embed(images).flatten(2).unflatten(1, (3, 2, 4)).transpose(-1, -2).unbind(1)
        return F.scaled_dot_product_attention(query, key, value)


def test_a_convolution_has_two_flop_per_multiply_add() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, padding=1))
    work = count_work(net, IMAGES, torch.float32)
    # The images need no gradient, so the first convolution has one backward operator only.
    first = 2 * (2 * 4 * 4 * 3) * (3 * 3 * 3)  # images x channels x 4 x 3 places, each over 3 x 3 x 3 weights
    second = 2 * (2 * 6 * 4 * 3) * (4 * 3 * 3)
    assert flops(work, "convolution") == [first, second]
    assert flops(work, "convolution_backward") == [second, second, first]
    assert work.flops == 2 * first + 3 * second
    assert work.images == 2


def test_a_grouped_convolution_reads_only_its_own_group() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.Conv2d(12, 12, 5, groups=12)
    )
    one, grouped, depthwise = (2 * n for n in (2 * 8 * 48 * 3, 2 * 12 * 48 * (2 * 9), 2 * 12 * (4 * 2) * 25))
    assert count_work(net, IMAGES, torch.float32).flops == 2 * one + 3 * grouped + 3 * depthwise


@pytest.mark.parametrize("groups", [1, 3])
def test_a_transposed_convolution_uses_all_weights_per_input_pixel(groups: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 9, 2, stride=2, groups=groups))
    one, up = 2 * (2 * 6 * 48 * 3), 2 * (2 * 6 * 48) * (9 // groups * 4)
    work = count_work(net, IMAGES, torch.float32)
    assert flops(work, "convolution") == [one, up]
    assert work.flops == 2 * one + 3 * up


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_a_matrix_product(bias: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 7, bias=bias), nn.Linear(7, 4, bias=bias))
    rows = 2 * 3 * 8
    assert count_work(net, IMAGES, torch.float32).flops == 2 * rows * (2 * 6 * 7 + 3 * 7 * 4)


def test_attention_recomputes_its_scores_instead_of_storing_them() -> None:
    work = count_work(Attention(), IMAGES, torch.float32)
    product = 2 * (2 * 2) * 48 * 48 * 4  # images x heads, all pairs of pixels, 4 channels
    assert work.flops == 2 * 2 * (2 * 24 * 48) * 3 + (2 + 5) * product
    (attention,) = (p for p in work.eager if p.name == "_scaled_dot_product_flash_attention_for_cpu")
    assert attention.bytes == FLOAT * (4 * 2 * 2 * 48 * 4 + 2 * 2 * 48)  # q, k, v, output, one sum per query


def test_flop_equal_torchs_count_except_for_grouped_convolutions() -> None:
    grouped = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))  # torch counts too many
    images = torch.zeros(2, 3, 32, 32)
    for net, same in ((build("unet", base=4, depth=2), True), (grouped, False)):
        with FlopCounterMode(display=False) as theirs:
            net(images).sum().backward()
        ours = count_work(net, images.shape, torch.float32).flops
        assert (ours == theirs.get_total_flops()) is same
        assert ours <= theirs.get_total_flops()


def test_an_operator_reads_its_inputs_and_writes_its_outputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(2))
    work = count_work(net, IMAGES, torch.float32)
    image, features, weight = 2 * 3 * 48, 2 * 4 * 48, 4 * 3 * 9
    assert elements(work.eager, "convolution") == [image + weight + 4 + features]
    assert elements(work.eager, "convolution_backward") == [features + image + weight]
    pooled = 2 * 4 * 12
    (pooling,) = (p for p in work.eager if p.name == "max_pool2d_with_indices")
    assert pooling.bytes == FLOAT * (features + pooled) + 8 * pooled  # the positions of the maxima are int64
    assert {p.name.removesuffix("_backward") for p in work.eager} == {"convolution", "max_pool2d_with_indices"}
    assert work.fused == work.eager


def test_half_the_bits_are_half_the_bytes() -> None:
    net = nn.Conv2d(3, 4, 3)
    full, half = (count_work(net, IMAGES, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert [p.bytes for p in full.eager] == [2 * p.bytes for p in half.eager]
    assert full.flops == half.flops


def test_an_unfused_norm_reads_its_input_twice() -> None:
    work = count_work(Net(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())), IMAGES, torch.float32)
    # With C elements: weight, bias, two running and two new statistics; backward, two gradients instead of bias.
    assert elements(work.eager, "native_batch_norm") == [3 * N + 6 * C]
    assert elements(work.eager, "native_batch_norm_backward") == [5 * N + 7 * C]
    assert elements(work.eager, "relu") == [2 * N]
    assert elements(work.eager, "threshold_backward") == [3 * N]


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(),
        nn.ReLU6(),
        nn.ELU(),
        nn.SiLU(inplace=True),
        nn.GELU(),
        nn.Hardsigmoid(),
        nn.Hardswish(inplace=True),
        nn.Sigmoid(),
        nn.Identity(),
    ],
    ids=str,
)
def test_fused_norm_and_activation_move_two_tensors_forward_four_backward(activation: nn.Module) -> None:
    work = count_work(Net(nn.Sequential(nn.BatchNorm2d(C), activation)), IMAGES, torch.float32)
    forward, backward = (p.name for p in work.fused if "native_batch_norm" in p.name)
    assert moves(work.fused, forward) == [2]
    assert moves(work.fused, backward) == [4]
    others = [p.name for p in work.fused if p.name not in (forward, backward, "add_")]  # add_ counts batches
    assert others == ["convolution"] * 2 + ["convolution_backward"] * 3


def test_a_residual_add_reads_one_more_tensor_and_stays_in_its_pass() -> None:
    work = count_work(Net(Residual()), IMAGES, torch.float32)
    assert moves(work.fused, "native_batch_norm+relu") == [2]
    assert moves(work.fused, "native_batch_norm+add+relu") == [3]
    # In: the gradient, the output's sign and the norm's input, which is read twice. Out: two gradients.
    assert moves(work.fused, "threshold_backward+native_batch_norm_backward") == [6]
    # In: the two gradients to add and the norm's input, which is read twice. Out: one gradient.
    assert moves(work.fused, "add+threshold_backward+native_batch_norm_backward") == [5]


def test_a_norm_with_fixed_statistics_computes_no_sums() -> None:
    class Fixed(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    work = count_work(Net(Fixed(C)), IMAGES, torch.float32)
    assert moves(work.eager, "native_batch_norm") == [2]
    assert moves(work.eager, "native_batch_norm_backward") == [3]
    assert work.fused == work.eager


def test_counting_does_not_change_the_model() -> None:
    net = build("unet", base=2, depth=2).eval()
    net(torch.zeros(1, 3, 16, 16)).sum().backward()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    random_state = torch.get_rng_state()
    fresh = build("unet", base=2, depth=2)
    torch.set_rng_state(random_state)
    assert count_work(net, (2, 3, 16, 16), torch.bfloat16) == count_work(fresh, (2, 3, 16, 16), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert not net.training
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {("cpu", torch.float32)}


@pytest.mark.parametrize(
    ("params", "gigaflop", "eager"),
    [
        ({"base": 32}, 72, 4475),
        ({"base": 64}, 289, 1614),
        ({"encoder": "resnet50"}, 64, 4072),
        ({"encoder": "efficientnet-b0"}, 18, 6022),
    ],
    ids=str,
)
def test_h200_roofs_equal_values_computed_independently(
    params: dict[str, Any], gigaflop: float, eager: float
) -> None:
    work = count_work(build("unet", **params), (16, 3, 256, 256), torch.bfloat16)
    roof = compute_roof(work, 790e12, 4.3e12)
    assert work.flops / work.images == pytest.approx(gigaflop * 1e9, rel=0.02)
    assert roof.eager_rate == pytest.approx(eager, rel=0.02)
    assert roof.fused_rate > roof.eager_rate


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("attention_unet", {"base": 4}),
        ("resunet", {"base": 4}),
        ("segformer", {"encoder": "mit_b0"}),
        ("dpt", {"encoder": "test_vit"}),
        ("fpn", {"encoder": "mobilenetv3_small_050"}),
    ],
)
def test_fusing_saves_bytes_and_keeps_every_flop(name: str, params: dict[str, Any]) -> None:
    work = count_work(build(name, **params), (2, 3, 64, 64), torch.float32)
    assert 0 < sum(p.bytes for p in work.fused) < sum(p.bytes for p in work.eager)
    assert sum(p.flops for p in work.fused) == work.flops > 0
    assert len(work.fused) < len(work.eager)


def test_a_pass_takes_the_longer_of_computing_and_moving() -> None:
    work = Work(
        4, (Pass("a", 100, 10), Pass("b", 10, 40), Pass("c", 0, 5)), (Pass("a+c", 100, 12), Pass("b", 10, 30))
    )
    roof = compute_roof(work, 10.0, 5.0)
    assert roof.eager == 10 + 8 + 1
    assert roof.fused == 10 + 6
    assert (roof.eager_rate, roof.fused_rate) == (4 / 19, 4 / 16)


def test_ceilings_are_positive_and_finite() -> None:
    ceilings = measure_ceilings(torch.device("cpu"))
    assert all(isfinite(ceiling) and ceiling > 0 for ceiling in ceilings)


def test_a_model_with_several_outputs_is_trained_on_all_of_them() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coarse, self.fine = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [self.coarse(images), self.fine(images)]

    forward = 2 * 3 * (2 + 4) * 64
    assert count_work(Two(), (1, 3, 8, 8), torch.float32).flops == 2 * forward  # half for the weights' gradients
