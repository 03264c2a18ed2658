"""A PostgreSQL server of a test's own, which can be stopped and started, and a proxy that loses connections."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from select import select
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Postgres:
    """A running server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._run("initdb", "--username=bench", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.start()

    def create(self, database: str) -> str:
        """Create an empty database; return its URL."""
        where = (f"--host={self.folder}", f"--port={self.port}", "--username=bench")
        self._run("createdb", *where, database, data=False)
        return f"postgresql://bench@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -h 127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """Stop the server as a crash would; what was committed is kept."""
        self._run("pg_ctl", "stop", "-m", "immediate")

    def _run(self, program: str, *arguments: str, data: bool = True) -> None:
        where = ["-D", str(self.folder / "data")] if data else []
        user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
        command = [str(BINARIES[-1] / program), *where, *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, "cwd": self.folder}
        subprocess.run(command, check=True, user=user, group=user, timeout=60, **quiet)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server from Debian's package; skip the test if there is none."""
    if not BINARIES:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="bench-postgres-"))  # pytest's own folders are closed to other users
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = Postgres(folder)
        try:
            yield server
        finally:
            with suppress(subprocess.CalledProcessError):  # a test has stopped it
                server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def losing_proxy(port: int) -> Iterator[int]:
    """Forward connections to `port`, but close every third at once; yield the port of the proxy."""
    numbers = count(1)

    class Forward(BaseRequestHandler):
        def handle(self) -> None:
            if next(numbers) % 3 == 0:
                return
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as server:
                other = {self.request: server, server: self.request}
                while True:
                    for source in select(list(other), [], [])[0]:
                        if not (part := source.recv(65536)):
                            return
                        other[source].sendall(part)

    with ThreadingTCPServer(("127.0.0.1", 0), Forward) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy.server_address[1]
        proxy.shutdown()
