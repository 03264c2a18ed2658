"""The web page: what happens when a viewer uses a control."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.data.pack import display_channel
from bench.demo import panels
from bench.demo.guard import Guard
from bench.demo.layout import LETTERS, NO_SECOND_MODEL, Choices, ControlValues, Layout
from bench.demo.logged_models import TEST_FOLD_NOT_RUN, LoggedModels
from bench.demo.predictions import Prediction, choose_slice, encode_masks
from bench.demo.scans import Scan, read_dropped_files
from bench.demo.style import CSS, DOWNLOAD_JS
from bench.errors import BadSetting, BenchError, DataError
from bench.servers import Address

LAUNCH = {"share": False, "quiet": True, "ssr_mode": False, "footer_links": [], "run_history": False}
LAUNCH |= {"max_file_size": "64mb"}

Updates = dict[Any, Any]  # {component: its new value or properties}
Handler = Callable[..., Updates | Iterator[Updates]]


class Page:
    """The page and the handlers of its events. `run_id` is the run to open with."""

    def __init__(self, gradio: Any, models: LoggedModels, run_id: str) -> None:
        self.gr, self.models = gradio, models
        with gradio.Blocks(title="medseg-bench demo", fill_width=True, delete_cache=(600, 3600)) as self.blocks:
            self.ui = Layout(gradio, self._run_choices(), run_id)
            self._connect_events()

    def serve(self, address: Address, allowed_hosts: Sequence[str], uploads: Path) -> None:
        """Serve until interrupted. Nothing is shared, and no font or script is fetched from other machines.

        `allowed_hosts` are further names under which the page may be opened. Raises `BadSetting` if another server
        has taken the address.
        """
        gr = self.gr
        hosts = {"hosts": (address.host, *allowed_hosts), "proxies": allowed_hosts}
        fonts = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
        try:
            self.blocks.launch(
                server_name=address.url_host,
                server_port=address.port,
                app_kwargs={"middleware": [(Guard, (), {**hosts, "uploads": uploads})]},
                theme=gr.themes.Base(primary_hue="zinc", neutral_hue="zinc", font=fonts, font_mono=mono),
                css=CSS,
                **LAUNCH,
            )
        except OSError as error:  # taken since the address was checked
            raise BadSetting(f"nothing can be served at {address.url} ({error}). Give another --port.") from None

    def _connect_events(self) -> None:
        ui = self.ui
        self._connect(self.blocks.load, self._start, [], ui.all)
        self._connect(ui.patient.input, self._choose_patient, [ui.patient], ui.all)
        self._connect(ui.files.upload, self._show_files, [ui.files], ui.all)
        self._connect(ui.files.delete, self._show_files, [ui.files], ui.all)
        self._connect(ui.files.clear, self._start, [], ui.all)
        for run in ui.runs:
            self._connect(run.input, self._change_run, [], ui.all)
        thresholds = [row.threshold for row in ui.rows]
        for control in (ui.at, ui.opacity, ui.style, ui.channel, ui.shown, *thresholds):
            self._connect(control.input, self._redraw, [], ui.drawn)
        self._connect(ui.structure.input, self._show_own_thresholds, [], [*thresholds, *ui.drawn])
        for number, row in enumerate(ui.rows):
            self._connect(row.reset.click, partial(self._reset_threshold, number), [], [row.threshold, *ui.drawn])
            saved = self._connect(row.save.click, partial(self._save_masks, number), [], [row.file])
            saved.success(None, row.file, js=DOWNLOAD_JS, api_visibility="private")

    def _connect(self, event: Any, handler: Handler, more: list[Any], outputs: list[Any]) -> Any:
        """Call `handler(values, *more)` at an event, and show its updates, or each that it yields.

        A `BenchError` is shown as a status; nothing else changes.
        """
        ui = self.ui

        def handle(*values: Any) -> Iterator[Updates]:
            try:
                made = handler(ControlValues.read(*values[: len(ui.controls)]), *values[len(ui.controls) :])
                yield from [made] if isinstance(made, dict) else made
            except BenchError as error:
                yield {ui.status: panels.render_problem(str(error))}

        return event(
            handle,
            [*ui.controls, *more],
            outputs if ui.status in outputs else [*outputs, ui.status],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def _start(self, values: ControlValues) -> Iterator[Updates]:
        """Refresh the list of runs, and show the first patient if there is one."""
        ui, runs, patients = self.ui, self._run_choices(), self._patient_choices(values.runs[0])
        yield {
            ui.runs[0]: self.gr.update(choices=runs),
            ui.runs[1]: self.gr.update(choices=[NO_SECOND_MODEL, *runs]),
            ui.files: None,
            ui.status: panels.render_hint("Drop scans into the box to see a prediction."),
        }
        if patients:
            case = patients[0][1]
            yield {ui.patient: self.gr.update(choices=patients, value=case)}
            yield from self._choose_patient(values, case)

    def _choose_patient(self, values: ControlValues, case: str) -> Iterator[Updates]:
        if self.models.patients is None:
            raise DataError("there is no data folder. Start the demo with --data, or drop scans.")
        scan = self.models.patients.scan(case)
        yield {self.ui.files: None}
        yield from self._show_scan(replace(values, scan=scan, at=0))

    def _show_files(self, values: ControlValues, files: list[str] | None) -> Iterator[Updates]:
        """Show dropped files. If they cannot be shown, remove them and keep what the page shows."""
        if not files:
            yield from self._start(values)
            return
        yield {self.ui.status: panels.render_progress(f"Reading {len(files)} file(s) ...", 0, 2)}
        models = self.models.load(values.runs[0]).models
        try:
            scan = read_dropped_files([Path(file) for file in files], models.channels, models.structures.names)
        except BenchError as error:
            yield {self.ui.status: panels.render_problem(str(error)), self.ui.files: None}
            return
        yield {self.ui.patient: None}
        yield from self._show_scan(replace(values, scan=scan, at=0))

    def _change_run(self, values: ControlValues) -> Iterator[Updates]:
        """Show the same slice with another run."""
        yield {self.ui.status: panels.render_progress("Loading the models ...", 0, 2)}
        yield {self.ui.patient: self.gr.update(choices=self._patient_choices(values.runs[0])), self.ui.status: ""}
        if values.scan is not None:
            yield from self._show_scan(values)

    def _show_scan(self, values: ControlValues) -> Iterator[Updates]:
        """Predict a scan and show it with each run at its own threshold, and say what is being done.

        If `at` is 0, `choose_slice` chooses the slice.
        """
        ui, scan, runs = self.ui, _require_scan(values), [run for run in values.runs if run]
        for done, letter in enumerate(LETTERS[: len(runs)], 1):
            doing = f"Model {letter} predicts {len(scan.images)} slice(s) of {scan.title} ..."
            yield {ui.status: panels.render_progress(doing, done, len(runs) + 1)}
            self._predict(replace(values, runs=values.runs[:done]))
        yield self._show_predicted(values)

    def _show_predicted(self, values: ControlValues) -> Updates:
        ui, scan, results = self.ui, _require_scan(values), self._predict(values)
        first = next((r for r in results if isinstance(r, Prediction)), None)
        channel = values.channel
        if channel is None or channel >= len(scan.channels):
            channel = display_channel(scan.channels)
        at, names = values.at or choose_slice(scan, first) + 1, scan.structures
        shown = tuple(name for name in names if name in values.shown) or names
        structure = values.structure if values.structure in names else names[0]
        values = replace(values, at=at, channel=channel, shown=shown, structure=structure)
        channels = [(name, number) for number, name in enumerate(scan.channels)]
        several = len(scan.images) > 1
        return {
            ui.scan: scan,
            ui.banner: panels.render_banner(scan),
            ui.status: "",
            ui.channel: self.gr.update(choices=channels, value=channel),
            ui.legend: self.gr.update(visible=len(names) > 1),
            ui.shown: self.gr.update(choices=list(names), value=list(shown)),
            ui.structure: self.gr.update(choices=list(names), value=structure),
            ui.at: self.gr.update(maximum=max(len(scan.images), 2), value=at, interactive=several),
            ui.rows[1].group: self.gr.update(visible=len(results) > 1),
            **self._show_own_thresholds(values),
        }

    def _show_own_thresholds(self, values: ControlValues) -> Updates:
        """Move the sliders to each run's own threshold of the chosen structure, and redraw."""
        scan, own = _require_scan(values), [0.5] * len(self.ui.rows)
        at = _position(values)
        for number, result in enumerate(self._predict(values)):
            if isinstance(result, Prediction):
                own[number] = result.thresholds[at]
        of = f" of {values.structure}" if len(scan.structures) > 1 else ""
        updates = self._redraw(replace(values, thresholds=tuple(own)))
        for letter, row, threshold in zip(LETTERS, self.ui.rows, own, strict=True):
            updates[row.threshold] = self.gr.update(value=round(threshold, 2), label=f"Threshold {letter}{of}")
        return updates

    def _redraw(self, values: ControlValues) -> Updates:
        """Redraw the pictures and numbers."""
        scan = _require_scan(values)
        at, structure = min(values.at, len(scan.images)) - 1, _position(values)
        switched_on = tuple(k for k, name in enumerate(scan.structures) if name in values.shown)
        view = panels.View(at, values.channel or 0, values.opacity, switched_on, structure, values.style)
        updates: Updates = {self.ui.inputs: panels.render_inputs(scan, view)}
        shown, results = [], self._predict(values)
        for letter, row, result, slider in zip(LETTERS, self.ui.rows, results, values.thresholds, strict=False):
            if isinstance(result, Prediction):
                thresholds = result.move_threshold(structure, slider)
                shown.append((letter, result, thresholds))
                updates[row.heading] = panels.render_heading(letter, scan, result, thresholds, view)
                updates[row.pictures] = panels.render_pictures(scan, result, thresholds, view)
            else:
                updates[row.heading], updates[row.pictures] = panels.render_refusal(letter, str(result)), ""
        return updates | {self.ui.areas: panels.render_areas(scan, view, shown)}

    def _reset_threshold(self, number: int, values: ControlValues) -> Updates:
        """Return to the run's own threshold."""
        own, before = self._predict_one(number, values).thresholds[_position(values)], values.thresholds
        updates = self._redraw(replace(values, thresholds=(*before[:number], own, *before[number + 1 :])))
        return updates | {self.ui.rows[number].threshold: round(own, 2)}

    def _save_masks(self, number: int, values: ControlValues) -> Updates:
        """Send the masks as text, of which the browser makes a file: the server keeps none."""
        prediction = self._predict_one(number, values)
        thresholds = prediction.move_threshold(_position(values), values.thresholds[number])
        name, content = encode_masks(_require_scan(values), prediction, thresholds)
        return {self.ui.rows[number].file: f"{name}|{base64.b64encode(content).decode()}"}

    def _predict(self, values: ControlValues) -> list[Prediction | BenchError]:
        """Return for every chosen run its prediction, or the reason why there is none."""
        results: list[Prediction | BenchError] = []
        for run in filter(None, values.runs):
            try:
                results.append(self.models.predict(run, _require_scan(values)))
            except BenchError as error:
                results.append(error)
        return results

    def _predict_one(self, number: int, values: ControlValues) -> Prediction:
        result = self._predict(values)[number]
        if not isinstance(result, Prediction):
            raise result
        return result

    def _run_choices(self) -> Choices:
        return [(panels.label_run(record), record.run_id) for record in self.models.list_runs()]

    def _patient_choices(self, run: str) -> Choices:
        """Return the patients with what the run can show of them; those that it cannot show come last."""
        texts = self.models.describe_patients(run)
        cases = sorted(texts, key=lambda case: (texts[case] == TEST_FOLD_NOT_RUN, case))
        return [(f"{case} · {texts[case]}", case) for case in cases]


def _position(values: ControlValues) -> int:
    """Return the position of the chosen structure."""
    names = _require_scan(values).structures
    return names.index(values.structure) if values.structure in names else 0


def _require_scan(values: ControlValues) -> Scan:
    if values.scan is None:
        raise DataError("there is no scan yet. Choose a patient, or drop a scan.")
    return values.scan
