"""Scheduled runs: when an entry is due, and who may start it. The clock is an argument.

An entry is due when one of its times has come since the last one that was dealt with. Times that were missed
(the machine was off, no window was open) make one run, not one each. On nights of changed clocks cronsim does
as Debian's cron does: what would fall into the gap runs right after it, what would come twice runs once.

An entry that is seen for the first time, or whose times were changed, is not due for what lies in the past.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keikaku_snapshots.errors import ConfigurationError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.windows import DEFAULT_TIME_ZONE, find_zone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from keikaku_snapshots.postgres.connect import Connection

_FIELDS: Final = 5
_TABLE: Final = sql.Identifier(SCHEMA, "schedule")
_EXECUTIONS: Final = sql.Identifier(SCHEMA, "execution")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """A run that the worker starts by itself."""

    #: Its name; its last run is remembered by it.
    name: str
    #: Name of the patch.
    patch: str
    #: Minute, hour, day of the month, month, day of the week, as in a crontab.
    cron: str
    #: Time zone of these.
    time_zone: str = DEFAULT_TIME_ZONE
    #: Values for the patch's parameters.
    parameters: dict[str, object] = field(default_factory=dict, hash=False)

    @property
    def actor(self) -> str:
        """Who its runs are run by; from this a worker knows whether a run that it was to start began."""
        return f"schedule {self.name}"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to start one run of an entry."""

    #: The entry.
    entry: ScheduleEntry
    #: The time for which it runs.
    due_at: datetime
    #: When it was taken, by the clock of the server.
    claimed_at: datetime


def cron_problem(cron: str) -> str:
    """Say what is wrong with the times of an entry.

    Args:
        cron: Five fields.

    Returns:
        A sentence; empty when nothing is.
    """
    from cronsim import CronSim, CronSimError

    if len(cron.split()) != _FIELDS:
        return f"must be five fields such as '0 2 * * sun', got {cron!r}"
    try:
        CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC))
    except (CronSimError, AssertionError, ValueError) as error:
        return f"must be five fields such as '0 2 * * sun', got {cron!r}: {str(error) or 'not understood'}"
    return ""


def times(entry: ScheduleEntry, after: datetime) -> Iterator[datetime]:
    """Name the times of an entry.

    Args:
        entry: The entry.
        after: Aware time; only later ones are named.

    Yields:
        Aware times in UTC, in their order; none when it has none in the next decades.

    Raises:
        ConfigurationError: Its times or its time zone are wrong.
    """
    from cronsim import CronSim

    problem = cron_problem(entry.cron)
    if problem:
        raise ConfigurationError(f"the times of the schedule {entry.name!r} are wrong", found=problem)
    zone = find_zone(entry.time_zone)
    for moment in CronSim(entry.cron, after.astimezone(zone)):
        in_utc = moment.astimezone(UTC)
        if in_utc > after:
            yield in_utc


def last_due(entry: ScheduleEntry, since: datetime, now: datetime) -> datetime | None:
    """Tell for which time an entry is due.

    Args:
        entry: The entry.
        since: Times up to this one were dealt with.
        now: Aware time.

    Returns:
        The latest of its times after ``since`` and not after ``now``; None when there is none.
    """
    due = None
    # From the last day on first: an entry of every minute has a million times in two years.
    for start in (now - timedelta(days=1), now - timedelta(days=40), since):
        for moment in times(entry, max(start, since)):
            if moment > now:
                break
            due = moment
        if due is not None or start <= since:
            break
    return due


def is_due(connection: Connection, entry: ScheduleEntry, now: datetime) -> bool:
    """Tell whether something of an entry is to be started; the entry is remembered if it is new.

    Args:
        connection: In autocommit, to a database with the schema of records.
        entry: The entry.
        now: Aware time.

    Returns:
        True when `claim` would give it to somebody.
    """
    with connection.transaction():
        return _due_at(connection, entry, now) is not None


def claim(connection: Connection, entry: ScheduleEntry, now: datetime) -> Claim | None:
    """Take the right to start what is due of an entry; of several workers one gets it.

    A worker that died after it had taken it, and before the run was recorded, leaves it to the next one.

    Args:
        connection: In autocommit, to a database with the schema of records; it holds the worker's lock.
        entry: The entry.
        now: Aware time.

    Returns:
        What to run; None when nothing is due.
    """
    with connection.transaction():
        due = _due_at(connection, entry, now)
        if due is None:
            return None
        taken = connection.execute(
            sql.SQL(
                "UPDATE {} SET handled_until = greatest(handled_until, %s), due_at = %s,"
                " claimed_at = pg_catalog.clock_timestamp(), is_begun = false, outcome = '',"
                " execution_id = NULL WHERE entry = %s RETURNING claimed_at"
            ).format(_TABLE),
            [due, due, entry.name],
        ).fetchone()
    assert taken is not None
    return Claim(entry, due, taken[0])


