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
from bench.demo.predictions import Prediction, Score, mean_score, name_thresholds, score_structures
from bench.demo.scans import Scan
from bench.formatting import SYNTHETIC, SYNTHETIC_WARNING
from bench.inference.overlays import PREDICTION, TRUTH
from bench.masks import Mask
from bench.structures import colour_of
from bench.tracking.tags import Tag
from bench.types import RunRecord

BOTH = "#9d7bff"  # where truth and prediction agree; the other colours are those of the reports
# In the area chart: the colour of a single structure; the line and its dashes where each structure has a colour.
LINES = {"truth": (TRUTH, "dotted", "1 4"), "A": (PREDICTION, "solid", "none"), "B": ("#6cb6ff", "dashed", "7 4")}
COARSE = 160  # up to this many pixels per side, a picture is enlarged without smoothing
FINE = 640  # pixels per side, at most, to which a picture is enlarged before outlines are drawn
DOT = 5  # pixels
STYLES = ("filled", "outline")  # of masks on the overlay

Picture = NDArray[np.uint8]  # RGB (H, W, 3)


@dataclass(frozen=True)
class View:
    """What is shown: slice and channel as positions from 0, opacity from 0 to 1, and one of `STYLES`.

    `shown` are the positions of the structures that are switched on, `structure` that of the chosen one.
    """

    at: int
    channel: int
    opacity: float
    shown: tuple[int, ...] = (0,)
    structure: int = 0
    style: str = STYLES[0]


def render_banner(scan: Scan) -> str:
    """Render the warnings that concern the scan itself."""
    return _render_warnings([*([SYNTHETIC_WARNING] if scan.synthetic else []), *scan.notes])


def render_areas(scan: Scan, view: View, models: Sequence[tuple[str, Prediction, Sequence[float]]]) -> str:
    """Render a chart of the area of each structure shown in every slice, by truth and by each prediction.

    `models` has the letter, the prediction and the thresholds of each model.
    """
    stacks = {} if scan.truth is None else {"truth": scan.truth}
    stacks |= {letter: prediction.mask(thresholds) for letter, prediction, thresholds in models}
    areas = {(name, k): stack[:, k].sum((1, 2)) for name, stack in stacks.items() for k in view.shown}
    at, count, several = view.at, len(scan.images), len(scan.structures) > 1
    largest = max((int(area.max()) for area in areas.values()), default=0)
    fills = lines = ""
    for (name, k), area in areas.items():
        points, (alone, _, dashes) = _chart_points(area, largest), LINES[name]
        colour, dashed = (colour_of(k), f" stroke-dasharray='{dashes}'") if several else (alone, "")
        lines += f"<polyline points='{points}' stroke='{colour}' fill='none'{dashed}/>"
        if name == "truth":
            fills += f"<polygon points='0,29 {points} 100,29' fill='{colour}' fill-opacity='.25'/>"
    x = 100 * at / (count - 1) if count > 1 else 50.0
    keys = [f"{name} {LINES[name][1]}" if several else _render_key(LINES[name][0], name) for name in stacks]
    legend = (", " if several else " ").join(keys)
    return (
        f"<div class='areas'><div class='position'><span class='legend'>area by slice: {legend}</span>"
        f"<b>{escape(scan.title)}</b> · slice {at + 1} of {count} · {escape(scan.names[at])}</div>"
        f"<svg viewBox='0 0 100 30' preserveAspectRatio='none' role='img' aria-label='area by slice'>"
        f"{fills}{lines}<line x1='{x:.2f}' x2='{x:.2f}' y1='0' y2='30'/></svg></div>"
    )


def _chart_points(area: NDArray[np.int64], largest: int) -> str:
    """Return the points of a line in a box of 100 x 30, from the first slice to the last."""
    x = np.linspace(0, 100, len(area)) if len(area) > 1 else np.array([50.0])
    y = 29 - 27 * area / max(largest, 1)
    return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))


