"""The look of the page: its HTML constants, its CSS, and the JavaScript that runs in the browser."""

from __future__ import annotations

from importlib.resources import files

from bench.structures import COLOURS

TITLE_HTML = """<div class="title"><h1>medseg-bench</h1><span>predictions of logged models</span>
<b>Research software, not for clinical use</b></div>"""
DOWNLOAD_NOTE_HTML = """<p class="note">one TIFF per slice (0 and 255, or the labels of several structures),
as <code>bench predict</code> writes; several as a zip</p>"""
# The browser makes the file of the text "name|base64", so that the server keeps no copy.
DOWNLOAD_JS = (files("bench.demo") / "download.js").read_text("utf-8")
CSS = (files("bench.demo") / "page.css").read_text("utf-8")
CSS += "".join(
    f"#structures label:nth-of-type({len(COLOURS)}n+{k + 1}) {{ border-left: 12px solid {colour}; }}\n"
    for k, colour in enumerate(COLOURS)
)
