"""One slice as pictures: the scan in grey, a mask or a probability in colour, and both over each other."""

from __future__ import annotations

import base64
from functools import cache

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from bench.data.source import Pixels
from bench.inference.overlays import PREDICTION, TRUTH
from bench.masks import Mask

BOTH = "#9d7bff"  # where truth and prediction agree; the others are those of the reports


Picture = NDArray[np.uint8]  # RGB (H, W, 3)


def grey(image: Pixels, bright: float) -> Picture:
    """One channel (H, W), black at 0 and white from `bright` on."""
    scaled = np.rint(image.astype(np.float32) * (255 / bright)).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2)


def solid(mask: Mask, colour: str) -> Picture:
    """A mask in one colour on black."""
    return np.where(mask[..., None], rgb(colour), np.uint8(0))


def heat(probability: NDArray[np.floating]) -> Picture:
    """Probabilities (H, W) from 0, black, to 1 in the colours of `ramp`."""
    colours: Picture = ramp()[np.rint(probability * 255).astype(np.uint8)]
    return colours


@cache
def ramp() -> Picture:
    """The 256 colours of a probability, (256, 3): matplotlib's inferno, whose lightness grows evenly."""
    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3], np.uint8)


def overlay(scan: Picture, prediction: Mask, truth: Mask | None, opacity: float) -> Picture:
    """Masks over the scan: at opacity 0 the scan alone, at 1 solid colours.

    Where both agree, where the prediction is alone and where the truth is alone have a colour each; without a
    truth there is the prediction's.
    """
    painted = scan.copy()
    for mask, colour in _agreement(prediction, truth):
        painted[mask] = rgb(colour)
    return np.asarray(np.rint((1 - opacity) * scan.astype(np.float32) + opacity * painted), np.uint8)


def _agreement(prediction: Mask, truth: Mask | None) -> tuple[tuple[Mask, str], ...]:
    if truth is None:
        return ((prediction, PREDICTION),)
    return (prediction & truth, BOTH), (prediction & ~truth, PREDICTION), (truth & ~prediction, TRUTH)


def rgb(colour: str) -> NDArray[np.uint8]:
    """'#ff8000' as (255, 128, 0)."""
    return np.frombuffer(bytes.fromhex(colour.removeprefix("#")), np.uint8)


def data_uri(picture: Picture) -> str:
    """A picture as PNG within a link, so that no file of it is left anywhere."""
    _, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