def render_heading(
    letter: str, scan: Scan, prediction: Prediction, thresholds: Sequence[float], view: View
) -> str:
    """Render which models predict, their thresholds and warnings, and the scores of slice and patient."""
    mask, truth, structures = prediction.mask(thresholds), scan.truth, prediction.structures
    of_slice = score_structures(mask[view.at], None if truth is None else truth[view.at])
    of_patient = score_structures(mask, truth)
    own = tuple(thresholds) == prediction.thresholds
    title = f"{prediction.run.name} · {prediction.run.run_id[:8]}"
    moved_from = f"yours; the run's own is {name_thresholds(structures, prediction.thresholds)}"
    origin = prediction.threshold_text if own else moved_from
    moved = "" if own or truth is None else "<p class='warning'>At your threshold: not a result.</p>"
    return (
        f"<div class='heading'><div class='about'><h2><i>{letter}</i> {escape(title)}</h2>"
        f"<p>{escape(prediction.models_text)}</p>"
        f"<p>Threshold {name_thresholds(structures, thresholds)}, {origin}.</p>"
        f"{_render_warnings(prediction.warnings)}</div>"
        f"<div class='numbers'><table><tr><th></th><th>Dice</th><th>truth, px</th><th>prediction, px</th></tr>"
        f"{_render_scores('this slice', of_slice, structures.names)}"
        f"{_render_scores('whole patient' if truth is not None else 'all slices', of_patient, structures.names)}"
        f"</table>{moved}{_render_logged_dice(prediction, mean_score(of_patient)) if own else ''}</div></div>"
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


def render_progress(sentence: str, done: int, of: int) -> str:
    """Render what the page is doing, and how many of its steps are done."""
    return f"<p class='hint'><progress value='{done}' max='{of}'></progress> {escape(sentence)}</p>"


def render_inputs(scan: Scan, view: View) -> str:
    """Render the pictures of one slice that all models share: the scan, and the truth of the structures shown."""
    colours = [colour_of(k) for k in view.shown] if len(scan.structures) > 1 else [TRUTH]
    image, truth = _draw_inputs(scan, view)
    scanned = _render_figure("scan", image, f"Scan · {escape(scan.channels[view.channel])}")
    return f"<div class='pictures inputs'>{scanned}{_render_masks('truth', truth, colours)}</div>"


def _draw_inputs(scan: Scan, view: View) -> tuple[Picture, Mask | None]:
    """Return one channel of a slice (H, W, 3), and the true masks of the structures shown (K, H, W)."""
    image = draw_scan(scan.images[view.at, ..., view.channel], scan.white_levels[view.channel])
    return image, None if scan.truth is None else scan.truth[view.at, list(view.shown)]


def render_pictures(scan: Scan, prediction: Prediction, thresholds: Sequence[float], view: View) -> str:
    """Render three pictures of one slice: a large overlay, the prediction, and its probability.

    Masks are those of the structures shown, the probability is that of the chosen structure.
    """
    at, shown = view.at, list(view.shown)
    image, truth = _draw_inputs(scan, view)
    mask = prediction.mask(thresholds)[at, shown]
    probability = draw_probability(prediction.probability(at, view.structure))
    colours, several = [colour_of(k) for k in shown], len(scan.structures) > 1
    draw = draw_outlines if view.style == "outline" else draw_overlay
    overlay = draw(image, mask, truth, view.opacity, colours)
    caption = _render_overlay_caption(view.style, len(shown), truth)
    key = _render_key(colour_of(view.structure), "") if several else ""
    figures = [
        _render_figure("overlay", overlay, caption),
        _render_masks("prediction", mask, colours if several else [PREDICTION]),
        _render_figure("probability", probability, f"{key}{_render_scale(thresholds[view.structure])}"),
    ]
    return f"<div class='pictures'>{''.join(figures)}</div>"


def _render_warnings(texts: Sequence[str]) -> str:
    return "".join(f"<p class='warning'>{escape(text)}</p>" for text in texts)


def _render_scores(name: str, scores: Sequence[Score], structures: Sequence[str]) -> str:
    """Render a row for all structures and, if there are several, one for each."""
    rows = [_render_score(name, mean_score(scores), "all")]
    if len(scores) > 1:
        keys = (_render_key(colour_of(k), escape(structure)) for k, structure in enumerate(structures))
        rows += [_render_score(key, values, "one") for key, values in zip(keys, scores, strict=True)]
    return "".join(rows)


def _render_score(name: str, values: Score, kind: str) -> str:
    return (
        f"<tr class='{kind}'><th>{name}</th><td class='dice'>{_format_dice(values.dice)}</td>"
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


def _render_masks(name: str, masks: Mask | None, colours: Sequence[str]) -> str:
    if masks is None:
        empty = f"<div class='slice none'>no {name}</div>"
        return f"<figure class='{name}'>{empty}<figcaption>{name.title()}</figcaption></figure>"
    black = np.zeros((*masks.shape[1:], 3), np.uint8)
    keys = "".join(_render_key(colour, "") for colour in colours)
    return _render_figure(name, paint(black, masks, colours), f"{keys}{name.title()}")


def _render_overlay_caption(style: str, structures: int, truth: Mask | None) -> str:
    """Render the key of an overlay of so many structures."""
    if structures != 1:
        return "Prediction on the scan" + (", truth dotted" if truth is not None else "")
    if style == "outline" and truth is not None:
        return f"Overlay {_render_key(PREDICTION, 'prediction')} {_render_key(TRUTH, 'truth, dotted')}"
    keys = " ".join(_render_key(*key) for key in ((BOTH, "both"), (PREDICTION, "excess"), (TRUTH, "missed")))
    return _render_key(PREDICTION, "Prediction on the scan") if truth is None else f"Overlay {keys}"


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


def paint(picture: Picture, masks: Mask, colours: Sequence[str]) -> Picture:
    """Return a picture with each of the masks (K, H, W) in its colour, smaller ones over larger ones."""
    painted = picture.copy()
    for k in sorted(range(len(masks)), key=lambda k: -np.count_nonzero(masks[k])):
        painted[masks[k]] = rgb(colours[k])
    return painted


def draw_probability(probability: NDArray[np.floating]) -> Picture:
    """Draw probabilities (H, W) in the colours of `colour_map`."""
    colours: Picture = colour_map()[np.rint(probability * 255).astype(np.uint8)]
    return colours


@cache
def colour_map() -> Picture:
    """Return the 256 colours of probabilities from 0 to 1, (256, 3): inferno, with evenly growing lightness."""
    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3], np.uint8)


