"""Pictures of one slice: the scan in grey, a mask or a probability in colour, and masks over the scan."""

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

BOTH = "#9d7bff"  # where truth and prediction agree; the other colours are those of the reports

Picture = NDArray[np.uint8]  # RGB (H, W, 3)


def draw_scan(image: Pixels, white: float) -> Picture:
    """Draw one channel (H, W) in grey: black at 0, white at the level `white` and above."""
    scaled = np.rint(image.astype(np.float32) * (255 / white)).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2)


def draw_mask(mask: Mask, colour: str) -> Picture:
    """Draw a mask in one colour on black."""
    return np.where(mask[..., None], rgb(colour), np.uint8(0))


def draw_probability(probability: NDArray[np.floating]) -> Picture:
    """Draw probabilities (H, W) in the colours of `colour_map`."""
    colours: Picture = colour_map()[np.rint(probability * 255).astype(np.uint8)]
    return colours


@cache
def colour_map() -> Picture:
    """Return the 256 colours of probabilities from 0 to 1, (256, 3): inferno, with evenly growing lightness."""
    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3], np.uint8)


def draw_overlay(scan: Picture, prediction: Mask, truth: Mask | None, opacity: float) -> Picture:
    """Draw masks over a scan, from the scan alone at opacity 0 to solid colours at 1.

    Pixels of both masks, of the prediction alone and of the truth alone have a colour each.
    """
    painted = scan.copy()
    regions = [(prediction, PREDICTION)]
    if truth is not None:
        regions += [(truth, TRUTH), (prediction & truth, BOTH)]
    for mask, colour in regions:
        painted[mask] = rgb(colour)
    return np.asarray(np.rint((1 - opacity) * scan.astype(np.float32) + opacity * painted), np.uint8)


def rgb(colour: str) -> NDArray[np.uint8]:
    """Return '#ff8000' as (255, 128, 0)."""
    return np.frombuffer(bytes.fromhex(colour.removeprefix("#")), np.uint8)


def encode_data_uri(picture: Picture) -> str:
    """Return a picture as a PNG in a data URI, so that no file is written."""
    _, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
