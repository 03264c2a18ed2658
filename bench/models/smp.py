"""The decoders of segmentation_models_pytorch (smp) over its encoders and those of timm.

A name that smp knows is smp's; any other that timm knows is timm's, with or without smp's prefix 'tu-'.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from bench.errors import BadSetting, DataError, UnknownName, did_you_mean
from bench.models.pretrained import hub, load, ready_made, weights_file
from bench.registry import model

# Families by how their names begin, 'tu-' aside. What is not listed here and does not work is found by the trial
# image in `_trial`; these are told before anything is built, and with the reason.
_PLAIN_VIT = ("vit_", "deit", "beit", "eva", "cait", "xcit", "flexivit")


_UNDILATED = ("densenet", "vgg", "inception", "legacy_xception", "hrnet", "pvt", "swin", "maxvit", "coatnet")


_FIXED_SIZE = ("maxvit", "maxxvit", "coatnet", "hiera")


_DILATING = ("deeplabv3", "deeplabv3plus", "pan")


_PAN_SMALLEST = 128  # pixels a side: its pyramid halves 1/16 of the image three times


# What the constructors and layers of smp and timm raise when an encoder does not suit a decoder.
_UNSUITED = (AssertionError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def catalogue() -> list[tuple[str, str]]:
    """Every encoder by name, and where it is from: 'smp' or 'timm (tu-)'."""
    own = [(name, "smp") for name in smp_encoders]
    return own + [(f"tu-{name}", "timm (tu-)") for name in timm.list_models()]


def encoder_exists(name: str) -> bool:
    """Whether a model can ask for this encoder. That it suits the model's decoder is another matter."""
    return _resolved(name) is not None


def over_encoder(
    name: str,
    decoder: Callable[..., nn.Module],
    channels: int,
    encoder: str,
    weights: str | None,
    *,
    logits: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width),
) -> nn.Module:
    """The smp `decoder`, registered as model `name`, over `encoder`; its encoder is `.encoder`.

    Layers that the decoder makes no use of (PSPNet takes three of five stages) are removed, so that the
    parameters counted are parameters that compute. `logits` gives the size of the output for that of an image.
    Raises `UnknownName`, `BadSetting` and `DataError`.
    """
    known = _resolved(encoder)
    if known is None:
        close = did_you_mean(encoder.partition(".")[0], [listed for listed, _ in catalogue()])
        raise UnknownName(f"no encoder named '{encoder}'.{close} `bench list encoders` shows all.")
    _refuse_misfits(name, known)
    file = weights_file(weights)
    fetched = None if file else ready_made(known, weights)
    options: dict[str, Any] = {}
    if name == "dpt":
        options["dynamic_img_size"] = True  # interpolates the position embedding
    elif known.startswith("tu-swin"):
        options["strict_img_size"] = False  # computes the window masks for the image at hand
    try:
        with hub() if fetched else nullcontext():
            net = decoder(encoder_name=known, encoder_weights=fetched, in_channels=channels, classes=1, **options)
    except OSError as error:  # what the hub's client and urllib raise
        raise DataError(
            f"the weights '{weights}' of the encoder '{known}' cannot be fetched ({type(error).__name__}). Give "
            "the path of a local safetensors file instead, or no weights."
        ) from error
    except _UNSUITED as error:
        raise _unsuited(name, known, error) from error
    if file:
        load(net.get_submodule("encoder"), file, known)
    _trial(name, known, net, channels, logits)
    return net


@cache
def _resolved(name: str) -> str | None:
    """The name as smp wants it, or None where nobody knows it."""
    if name in smp_encoders:
        return name
    bare = name.removeprefix("tu-")
    tagged = "." in bare  # a tag chooses among the pretrained weights: convnext_tiny.in12k
    exists = timm.models.is_model_pretrained(bare) if tagged else timm.is_model(bare)
    return f"tu-{bare}" if exists else None


