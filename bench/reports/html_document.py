"""The skeleton that every HTML page shares: escaping, style, content security policy and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from bench.formatting import plain

STYLE = (files("bench.reports") / "document.css").read_text("utf-8")


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
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
    policy += "base-uri 'none'; form-action 'none'"
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
