"""What models have drawn, patient by patient: the slices to look at, the scan once, and outlines as SVG paths."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.pack import Pack, shown_channel
from bench.data.source import Pixels
from bench.formatting import decimal, plain
from bench.masks import Mask
from bench.metrics.confusion import dice_of

LONGEST = 384  # pixels of a scan's longer side: larger ones are shown smaller


QUALITY = 80  # of WebP


AROUND = 1.8  # the side of a close-up, in those of the tumour


Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Portrait:
    """One patient as the page shows it. `disagreement` is None where there is one model."""

    case: str
    disagreement: float | None
    dice: tuple[float, ...]
    data: Mapping[str, Any]  # what the page's script draws

    @property
    def hardness(self) -> tuple[float, float, str]:
        """Sorts patients: those on whom models disagree most first, then those with the lowest Dice."""
        return -(self.disagreement or 0), float(np.nansum(self.dice)), self.case


def portrait(pack: Pack, case: str, masks: Sequence[Mask]) -> Portrait:
    """One patient by several models, bool (S, H, W) each, on three slices or fewer."""
    rows = pack.rows([case])
    truth = pack.masks[rows].astype(bool)
    bits = np.stack([_bits(mask) for mask in masks])
    hits, size = _pixels(bits & _bits(truth)), _pixels(bits)  # (models, slices)
    true = truth.sum((1, 2))
    wrong = size + true - 2 * hits
    apart = differences(bits)
    disagreement = (
        None if len(masks) < 2 else float(np.mean([_apart(d, size[[a, b]]) for (a, b), d in apart.items()]))
    )
    chosen = chosen_slices(sum(apart.values(), np.zeros_like(true)), true, wrong.sum(0))
    numbers, images = pack.index["slice"].to_numpy()[rows], pack.images[rows]
    channel = shown_channel(pack.manifest.channels)
    bright = max(float(np.percentile(images[..., channel], 99.5)), 1)
    each = dice_of(hits, size - hits, true - hits)
    dice = dice_of(hits.sum(1), (size - hits).sum(1), (true - hits).sum(1))
    slices = [
        {
            "number": int(numbers[at]),
            "why": why,
            "scan": scan(images[at, ..., channel], bright),
            "truth": outlines(truth[at]),
            "masks": [outlines(mask[at]) for mask in masks],
            "dice": [decimal(float(value)) for value in each[:, at]],
            "near": close_up(truth[at]),
        }
        for at, why in sorted(chosen.items())
    ]
    about = (
        f"institution {pack.index['institution'].to_numpy()[rows[0]]} · tumour on {np.count_nonzero(true)} of "
        f"{len(rows)} slices, {true.sum():,} pixels"
    )
    data = {
        "case": plain(case),
        "about": plain(about),
        "disagreement": None if disagreement is None else f"{disagreement:.2f}",
        "dice": [decimal(float(value)) for value in dice],
        "size": [truth.shape[2], truth.shape[1]],
        "slices": slices,
    }
    return Portrait(case, disagreement, tuple(dice.tolist()), data)


def differences(bits: Pixels) -> dict[tuple[int, int], Counts]:
    """Of each two models, how many pixels (S,) of each slice one calls and the other does not."""
    return {(a, b): _pixels(bits[a] ^ bits[b]) for a, b in combinations(range(len(bits)), 2)}


def chosen_slices(differ: Counts, true: Counts, wrong: Counts) -> dict[int, str]:
    """Which slices to show, and why: those with the most pixels of disagreement, of error, and of tumour."""
    why: dict[int, list[str]] = {}
    for pixels, words in ((differ, "models differ most"), (wrong, "most errors"), (true, "largest tumour")):
        if pixels.any():
            why.setdefault(int(pixels.argmax()), []).append(words)
    return {at: ", ".join(words) for at, words in why.items()} or {len(true) // 2: "nothing to see"}


def outlines(mask: Mask) -> str:
    """An SVG path along the edges of a mask's pixels, holes included; x and y count pixels from the upper left."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ""
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # OpenCV runs through the centres of pixels. Of a pixel drawn as 3 x 3, those are a third from its edges.
    found, _ = cv2.findContours(part.repeat(3, 0).repeat(3, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join(_path((contour[:, 0] + 1) // 3 + (left, top)) for contour in found)


def _path(points: Counts) -> str:
    """A closed path through corners, each step along an axis."""
    (x, y), *steps = points[0], *np.diff(points, axis=0)
    parts = [f"M{x} {y}"]
    for across, down in steps:
        parts += [f"h{across}"] * bool(across) + [f"v{down}"] * bool(down)
    return "".join(parts) + "z"


def scan(image: Pixels, bright: float) -> str:
    """A slice as a WebP data URI, `bright` being white."""
    grey = np.clip(image * (255 / bright), 0, 255).astype(np.uint8)
    if (longer := max(grey.shape)) > LONGEST:
        grey = cv2.resize(grey, None, fx=LONGEST / longer, fy=LONGEST / longer, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".webp", grey, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1].tobytes()
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"


def close_up(truth: Mask) -> list[float] | None:
    """A square around the tumour as x, y, width and height, where there is tumour."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    if not len(rows):
        return None
    side = float(min(max(AROUND * max(np.ptp(rows), np.ptp(columns)), 48), *truth.shape))
    starts = [
        float(np.clip((found[0] + found[-1] + 1 - side) / 2, 0, length - side))
        for found, length in ((columns, truth.shape[1]), (rows, truth.shape[0]))
    ]
    return [*starts, side, side]


def _apart(pixels: Counts, sizes: Counts) -> float:
    """1 - Dice between two masks; 0 where both are empty."""
    return float(pixels.sum() / max(int(sizes.sum()), 1))


def _bits(mask: Mask) -> Pixels:
    return np.packbits(mask.reshape(len(mask), -1), axis=1)


def _pixels(bits: Pixels) -> Counts:
    counted: Counts = np.bitwise_count(bits).sum(-1, dtype=np.int64)
    return counted
