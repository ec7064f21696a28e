"""What cron or systemd starts every few minutes for data patches: one pass over all there is to do.

In this order: runs whose process has died are reaped; inside a maintenance window, runs that the end of the
last one stopped go on, and scheduled ones start; messages are delivered; what is older than its retention
goes. One worker at a time does this for a database; another one that comes meanwhile only delivers messages.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import psycopg

from keikaku_snapshots.errors import (
    ConnectError,
    KeikakuError,
    LockBusyError,
    PatchFailedError,
    PatchRollbackError,
    WindowClosedError,
)
from keikaku_snapshots.patches import records, schedule
from keikaku_snapshots.patches.parameters import HIDDEN
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.postgres.connect import connect, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

    from keikaku_snapshots.config_patches import PatchConfiguration
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.schedule import Claim
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

_log = logging.getLogger("keikaku_snapshots.patches")
#: Key of the advisory lock of the one worker of a database.
_WORKER_LOCK: Final = 0x6B65696B_776F726B
#: Signals end a process with 128 and their number; that of SIGTERM is 15.
_STOPPED_EXIT_CODE: Final = 143


class Engine(Protocol):
    """What a worker needs of `DataPatchExecutor`."""

    def execute(
        self,
        name: str,
        dry_run: bool = True,
        params: Mapping[str, Any] | None = None,
        actor: str | None = None,
        *,
        again: bool = False,
    ) -> Execution:
        """Run a patch, or tell what it would do."""

    def rehearse(
        self, name: str, params: Mapping[str, Any] | None = None, actor: str | None = None
    ) -> Execution:
        """Run some batches and roll them back."""

    def resume(self, execution_id: UUID | str, *, params: Mapping[str, Any] | None = None) -> Execution:
        """Go on with a run."""

    def reap(self) -> list[Execution]:
        """Resume, take back or leave the runs whose process has died."""

    def request_stop(self) -> None:
        """Stop after the present batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """What a worker does beside running patches; each returns how much it did."""

    #: Deliver the messages that are due.
    deliver: Callable[[], int] = field(default=lambda: 0)
    #: Drop audit lines and undo that are older than their retention.
    purge: Callable[[], int] = field(default=lambda: 0)


