"""The look of the page: its HTML constants, its CSS, and the JavaScript that runs in the browser."""

from __future__ import annotations

TITLE_HTML = """<div class="title"><h1>medseg-bench</h1><span>predictions of logged models</span>
<b>Research software, not for clinical use</b></div>"""
DOWNLOAD_NOTE_HTML = """<p class="note">one TIFF (0 and 255) per slice, as <code>bench predict</code> writes;
several slices as a zip</p>"""
DARK_MODE_JS = "() => document.body.classList.add('dark')"

# The browser makes the file of the text "name|base64", so that the server keeps no copy.
DOWNLOAD_JS = """(file) => {
  const [name, content] = file.split("|");
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""

CSS = """
:root, .dark { --ground: #17181a; --raised: #1f2124; --edge: #34373c; --ink: #e8e8e6; --quiet: #a3a7ad; }
body, gradio-app, .gradio-container { background: var(--ground) !important; color: var(--ink); }
.gradio-container { max-width: 1560px !important; margin: 0 auto; padding: 10px 16px !important; }
.gradio-container .main, .gradio-container .html-container { padding: 0 !important; }
.gradio-container .row, .gradio-container .column { gap: 8px; }
.hidden-control, .form:has(> .hidden-control) { display: none !important; }
#banner:not(:has(p)), #status:not(:has(p)) { display: none; }
.title { display: flex; align-items: baseline; gap: 14px; }
.title h1 { font-size: 22px; font-weight: 650; margin: 0; }
.title span { color: var(--quiet); }
.title b { margin-left: auto; font-weight: 500; color: #f0c674; border: 1px solid #6b5a2e; border-radius: 4px;
  padding: 2px 10px; font-size: 13px; }
.warning, .problem { border-left: 3px solid #f0c674; padding: 3px 10px; margin: 4px 0; color: #f3dcab;
  background: #2b271c; font-size: 14px; }
.problem { border-color: #ff6b5e; background: #35201e; color: #ffc9c3; font-size: 15px; padding: 8px 12px; }
.hint { color: var(--quiet); }
.areas .position { color: var(--quiet); font-size: 13px; overflow-wrap: anywhere; }
.areas .position b { color: var(--ink); }
.areas .legend { float: right; margin-right: 44px; }
.areas svg { width: calc(100% - 88px); height: 44px; display: block; background: #101112; border-radius: 4px;
  margin: 4px 44px 0; overflow: visible; }
.areas polyline { vector-effect: non-scaling-stroke; stroke-width: 1.6; }
.areas line { vector-effect: non-scaling-stroke; stroke: #ffffff; stroke-opacity: .75; stroke-width: 1.4; }
.model:has(.heading) { border-top: 1px solid var(--edge); padding-top: 8px; }
.note { color: var(--quiet); font-size: 12px; margin: 0; text-align: right; }
.heading { display: flex; gap: 28px; align-items: flex-start; }
.heading .about { flex: 1; }
.heading h2 { font-size: 17px; font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere; }
.heading h2 i { font-style: normal; color: #17181a; background: var(--ink); border-radius: 4px; padding: 0 7px;
  margin-right: 4px; }
.heading p { margin: 2px 0; font-size: 14px; }
.heading .about > p:not(.warning, .problem) { color: var(--quiet); }
.numbers table { border-collapse: collapse; margin: 0; width: auto; font-size: 14px; }
.numbers table, .numbers th, .numbers td, .numbers tr { border: 0 !important; font-variant-numeric: tabular-nums; }
.numbers th { color: var(--quiet); font-weight: 400; text-align: right; padding: 0 0 0 20px; white-space: nowrap; }
.numbers th:first-child { text-align: left; padding-left: 0; }
.numbers td { text-align: right; padding: 0 0 0 20px; font-size: 16px; }
.numbers td.dice { font-size: 22px; font-weight: 650; }
.numbers .logged { color: var(--quiet); font-size: 13px; }
.pictures { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; }
.pictures figure { margin: 0; background: #000; border-radius: 6px; overflow: hidden; border: 1px solid #26282b; }
.pictures .slice { width: 100%; display: block; object-fit: contain; background: #000; }
.pictures .coarse { image-rendering: pixelated; }
.pictures .none { display: grid; place-items: center; aspect-ratio: 1; color: #6d7177; }
.pictures figcaption { background: var(--raised); font-size: 13px; padding: 5px 9px; min-height: 30px;
  color: var(--ink); white-space: nowrap; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px -1px 8px; }
figcaption > .key:first-child { margin-left: 0; }
.scale { float: right; color: var(--quiet); }
.bar { display: inline-block; position: relative; width: 84px; height: 10px; margin: 0 6px -1px; }
.tick { position: absolute; top: -3px; width: 2px; height: 16px; background: #fff; }
"""
