"""Acceptance 31: a run begins only in an open window, and stops between two batches when it closes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from keikaku_snapshots.errors import WindowClosedError
from keikaku_snapshots.patches.definition import SqlPatch, data_patch
from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.settings import PatchSettings
from keikaku_snapshots.patches.windows import Window, Windows
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

TOKYO = ZoneInfo("Asia/Tokyo")
WINDOWS = Windows((Window(days=("sun", "wed"), start="02:00", end="04:00"),))
SUNDAY = datetime(2026, 11, 29, 2, 0, tzinfo=TOKYO)
CLOSED = SUNDAY + timedelta(hours=2)
WEDNESDAY = SUNDAY + timedelta(days=3)
ROWS, BATCH = 300, 100


@data_patch("count_up")
class CountUp(SqlPatch):
    """Add one to each quantity."""

    table = "public.stock"
    set = {"quantity": "quantity + 1"}  # noqa: RUF012 - a declaration


class Clock:
    """A clock that the test sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Tell what the test has set."""
        return self.now


@pytest.fixture
def connection(shared_database: DatabaseURL) -> Iterator[Connection]:
    """Three batches of rows."""
    with connect(shared_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE stock (id int PRIMARY KEY, quantity int NOT NULL)")
        connection.execute("INSERT INTO stock SELECT n, 0 FROM generate_series(1, %s) AS n", [ROWS])
        yield connection


def _executor(url: DatabaseURL, clock: Clock) -> DataPatchExecutor:
    return DataPatchExecutor(
        url,
        registry=DataPatchRegistry([CountUp], shipped=False, entry_points=False),
        settings={"count_up": PatchSettings(batch_size=BATCH, adaptive=False, require_dry_run=False)},
        windows=WINDOWS,
        clock=clock,
    )


def _changed(connection: Connection) -> list[int]:
    return [
        row[0] for row in connection.execute("SELECT count(*) FROM stock GROUP BY quantity ORDER BY quantity")
    ]


def test_nothing_begins_in_a_closed_window(shared_database: DatabaseURL, connection: Connection) -> None:
    """Refused with the next opening; no row is changed, no run is left running."""
    executor = _executor(shared_database, Clock(CLOSED))

    with pytest.raises(WindowClosedError, match="no maintenance window is open") as caught:
        executor.execute("count_up", dry_run=False)

    assert "Next: Wed 2026-12-02 02:00 JST" in caught.value.found
    assert _changed(connection) == [ROWS]
    (execution,) = executor.status()
    assert (execution.status, execution.processed_records) == ("failed", 0)


def test_a_reason_opens_every_window_and_is_recorded(
    shared_database: DatabaseURL, connection: Connection
) -> None:
    """`--outside-window REASON` runs to the end, also over the end of a window."""
    execution = _executor(shared_database, Clock(CLOSED)).execute(
        "count_up", dry_run=False, outside_window="incident 4711"
    )

    assert (execution.status, execution.outside_window_reason) == ("completed", "incident 4711")
    assert [row[0] for row in connection.execute("SELECT DISTINCT quantity FROM stock")] == [1]


def test_a_window_that_closes_in_mid_run_stops_it_between_two_batches(
    shared_database: DatabaseURL, connection: Connection
) -> None:
    """What is done stays, no lock is held; in the next window it goes on, and each row is changed once."""
    clock = Clock(SUNDAY)
    executor = _executor(shared_database, clock)

    def watch(execution: Execution) -> None:
        if execution.batch_number == 1:
            clock.now = CLOSED

    stopped = executor.execute("count_up", dry_run=False, progress=watch)

    assert (stopped.status, stopped.sub_state, stopped.batch_number) == ("running", "window_closed", 1)
    assert _changed(connection) == [ROWS - BATCH, BATCH]
    connection.execute("SET lock_timeout = '1s'; LOCK TABLE stock IN ACCESS EXCLUSIVE MODE")

    with pytest.raises(WindowClosedError, match="no maintenance window is open"):
        executor.resume(stopped.execution_id)
    clock.now = WEDNESDAY
    done = executor.resume(stopped.execution_id)

    assert (done.status, done.processed_records, done.batch_number) == ("completed", ROWS, 3)
    assert [row[0] for row in connection.execute("SELECT DISTINCT quantity FROM stock")] == [1]


def test_a_rollback_ignores_windows(shared_database: DatabaseURL, connection: Connection) -> None:
    """Taking back what went wrong cannot wait for Wednesday."""
    clock = Clock(SUNDAY)
    executor = _executor(shared_database, clock)
    done = executor.execute("count_up", dry_run=False)
    clock.now = CLOSED

    taken_back = executor.rollback(done.execution_id)

    assert taken_back.rollback_performed
    assert _changed(connection) == [ROWS]
