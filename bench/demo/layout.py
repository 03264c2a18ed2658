"""The Gradio components of the page: controls, texts, and one row of pictures per model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.demo.panels import STYLES
from bench.demo.scans import Scan
from bench.demo.style import DOWNLOAD_NOTE_HTML, TITLE_HTML

LETTERS = ("A", "B")
NARROW = 320  # pixels: a column that also fits a phone
NO_SECOND_MODEL = ("none: show one model", "")

Choices = list[tuple[str, str]]  # label and value


@dataclass(frozen=True)
class ControlValues:
    """The values of the controls: the slice from 1, the channel as a position, the run id '' for no model.

    `style` is one of `panels.STYLES`. `shown` are the structures that are switched on, `structure` is the one
    whose probabilities are shown and whose threshold the sliders move.
    """

    scan: Scan | None
    at: int
    opacity: float
    channel: int | None
    style: str
    shown: tuple[str, ...]
    structure: str | None
    runs: tuple[str, ...]
    thresholds: tuple[float, ...]

    @classmethod
    def read(cls, scan: Scan | None, at: float, *values: Any) -> ControlValues:
        """Read the values of `Layout.controls`, in its order."""
        opacity, channel, style, shown, structure, *rest = values
        runs = tuple(run or "" for run in rest[:2])
        return cls(scan, int(at), opacity, channel, style, tuple(shown), structure, runs, tuple(rest[2:]))


@dataclass(frozen=True)
class ModelRow:
    """The components of one model."""

    group: Any
    heading: Any
    threshold: Any
    reset: Any
    save: Any
    pictures: Any
    file: Any


class Layout:
    """All components of the page, added to the open `gradio.Blocks`. `run_id` is the run to open with."""

    def __init__(self, gradio: Any, runs: Choices, run_id: str) -> None:
        self.gr = gradio
        gradio.HTML(TITLE_HTML)
        self._add_choices(runs, run_id)
        self._add_structures()
        self._add_sliders()
        with gradio.Row():
            with gradio.Column(scale=1, min_width=240):
                self.inputs = gradio.HTML(elem_id="pictures-scan")
            with gradio.Column(scale=4, min_width=NARROW), gradio.Row():
                self.rows = [self._add_row(letter) for letter in LETTERS]

    @property
    def controls(self) -> list[Any]:
        """The components that `ControlValues` reads."""
        thresholds = [row.threshold for row in self.rows]
        structures = [self.shown, self.structure]
        return [self.scan, self.at, self.opacity, self.channel, self.style, *structures, *self.runs, *thresholds]

    @property
    def drawn(self) -> list[Any]:
        """The components that change with every slice."""
        return [self.areas, self.inputs, *(part for row in self.rows for part in (row.heading, row.pictures))]

    @property
    def all(self) -> list[Any]:
        """The components that change with the scan."""
        groups = [row.group for row in self.rows]
        more = [self.patient, self.files, self.banner, self.status, self.legend]
        return [*self.controls, *more, *groups, *self.drawn]

    def _add_choices(self, runs: Choices, run_id: str) -> None:
        gr = self.gr
        self.scan = gr.State()
        with gr.Row(equal_height=True):
            with gr.Column(scale=3, min_width=NARROW):
                with gr.Row():
                    first = gr.Dropdown(runs, value=run_id, label="Model A", elem_id="model-a")
                    second = gr.Dropdown(
                        [NO_SECOND_MODEL, *runs], value="", label="Model B, to compare", elem_id="model-b"
                    )
                with gr.Row():
                    self.patient = gr.Dropdown([], label="Patient with truth", elem_id="patient")
                    self.channel = gr.Radio([], label="Sequence shown", elem_id="channel")
            with gr.Column(scale=1, min_width=240):
                self.files = gr.File(
                    label="or drop scans: TIFF or PNG, 8 bits", file_count="multiple", height=164, elem_id="files"
                )
        self.runs = [first, second]
        self.banner, self.status = gr.HTML(elem_id="banner"), gr.HTML(elem_id="status")

    def _add_structures(self) -> None:
        gr = self.gr
        with gr.Row(visible=False) as self.legend:
            with gr.Column(scale=3, min_width=NARROW):
                self.shown = gr.CheckboxGroup([], label="Structures shown", elem_id="structures")
            with gr.Column(scale=1, min_width=240):
                self.structure = gr.Dropdown(
                    [], label="Structure of probability and threshold", elem_id="structure"
                )

    def _add_sliders(self) -> None:
        gr = self.gr
        with gr.Row():
            with gr.Column(scale=3, min_width=NARROW):
                self.at = gr.Slider(1, 2, value=1, step=1, label="Slice", buttons=[], elem_id="slice")
                self.areas = gr.HTML(elem_id="areas")
            with gr.Column(scale=1, min_width=240):
                self.opacity = gr.Slider(
                    0, 1, value=0.5, step=0.05, label="Overlay opacity", buttons=[], elem_id="opacity"
                )
                self.style = gr.Radio(list(STYLES), value=STYLES[0], label="Overlay", elem_id="style")

    def _add_row(self, letter: str) -> ModelRow:
        gr, small, label = self.gr, letter.lower(), f"Threshold {letter}"
        with gr.Column(
            visible=letter == LETTERS[0], elem_id=f"row-{small}", min_width=NARROW, elem_classes="model"
        ) as group:
            with gr.Row():
                with gr.Column(scale=3, min_width=NARROW):
                    heading = gr.HTML(elem_id=f"heading-{small}")
                with gr.Column(scale=1, min_width=240):
                    threshold = gr.Slider(
                        0, 1, value=0.5, step=0.01, label=label, buttons=[], elem_id=f"threshold-{small}"
                    )
                    with gr.Row():
                        reset = gr.Button("Run's own threshold", size="sm", min_width=80, elem_id=f"reset-{small}")
                        save = gr.Button("Download masks", size="sm", min_width=80, elem_id=f"save-{small}")
                    gr.HTML(DOWNLOAD_NOTE_HTML)
            pictures = gr.HTML(elem_id=f"pictures-{small}")
            file = gr.Textbox(elem_classes="hidden-control")
        return ModelRow(group, heading, threshold, reset, save, pictures, file)
