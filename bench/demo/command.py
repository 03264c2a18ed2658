"""`bench demo`: load the runs and patients to show, and serve the page until interrupted."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from bench.console import Display
from bench.demo.logged_models import LoggedModels
from bench.demo.page import Page
from bench.demo.scans import Patients
from bench.device import find_device
from bench.errors import BadSetting, BenchError
from bench.tracking import connect
from bench.training.experiment import source_like

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def open_demo(run: str | None, folder: Path | None, *, host: str, port: int, device: str, uri: str | None) -> None:
    """Serve the demo until interrupted. Raises `BenchError` for what the user must fix."""
    _check_port(host, port)
    models = LoggedModels(connect(uri), None, str(find_device(device)))
    run_id = models.find(run) if run else models.list_runs()[0].run_id
    with tempfile.TemporaryDirectory() as uploads:
        gradio = _import_gradio(uploads)
        with Display() as display:
            config = models.load(run_id).models.config
            if folder:
                models.patients = Patients(source_like(config, folder), display.packing)
            display.say(f"the demo is at http://{host}:{port} (Ctrl-C ends it)")
            if host not in LOOPBACK:
                display.say(f"anyone who can reach {host} can see these patients: the page has no password")
        Page(gradio, models, run_id).serve(host, port)


def _import_gradio(uploads: str) -> Any:
    """Import Gradio without its analytics, and with `uploads` as the folder of dropped files."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # read during the import
    try:
        import gradio
    except ModuleNotFoundError:
        raise BenchError("the demo needs Gradio: pip install 'medseg-bench[demo]'.") from None
    return gradio


def _check_port(host: str, port: int) -> None:
    """Raise `BadSetting` if the port cannot be opened."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise BadSetting(f"cannot listen on {host}:{port} ({reason}). Give another --port.") from None
