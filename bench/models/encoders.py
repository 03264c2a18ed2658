"""Encoders of segmentation_models_pytorch (smp) and timm: find them by name and build a decoder over one.

A name that smp knows refers to smp's encoder. Any other name that timm knows refers to timm's, with or without
smp's prefix 'tu-'.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Annotated, Any

import timm
import torch
from pydantic import Field
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from bench.errors import BadSetting, DataError, UnknownName, did_you_mean
from bench.models.encoder_names import list_encoders
from bench.models.pretrained import check_weights_name, hub_offline_if_unreachable, load_weights, weights_file

# Families by the start of their names, without 'tu-'. They are refused before anything is built, with the reason.
# Other pairs that do not work are found by the trial image of `_check_and_prune`.
_PLAIN_VIT = ("vit_", "deit", "beit", "eva", "cait", "xcit", "flexivit")
_UNDILATED = ("densenet", "vgg", "inception", "legacy_xception", "hrnet", "pvt", "swin", "maxvit", "coatnet")
_FIXED_SIZE = ("maxvit", "maxxvit", "coatnet", "hiera")
_DILATING_MODELS = ("deeplabv3", "deeplabv3plus", "pan")
# smp builds these with symmetric padding and batch norms of eps 1e-5; their weights need 'same' padding and 1e-3.
_OTHER_ARITHMETIC = ("timm-efficientnet-", "timm-tf_efficientnet_lite")
Encoder = Annotated[str, Field(description="any suitable one of `bench list encoders`")]
Weights = Annotated[
    str | None,
    Field(description="initial weights: none (random), imagenet, another name of smp's, or a safetensors file"),
]
PAN_SMALLEST = 128  # pixels per side: its pyramid halves 1/16 of the image three times

# What the constructors and layers of smp and timm raise when an encoder does not suit a decoder.
_UNSUITED = (AssertionError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def build_over_encoder(
    name: str,
    decoder: Callable[..., nn.Module],
    channels: int,
    structures: int,
    encoder: str,
    weights: str | None,
    *,
    logits_size: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width),
) -> nn.Module:
    """Build the smp `decoder`, registered as model `name`, over `encoder`, which becomes its attribute `.encoder`.

    Layers that the decoder does not use are removed (PSPNet uses three of five stages), so that only parameters
    that compute are counted. `logits_size` maps the size of an image to that of the logits. Raises `UnknownName`,
    `BadSetting` and `DataError`.
    """
    resolved = _resolve(encoder)
    if resolved is None:
        suggestion = did_you_mean(encoder.partition(".")[0], [listed for listed, _ in list_encoders()])
        raise UnknownName(f"no encoder named '{encoder}'.{suggestion} `bench list encoders` shows all.")
    _refuse_known_misfits(name, resolved)
    if weights is not None and resolved.startswith(_OTHER_ARITHMETIC):
        other = f"tu-tf_{resolved.removeprefix('timm-').removeprefix('tf_').replace('-', '_')}"
        raise BadSetting(
            f"model '{name}': the encoder '{resolved}' pads and normalises otherwise than the network that such "
            f"weights were trained in, so that they compute something else. Take encoder = {other}, or no weights."
        )
    file = weights_file(resolved, weights)
    pretrained = None if file else check_weights_name(resolved, weights)
    options: dict[str, Any] = {}
    if name == "dpt":
        options["dynamic_img_size"] = True  # interpolates the position embedding
    elif resolved.startswith("tu-swin"):
        options["strict_img_size"] = False  # computes the window masks for the size of each image
    try:
        with hub_offline_if_unreachable() if pretrained else nullcontext():
            net = decoder(
                encoder_name=resolved,
                encoder_weights=pretrained,
                in_channels=channels,
                classes=structures,
                **options,
            )
    except OSError as error:  # raised by the client of the hub and by urllib
        raise DataError(
            f"the weights '{weights}' of the encoder '{resolved}' cannot be fetched ({type(error).__name__}). "
            "Give the path of a local safetensors file instead, or no weights."
        ) from error
    except _UNSUITED as error:
        raise _unsuited(name, resolved, error) from error
    if file:
        load_weights(net.get_submodule("encoder"), file, resolved)
    _check_and_prune(name, resolved, net, channels, structures, logits_size)
    return net


@cache
def _resolve(name: str) -> str | None:
    """Return the encoder's name as smp expects it, or None if neither library knows it."""
    if name in smp_encoders:
        return name
    bare = name.removeprefix("tu-")
    tagged = "." in bare  # a tag chooses among the pretrained weights: convnext_tiny.in12k
    exists = timm.models.is_model_pretrained(bare) if tagged else timm.is_model(bare)
    return f"tu-{bare}" if exists else None


