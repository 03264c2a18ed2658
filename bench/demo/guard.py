"""Who may use the page's server: requests from other sites and too large ones are refused before Gradio sees them.

A web page of an attacker, open in the same browser, could otherwise send requests to the demo (with a foreign
`Origin`), or read it under a name of its own that points to this machine (a foreign `Host`).
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_UPLOAD = 256 << 20  # bytes of one request with files
LARGEST_REQUEST = 1 << 20  # bytes of any other request
MOST_UPLOADS = 1 << 30  # bytes of all dropped files that the server keeps, each for an hour
# Gradio's page has scripts and styles of its own inside its HTML, and compiles the scripts of events.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware in front of Gradio's app.

    The page may be opened at any IP address, by this machine's own name, or by one of `hosts`: only a name can be
    pointed to another machine. `proxies` are the hosts of `hosts` behind which a proxy may serve the page as its
    own. `uploads` is the folder of dropped files.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], proxies: Collection[str], uploads: Path) -> None:
        self._app, self._proxies, self._uploads = app, frozenset(proxies), uploads
        self._hosts = {name.lower() for name in (*hosts, "localhost", socket.gethostname(), socket.getfqdn())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policies(part: Message) -> None:
            if part["type"] == "http.response.start":
                MutableHeaders(scope=part).update(HEADERS)
            await send(part)

        refused = self._refuse(scope) if scope["type"] == "http" else None
        answer = self._app if refused is None else PlainTextResponse(refused[1], refused[0])
        await answer(scope, receive, send_with_policies)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        """Return a status and a sentence if the request comes from elsewhere or is too large, otherwise None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin", f"http://{host}")
        name = _split(f"//{host}").hostname or ""
        if name not in self._hosts and not _is_address(name):
            return 403, f"The demo is not served as '{host}'. Open its address, or start it with --allow-host."
        page = _split(origin)
        if page.netloc != host and page.hostname not in self._proxies:
            return 403, f"A page of '{origin}' may not use the demo. Open the demo itself."
        is_upload = scope["path"].endswith("/upload")
        limit = LARGEST_UPLOAD if is_upload else LARGEST_REQUEST
        if "transfer-encoding" in headers:
            return 411, "Give the length of the request."
        if int(headers.get("content-length", 0)) > limit:
            return 413, f"A request may have {limit >> 20} MiB. Drop fewer files at once."
        if is_upload and sum(p.stat().st_size for p in self._uploads.rglob("*") if p.is_file()) > MOST_UPLOADS:
            return 413, "There are too many dropped files. The server removes them after an hour."
        return None


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # a bracket without its partner
        return urlsplit("")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
