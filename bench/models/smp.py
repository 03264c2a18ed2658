"""The decoders of segmentation_models_pytorch (smp) over any encoder of `bench.models.encoders`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

from bench.models._blocks import refuse_small_images
from bench.models.encoders import PAN_SMALLEST, build_over_encoder
from bench.registry import model


def _register(
    name: str, decoder: Callable[..., nn.Module], summary: str, default: str = "resnet34", **facts: int
) -> None:
    def build(
        channels: int, structures: int = 1, *, encoder: str = default, weights: str | None = None
    ) -> nn.Module:
        return build_over_encoder(name, decoder, channels, structures, encoder, weights)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{summary}

    `encoder` is any suitable one of `bench list encoders`. `weights` are its initial weights: None (random),
    'imagenet', another name that smp has for them, or a safetensors file with its state dict."""
    model(name=name, **facts)(build)


def _pan(**options: Any) -> nn.Module:
    return refuse_small_images(smp.PAN(**options), "pan", PAN_SMALLEST, "fpn")


_register("unetplusplus", smp.UnetPlusPlus, "U-Net++: nested, dense skips between the paths (Zhou et al. 2018).")
_register("manet", smp.MAnet, "MA-Net: attention over positions and over scales (Fan et al. 2020).")
_register("linknet", smp.Linknet, "LinkNet: a light decoder that adds its skips (Chaurasia and Culurciello 2017).")
_register("fpn", smp.FPN, "FPN: a feature pyramid whose levels are summed (Kirillov et al. 2019).")
_register("pspnet", smp.PSPNet, "PSPNet: pyramid pooling of 1/8 resolution features (Zhao et al. 2017).")
_register("segformer", smp.Segformer, "SegFormer: an all-MLP decoder over four levels (Xie et al. 2021).")
_summary = "DPT: a convolutional decoder over a plain vision transformer (Ranftl et al. 2021)."
_register("dpt", smp.DPT, _summary, default="tu-vit_small_patch16_224")

# A batch norm after global pooling sees one value per channel in a batch of one: these need a batch of two.
_summary = "DeepLabV3: parallel dilated convolutions on a dilated encoder (Chen et al. 2017)."
_register("deeplabv3", smp.DeepLabV3, _summary, smallest_batch=2)
_summary = "DeepLabV3+: DeepLabV3 and a skip from 1/4 resolution (Chen et al. 2018)."
_register("deeplabv3plus", smp.DeepLabV3Plus, _summary, smallest_batch=2)
_summary = "PAN: pyramid attention on a dilated encoder (Li et al. 2018)."
_register("pan", _pan, _summary, smallest_batch=2, smallest_image=PAN_SMALLEST)
_summary = "UPerNet: pyramid pooling on top of a feature pyramid (Xiao et al. 2018)."
_register("upernet", smp.UPerNet, _summary, smallest_batch=2)
