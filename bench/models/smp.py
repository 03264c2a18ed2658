"""The decoders of segmentation_models_pytorch (smp) over any encoder of `bench.models.encoders`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from bench.errors import BadSetting
from bench.models.encoders import PAN_SMALLEST, build_over_encoder
from bench.registry import model


def _builder(
    name: str, decoder: Callable[..., nn.Module], summary: str, default: str = "resnet34"
) -> Callable[..., nn.Module]:
    def build(channels: int, *, encoder: str = default, weights: str | None = None) -> nn.Module:
        return build_over_encoder(name, decoder, channels, encoder, weights)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{summary}

    `encoder` is any suitable one of `bench list encoders`. `weights` are its initial weights: None (random),
    'imagenet', another name that smp has for them, or a safetensors file with its state dict."""
    return build


def _refuse_small(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    height, width = inputs[0].shape[-2:]
    if min(height, width) < PAN_SMALLEST:
        raise BadSetting(
            f"model 'pan' needs images of at least {PAN_SMALLEST} pixels per side and got {height}x{width}. "
            "Raise input.image_size, or choose another model such as fpn."
        )


def _pan(**options: Any) -> nn.Module:
    net: nn.Module = smp.PAN(**options)
    net.register_forward_pre_hook(_refuse_small)
    return net


# A batch norm after global pooling sees one value per channel in a batch of one: it needs a batch of two.
for _name, _decoder, _summary, _facts in (
    ("unetplusplus", smp.UnetPlusPlus, "U-Net++: nested, dense skips between the paths (Zhou et al. 2018).", {}),
    ("manet", smp.MAnet, "MA-Net: attention over positions and over scales (Fan et al. 2020).", {}),
    ("linknet", smp.Linknet, "LinkNet: a light decoder that adds its skips (Chaurasia and Culurciello 2017).", {}),
    ("fpn", smp.FPN, "FPN: a feature pyramid whose levels are summed (Kirillov et al. 2019).", {}),
    ("pspnet", smp.PSPNet, "PSPNet: pyramid pooling of 1/8 resolution features (Zhao et al. 2017).", {}),
    (
        "deeplabv3",
        smp.DeepLabV3,
        "DeepLabV3: parallel dilated convolutions on a dilated encoder (Chen et al. 2017).",
        {"smallest_batch": 2},
    ),
    (
        "deeplabv3plus",
        smp.DeepLabV3Plus,
        "DeepLabV3+: DeepLabV3 and a skip from 1/4 resolution (Chen et al. 2018).",
        {"smallest_batch": 2},
    ),
    (
        "pan",
        _pan,
        "PAN: pyramid attention on a dilated encoder (Li et al. 2018).",
        {"smallest_batch": 2, "smallest_image": PAN_SMALLEST},
    ),
    ("segformer", smp.Segformer, "SegFormer: an all-MLP decoder over four levels (Xie et al. 2021).", {}),
    (
        "upernet",
        smp.UPerNet,
        "UPerNet: pyramid pooling on top of a feature pyramid (Xiao et al. 2018).",
        {"smallest_batch": 2},
    ),
):
    model(name=_name, **_facts)(_builder(_name, _decoder, _summary))


model(name="dpt")(
    _builder(
        "dpt",
        smp.DPT,
        "DPT: a convolutional decoder over a plain vision transformer (Ranftl et al. 2021).",
        default="tu-vit_small_patch16_224",
    )
)
