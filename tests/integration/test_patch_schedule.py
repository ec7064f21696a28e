"""Who may start a scheduled run: one worker, once, also when workers die."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from keikaku_snapshots.patches import records, schedule
from keikaku_snapshots.patches.schedule import ScheduleEntry
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

ENTRY = ScheduleEntry(name="nightly", patch="expire", cron="0 2 * * *", time_zone="UTC")
#: Later than the clock of this machine, since the times of claims are the server's.
SEEN = datetime(2026, 11, 28, 12, tzinfo=UTC)
DUE = datetime(2026, 11, 29, 2, tzinfo=UTC)
NOW = DUE + timedelta(minutes=5)


@pytest.fixture
def connection(shared_database: DatabaseURL) -> Iterator[Connection]:
    """A database in which the entry has been seen, and is not due yet."""
    with connect(shared_database, autocommit=True) as connection:
        records.ensure_schema(connection)
        assert schedule.claim(connection, ENTRY, SEEN) is None
        yield connection


def _begin(connection: Connection, kind: str = "run", actor: str = ENTRY.actor) -> None:
    records.insert(
        connection,
        {
            "execution_id": uuid4(),
            "patch_name": ENTRY.patch,
            "kind": kind,
            "status": "pending",
            "sub_state": "pending",
            "dry_run": kind == "dry_run",
            "actor": actor,
        },
    )


def test_a_new_entry_is_not_due_for_the_past(connection: Connection) -> None:
    """Whoever adds an entry at noon does not want the run of last night."""
    new = ScheduleEntry(name="new", patch="expire", cron="* * * * *", time_zone="UTC")

    assert schedule.claim(connection, new, NOW) is None
    assert schedule.claim(connection, new, NOW + timedelta(minutes=1)) is not None


def test_what_is_due_is_claimed_once(connection: Connection) -> None:
    """Looking at it changes nothing; after it was settled it is not due before its next time."""
    assert schedule.is_due(connection, ENTRY, NOW)
    claim = schedule.claim(connection, ENTRY, NOW)
    assert claim is not None
    assert claim.due_at == DUE
    schedule.settle(connection, claim, "completed", uuid4())

    assert not schedule.is_due(connection, ENTRY, DUE + timedelta(hours=23))
    assert schedule.is_due(connection, ENTRY, DUE + timedelta(hours=24))


def test_missed_times_make_one_run(connection: Connection) -> None:
    """The machine was off for a week."""
    claim = schedule.claim(connection, ENTRY, NOW + timedelta(days=7))

    assert claim is not None
    assert claim.due_at == DUE + timedelta(days=7)
    schedule.settle(connection, claim, "completed")
    assert schedule.claim(connection, ENTRY, NOW + timedelta(days=7)) is None


def test_a_claim_of_a_worker_that_died_goes_to_the_next_one(connection: Connection) -> None:
    """Nothing was recorded, or only its dry run: the run did not begin."""
    dead = schedule.claim(connection, ENTRY, NOW)
    assert dead is not None
    _begin(connection, kind="dry_run")
    _begin(connection, actor="somebody else")

    claim = schedule.claim(connection, ENTRY, NOW)

    assert claim is not None
    assert claim.due_at == dead.due_at
    assert not schedule.still_holds(connection, dead)
    assert schedule.still_holds(connection, claim)


def test_a_run_that_was_recorded_is_not_started_again(connection: Connection) -> None:
    """The worker died after it had begun: that run is for `reap`."""
    assert schedule.claim(connection, ENTRY, NOW) is not None
    _begin(connection)

    assert schedule.claim(connection, ENTRY, NOW) is None


def test_a_run_that_died_before_it_changed_anything_is_begun_again(connection: Connection) -> None:
    """`reap` has ended it as failed; the night's work was not done."""
    assert schedule.claim(connection, ENTRY, NOW) is not None
    _begin(connection)
    connection.execute("UPDATE keikaku_patches.execution SET status = 'failed', sub_state = 'failed'")

    assert schedule.claim(connection, ENTRY, NOW) is not None


def test_who_comes_late_settles_nothing(connection: Connection) -> None:
    """A worker that lost its claim cannot say what became of that of another one."""
    late = schedule.claim(connection, ENTRY, NOW)
    claim = schedule.claim(connection, ENTRY, NOW)
    assert late is not None
    assert claim is not None

    schedule.settle(connection, late, "completed")
    schedule.release(connection, late, "busy")

    assert schedule.still_holds(connection, claim)


def test_a_claim_that_was_given_back_is_due_again(connection: Connection) -> None:
    """Somebody ran the patch by hand meanwhile; the refused run is among the records."""
    claim = schedule.claim(connection, ENTRY, NOW)
    assert claim is not None
    _begin(connection)
    schedule.release(connection, claim, "busy")

    again = schedule.claim(connection, ENTRY, NOW + timedelta(minutes=5))

    assert again is not None
    assert again.due_at == claim.due_at


def test_other_times_begin_anew(connection: Connection) -> None:
    """Whoever changes the times at noon does not want a run for what they would have been last night."""
    changed = ScheduleEntry(name="nightly", patch="expire", cron="0 3 * * *", time_zone="UTC")
    noon = NOW + timedelta(hours=10)

    assert not schedule.is_due(connection, changed, noon)
    assert schedule.is_due(connection, changed, noon + timedelta(days=1))


def test_of_many_workers_one_gets_it(shared_database: DatabaseURL, connection: Connection) -> None:
    """Each claims and settles as fast as it can; the runs are as many as the times."""
    del connection

    def work(_number: int) -> list[datetime]:
        got = []
        with connect(shared_database, autocommit=True) as own:
            for hours in range(0, 24 * 20, 8):
                # As the worker does it: the claims of one database are made under one lock.
                with own.transaction():
                    own.execute("SELECT pg_advisory_xact_lock(7)")
                    claim = schedule.claim(own, ENTRY, NOW + timedelta(hours=hours))
                    if claim is not None:
                        schedule.settle(own, claim, "completed")
                        got.append(claim.due_at)
        return got

    with ThreadPoolExecutor(4) as pool:
        found = sorted(due for got in pool.map(work, range(4)) for due in got)

    assert found == sorted(set(found))
    assert found[-1] == DUE + timedelta(days=19)


def test_the_plan_tells_the_last_and_the_next_run(connection: Connection) -> None:
    """For `keikaku patch worker` and for people who wonder."""
    claim = schedule.claim(connection, ENTRY, NOW)
    assert claim is not None
    schedule.settle(connection, claim, "completed, done")

    (line,) = schedule.plan(connection, (ENTRY,), NOW)
    (future,) = schedule.plan(None, (ENTRY,), NOW)

    assert (line["last_due"], line["outcome"]) == (DUE, "completed, done")
    assert line["next"] == future["next"] == DUE + timedelta(days=1)
