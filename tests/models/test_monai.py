"""MONAI networks: equal to those of MONAI, and errors if MONAI is missing or a setting is wrong."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import registry
from bench.errors import BadSetting

torch.set_num_threads(1)

installed = pytest.mark.skipif(
    not (find_spec("monai") and find_spec("einops")), reason="needs monai: pip install 'medseg-bench[monai]'"
)


def build(name: str, **params: Any) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = registry.model[name].bind(params)(3)
    return net


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7))


SETTINGS = [
    ("segresnet", {}, {"init_filters": 32, "dropout_prob": 0.2}),
    (
        "segresnet",
        {"init_filters": 16, "blocks_down": [1, 1, 1, 1, 1], "up": "transposed", "dropout": 0},
        {"init_filters": 16, "blocks_down": (1,) * 5, "blocks_up": (1,) * 4, "upsample_mode": "deconv"},
    ),
    pytest.param("swin_unetr", {}, {"feature_size": 24}, marks=pytest.mark.slow),
    pytest.param(
        "swin_unetr",
        {"feature_size": 12, "depths": [1, 2, 1, 1], "window": 4, "v2": True, "drop_path": 0.3},
        {"feature_size": 12, "depths": (1, 2, 1, 1), "window_size": 4, "use_v2": True, "dropout_path_rate": 0.3},
        marks=pytest.mark.slow,
    ),
]


@installed
@pytest.mark.parametrize(("name", "ours", "theirs"), SETTINGS)
def test_the_network_equals_that_of_monai_with_the_same_settings(
    name: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    from monai.networks.nets import SegResNet, SwinUNETR

    net = build(name, **ours)
    torch.manual_seed(0)
    kind = {"segresnet": SegResNet, "swin_unetr": SwinUNETR}[name]
    expected = kind(spatial_dims=2, in_channels=3, out_channels=1, **theirs)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in expected.parameters())
    state, x = expected.state_dict(), images(64, 96)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net.eval()(x), expected.eval()(x))


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("segresnet", {"init_filters": 8, "blocks_down": [1, 1]}),
        ("segresnet", {"init_filters": 8, "blocks_down": [1] * 6}),
        ("swin_unetr", {"feature_size": 12, "v2": True}),
        ("swin_unetr", {"feature_size": 12, "window": 5}),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 160)])
def test_every_variant_trains_on_images_whose_sides_are_multiples_of_32(
    name: str, params: dict[str, Any], height: int, width: int
) -> None:
    net, x = build(name, **params).train(), images(height, width)
    logits = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert logits.shape == (2, 1, height, width)
    logits.square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@installed
@pytest.mark.parametrize("name", ["segresnet", pytest.param("swin_unetr", marks=pytest.mark.slow)])
def test_dropout_is_applied_only_if_set(name: str) -> None:
    setting = {"segresnet": "dropout", "swin_unetr": "drop_path"}[name]
    small = {"segresnet": {"init_filters": 8}, "swin_unetr": {"feature_size": 12}}[name]
    with torch.no_grad():
        for share in (0.0, 0.5):
            net, x = build(name, **small, **{setting: share}).train(), images(64, 64)
            assert torch.equal(net(x), net(x)) is (share == 0)


@installed
def test_swin_unetr_refuses_images_that_its_norms_cannot_process() -> None:
    net = build("swin_unetr", feature_size=12)
    assert registry.model["swin_unetr"].facts["smallest_image"] == 64
    with pytest.raises(BadSetting, match="'swin_unetr' needs images of at least 64 pixels per side and got 32x32"):
        net(images(32, 32))
    net._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        net(images(32, 32))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("segresnet", {"init_filters": 12}, "init_filters = 12 is refused: input should be a multiple of 8"),
        ("segresnet", {"blocks_down": [1] * 7}, "should have at most 6 items"),
        ("segresnet", {"blocks_down": [1, 0]}, "every level needs 1 to 64 blocks"),
        ("segresnet", {"dropout": 1.0}, "input should be less than 1"),
        ("swin_unetr", {"feature_size": 16}, "feature_size = 16 is refused: input should be a multiple of 12"),
        ("swin_unetr", {"depths": [2, 2, 2]}, "should have at least 4 items"),
        ("swin_unetr", {"img_size": 64}, "has no setting 'img_size'"),
    ],
)
def test_a_setting_that_monai_would_refuse_or_misread_raises(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadSetting, match=message):
        registry.model[name].bind(params)


@pytest.mark.parametrize(("name", "missing"), [("segresnet", ["monai"]), ("swin_unetr", ["monai", "einops"])])
def test_a_model_of_monai_raises_with_the_install_command_if_it_is_missing(
    name: str, missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    with pytest.raises(
        BadSetting, match=rf"model '{name}' needs {' and '.join(missing)}: pip install 'medseg-bench\[monai\]'"
    ):
        build(name)


@pytest.mark.slow
def test_listing_the_models_does_not_import_monai() -> None:
    listing = "import sys; from bench.registry import model; print('swin_unetr' in model, 'monai' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True", "False"]
