"""What becomes of runs whose process has died: resumed, taken back or left, as their settings say.

A run is dead when it is not over, gives no sign of life any more, and nobody
holds its lock; the server frees that lock with the session of the dead.
"""
# ruff: noqa: S608 - SQL is put together from constants of this package

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from keikaku_snapshots.errors import KeikakuError, LockBusyError
from keikaku_snapshots.patches import records, undo_clean
from keikaku_snapshots.patches.lease import APPLICATION, holder, key_of
from keikaku_snapshots.patches.records_schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import EngineSettings, OnCrash
    from keikaku_snapshots.postgres.connect import Connection

log = logging.getLogger("keikaku_snapshots.patches")

#: Runs that stopped on purpose wait for somebody to resume them.
_WAITING: Final = ["paused", "window_closed"]
#: Nothing was changed yet, so there is nothing to go on with or to take back.
_BEFORE_WORK: Final = frozenset({"pending", "validating"})
_SILENT: Final = f"""
SELECT e.execution_id FROM {SCHEMA}.execution e LEFT JOIN {SCHEMA}.heartbeat h USING (execution_id)
WHERE e.status IN ('pending', 'running') AND e.sub_state <> ALL (%s)
  AND greatest(h.beat_at, e.created_at) < clock_timestamp() - make_interval(secs => %s)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
                  WHERE starts_with(a.application_name, %s || e.execution_id::text))
ORDER BY e.created_at
"""


class Engine(Protocol):
    """What goes on with a run or takes it back."""

    def resume(self, execution_id: UUID | str) -> Execution:
        """Go on with a run."""

    def rollback(self, execution_id: UUID | str) -> Execution:
        """Take a run back."""


def find_dead(connection: Connection, lease_s: float) -> list[Execution]:
    """List runs whose process has died.

    Args:
        connection: In autocommit.
        lease_s: Seconds without a sign of life after which a run counts as dead.

    Returns:
        Runs, dry runs and rehearsals, oldest first.
    """
    if not records.has_schema(connection):
        return []
    silent = connection.execute(_SILENT, [_WAITING, lease_s, APPLICATION]).fetchall()
    found = [records.find(connection, row[0]) for row in silent]
    return [one for one in found if not _is_locked(connection, one)]


def _is_locked(connection: Connection, execution: Execution) -> bool:
    # A dry run disturbs nobody, so its lock is its own.
    what = (
        f"patch {execution.patch_name}" if execution.kind == "run" else f"execution {execution.execution_id}"
    )
    return holder(connection, key_of(what)) is not None


def reap(
    connection: Connection, engine: Engine, settings: EngineSettings, policy: Callable[[str], OnCrash]
) -> list[Execution]:
    """Resume, take back or leave every run whose process has died, and sweep what ended runs left.

    Two that reap at once do not harm each other: each run has one lock.

    Args:
        connection: In autocommit.
        engine: Does the work.
        settings: Lease, and retention of the undo.
        policy: Tells what is to be done with runs of a patch, by its name.

    Returns:
        The runs as they are afterwards; those that are left too.
    """
    reaped = []
    for execution in find_dead(connection, settings.lease_s):
        try:
            _reap(connection, engine, execution, policy(execution.patch_name))
        except LockBusyError:
            continue  # somebody else took it over in this moment
        except KeikakuError as error:
            # What it ended with is in its record; the next one must not wait for it.
            log.warning("execution %s was not brought to a good end: %s", execution.execution_id, error.what)
        reaped.append(records.find(connection, execution.execution_id))
    if records.has_schema(connection):
        undo_clean.sweep(connection, retention_days=settings.undo_retention_days)
    return reaped


def _reap(connection: Connection, engine: Engine, execution: Execution, policy: OnCrash) -> None:
    if execution.kind != "run" or (execution.sub_state in _BEFORE_WORK and execution.batch_number == 0):
        records.update(
            connection,
            execution.execution_id,
            lease_token=execution.lease_token,
            status="failed",
            sub_state="failed",
            completed_at=datetime.now(UTC),
            error_message="Its process died before it changed anything.",
        )
        undo_clean.disarm(connection, execution.execution_id)
    elif execution.sub_state == "rolling_back" or policy == "rollback":
        engine.rollback(execution.execution_id)
    elif policy == "resume":
        engine.resume(execution.execution_id)
