"""Web servers: the address that one may have, and running one that ends with its command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from bench.errors import BadSetting, BenchError

PATIENCE = 10  # seconds that a server has to end by itself


@dataclass(frozen=True)
class Address:
    """Where a server listens; `is_public` if other machines can connect."""

    host: str
    port: int
    is_public: bool

    @property
    def url_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        return f"http://{self.url_host}:{self.port}"

    def answers(self) -> bool:
        """Return whether a server listens there."""
        with suppress(OSError), socket.create_connection((self.host, self.port), timeout=5):
            return True
        return False

    def announce(self, what: str, risk: str, say: Callable[[str], None]) -> None:
        """Say where the page is, and who can open it."""
        say(f"{what} is at {self.url} (Ctrl-C ends it)")
        if self.is_public:
            say(f"anyone who can reach {self.host} can {risk}: the page has no password")


def check_address(host: str, port: int) -> Address:
    """Return the address. Raises `BadSetting` if no server can listen there."""
    host = host.strip("[]")
    try:
        if not 1 <= port <= 65535:  # `getaddrinfo` would take the remainder
            raise ValueError("there is no such port")
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadSetting(
            f"cannot listen on {host} at port {port} ({reason}). Give another --port, from 1 to 65535, or --host."
        ) from None
    return Address(host, port, not ip_address(place[0]).is_loopback)


def run_server(
    command: Sequence[str], environment: Mapping[str, str], address: Address, ready: Callable[[], None]
) -> None:
    """Run a server until interrupted, and end all of its processes; `ready` is called once it answers.

    Of its output, only errors are shown. Raises `BenchError` if it ends by itself.
    """
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while server.poll() is None and not address.answers():
            time.sleep(0.1)
        if server.poll() is None:
            ready()
        code = server.wait()
    finally:
        with suppress(ProcessLookupError):  # none of its processes is left
            os.killpg(server.pid, signal.SIGTERM)
            for _ in range(10 * PATIENCE):
                server.poll()
                os.killpg(server.pid, 0)
                time.sleep(0.1)
            os.killpg(server.pid, signal.SIGKILL)
    raise BenchError(f"the server has ended by itself, with exit code {code}. Its messages above say why.")
