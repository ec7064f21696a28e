"""Waiting for a state of the server instead of for time to pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.postgres.url import DatabaseURL

_LIMIT_S = 20.0


def until_somebody_waits(url: DatabaseURL, sessions: int = 1) -> None:
    """Return as soon as so many sessions of this database wait for a lock."""
    deadline = time.monotonic() + _LIMIT_S
    with connect(url) as connection:
        while True:
            row = connection.execute(
                "SELECT count(DISTINCT pid) FROM (SELECT l.pid FROM pg_locks l "
                "JOIN pg_database d ON d.oid = l.database "
                "WHERE NOT l.granted AND d.datname = current_database() UNION ALL SELECT pid FROM "
                "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock') waiting"
            ).fetchone()
            if row is not None and int(str(row[0])) >= sessions:
                return
            assert time.monotonic() < deadline, "nobody waits for a lock"
            time.sleep(0.01)


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as a condition holds."""
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