def draw_overlay(
    scan: Picture, prediction: Mask, truth: Mask | None, opacity: float, colours: Sequence[str]
) -> Picture:
    """Draw masks (K, H, W) over a scan, from the scan alone at opacity 0 to solid colours at 1.

    Of a single structure, pixels of both masks, of the prediction alone and of the truth alone have a colour each.
    Of several, the prediction is filled in the structure's own colour, and the outline of the truth is dotted.
    """
    if len(prediction) == 1:
        masks = [prediction[0], *([] if truth is None else [truth[0], prediction[0] & truth[0]])]
        return _blend(scan, paint(scan, np.array(masks), (PREDICTION, TRUTH, BOTH)), opacity)
    drawn = _blend(scan, paint(scan, prediction, colours), opacity)
    if truth is None:
        return drawn
    drawn, truth = _enlarge(drawn, truth)
    return _blend(drawn, _trace_dotted(drawn, truth, colours), min(1, 2 * opacity))


def draw_outlines(
    scan: Picture, prediction: Mask, truth: Mask | None, opacity: float, colours: Sequence[str]
) -> Picture:
    """Draw the outlines of masks (K, H, W) over an enlarged scan, those of the truth dotted.

    From the scan alone at opacity 0 to solid lines from 0.5. A single structure has the colours of the reports,
    several have their own.
    """
    single = len(prediction) == 1
    below, prediction = _enlarge(scan, prediction)
    drawn = paint(below, _trace(prediction), [PREDICTION] if single else colours)
    if truth is not None:
        drawn = _trace_dotted(drawn, _enlarge(scan, truth)[1], [TRUTH] if single else colours)
    return _blend(below, drawn, min(1, 2 * opacity))


def _enlarge(picture: Picture, masks: Mask) -> tuple[Picture, Mask]:
    """Enlarge a picture and masks (K, H, W) by a whole number, so that outlines are fine."""
    scale = max(1, FINE // max(masks.shape[1:]))
    return picture.repeat(scale, 0).repeat(scale, 1), masks.repeat(scale, 1).repeat(scale, 2)


def _trace(masks: Mask) -> Mask:
    """Return the outline of each mask (K, H, W)."""
    return np.array([outline(mask) for mask in masks], bool).reshape(masks.shape)


def _trace_dotted(picture: Picture, masks: Mask, colours: Sequence[str]) -> Picture:
    """Draw the outline of each mask (K, H, W) in dots of its colour and of black."""
    lines, dots = _trace(masks), np.add.outer(*map(np.arange, picture.shape[:2])) // DOT % 2 == 0
    return paint(paint(picture, lines & ~dots, ["#000000"] * len(masks)), lines & dots, colours)


def outline(mask: Mask) -> Mask:
    """Return the pixels of a mask that are closer than 3 pixels to its border."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=3, borderValue=0)
    border: Mask = mask & (inner == 0)
    return border


def _blend(below: Picture, above: Picture, opacity: float) -> Picture:
    return np.asarray(np.rint((1 - opacity) * below.astype(np.float32) + opacity * above), np.uint8)


def rgb(colour: str) -> NDArray[np.uint8]:
    """Return '#ff8000' as (255, 128, 0)."""
    return np.frombuffer(bytes.fromhex(colour.removeprefix("#")), np.uint8)


def encode_data_uri(picture: Picture) -> str:
    """Return a picture as a PNG in a data URI, so that no file is written."""
    _, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
