"""The page's pictures and numbers as HTML. It draws; it decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from bench.demo import pictures
from bench.demo.pictures import BOTH, Picture
from bench.demo.scans import Scan
from bench.demo.studio import Prediction, Score, score
from bench.formatting import SYNTHETIC, SYNTHETIC_WARNING
from bench.inference.overlays import PREDICTION, TRUTH
from bench.types import RunRecord

LINES = (PREDICTION, "#6cb6ff")  # of the first and of the second model, under the slider


COARSE = 160  # pixels a side up to which a picture is enlarged without smoothing


@dataclass(frozen=True)
class View:
    """Where the controls stand: slice and channel as positions, opacity from 0 to 1."""

    at: int
    channel: int
    opacity: float


def banner(scan: Scan) -> str:
    """What must be said about the scan itself, before any model."""
    said = [SYNTHETIC_WARNING] if scan.synthetic else []
    return "".join(f"<p class='caution'>{escape(text)}</p>" for text in (*said, *scan.notes))


def strip(scan: Scan, at: int, answers: Sequence[tuple[str, Prediction, float]]) -> str:
    """Under the slider: the tumour's area from the first to the last slice, by truth and by each prediction.

    `answers` are letter, prediction and threshold of the models shown.
    """
    areas = [] if scan.truth is None else [("truth", TRUTH, scan.truth.sum((1, 2)))]
    for (letter, prediction, threshold), colour in zip(answers, LINES, strict=False):
        areas.append((letter, colour, prediction.mask(threshold).sum((1, 2))))
    count, most = len(scan.images), max((int(area.max()) for _, _, area in areas), default=0)
    lines = "".join(
        f"<polyline points='{_points(area, most)}' stroke='{colour}' fill='none'/>" for name, colour, area in areas
    )
    if scan.truth is not None:
        ground = f"0,29 {_points(areas[0][2], most)} 100,29"
        lines = f"<polygon points='{ground}' fill='{TRUTH}' fill-opacity='.25'/>{lines}"
    here = 100 * at / (count - 1) if count > 1 else 50.0
    keys = " ".join(_key(colour, name) for name, colour, _ in areas)
    return (
        f"<div class='strip'><div class='where'><span class='lines'>area by slice: {keys}</span>"
        f"<b>{escape(scan.title)}</b> · slice {at + 1} of {count} · {escape(scan.names[at])}</div>"
        f"<svg viewBox='0 0 100 30' preserveAspectRatio='none' role='img' aria-label='tumour area by slice'>"
        f"{lines}<line x1='{here:.2f}' x2='{here:.2f}' y1='0' y2='30'/></svg></div>"
    )


def _points(area: NDArray[np.int64], most: int) -> str:
    """Points of a line in a box of 100 x 30, from the first slice to the last."""
    x = np.linspace(0, 100, len(area)) if len(area) > 1 else np.array([50.0])
    y = 29 - 27 * area / max(most, 1)
    return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))


def heading(letter: str, scan: Scan, prediction: Prediction, threshold: float, view: View) -> str:
    """Who speaks, with which threshold, and the scores of the slice and of the patient."""
    mask, truth = prediction.mask(threshold), scan.truth
    here = score(mask[view.at], None if truth is None else truth[view.at])
    whole = score(mask, truth)
    own = threshold == prediction.threshold
    origin = prediction.origin if own else f"yours; the run's own is {prediction.threshold:.3g}"
    remark = "" if own or truth is None else "<p class='caution moved'>At your threshold: not a result.</p>"
    notes = "".join(f"<p class='caution'>{escape(text)}</p>" for text in prediction.cautions)
    return (
        f"<div class='heading'><div class='who'><h2><i>{letter}</i> {escape(_title(prediction))}</h2>"
        f"<p>{escape(prediction.said)}</p><p>Threshold {threshold:.3g}, {origin}.</p>{notes}</div>"
        f"<div class='numbers'><table><tr><th></th><th>Dice</th><th>truth, px</th><th>prediction, px</th></tr>"
        f"{_line('this slice', here)}{_line('whole patient' if truth is not None else 'all slices', whole)}"
        f"</table>{remark}{_logged(prediction, whole) if own else ''}</div></div>"
    )


def refusal(letter: str, sentence: str) -> str:
    """In place of a model's heading, when it cannot be shown."""
    return f"<div class='heading'><div class='who'><h2><i>{letter}</i></h2>{problem(sentence)}</div></div>"