def _refuse_misfits(name: str, encoder: str) -> None:
    """Raise `BadSetting` for pairs that are known not to work, before they cost a build or a download."""
    bare = encoder.removeprefix("tu-")
    why = ""
    if name == "dpt":
        if not encoder.startswith("tu-"):
            why = "it is built on a plain vision transformer of timm. Take one, such as tu-vit_small_patch16_224"
    elif bare.startswith(_PLAIN_VIT):
        why = "a plain vision transformer has a single resolution. Take the model dpt, or tu-pvt_v2_b0 or mit_b0"
    elif name in _DILATING and (bare.startswith(_UNDILATED) or encoder == "xception"):
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


def _trial(
    name: str, encoder: str, net: nn.Module, channels: int, size_of: Callable[[int, int], tuple[int, int]]
) -> None:
    """Pass one small image through `net`: refuse what does not work, remove layers that nothing depends on.

    Its sides differ, and the longer is no power of two. Evaluation mode draws no random number and leaves the
    running statistics of batch norms alone.
    """
    parameters = list(net.parameters())
    height, width = (96, 64) if name != "pan" else (160, _PAN_SMALLEST)
    image = torch.zeros(1, channels, height, width, device=parameters[0].device)
    net.eval()
    try:
        logits = net(image)
        if logits.shape != (1, 1, *size_of(height, width)):
            raise ValueError(f"an image of {height}x{width} came out {logits.shape[2]}x{logits.shape[3]}")
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    except _UNSUITED as error:
        raise _unsuited(name, encoder, error) from error
    reached = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    idle = [
        (parent, child_name, child)
        for parent in net.modules()
        for child_name, child in parent.named_children()
        if (own := list(child.parameters())) and not any(id(p) in reached for p in own)
    ]
    for parent, child_name, _ in idle:
        setattr(parent, child_name, Unused())
    try:
        with torch.no_grad():
            net(image)
    except _UNSUITED:  # half of a block was idle, and the other half minds: leave all in place, untrained
        for parent, child_name, child in idle:
            setattr(parent, child_name, child.requires_grad_(False))
    net.train()


class Unused(nn.Module):
    """Stands where a layer was that no logit depends on. Some encoders run such layers nevertheless."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


def _over_any_encoder(
    name: str, decoder: Callable[..., nn.Module], about: str, default: str = "resnet34"
) -> Callable[..., nn.Module]:
    def build(channels: int, *, encoder: str = default, weights: str | None = None) -> nn.Module:
        return over_encoder(name, decoder, channels, encoder, weights)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{about}

    `encoder` is any of `bench list encoders` that suits; `weights` where it starts: None (at random), 'imagenet',
    another name that smp has for it, or a safetensors file with its state dict."""
    return build


def _refuse_small(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    height, width = inputs[0].shape[-2:]
    if min(height, width) < _PAN_SMALLEST:
        raise BadSetting(
            f"model 'pan' needs images of at least {_PAN_SMALLEST} pixels a side and got {height}x{width}. "
            "Raise input.image_size, or take another model such as fpn."
        )


def _pan(**options: Any) -> nn.Module:
    net: nn.Module = smp.PAN(**options)
    net.register_forward_pre_hook(_refuse_small)
    return net


# Name, decoder, one line, facts. A batch norm after a global pooling sees one value a channel in a batch of one.
for _name, _decoder, _about, _facts in (
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
        {"smallest_batch": 2, "smallest_image": _PAN_SMALLEST},
    ),
    ("segformer", smp.Segformer, "SegFormer: an all-MLP decoder over four levels (Xie et al. 2021).", {}),
    (
        "upernet",
        smp.UPerNet,
        "UPerNet: pyramid pooling on top of a feature pyramid (Xiao et al. 2018).",
        {"smallest_batch": 2},
    ),
):
    model(name=_name, **_facts)(_over_any_encoder(_name, _decoder, _about))


model(name="dpt")(
    _over_any_encoder(
        "dpt",
        smp.DPT,
        "DPT: a convolutional decoder over a plain vision transformer (Ranftl et al. 2021).",
        default="tu-vit_small_patch16_224",
    )
)
