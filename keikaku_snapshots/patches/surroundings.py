"""What all runs of an executor share."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keikaku_snapshots.patches.lease import APPLICATION
from keikaku_snapshots.patches.settings import EngineSettings
from keikaku_snapshots.postgres.connect import RetryPolicy, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.patches.ports import Audit, Backup, Notify, Undo
    from keikaku_snapshots.patches.windows import Windows
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The database, and the parts around the engine."""

    #: The database.
    url: DatabaseURL
    #: What all runs share.
    engine: EngineSettings = field(default_factory=EngineSettings)
    #: Capture and rollback.
    undo: Undo
    #: Dumps the target tables; None when nobody can.
    backup: Backup | None = None
    #: Writes a line of the audit log; None for none.
    audit: Audit | None = None
    #: Puts a message into the outbox; None for none.
    notify: Notify | None = None
    #: Maintenance windows; None when a run may begin at any time.
    windows: Windows | None = None
    #: The time.
    clock: Callable[[], datetime] = utc_now
    #: How long a lost server is waited for.
    reconnect: RetryPolicy = field(
        default_factory=lambda: RetryPolicy(attempts=8, wait_min_s=0.25, wait_max_s=8)
    )

    def connect(self, purpose: str, *, patient: bool = False) -> Connection:
        """Open a connection in autocommit whose texts of keys are the same in every session.

        Args:
            purpose: What the session is called behind our name.
            patient: Whether a server that is not there is waited for, as after a restart.
        """
        connection = connect(
            self.url,
            autocommit=True,
            application_name=f"{APPLICATION}{purpose}"[:63],
            statement_timeout_s=0,
            lock_timeout_s=0,
            row_security=False,
            retry=self.reconnect if patient else None,
        )
        connection.execute(
            "SELECT set_config('datestyle', 'ISO, MDY', false),"
            " set_config('intervalstyle', 'postgres', false),"
            " set_config('extra_float_digits', '1', false), set_config('bytea_output', 'hex', false),"
            " set_config('lc_monetary', 'C', false)"
        )
        return connection
