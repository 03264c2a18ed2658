"""Servers: addresses that cannot be used, and processes that end with the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from bench.errors import BadSetting, BenchError
from bench.servers import check_address, run_server
from tests.servers import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which another server listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_taken_port_is_refused_with_a_sentence(host, taken):
    with pytest.raises(BadSetting, match=rf"cannot listen on {host} at port {taken} \(Address already in use\)"):
        check_address(host, taken)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 99999), ("no.such.host.invalid", 5000), ("192.0.2.1", 5000)]
)
def test_an_address_that_does_not_exist_is_refused_with_a_sentence(host, port):
    with pytest.raises(BadSetting, match=f"cannot listen on {host} at port {port} .* Give another --port, from 1"):
        check_address(host, port)


def test_an_address_that_others_can_reach_is_announced_with_a_warning():
    said: list[str] = []
    port = free_port()
    for host in ("0.0.0.0", "127.0.0.2", "localhost"):
        check_address(host, port).announce("the page", "see everything", said.append)
    warning = "anyone who can reach 0.0.0.0 can see everything: the page has no password"
    assert [line for line in said if "is at" not in line] == [warning]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_in_brackets_in_a_url(host):
    port = free_port()
    address = check_address(host, port)
    assert (address.host, address.url, address.is_public) == ("::1", f"http://[::1]:{port}", False)


def test_a_server_that_ends_by_itself_is_an_error_and_never_ready():
    address, ready = check_address("127.0.0.1", free_port()), []
    with pytest.raises(BenchError, match="ended by itself, with exit code 0"):
        run_server([sys.executable, "-c", ""], os.environ, address, lambda: ready.append(True))
    assert ready == []


def test_a_server_is_ready_once_it_answers():
    address, ready = check_address("127.0.0.1", free_port()), []
    code = f"import socket; socket.create_server(('127.0.0.1', {address.port})).accept()"
    with pytest.raises(BenchError, match="ended by itself"):
        run_server([sys.executable, "-c", code], os.environ, address, lambda: ready.append(True))
    assert ready == [True]


@pytest.mark.slow
def test_ending_the_ui_ends_mlflow_and_frees_its_port(store):
    port = free_port()
    store.experiment("lgg")
    address = check_address("127.0.0.1", port)
    command = [sys.executable, "-m", "bench", "ui", "--port", str(port), "--tracking-uri", store.uri]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **pipes) as ui:
        for _ in range(3000):
            if address.answers() or ui.poll() is not None:
                break
            time.sleep(0.1)
        urlopen(f"{address.url}/health").close()
        again = subprocess.run(command, text=True, check=False, capture_output=True)
        ui.send_signal(signal.SIGTERM)
        output = ui.communicate(timeout=30)[0]
    assert f"is at http://127.0.0.1:{port}" in output
    assert output.splitlines()[-1].startswith(f"leaderboard of lgg: {address.url}/#/experiments/")
    assert "GET /health" not in output
    assert (again.returncode, "Address already in use" in again.stderr) == (2, True)
    assert not address.answers()
