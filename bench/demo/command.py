"""`bench demo`: what is to be shown is found, then the page is served until it is interrupted."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from bench.console import Display
from bench.demo.page import Page
from bench.demo.scans import Patients
from bench.demo.studio import Studio
from bench.device import find_device
from bench.errors import BadSetting, BenchError
from bench.tracking import connect
from bench.training.experiment import source_like

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def open_demo(
    wanted: str | None, folder: Path | None, *, host: str, port: int, device: str, uri: str | None
) -> None:
    """Serve the demo until it is interrupted. Raises `BenchError` for whatever the user must mend."""
    _refuse_busy(host, port)
    studio = Studio(connect(uri), None, str(find_device(device)))
    chosen = studio.find(wanted) if wanted else studio.offers()[0].run_id
    with tempfile.TemporaryDirectory() as uploads:
        gradio = _gradio(uploads)
        with Display() as display:
            config = studio.load(chosen).segmenter.config
            if folder:
                studio.patients = Patients(source_like(config, folder), display.packing)
            display.say(f"the demo is at http://{host}:{port} (Ctrl-C ends it)")
            if host not in LOOPBACK:
                display.say(f"whoever reaches {host} can see these patients: there is no password")
        Page(gradio, studio, chosen).serve(host, port)


def _gradio(uploads: str) -> Any:
    """Gradio, which reports nothing to anybody. What is dropped on its page lies in the folder `uploads`."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # read when it is imported
    try:
        import gradio
    except ModuleNotFoundError:
        raise BenchError("the demo needs Gradio: pip install 'medseg-bench[demo]'.") from None
    return gradio


def _refuse_busy(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise BadSetting(f"{host}:{port} cannot be listened on ({reason}). Give another --port.") from None
