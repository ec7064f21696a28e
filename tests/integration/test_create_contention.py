"""A snapshot that is begun while another session has a table in its hands."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import LockBusyError
from keikaku_snapshots.postgres.connect import RetryPolicy
from keikaku_snapshots.snapshots import dump, rows
from tests.campaigns import bookstore
from tests.servers import connect
from tests.waiting import until_somebody_waits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from tests.campaigns.bookstore import Kind

#: The application fills its tables anew, as a restore in place does.
REFILL = "TRUNCATE stock, sales; INSERT INTO stock SELECT id, 100 FROM generate_series(1, 10) AS id"


@pytest.fixture
def refilled(database: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> DatabaseURL:
    """A shop that fills its tables anew when the first snapshot of its rows has just begun."""
    bookstore.run(database, bookstore.SCHEMA)
    for module, name in ((dump, "_export"), (rows, "begin_reading")):
        monkeypatch.setattr(module, name, _then_once(getattr(module, name), database))
    return database


def _then_once(original: Callable[..., Any], url: DatabaseURL) -> Callable[..., Any]:
    left = [REFILL]

    def call(*arguments: Any) -> Any:
        result = original(*arguments)
        if left:
            # `begin_reading` only sets things; it is the first look that fixes what is seen.
            arguments[0].execute("SELECT count(*) FROM pg_class")
            bookstore.run(url, left.pop())
        return result

    return call


def _create(url: DatabaseURL, directory: Path, kind: Kind, attempts: int) -> Snapshot:
    retry = RetryPolicy(attempts=attempts, wait_min_s=0.01, wait_max_s=0.02)
    manager = SnapshotManager(url, directory, minimum_free_mb=1, retry=retry)
    return manager.create_snapshot("app", **bookstore.options_of(kind))


@pytest.mark.parametrize("kind", bookstore.makeable(), ids=str)
def test_a_table_emptied_while_a_snapshot_begins_is_not_taken_for_empty(
    refilled: DatabaseURL, tmp_path: Path, kind: Kind
) -> None:
    """TRUNCATE is not MVCC-safe: who waited for it with an older snapshot sees no rows; it is read again."""
    made = _create(refilled, tmp_path, kind, attempts=2)
    assert made.row_counts["public.stock"] == 10
    bookstore.run(refilled, "UPDATE stock SET copies = 0")
    SnapshotManager(refilled, tmp_path, minimum_free_mb=1).restore_snapshot("app")
    assert bookstore.balance(refilled) == bookstore.BOOKS


@pytest.mark.parametrize("kind", [("plain", None), ("json", None)], ids=str)
def test_one_that_cannot_be_read_again_is_refused(refilled: DatabaseURL, tmp_path: Path, kind: Kind) -> None:
    """Nothing is published that would bring back an empty table."""
    with pytest.raises(LockBusyError, match="emptied or rewritten") as caught:
        _create(refilled, tmp_path, kind, attempts=1)
    assert caught.value.details["rewritten"] == ["public.sales", "public.stock"]
    assert SnapshotManager(None, tmp_path).list_snapshots() == []


@pytest.mark.parametrize("kind", [("plain", None), ("json", None)], ids=str)
def test_a_snapshot_waits_for_who_fills_a_table(database: DatabaseURL, tmp_path: Path, kind: Kind) -> None:
    """The same with the lock in between: the table is in another session's hands when all begins."""
    bookstore.run(database, bookstore.SCHEMA)
    with connect(database) as other, ThreadPoolExecutor(1) as beside:
        other.execute(f"BEGIN; {REFILL}")
        making = beside.submit(_create, database, tmp_path, kind, 2)
        until_somebody_waits(database)
        other.execute("COMMIT")
        assert making.result().row_counts["public.stock"] == 10


@pytest.mark.parametrize("kind", [("plain", None), ("directory", None), ("json", None)], ids=str)
def test_a_comparison_waits_for_who_fills_a_table(database: DatabaseURL, tmp_path: Path, kind: Kind) -> None:
    """The live side of a comparison is not taken for empty either."""
    bookstore.run(database, bookstore.SCHEMA + REFILL)
    manager = SnapshotManager(database, tmp_path, minimum_free_mb=1)
    manager.create_snapshot("app", **bookstore.options_of(kind))
    with connect(database) as other, ThreadPoolExecutor(1) as beside:
        other.execute(f"BEGIN; {REFILL}")
        comparing = beside.submit(manager.compare_snapshots, "app", "live")
        until_somebody_waits(database)
        other.execute("COMMIT")
        assert comparing.result().same
