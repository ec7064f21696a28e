"""What became of a transaction whose COMMIT was sent and not answered (FAULTS 17)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection

#: Seconds to wait until the server has noticed that a connection is gone.
_WAIT_S: Final = 5.0


def transaction_outcome(connection: Connection, transaction: str) -> str:
    """Ask the server what became of a transaction, waiting while it is at work on it.

    Args:
        connection: Another session of the same server, in autocommit.
        transaction: What ``pg_current_xact_id()`` said inside.

    Returns:
        ``committed``, ``aborted``, ``in progress`` when it still is after five
        seconds, or nothing when the server has forgotten it.

    Raises:
        psycopg.Error: The server cannot be asked, or never had it (after a crash).
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        row = connection.execute("SELECT pg_catalog.pg_xact_status(%s::xid8)", [transaction]).fetchone()
        status = str(row[0] or "") if row else ""
        if status != "in progress" or time.monotonic() > deadline:
            return status
        time.sleep(0.05)