@dataclass(slots=True)
class Worked:
    """What one pass did."""

    #: False when another worker was at work, so that only messages were delivered.
    is_alone: bool = True
    #: True when it was asked to stop before it was through.
    is_stopped: bool = False
    #: Runs whose process had died, as they are now.
    reaped: list[Execution] = field(default_factory=list)
    #: Runs that went on, as they are now.
    resumed: list[Execution] = field(default_factory=list)
    #: Scheduled runs, as they are now, by entry.
    started: dict[str, Execution] = field(default_factory=dict)
    #: Why something was put off to a later pass, in lines; no failure.
    waiting: list[str] = field(default_factory=list)
    #: Messages that were delivered.
    delivered: int = 0
    #: Audit lines and undo tables that were dropped.
    purged: int = 0
    #: What failed, by what was being done.
    failures: dict[str, KeikakuError] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0; that of the first failure; 143 when it was stopped."""
        for error in self.failures.values():
            return error.exit_code
        return _STOPPED_EXIT_CODE if self.is_stopped else 0


class PatchWorker:
    """One worker for one database.

    Args:
        url: The database.
        configuration: Windows, schedule and settings of the patches, with their registry.
        engine: Runs patches; it has the same windows.
        duties: What else is to be done.
        clock: The time.
    """

    def __init__(
        self,
        url: DatabaseURL,
        configuration: PatchConfiguration,
        engine: Engine,
        duties: Duties | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._url = url
        self._configuration = configuration
        self._engine = engine
        self._duties = duties or Duties()
        self._clock = clock
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Stop after the present batch; the run is paused then. Safe in a signal handler."""
        self._stop.set()
        self._engine.request_stop()

    def run_once(self) -> Worked:
        """Do once all that is to be done; a step that fails does not keep the others from being done.

        Returns:
            What was done, and what failed.

        Raises:
            ConnectError: The database cannot be reached.
        """
        worked = Worked()
        with connect(self._url, autocommit=True, application_name="keikaku patch worker") as connection:
            with translated(self._url, "looking for data patches to run"):
                if not self._configuration.schedule and not records.has_schema(connection):
                    return worked  # nothing was ever run here, and nothing is to be
                records.ensure_schema(connection)
                worked.is_alone = _locked(connection)
            if worked.is_alone:
                self._work(connection, worked)
        with self._failing(worked, "delivering messages"):
            worked.delivered = self._duties.deliver()
        worked.is_stopped = self._stop.is_set()
        return worked

    def _work(self, connection: Connection, worked: Worked) -> None:
        with self._failing(worked, "looking for runs whose process has died"):
            worked.reaped.extend(self._engine.reap())
        worked.failures |= self._failed_runs(worked.reaped)
        for execution in self._stopped_runs(connection, worked):
            if not self._may_go_on(worked, f"{execution.patch_name} {execution.execution_id}"):
                break
            self._resume(execution, worked)
        for entry in self._configuration.schedule:
            if self._stop.is_set():
                break
            with self._failing(worked, f"schedule {entry.name}"):
                self._run_entry(connection, entry, worked)
        with self._failing(worked, "dropping what is older than its retention"):
            worked.purged = self._duties.purge()

    def _failed_runs(self, reaped: list[Execution]) -> dict[str, KeikakuError]:
        """What of the dead could not be brought to the end that its patch wants."""
        failures: dict[str, KeikakuError] = {}
        for execution in reaped:
            wanted = self._configuration.settings_of(execution.patch_name).on_crash
            is_torn = execution.sub_state in {"rolling_back", "rolled_back_with_conflicts"}
            has_failed = execution.status == "failed" and wanted == "resume" and execution.batch_number > 0
            if execution.kind == "run" and (is_torn or has_failed):
                kind = PatchRollbackError if is_torn else PatchFailedError
                number = execution.execution_id
                failures[f"reaping {execution.patch_name} {number}"] = kind(
                    f"data patch {execution.patch_name}, whose process had died, has failed",
                    found=f"{execution.error_message}\nExecution: {number}, {execution.sub_state}",
                )
        return failures

    def _may_go_on(self, worked: Worked, what: str) -> bool:
        if self._stop.is_set():
            return False
        now = self._clock()
        if self._configuration.windows.is_open(now):
            return True
        opens = self._configuration.windows.next_open(now)
        worked.waiting.append(f"{what}: no window is open; next: {opens.isoformat() if opens else 'never'}")
        return False

    @contextlib.contextmanager
    def _failing(self, worked: Worked, what: str) -> Iterator[None]:
        """Remember an error, so that the other steps are still done."""
        try:
            with translated(self._url, what):
                yield
        except (LockBusyError, WindowClosedError) as error:
            # Somebody does it by hand, or the window has just closed: a later pass will do it.
            worked.waiting.append(f"{what}: {error.what}")
        except KeikakuError as error:
            _log.warning("%s failed: %s", what, error.headline)
            worked.failures[what] = error

    def _stopped_runs(self, connection: Connection, worked: Worked) -> list[Execution]:
        """Runs that are to go on: stopped by a window or a signal, not by an operator's request."""
        found: list[Execution] = []
        with self._failing(worked, "looking for runs that were stopped"):
            rows = connection.execute(_STOPPED).fetchall()
            found.extend(records.find(connection, row[0]) for row in rows)
        return found

    def _resume(self, execution: Execution, worked: Worked) -> None:
        entry = next((one for one in self._configuration.schedule if one.actor == execution.actor), None)
        # Secrets are not among the records; those of a scheduled run are in the configuration.
        given = entry.parameters if entry else {}
        hidden = {name for name, value in execution.parameters.items() if value == HIDDEN}
        secrets = {name: value for name, value in given.items() if name in hidden}
        with self._failing(worked, f"resuming {execution.patch_name} {execution.execution_id}"):
            worked.resumed.append(self._engine.resume(execution.execution_id, params=secrets))

    def _run_entry(self, connection: Connection, entry: schedule.ScheduleEntry, worked: Worked) -> None:
        now = self._clock()
        if not schedule.is_due(connection, entry, now) or not self._may_go_on(
            worked, f"schedule {entry.name}"
        ):
            return
        claim = schedule.claim(connection, entry, now)
        if claim is None:
            return
        try:
            execution = self._execute(connection, claim)
        except (LockBusyError, WindowClosedError) as error:
            schedule.release(connection, claim, error.what)
            raise
        except ConnectError:
            raise  # the records will tell the next pass whether it began
        except KeikakuError as error:
            schedule.settle(connection, claim, f"failed: {error.what}")
            raise
        else:
            schedule.settle(
                connection, claim, f"{execution.status}, {execution.sub_state}", execution.execution_id
            )
            worked.started[entry.name] = execution

    def _execute(self, connection: Connection, claim: Claim) -> Execution:
        entry = claim.entry
        if self._configuration.settings_of(entry.patch).require_dry_run:
            self._dry_run(entry)
        # Asked on the connection that holds the worker's lock: lost, it is an error, and nothing is run.
        if not schedule.still_holds(connection, claim):
            raise LockBusyError(f"another worker has taken over the schedule {entry.name!r}")
        return self._engine.execute(
            entry.patch, dry_run=False, params=entry.parameters, actor=entry.actor, again=True
        )

    def _dry_run(self, entry: schedule.ScheduleEntry) -> None:
        """Make the dry run that the patch needs: of this night's data, right before the run."""
        from keikaku_snapshots.patches.definition import StepPatch

        registry = self._configuration.registry
        if registry is not None and isinstance(registry.find(entry.patch), StepPatch):
            self._engine.rehearse(entry.patch, params=entry.parameters, actor=entry.actor)
        else:
            self._engine.execute(entry.patch, dry_run=True, params=entry.parameters, actor=entry.actor)


