"""Any pipeline of albumentations transforms, seeded for each slice."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator
from torch import Tensor

from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, did_you_mean
from bench.registry import augmentation

Transform: TypeAlias = str | dict[str, dict[str, Any] | None]
Pixels = NDArray[np.float32]

# These change the type or range of pixels, but images stay float32 in [0, 1] until they are normalised afterwards.
_CONVERSIONS = {"Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"}
_ABSTRACT = {"BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D", "BaseCompose"}
_CATALOGUE: dict[str, Any] = {
    name: kind
    for name, kind in vars(A).items()
    if inspect.isclass(kind) and issubclass(kind, A.BasicTransform | A.BaseCompose) and name not in _ABSTRACT
}


def check_transforms(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    """Build the transforms once and return them unchanged. Raises `BadSetting` if one cannot be built."""
    _pipeline(_key(transforms))
    return transforms


@augmentation
def albumentations(
    images: Tensor,
    masks: Tensor,
    draws: SliceRandom,
    *,
    transforms: Annotated[tuple[Transform, ...], AfterValidator(check_transforms)] = ("HorizontalFlip",),
) -> tuple[Tensor, Tensor]:
    """`transforms` of albumentations, such as [HorizontalFlip, {Rotate: {limit: 25, p: 0.8}}].

    images: (B, C, H, W) in [0, 1], clamped to that range afterwards; masks: (B, K, H, W). Transforms that contain
    others take them as a list of the same form: {OneOf: {transforms: [Blur, Sharpen]}}. Runs on the CPU, slice by
    slice. Raises `BadSetting` if the transforms do not fit the slices.
    """
    pipeline = _pipeline(_key(transforms))
    pixels, areas = (each.permute(0, 2, 3, 1).cpu().numpy() for each in (images, masks))
    slices = zip(pixels, areas, draws.generators, strict=True)
    changed = [_apply(pipeline, image, mask, int(own.integers(2**63))) for image, mask, own in slices]
    new_images, new_masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*changed, strict=True))
    return new_images.permute(0, 3, 1, 2).to(images.device).clamp(0, 1), new_masks.permute(0, 3, 1, 2).to(masks)


def _apply(pipeline: A.Compose, image: Pixels, mask: Pixels, seed: int) -> tuple[Pixels, Pixels]:
    _seed(pipeline, np.random.SeedSequence(seed))
    try:
        area = mask.astype(np.uint8)
        area = area[..., 0] if area.shape[-1] == 1 else area
        result = pipeline(image=np.ascontiguousarray(image), mask=area)
    except (ValueError, TypeError, KeyError, cv2.error) as error:
        raise BadSetting(
            f"albumentations cannot apply these transforms to float32 slices of shape {image.shape}: "
            f"{' '.join(str(error).split())}. Remove the one that fails."
        ) from error
    changed = result["image"]
    if changed.shape != image.shape or changed.dtype != np.float32:
        raise BadSetting(
            f"the albumentations transforms turn a float32 slice of shape {image.shape} into {changed.dtype} of "
            f"shape {changed.shape}, but they must keep both. Remove crops and conversions."
        )
    return changed, (result["mask"].reshape(mask.shape) > 0).astype(np.float32)


def _seed(transform: Any, seed: np.random.SeedSequence) -> None:
    """Seed every transform separately.

    `Compose.set_random_seed` seeds all of them alike: two flips with p=0.5 would always happen together.
    """
    inner = getattr(transform, "transforms", ())
    transform.set_random_seed(int(seed.generate_state(1)[0]))
    for child, own in zip(inner, seed.spawn(len(inner)), strict=True):
        _seed(child, own)


def _key(transforms: Sequence[Transform]) -> str:
    try:
        return json.dumps(transforms)
    except TypeError as error:
        raise BadSetting(f"albumentations: a transform's settings must be plain values; {error}.") from None


@lru_cache(maxsize=8)
def _pipeline(key: str) -> A.Compose:
    return A.Compose([_build(transform) for transform in json.loads(key)])


def _build(transform: Transform) -> Any:
    """Build one transform and those inside it. Raises `BadSetting`."""
    named = {transform: None} if isinstance(transform, str) else transform
    if not (isinstance(named, dict) and len(named) == 1 and isinstance(next(iter(named.values())), dict | None)):
        raise BadSetting(
            f"{transform!r} is not an albumentations transform. Write a name, or {{name: {{setting: value}}}}."
        )
    [(name, given)] = named.items()
    settings = dict(given or {})
    if name in _CONVERSIONS:
        raise BadSetting(
            f"albumentations' {name} cannot be used, since images are converted and normalised anyway. Remove it."
        )
    if name not in _CATALOGUE:
        raise BadSetting(f"albumentations has no transform '{name}'.{did_you_mean(name, _CATALOGUE)}")
    kind = _CATALOGUE[name]
    known = list(inspect.signature(kind).parameters)
    for setting in settings:
        if setting not in known:  # albumentations would only warn and ignore it
            raise BadSetting(
                f"albumentations' {name} has no setting '{setting}'; it has {', '.join(known)}."
                f"{did_you_mean(setting, known)}"
            )
    if issubclass(kind, A.BaseCompose):
        if not (isinstance(inner := settings.get("transforms"), list) and inner):
            raise BadSetting(f"albumentations' {name} needs transforms, a list of at least one transform.")
        settings["transforms"] = [_build(each) for each in inner]
    try:
        return kind(**settings)
    except (ValueError, TypeError) as error:
        raise BadSetting(f"albumentations' {name} does not accept its settings: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    """Return the first problem in one line: the validation errors of pydantic have several."""
    lines = str(error).splitlines() or [type(error).__name__]
    if "validation error" in lines[0] and len(lines) > 2:
        return f"{lines[1].split('.')[0]}: {lines[2].partition(' [type=')[0].strip()}"
    return lines[0].rstrip(".")
