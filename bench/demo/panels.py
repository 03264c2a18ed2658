"""The pictures and numbers of the page as HTML. It only renders; the texts and values come from elsewhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from bench.data.source import Pixels
from bench.demo.predictions import Prediction, Score, score
from bench.demo.scans import Scan
from bench.formatting import SYNTHETIC, SYNTHETIC_WARNING
from bench.inference.overlays import PREDICTION, TRUTH
from bench.masks import Mask
from bench.tracking.tags import Tag
from bench.types import RunRecord

BOTH = "#9d7bff"  # where truth and prediction agree; the other colours are those of the reports
LINE_COLOURS = (PREDICTION, "#6cb6ff")  # of the first and the second model in the area chart
COARSE = 160  # up to this many pixels per side, a picture is enlarged without smoothing

Picture = NDArray[np.uint8]  # RGB (H, W, 3)


@dataclass(frozen=True)
class View:
    """What is shown: slice and channel as positions from 0, opacity from 0 to 1."""

    at: int
    channel: int
    opacity: float


def render_banner(scan: Scan) -> str:
    """Render the warnings that concern the scan itself."""
    return _render_warnings([*([SYNTHETIC_WARNING] if scan.synthetic else []), *scan.notes])


def render_areas(scan: Scan, at: int, shown: Sequence[tuple[str, Prediction, float]]) -> str:
    """Render a chart of the tumour's area in every slice, by truth and by each prediction.

    `shown` has the letter, the prediction and the threshold of each model.
    """
    areas = [] if scan.truth is None else [("truth", TRUTH, scan.truth.sum((1, 2)))]
    for (letter, prediction, threshold), colour in zip(shown, LINE_COLOURS, strict=False):
        areas.append((letter, colour, prediction.mask(threshold).sum((1, 2))))
    count, largest = len(scan.images), max((int(area.max()) for _, _, area in areas), default=0)
    lines = "".join(
        f"<polyline points='{_chart_points(area, largest)}' stroke='{colour}' fill='none'/>"
        for _, colour, area in areas
    )
    if scan.truth is not None:
        ground = f"0,29 {_chart_points(areas[0][2], largest)} 100,29"
        lines = f"<polygon points='{ground}' fill='{TRUTH}' fill-opacity='.25'/>{lines}"
    x = 100 * at / (count - 1) if count > 1 else 50.0
    legend = " ".join(_render_key(colour, name) for name, colour, _ in areas)
    return (
        f"<div class='areas'><div class='position'><span class='legend'>area by slice: {legend}</span>"
        f"<b>{escape(scan.title)}</b> · slice {at + 1} of {count} · {escape(scan.names[at])}</div>"
        f"<svg viewBox='0 0 100 30' preserveAspectRatio='none' role='img' aria-label='tumour area by slice'>"
        f"{lines}<line x1='{x:.2f}' x2='{x:.2f}' y1='0' y2='30'/></svg></div>"
    )


def _chart_points(area: NDArray[np.int64], largest: int) -> str:
    """Return the points of a line in a box of 100 x 30, from the first slice to the last."""
    x = np.linspace(0, 100, len(area)) if len(area) > 1 else np.array([50.0])
    y = 29 - 27 * area / max(largest, 1)
    return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))


def render_heading(letter: str, scan: Scan, prediction: Prediction, threshold: float, view: View) -> str:
    """Render which models predict, their threshold and warnings, and the scores of slice and patient."""
    mask, truth = prediction.mask(threshold), scan.truth
    of_slice = score(mask[view.at], None if truth is None else truth[view.at])
    of_patient = score(mask, truth)
    own, title = threshold == prediction.threshold, f"{prediction.run.name} · {prediction.run.run_id[:8]}"
    origin = prediction.threshold_text if own else f"yours; the run's own is {prediction.threshold:.3g}"
    moved = "" if own or truth is None else "<p class='warning'>At your threshold: not a result.</p>"
    return (
        f"<div class='heading'><div class='about'><h2><i>{letter}</i> {escape(title)}</h2>"
        f"<p>{escape(prediction.models_text)}</p><p>Threshold {threshold:.3g}, {origin}.</p>"
        f"{_render_warnings(prediction.warnings)}</div>"
        f"<div class='numbers'><table><tr><th></th><th>Dice</th><th>truth, px</th><th>prediction, px</th></tr>"
        f"{_render_score('this slice', of_slice)}"
        f"{_render_score('whole patient' if truth is not None else 'all slices', of_patient)}"
        f"</table>{moved}{_render_logged_dice(prediction, of_patient) if own else ''}</div></div>"
    )


def render_refusal(letter: str, sentence: str) -> str:
    """Render the heading of a model that cannot be shown."""
    problem = render_problem(sentence)
    return f"<div class='heading'><div class='about'><h2><i>{letter}</i></h2>{problem}</div></div>"


def render_problem(sentence: str) -> str:
    return f"<p class='problem'>{escape(sentence)}</p>"


def render_hint(sentence: str) -> str:
    return f"<p class='hint'>{escape(sentence)}</p>"


def label_run(record: RunRecord) -> str:
    """Return the label of a run in a list: name, start of its id, Dice."""
    synthetic = SYNTHETIC if record.tags.get(Tag.SYNTHETIC) == "true" else ""
    return f"{record.name}{synthetic} · {record.run_id[:8]} · Dice {_format_dice(record.metrics.get('dice'))}"


def render_pictures(scan: Scan, prediction: Prediction, threshold: float, view: View) -> str:
    """Render five pictures of one slice: scan, truth, prediction, probability, overlay."""
    at, channel = view.at, view.channel
    image = draw_scan(scan.images[at, ..., channel], scan.white_levels[channel])
    mask = prediction.mask(threshold)[at]
    truth = None if scan.truth is None else scan.truth[at]
    probability = draw_probability(prediction.probability(at))
    overlay = draw_overlay(image, mask, truth, view.opacity)
    keys = " ".join(_render_key(*key) for key in ((BOTH, "both"), (PREDICTION, "excess"), (TRUTH, "missed")))
    overlay_key = _render_key(PREDICTION, "Prediction on the scan") if truth is None else f"Overlay {keys}"
    figures = [
        _render_figure("scan", image, f"Scan · {escape(scan.channels[channel])}"),
        _render_truth(truth),
        _render_figure("prediction", draw_mask(mask, PREDICTION), _render_key(PREDICTION, "Prediction")),
        _render_figure("probability", probability, _render_scale(threshold)),
        _render_figure("overlay", overlay, overlay_key),
    ]
    return f"<div class='pictures'>{''.join(figures)}</div>"


def _render_warnings(texts: Sequence[str]) -> str:
    return "".join(f"<p class='warning'>{escape(text)}</p>" for text in texts)


def _render_score(name: str, values: Score) -> str:
    return (
        f"<tr><th>{name}</th><td class='dice'>{_format_dice(values.dice)}</td>"
        f"<td>{_format_count(values.truth)}</td><td>{_format_count(values.prediction)}</td></tr>"
    )


def _format_dice(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _format_count(pixels: int | None) -> str:
    return "–" if pixels is None else f"{pixels:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _render_logged_dice(prediction: Prediction, of_patient: Score) -> str:
    """Render the Dice that the run logged for this patient, so that a viewer can check this page."""
    if prediction.logged_dice is None:
        return ""
    logged = _format_dice(prediction.logged_dice)
    relation = "as" if logged == _format_dice(of_patient.dice) else "differs from the Dice"
    return f"<p class='logged'>{relation} logged by the run: {logged}</p>"


def _render_figure(name: str, picture: Picture, caption: str) -> str:
    height, width = picture.shape[:2]
    coarse = " coarse" if max(height, width) < COARSE else ""
    return (
        f"<figure class='{name}'><img class='slice{coarse}' alt='{name}' src='{encode_data_uri(picture)}'"
        f" style='aspect-ratio:{width}/{height}'><figcaption>{caption}</figcaption></figure>"
    )


def _render_truth(truth: Mask | None) -> str:
    if truth is None:
        empty = "<div class='slice none'>no truth</div>"
        return f"<figure class='truth'>{empty}<figcaption>Truth</figcaption></figure>"
    return _render_figure("truth", draw_mask(truth, TRUTH), _render_key(TRUTH, "Truth"))


def _render_key(colour: str, text: str) -> str:
    return f"<span class='key' style='background:{colour}'></span>{text}"


def _render_scale(threshold: float) -> str:
    """Render the colours of probabilities from 0 to 1, with a mark at the threshold."""
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in colour_map()[:: 255 // 15])
    return (
        f"Probability <span class='scale'>0<span class='bar' style='background:linear-gradient(90deg, {stops})'>"
        f"<span class='tick' style='left:{100 * threshold:.1f}%'></span></span>1</span>"
    )


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
