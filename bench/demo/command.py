"""`bench demo`: load the runs and patients to show, and serve the page until interrupted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.console import Display
from bench.demo.logged_models import LoggedModels
from bench.demo.page import Page
from bench.demo.scans import Patients
from bench.device import find_device
from bench.errors import BenchError
from bench.servers import check_address
from bench.tracking import connect
from bench.training.experiment import source_like


def open_demo(
    run: str | None,
    folder: Path | None,
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
    device: str,
    uri: str | None,
) -> None:
    """Serve the demo until interrupted. Raises `BenchError` for what the user must fix."""
    address = check_address(host, port)
    models = LoggedModels(connect(uri), None, str(find_device(device)))
    run_id = models.find(run) if run else models.list_runs()[0].run_id
    with tempfile.TemporaryDirectory() as uploads:
        gradio = _import_gradio(uploads)
        with Display() as display:
            config = models.load(run_id).models.config
            if folder:
                models.patients = Patients(source_like(config, folder), display.packing)
            address.announce("the demo", "see these patients", display.say)
        Page(gradio, models, run_id).serve(address, allowed_hosts, Path(uploads))


def _import_gradio(uploads: str) -> Any:
    """Import Gradio without its analytics, and with `uploads` as the folder of dropped files."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # read during the import
    try:
        import gradio
    except ModuleNotFoundError:
        raise BenchError("the demo needs Gradio: pip install 'medseg-bench[demo]'.") from None
    return gradio
