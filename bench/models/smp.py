"""The decoders of segmentation_models_pytorch (smp) over any encoder of `bench.models.encoders`.

A batch norm after global pooling sees one value per channel in a batch of one: `smallest_batch` is 2 for those.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
from torch.nn import Module

from bench.models._blocks import refuse_small_images
from bench.models.encoders import PAN_SMALLEST, Encoder, Weights, build_over_encoder
from bench.registry import model


@model
def unetplusplus(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """U-Net++: nested, dense skips between the paths (Zhou et al. 2018)."""
    return build_over_encoder("unetplusplus", smp.UnetPlusPlus, channels, structures, encoder, weights)


@model
def manet(channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None) -> Module:
    """MA-Net: attention over positions and over scales (Fan et al. 2020)."""
    return build_over_encoder("manet", smp.MAnet, channels, structures, encoder, weights)


@model
def linknet(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """LinkNet: a light decoder that adds its skips (Chaurasia and Culurciello 2017)."""
    return build_over_encoder("linknet", smp.Linknet, channels, structures, encoder, weights)


@model
def fpn(channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None) -> Module:
    """FPN: a feature pyramid whose levels are summed (Kirillov et al. 2019)."""
    return build_over_encoder("fpn", smp.FPN, channels, structures, encoder, weights)


@model
def pspnet(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """PSPNet: pyramid pooling of 1/8 resolution features (Zhao et al. 2017)."""
    return build_over_encoder("pspnet", smp.PSPNet, channels, structures, encoder, weights)


@model
def segformer(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """SegFormer: an all-MLP decoder over four levels (Xie et al. 2021)."""
    return build_over_encoder("segformer", smp.Segformer, channels, structures, encoder, weights)


@model
def dpt(
    channels: int, structures: int = 1, *, encoder: Encoder = "tu-vit_small_patch16_224", weights: Weights = None
) -> Module:
    """DPT: a convolutional decoder over a plain vision transformer (Ranftl et al. 2021)."""
    return build_over_encoder("dpt", smp.DPT, channels, structures, encoder, weights)


@model(smallest_batch=2)
def deeplabv3(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """DeepLabV3: parallel dilated convolutions on a dilated encoder (Chen et al. 2017)."""
    return build_over_encoder("deeplabv3", smp.DeepLabV3, channels, structures, encoder, weights)


@model(smallest_batch=2)
def deeplabv3plus(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """DeepLabV3+: DeepLabV3 and a skip from 1/4 resolution (Chen et al. 2018)."""
    return build_over_encoder("deeplabv3plus", smp.DeepLabV3Plus, channels, structures, encoder, weights)


@model(smallest_batch=2, smallest_image=PAN_SMALLEST)
def pan(channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None) -> Module:
    """PAN: pyramid attention on a dilated encoder (Li et al. 2018)."""
    return build_over_encoder("pan", _pan, channels, structures, encoder, weights)


@model(smallest_batch=2)
def upernet(
    channels: int, structures: int = 1, *, encoder: Encoder = "resnet34", weights: Weights = None
) -> Module:
    """UPerNet: pyramid pooling on top of a feature pyramid (Xiao et al. 2018)."""
    return build_over_encoder("upernet", smp.UPerNet, channels, structures, encoder, weights)


def _pan(**options: Any) -> Module:
    return refuse_small_images(smp.PAN(**options), "pan", PAN_SMALLEST, "fpn")
