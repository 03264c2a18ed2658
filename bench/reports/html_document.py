"""The skeleton that every HTML page shares: escaping, style, content security policy and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape

from bench.formatting import plain

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c2430; font: 16px/1.55 system-ui, Helvetica, Arial, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #d9dee6; }
.lead { color: #5b6472; margin: 0 0 1.5rem; }
.warning { background: #fdecea; border-left: 4px solid #b2182b; padding: .75rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0; }
dt { color: #5b6472; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; padding: 0; }
.tiles { margin: 1.5rem 0; list-style: none; }
.tiles li { background: #f4f6f9; border-radius: 6px; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles span { color: #5b6472; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #5b6472; padding-bottom: .4rem; }
th, td { padding: .3rem 0 .3rem 1rem; text-align: right; border-bottom: 1px solid #e6eaf0; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #3a4453; font-size: .9rem; margin-top: .4rem; overflow-wrap: anywhere; }
figcaption b { color: #1c2430; }
summary { cursor: pointer; color: #4477aa; }
footer { margin-top: 3rem; color: #5b6472; font-size: .85rem; }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  .wide, tr { break-inside: avoid; }
  details .wide { break-inside: auto; }
  .tiles li { print-color-adjust: exact; }
}
"""


def escaped(text: object) -> str:
    """Escape a text for elements and attributes of HTML and SVG; control characters become question marks."""
    return escape(plain(str(text)))


def definition_list(facts: Mapping[str, object]) -> str:
    return f"<dl>{''.join(f'<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>' for k, v in facts.items())}</dl>"


def html_document(title: str, parts: Iterable[str], *, style: str = "", script: str = "") -> str:
    """Return a complete page from its title and the HTML of its parts; empty parts are left out.

    The page needs no other file. Its policy allows no script but `script`, and no images but those inside it.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(part for part in parts if part)
    script_element = f"<script>{script}</script>\n" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
{body}
</main>
{script_element}</body>
</html>
"""
