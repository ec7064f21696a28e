"""Waiting for a state of the server instead of for time to pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.servers import connect

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

_LIMIT_S = 20.0


def until_somebody_waits(url: DatabaseURL) -> None:
    """Return as soon as a session of this database waits for a lock."""
    deadline = time.monotonic() + _LIMIT_S
    with connect(url) as connection:
        while connection.execute(
            "SELECT NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE NOT l.granted AND d.datname = current_database()) AND NOT EXISTS (SELECT FROM "
            "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
        ).fetchone() == (True,):
            assert time.monotonic() < deadline, "nobody waits for a lock"
            time.sleep(0.01)