# An operator's pause holds until an operator resumes: it was asked for after the last batch had begun.
_STOPPED: Final = f"""
SELECT execution_id FROM {SCHEMA}.execution AS e
WHERE kind = 'run' AND status = 'running' AND (
  sub_state = 'window_closed' OR (sub_state = 'paused' AND NOT EXISTS (
    SELECT FROM {SCHEMA}.control AS c
    WHERE c.execution_id = e.execution_id AND c.request = 'pause' AND c.requested_at >= coalesce(
      (SELECT max(b.started_at) FROM {SCHEMA}.batch_log AS b WHERE b.execution_id = e.execution_id),
      e.created_at))))
ORDER BY created_at, execution_id
"""  # noqa: S608 - the name of our own schema


def _locked(connection: Connection) -> bool:
    """Become the one worker of the database, as long as the connection lives."""
    try:
        row = connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", [_WORKER_LOCK]).fetchone()
    except psycopg.errors.LockNotAvailable:
        return False
    return bool(row and row[0])


def duties_of(
    url: DatabaseURL,
    configuration: PatchConfiguration,
) -> Duties:
    """Return what a worker does beside running patches, as configured.

    Args:
        url: The database.
        configuration: Channels, audit log and retentions.

    Returns:
        Delivery of messages, and the purge of audit lines and of undo.
    """

    def deliver() -> int:
        from keikaku_snapshots.patches.notify import Sender

        return Sender(url, configuration.notify).deliver_due().sent

    def purge() -> int:
        from keikaku_snapshots.patches.audit import AuditLog
        from keikaku_snapshots.patches.undo_clean import sweep

        with AuditLog(url, configuration.audit) as audit:
            lines = audit.purge()
        with connect(url, autocommit=True) as connection:
            swept = sweep(connection, retention_days=configuration.engine.undo_retention_days)
        return lines + len(swept.dropped)

    return Duties(deliver=deliver, purge=purge)
