"""The page in Gradio: it connects controls with what `studio` knows and `panels` draws."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.data.pack import shown_channel
from bench.demo import panels
from bench.demo.scans import Scan, dropped
from bench.demo.studio import IMPOSSIBLE, Prediction, Studio, busiest, mask_file
from bench.demo.style import DARKEN, SAVE, SAVED, STYLE, TITLE
from bench.errors import BenchError, DataError

LETTERS = ("A", "B")


NO_SECOND = ("none: show one model", "")


LARGEST_FILE = "64mb"


Changes = dict[Any, Any]  # {component: what it becomes}


@dataclass(frozen=True)
class Standing:
    """Where the controls of one page stand. `at` is the slice from 1, `channel` a position, a run '' for none."""

    scan: Scan | None
    at: int
    opacity: float
    channel: int | None
    runs: tuple[str, ...]
    thresholds: tuple[float, ...]

    @classmethod
    def of(cls, scan: Scan | None, at: float, opacity: float, channel: int | None, *rest: Any) -> Standing:
        """From the values of the controls, in the order of `Page.controls`."""
        return cls(scan, int(at), opacity, channel, tuple(r or "" for r in rest[:2]), rest[2:])


@dataclass(frozen=True)
class Row:
    """The place of one model on the page: Gradio components."""

    group: Any
    heading: Any
    threshold: Any
    own: Any
    save: Any
    pictures: Any
    file: Any


class Page:
    """What is on the page, and what each control does. `chosen` is the run to open with."""

    def __init__(self, gradio: Any, studio: Studio, chosen: str) -> None:
        self.gr, self.studio = gradio, studio
        with gradio.Blocks(title="medseg-bench demo", fill_width=True, delete_cache=(600, 3600)) as self.blocks:
            gradio.HTML(TITLE)
            self._choices(chosen)
            self._sliders()
            self.rows = [self._row(letter) for letter in LETTERS]
            self._events()

    def serve(self, host: str, port: int) -> None:
        """Listen until interrupted: no link is shared, no font or script is fetched from elsewhere."""
        gr = self.gr
        fonts = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
        self.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
            max_file_size=LARGEST_FILE,
            theme=gr.themes.Base(primary_hue="zinc", neutral_hue="zinc", font=fonts, font_mono=mono),
            css=STYLE,
            js=DARKEN,
        )

    def _choices(self, chosen: str) -> None:
        gr, offers = self.gr, self._offers()
        self.scan = gr.State()
        with gr.Row(equal_height=True):
            with gr.Column(scale=3, min_width=480):
                with gr.Row():
                    first = gr.Dropdown(offers, value=chosen, label="Model A", elem_id="model-a")
                    second = gr.Dropdown(
                        [NO_SECOND, *offers], value="", label="Model B, to compare", elem_id="model-b"
                    )
                with gr.Row():
                    self.patient = gr.Dropdown([], label="Patient with truth", elem_id="patient")
                    self.channel = gr.Radio([], label="Sequence shown", elem_id="channel")
            with gr.Column(scale=1, min_width=280):
                self.files = gr.File(
                    label="or drop scans: TIFF or PNG, 8 bits",
                    file_count="multiple",
                    height=164,
                    elem_id="files",
                )
        self.runs = [first, second]
        self.banner, self.status = gr.HTML(elem_id="banner"), gr.HTML(elem_id="status")

    def _sliders(self) -> None:
        gr = self.gr
        with gr.Row():
            with gr.Column(scale=3, min_width=480):
                self.at = gr.Slider(1, 2, value=1, step=1, label="Slice", buttons=[], elem_id="slice")
                self.strip = gr.HTML(elem_id="strip")
            with gr.Column(scale=1, min_width=280):
                self.opacity = gr.Slider(
                    0, 1, value=0.5, step=0.05, label="Overlay opacity", buttons=[], elem_id="opacity"
                )

    def _row(self, letter: str) -> Row:
        gr, small = self.gr, letter.lower()
        with gr.Column(visible=letter == LETTERS[0], elem_id=f"row-{small}", elem_classes="model") as group:
            with gr.Row():
                with gr.Column(scale=3, min_width=480):
                    heading = gr.HTML(elem_id=f"heading-{small}")
                with gr.Column(scale=1, min_width=280):
                    threshold = gr.Slider(
                        0,
                        1,
                        value=0.5,
                        step=0.01,
                        label=f"Threshold {letter}",
                        buttons=[],
                        elem_id=f"threshold-{small}",
                    )
                    with gr.Row():
                        own = gr.Button("Run's own threshold", size="sm", min_width=80, elem_id=f"own-{small}")
                        save = gr.Button("Download masks", size="sm", min_width=80, elem_id=f"save-{small}")
                    gr.HTML(SAVED)
            pictures = gr.HTML(elem_id=f"pictures-{small}")
            file = gr.Textbox(elem_classes="unseen")
        return Row(group, heading, threshold, own, save, pictures, file)

    @property
    def controls(self) -> list[Any]:
        """What a `Standing` is read from."""
        thresholds = [row.threshold for row in self.rows]
        return [self.scan, self.at, self.opacity, self.channel, *self.runs, *thresholds]

    def _events(self) -> None:
        drawn = [self.strip, *(part for row in self.rows for part in (row.heading, row.pictures))]
        opened = [*self.controls, self.patient, self.files, self.banner, self.status]
        opened += [*(row.group for row in self.rows), *drawn]
        self._on(self.blocks.load, self._start, [], opened)
        self._on(self.patient.input, self._choose, [self.patient], opened)
        self._on(self.files.upload, self._drop, [self.files], opened)
        self._on(self.files.delete, self._drop, [self.files], opened)
        self._on(self.files.clear, self._start, [], opened)
        for run in self.runs:
            self._on(run.input, self._change, [], opened)
        for control in (self.at, self.opacity, self.channel, *(row.threshold for row in self.rows)):
            self._on(control.input, self._redraw, [], drawn)
        for number, row in enumerate(self.rows):
            self._on(row.own.click, partial(self._own, number), [], [row.threshold, *drawn])
            saved = self._on(row.save.click, partial(self._save, number), [], [row.file, self.status])
            saved.success(None, row.file, js=SAVE, api_visibility="private")

    def _on(self, event: Any, handler: Callable[..., Changes], more: list[Any], outputs: list[Any]) -> Any:
        """Call `handler(standing, *more)` at an event. Its `BenchError` is a sentence; what was shown stays."""

        def handle(*values: Any) -> Changes:
            try:
                return handler(Standing.of(*values[: len(self.controls)]), *values[len(self.controls) :])
            except BenchError as error:
                return {self.status: panels.problem(str(error))}

        return event(
            handle,
            [*self.controls, *more],
            [*outputs, self.status] if self.status not in outputs else outputs,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def _start(self, standing: Standing) -> Changes:
        """A fresh page: the runs that are logged by now, and the first patient, if there is one."""
        offers, patients = self._offers(), self._patients(standing.runs[0])
        shown = {
            self.runs[0]: self.gr.update(choices=offers),
            self.runs[1]: self.gr.update(choices=[NO_SECOND, *offers]),
            self.files: None,
        }
        if not patients:
            return shown | {self.status: panels.hint("Drop scans into the box to see what the model sees.")}
        opened = self._choose(standing, patients[0][1])
        return shown | opened | {self.patient: self.gr.update(choices=patients, value=patients[0][1])}

    def _choose(self, standing: Standing, case: str) -> Changes:
        if self.studio.patients is None:
            raise DataError("there is no data folder. Start the demo with --data, or drop scans.")
        return self._open(replace(standing, scan=self.studio.patients.scan(case), at=0)) | {self.files: None}

    def _drop(self, standing: Standing, files: list[str] | None) -> Changes:
        """Show dropped files; files that cannot be shown leave the page as it was, with a sentence."""
        if not files:
            return self._start(standing)
        channels = self.studio.load(standing.runs[0]).segmenter.channels
        try:
            scan = dropped([Path(file) for file in files], channels)
        except BenchError as error:
            return {self.status: panels.problem(str(error)), self.files: None}
        return self._open(replace(standing, scan=scan, at=0)) | {self.patient: None}

    def _change(self, standing: Standing) -> Changes:
        """Another run: the same slice, by its models."""
        patients = {self.patient: self.gr.update(choices=self._patients(standing.runs[0]))}
        return patients | self._open(standing) if standing.scan is not None else patients

    def _open(self, standing: Standing) -> Changes:
        """Show a scan, at its busiest slice where `at` is 0, each run at its own threshold."""
        scan, asked = _shown(standing), self._asked(standing)
        first = next((a for a in asked if isinstance(a, Prediction)), None)
        channel = standing.channel
        if channel is None or channel >= len(scan.channels):
            channel = shown_channel(scan.channels)
        own = [a.threshold if isinstance(a, Prediction) else 0.5 for a in (*asked, None)][: len(self.rows)]
        at = standing.at or busiest(scan, first) + 1
        standing = replace(standing, at=at, channel=channel, thresholds=tuple(own))
        names = [(name, number) for number, name in enumerate(scan.channels)]
        several = len(scan.images) > 1
        return {
            self.scan: scan,
            self.banner: panels.banner(scan),
            self.status: "",
            self.channel: self.gr.update(choices=names, value=channel),
            self.at: self.gr.update(maximum=max(len(scan.images), 2), value=at, interactive=several),
            self.rows[1].group: self.gr.update(visible=len(asked) > 1),
            **{row.threshold: round(t, 2) for row, t in zip(self.rows, own, strict=True)},
            **self._redraw(standing),
        }

    def _redraw(self, standing: Standing) -> Changes:
        """The pictures and numbers of where the controls stand."""
        scan = _shown(standing)
        view = panels.View(min(standing.at, len(scan.images)) - 1, standing.channel or 0, standing.opacity)
        changes: Changes = {}
        lines = []
        asked = zip(LETTERS, self.rows, self._asked(standing), standing.thresholds, strict=False)
        for letter, row, answer, threshold in asked:
            if isinstance(answer, Prediction):
                at = answer.nearest(threshold)
                lines.append((letter, answer, at))
                changes[row.heading] = panels.heading(letter, scan, answer, at, view)
                changes[row.pictures] = panels.pictures_of(scan, answer, at, view)
            else:
                changes[row.heading], changes[row.pictures] = panels.refusal(letter, str(answer)), ""
        return changes | {self.strip: panels.strip(scan, view.at, lines)}

    def _own(self, number: int, standing: Standing) -> Changes:
        """Back to the run's own threshold."""
        answer = self._answer(number, standing)
        thresholds = list(standing.thresholds)
        thresholds[number] = answer.threshold
        changes = self._redraw(replace(standing, thresholds=tuple(thresholds)))
        return changes | {self.rows[number].threshold: round(answer.threshold, 2)}

    def _save(self, number: int, standing: Standing) -> Changes:
        """The masks as text, for the browser to write a file of: nothing of them is left on this machine."""
        answer = self._answer(number, standing)
        name, content = mask_file(_shown(standing), answer, answer.nearest(standing.thresholds[number]))
        return {self.rows[number].file: f"{name}|{base64.b64encode(content).decode()}"}

    def _asked(self, standing: Standing) -> list[Prediction | BenchError]:
        """What every chosen run says of the scan, or why it cannot."""
        found: list[Prediction | BenchError] = []
        for run in filter(None, standing.runs):
            try:
                found.append(self.studio.predict(run, _shown(standing)))
            except BenchError as error:
                found.append(error)
        return found

    def _answer(self, number: int, standing: Standing) -> Prediction:
        answer = self._asked(standing)[number]
        if not isinstance(answer, Prediction):
            raise answer
        return answer

    def _offers(self) -> list[tuple[str, str]]:
        return [(panels.offer(record), record.run_id) for record in self.studio.offers()]

    def _patients(self, run: str) -> list[tuple[str, str]]:
        """Patients with what the run can say about them; those about whom it must be silent come last."""
        told = self.studio.tested(run)
        return [(f"{c} · {told[c]}", c) for c in sorted(told, key=lambda c: (told[c] == IMPOSSIBLE, c))]


def _shown(standing: Standing) -> Scan:
    if standing.scan is None:
        raise DataError("there is no scan yet. Choose a patient, or drop a scan.")
    return standing.scan