def problem(sentence: str) -> str:
    return f"<p class='problem'>{escape(sentence)}</p>"


def hint(sentence: str) -> str:
    return f"<p class='hint'>{escape(sentence)}</p>"


def offer(record: RunRecord) -> str:
    """A run in a list: name, start of its id, Dice."""
    synthetic = SYNTHETIC if record.tags.get("bench.synthetic") == "true" else ""
    return f"{record.name}{synthetic} · {record.run_id[:8]} · Dice {_dice(record.metrics.get('dice'))}"


def pictures_of(scan: Scan, prediction: Prediction, threshold: float, view: View) -> str:
    """Five pictures of one slice: scan, truth, prediction, probability, overlay."""
    at, channel = view.at, view.channel
    image = pictures.grey(scan.images[at, ..., channel], scan.bright[channel])
    mask = prediction.mask(threshold)[at]
    truth = None if scan.truth is None else scan.truth[at]
    heat = pictures.heat(prediction.probability(at))
    drawn = pictures.overlay(image, mask, truth, view.opacity)
    shown = [
        _figure("scan", image, f"Scan · {escape(scan.channels[channel])}"),
        _no_truth() if truth is None else _figure("truth", pictures.solid(truth, TRUTH), _key(TRUTH, "Truth")),
        _figure("prediction", pictures.solid(mask, PREDICTION), _key(PREDICTION, "Prediction")),
        _figure("probability", heat, _scale(threshold)),
        _figure("overlay", drawn, _overlay_key(truth is not None)),
    ]
    return f"<div class='pictures'>{''.join(shown)}</div>"


def _title(prediction: Prediction) -> str:
    return f"{prediction.run.name} · {prediction.run.run_id[:8]}"


def _line(name: str, found: Score) -> str:
    return (
        f"<tr><th>{name}</th><td class='dice'>{_dice(found.dice)}</td>"
        f"<td>{_count(found.truth)}</td><td>{_count(found.prediction)}</td></tr>"
    )


def _dice(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _count(pixels: int | None) -> str:
    return "–" if pixels is None else f"{pixels:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _logged(prediction: Prediction, whole: Score) -> str:
    """What the run itself wrote down about this patient, so that nobody has to believe this page."""
    if prediction.logged is None:
        return ""
    agrees = _dice(prediction.logged) == _dice(whole.dice)
    return f"<p class='logged'>{'as' if agrees else 'unlike'} logged by the run: {_dice(prediction.logged)}</p>"


def _figure(name: str, picture: Picture, caption: str) -> str:
    height, width = picture.shape[:2]
    coarse = " coarse" if max(height, width) < COARSE else ""
    return (
        f"<figure class='{name}'><img class='slice{coarse}' alt='{name}' src='{pictures.data_uri(picture)}'"
        f" style='aspect-ratio:{width}/{height}'><figcaption>{caption}</figcaption></figure>"
    )


def _no_truth() -> str:
    return "<figure class='truth'><div class='slice none'>no truth</div><figcaption>Truth</figcaption></figure>"


def _key(colour: str, text: str) -> str:
    return f"<span class='key' style='background:{colour}'></span>{text}"


def _overlay_key(with_truth: bool) -> str:
    if not with_truth:
        return _key(PREDICTION, "Prediction on the scan")
    return f"Overlay {_key(BOTH, 'both')} {_key(PREDICTION, 'excess')} {_key(TRUTH, 'missed')}"


def _scale(threshold: float) -> str:
    """The colours of a probability from 0 to 1, with the threshold marked."""
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in pictures.ramp()[:: 255 // 15])
    return (
        f"Probability <span class='scale'>0<span class='bar' style='background:linear-gradient(90deg, {stops})'>"
        f"<span class='tick' style='left:{100 * threshold:.1f}%'></span></span>1</span>"
    )
