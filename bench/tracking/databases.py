"""Connections to database servers that are restarted, or lose connections, while a command uses them."""

from __future__ import annotations

import sys
import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

WAIT = 60.0  # seconds; a search counts a worker as lost after 120
PAUSE = 1.0  # seconds between two attempts
QUIET = 2.5  # seconds before it is said that a server does not answer
# Notice within 30 seconds that the other machine is gone; options of PostgreSQL's own library.
LIVELINESS = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}
LIVELINESS |= {"tcp_user_timeout": 30_000}

_answered: set[int] = set()  # hashes of the options with which a server has answered this process
_waiting: set[int] = set()  # those of servers that some thread waits for


@event.listens_for(Engine, "do_connect")
def connect_patiently(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Connect to a database server; wait up to `WAIT` seconds for one that has answered before.

    SQLAlchemy calls this for every engine, those of MLflow and Optuna included. Nothing has been sent yet, so
    nothing can be done twice. A wrong name or password fails at once, as it has never worked.
    """
    if dialect.name not in ("postgresql", "mysql"):
        return None  # SQLAlchemy connects itself
    if dialect.driver.startswith("psycopg"):
        options = LIVELINESS | options
    server = hash(repr((arguments, options)))
    started = time.monotonic()
    while True:
        try:
            connection = dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.OperationalError as error:
            if server not in _answered or time.monotonic() - started > WAIT:
                _answered.discard(server)  # wait once only
                raise
            if server not in _waiting and time.monotonic() - started > QUIET:
                reason = str(error).strip().partition("\n")[0]
                print(f"the database does not answer ({reason}): waiting up to {WAIT:.0f} s", file=sys.stderr)
                _waiting.add(server)
            time.sleep(PAUSE)
        else:
            if server in _waiting:
                print("the database answers again", file=sys.stderr)
            _waiting.discard(server)
            _answered.add(server)
            return connection