def _refuse_known_misfits(name: str, encoder: str) -> None:
    """Raise `BadSetting` for pairs that are known not to work, before anything is built or downloaded."""
    bare = encoder.removeprefix("tu-")
    why = ""
    if name == "dpt":
        if not encoder.startswith("tu-"):
            why = "it needs a plain vision transformer of timm. Take one, such as tu-vit_small_patch16_224"
    elif bare.startswith(_PLAIN_VIT):
        why = "a plain vision transformer has a single resolution. Take the model dpt, or tu-pvt_v2_b0 or mit_b0"
    elif name in _DILATING_MODELS and (bare.startswith(_UNDILATED) or encoder == "xception"):
        why = "it cannot be dilated. Take a resnet, efficientnet, mobilenet or convnext, or the model fpn or unet"
    elif name in ("unetplusplus", "linknet") and bare.startswith("mit_b"):
        why = "smp does not support the pair. Take the model segformer or unet, or another encoder"
    elif bare.startswith(_FIXED_SIZE):
        why = "it takes images of one size only. Take a swin, pvt_v2 or convnext, which take any"
    if why:
        raise BadSetting(f"model '{name}' cannot use the encoder '{encoder}': {why}.")


def _unsuited(name: str, encoder: str, error: Exception) -> BadSetting:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    others = "tu-vit_small_patch16_224" if name == "dpt" else "resnet34, efficientnet-b0 or tu-convnext_tiny"
    return BadSetting(
        f"model '{name}' cannot use the encoder '{encoder}' ({reason}). Take another, such as {others}."
    )


def _check_and_prune(
    name: str,
    encoder: str,
    net: nn.Module,
    channels: int,
    structures: int,
    logits_size: Callable[[int, int], tuple[int, int]],
) -> None:
    """Pass one small image through `net`; replace layers that do not affect the logits by `Unused`.

    The sides of the image differ, and the longer is no power of two. Evaluation mode draws no random numbers and
    leaves the running statistics of batch norms unchanged. Raises `BadSetting` if the pair does not work.
    """
    parameters = list(net.parameters())
    height, width = (96, 64) if name != "pan" else (160, PAN_SMALLEST)
    image = torch.zeros(1, channels, height, width, device=parameters[0].device)
    net.eval()
    try:
        logits = net(image)
        if logits.shape != (1, structures, *logits_size(height, width)):
            raise ValueError(f"an image of {height}x{width} came out {logits.shape[2]}x{logits.shape[3]}")
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    except _UNSUITED as error:
        raise _unsuited(name, encoder, error) from error
    used = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    unused = [
        (parent, child_name, child)
        for parent in net.modules()
        for child_name, child in parent.named_children()
        if (own := list(child.parameters())) and not any(id(p) in used for p in own)
    ]
    for parent, child_name, _ in unused:
        setattr(parent, child_name, Unused())
    try:
        with torch.no_grad():
            net(image)
    except _UNSUITED:  # part of a block was unused, but the block does not run without it: keep all, frozen
        for parent, child_name, child in unused:
            setattr(parent, child_name, child.requires_grad_(False))
    net.train()


class Unused(nn.Module):
    """Replaces a layer that does not affect the logits. Some encoders call such layers nevertheless."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x