def _due_at(connection: Connection, entry: ScheduleEntry, now: datetime) -> datetime | None:
    """For which time an entry is to be started, if for any; its row is locked from here on."""
    row = connection.execute(
        sql.SQL(
            "INSERT INTO {} AS s (entry, patch_name, cron, time_zone, handled_until)"
            " VALUES (%(entry)s, %(patch)s, %(cron)s, %(zone)s, %(now)s)"
            " ON CONFLICT (entry) DO UPDATE SET patch_name = excluded.patch_name,"
            " cron = excluded.cron, time_zone = excluded.time_zone,"
            " handled_until = CASE WHEN (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone)"
            " THEN s.handled_until ELSE excluded.handled_until END"
            " RETURNING handled_until, due_at, claimed_at, is_begun"
        ).format(_TABLE),
        {"entry": entry.name, "patch": entry.patch, "cron": entry.cron, "zone": entry.time_zone, "now": now},
    ).fetchone()
    assert row is not None
    handled_until, due_at, claimed_at, is_begun = row
    due = last_due(entry, handled_until, now)
    if due is None and not is_begun and not _has_begun(connection, entry, claimed_at):
        return due_at  # type: ignore[no-any-return]  # taken by a worker that died, or given back
    return due


def still_holds(connection: Connection, claim: Claim) -> bool:
    """Tell whether nobody else has taken the run in the meantime.

    Args:
        connection: In autocommit; the one that holds the worker's lock, so that a lost lock is seen.
        claim: What was taken.

    Returns:
        True when it may be started.
    """
    row = connection.execute(
        sql.SQL("SELECT claimed_at = %s AND NOT is_begun FROM {} WHERE entry = %s").format(_TABLE),
        [claim.claimed_at, claim.entry.name],
    ).fetchone()
    return row is not None and bool(row[0])


def _has_begun(connection: Connection, entry: ScheduleEntry, claimed_at: datetime) -> bool:
    """Tell whether the run that was to be started is among the records, and not as one that did nothing."""
    row = connection.execute(
        sql.SQL(
            "SELECT true FROM {} WHERE patch_name = %s AND kind = 'run' AND actor = %s AND created_at >= %s"
            " AND NOT (status = 'failed' AND sub_state = 'failed' AND batch_number = 0) LIMIT 1"
        ).format(_EXECUTIONS),
        [entry.patch, entry.actor, claimed_at],
    ).fetchone()
    return row is not None


def settle(connection: Connection, claim: Claim, outcome: str, execution_id: UUID | None = None) -> None:
    """Remember what became of a claim; no other worker starts it again.

    Args:
        connection: In autocommit.
        claim: What was taken.
        outcome: A line.
        execution_id: The run, if there is one.
    """
    connection.execute(
        sql.SQL(
            "UPDATE {} SET is_begun = true, outcome = %s, execution_id = %s"
            " WHERE entry = %s AND claimed_at = %s"
        ).format(_TABLE),
        [outcome, execution_id, claim.entry.name, claim.claimed_at],
    )


def release(connection: Connection, claim: Claim, outcome: str) -> None:
    """Give a claim back, because its run could not be started now; the next worker tries again.

    Args:
        connection: In autocommit.
        claim: What was taken.
        outcome: Why, in a line.
    """
    connection.execute(
        sql.SQL(
            "UPDATE {} SET claimed_at = pg_catalog.clock_timestamp(), outcome = %s"
            " WHERE entry = %s AND claimed_at = %s"
        ).format(_TABLE),
        [outcome, claim.entry.name, claim.claimed_at],
    )


def plan(
    connection: Connection | None, entries: tuple[ScheduleEntry, ...], now: datetime
) -> list[dict[str, Any]]:
    """Say of each entry when it ran last and when it runs next.

    Args:
        connection: A database with the schema of records; None shows the future only.
        entries: The entries.
        now: Aware time.

    Returns:
        For each: ``entry``, ``patch``, ``cron``, ``time_zone``, ``next``, ``last_due``, ``outcome``,
        ``execution_id``.
    """
    known: dict[str, Any] = {}
    if connection is not None:
        query = sql.SQL("SELECT entry, due_at, outcome, execution_id FROM {}").format(_TABLE)
        known = {row[0]: row[1:] for row in connection.execute(query)}
    found = []
    for entry in entries:
        due_at, outcome, execution_id = known.get(entry.name, (None, "", None))
        found.append(
            {
                "entry": entry.name,
                "patch": entry.patch,
                "cron": entry.cron,
                "time_zone": entry.time_zone,
                "next": next(times(entry, now), None),
                "last_due": due_at,
                "outcome": outcome,
                "execution_id": execution_id,
            }
        )
    return found
