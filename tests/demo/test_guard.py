"""The demo's server answers its own page, and neither other sites nor requests without a bound."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.demo.guard import LARGEST_REQUEST, LARGEST_UPLOAD, MOST_UPLOADS, Guard

UPLOAD = "/gradio_api/upload"


def ask(uploads: Path, path: str = "/", **headers: object) -> tuple[int, dict[str, str]]:
    """The status and the headers of the answer to a request; the app behind the guard answers all with 200."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(part: dict[str, Any]) -> None:
        sent.append(part)

    given = [
        (k.replace("_", "-").encode(), str(v).encode()) for k, v in ({"host": "localhost:7860"} | headers).items()
    ]
    guard = Guard(app, ["gpu.lab.example", "hub.example"], ["hub.example"], uploads)
    asyncio.run(guard({"type": "http", "path": path, "headers": given}, app, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "10.0.0.7", "gpu.lab.example:80"])
def test_the_page_is_served_under_its_own_names(host, tmp_path):
    assert ask(tmp_path, host=host)[0] == 200
    assert ask(tmp_path, UPLOAD, host=host, origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.7.evil.example", "", "[::1"])
def test_another_name_for_this_machine_is_refused(host, tmp_path):
    assert ask(tmp_path, host=host)[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:5000", "http://[", ""])
def test_a_page_of_another_site_can_send_nothing(origin, tmp_path):
    assert ask(tmp_path, UPLOAD, origin=origin)[0] == 403


def test_a_proxy_may_serve_the_page_under_its_own_name(tmp_path):
    assert ask(tmp_path, UPLOAD, origin="https://hub.example")[0] == 200
    assert ask(tmp_path, UPLOAD, origin="https://gpu.lab.example")[0] == 403


def test_requests_and_the_sum_of_dropped_files_are_bounded(tmp_path):
    assert ask(tmp_path, UPLOAD, content_length=LARGEST_UPLOAD)[0] == 200
    assert ask(tmp_path, UPLOAD, content_length=LARGEST_UPLOAD + 1)[0] == 413
    assert ask(tmp_path, "/gradio_api/queue/join", content_length=LARGEST_REQUEST + 1)[0] == 413
    assert ask(tmp_path, UPLOAD, transfer_encoding="chunked")[0] == 411
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "file").open("wb") as file:
        file.truncate(MOST_UPLOADS + 1)
    assert ask(tmp_path, UPLOAD, content_length=1)[0] == 413
    assert ask(tmp_path)[0] == 200


def test_no_other_page_can_frame_the_demo_and_it_loads_nothing_from_elsewhere(tmp_path):
    for host in ("localhost", "evil.example"):
        headers = ask(tmp_path, host=host)[1]
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert not any(word in policy for word in ("*", "http"))
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
