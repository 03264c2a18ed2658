"""Networks of MONAI, in two dimensions.

MONAI is imported when a network is built, because it is an optional dependency and its import takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from torch import nn

from bench.errors import BadSetting
from bench.models._blocks import refuse_small_images
from bench.registry import model

_SMALLEST = 64  # pixels per side: 1/32 of 32 pixels is one, and torch refuses an instance norm of one pixel
_UPSAMPLING = {"bilinear": "nontrainable", "transposed": "deconv"}  # our names and MONAI's


def _check_blocks(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if not all(1 <= count <= 64 for count in blocks):
        raise ValueError("every level needs 1 to 64 blocks")
    return blocks


Blocks = Annotated[tuple[int, ...], AfterValidator(_check_blocks)]


@model(needs=("monai",))
def segresnet(
    channels: int,
    structures: int = 1,
    *,
    init_filters: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 32,
    blocks_down: Annotated[Blocks, Field(min_length=2, max_length=6)] = (1, 2, 2, 4),
    up: Literal["bilinear", "transposed"] = "bilinear",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
) -> nn.Module:
    """SegResNet: residual blocks, most of them in the encoder, and skips that are added (Myronenko 2018).

    MONAI's network, without the paper's variational branch. `blocks_down` are the residual blocks of each level,
    from full resolution down; every level of the decoder has one. `init_filters` is the width of the first level,
    a multiple of 8 for its group norms. `up` is the upsampling. `dropout` drops whole channels after the first
    convolution, as in the paper.
    """
    net: nn.Module = _import_nets("segresnet").SegResNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=structures,
        init_filters=init_filters,
        blocks_down=blocks_down,
        blocks_up=(1,) * (len(blocks_down) - 1),
        upsample_mode=_UPSAMPLING[up],
        dropout_prob=dropout or None,
    )
    return net


@model(needs=("monai", "einops"), smallest_image=_SMALLEST)
def swin_unetr(
    channels: int,
    structures: int = 1,
    *,
    feature_size: Annotated[int, Field(ge=12, le=768, multiple_of=12)] = 24,
    depths: Annotated[Blocks, Field(min_length=4, max_length=4)] = (2, 2, 2, 2),
    window: Annotated[int, Field(ge=2, le=16)] = 7,
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    v2: bool = False,
) -> nn.Module:
    """Swin UNETR: a transformer of shifted windows with a convolutional decoder (Hatamizadeh et al. 2022).

    MONAI's network. `feature_size` is the width of the first level, a multiple of 12; the paper's is 48. `depths`
    are the blocks of the transformer's levels, `drop_path` is its stochastic depth, and `v2` adds a residual block
    of convolutions before each level (He et al. 2023). Where a level has fewer than `window` tokens per side (the
    last level of images under 112 pixels), MONAI computes relative positions as if its rows were `window` long.
    """
    net: nn.Module = _import_nets("swin_unetr").SwinUNETR(
        spatial_dims=2,
        in_channels=channels,
        out_channels=structures,
        feature_size=feature_size,
        depths=depths,
        window_size=window,
        dropout_path_rate=drop_path,
        use_v2=v2,
    )
    return refuse_small_images(net, "swin_unetr", _SMALLEST, "segresnet")


def _import_nets(name: str) -> Any:
    """Import `monai.networks.nets`. Raises `BadSetting` if a package that `name` needs is missing or too old."""
    missing = [package for package in model[name].facts["needs"] if find_spec(package) is None]
    if not missing and tuple(map(int, version("monai").split(".")[:2])) < (1, 5):  # there img_size is an argument
        missing = ["monai 1.5 or later"]
    if missing:
        raise BadSetting(
            f"model '{name}' needs {' and '.join(missing)}: pip install 'medseg-bench[monai]', or choose another "
            "model from `bench list models`."
        )
    return import_module("monai.networks.nets")
