"""Comparing compressed snapshots, and test data with test data or with the live test rows."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    AccessDeniedError,
    DiskFullError,
    JSONCorruptError,
    SnapshotCorruptError,
    UsageError,
)
from keikaku_snapshots.snapshots import compare_test_rows
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from tests.integration import schemas
from tests.integration.test_rows import TYPE_SCHEMA, TYPES
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.comparison import Comparison

STAFFS = r"""
CREATE TABLE staffs
    (id integer PRIMARY KEY, is_test_data boolean NOT NULL, name text, flag boolean, doc jsonb);
INSERT INTO staffs VALUES (1, true, E'tab\there', true, '{"a": [1, null]}'),
                          (2, true, E'two\nlines', NULL, '"x"'),
                          (3, true, E'back\\slash \\N', false, NULL), (4, true, NULL, NULL, 'null'),
                          (90, false, 'real', true, '1');
CREATE TABLE nothing (id integer PRIMARY KEY, is_test_data boolean NOT NULL);
CREATE TABLE others (id integer PRIMARY KEY); INSERT INTO others VALUES (1);
"""
CHANGE = """
UPDATE staffs SET name = 'new', flag = false WHERE id = 1; DELETE FROM staffs WHERE id = 2;
INSERT INTO staffs VALUES (5, true, 'five', NULL, NULL), (91, false, 'also real', NULL, NULL);
UPDATE staffs SET name = 'changed' WHERE id = 90; INSERT INTO others VALUES (2);
"""


@pytest.fixture
def manager(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager of a database with test rows and others."""
    schemas.run(database, STAFFS)
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as made:
        yield made


def _rows(manager: SnapshotManager, name: str, **options: Any) -> Any:
    return manager.create_snapshot(name, format="json", scope="test_data", **options)


def _told(comparison: Comparison) -> dict[str, tuple[str, int, int, int]]:
    return {
        table.name: (table.status, table.added, table.removed, table.changed) for table in comparison.tables
    }


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_test_rows_are_compared_with_the_live_ones(manager: SnapshotManager, compression: str | None) -> None:
    """B3: rows of the scope only, by key, with old and new values."""
    _rows(manager, "rows", compression=compression)
    untouched = manager.compare_snapshots("rows", "live")
    assert untouched.same, _told(untouched)
    assert sorted(_told(untouched)) == ["public.nothing", "public.staffs"]
    schemas.run(manager.url, CHANGE)
    changed = manager.compare_snapshots("rows", "live", rows=10)
    assert _told(changed)["public.staffs"] == ("changed", 1, 1, 1)
    staffs = next(table for table in changed.tables if table.name == "public.staffs")
    assert (staffs.rows_before, staffs.rows_after, staffs.key) == (4, 4, ("id",))
    by_id = {row.key["id"]: row for row in staffs.rows}
    assert by_id["1"].old == {"name": "tab\there", "flag": "true"}
    assert by_id["1"].new == {"name": "new", "flag": "false"}
    assert (by_id["2"].change, by_id["5"].change) == ("removed", "added")
    _rows(manager, "later", compression="gzip")
    assert _told(manager.compare_snapshots("rows", "later")) == _told(changed)
    assert _told(manager.compare_snapshots("live", "later"))["public.staffs"] == ("same", 0, 0, 0)


def test_a_value_of_every_type_equals_itself(manager: SnapshotManager) -> None:
    """What stands in the JSON and what the server says is the same text for every type."""
    # The wheel's servers are built without libxml.
    columns = [kind for kind in TYPES if kind != "xml"]
    definitions = ", ".join(f"c{number} {kind}" for number, kind in enumerate(columns))
    schemas.run(
        manager.url,
        f"{TYPE_SCHEMA};"
        f"CREATE TABLE everything (id integer PRIMARY KEY, is_test_data boolean, {definitions})",
    )
    with connect(manager.url) as connection:
        for row in range(max(map(len, TYPES.values()))):
            values = [TYPES[kind][row] if row < len(TYPES[kind]) else None for kind in columns]
            holders = ", ".join(f"%s::{kind}" for kind in columns)
            connection.execute(f"INSERT INTO everything VALUES (%s, true, {holders})", [row, *values])
        for setting in ("DateStyle = 'SQL, DMY'", "bytea_output = 'escape'", "TimeZone = 'Asia/Kolkata'"):
            connection.execute(f'ALTER DATABASE "{manager.url.database}" SET {setting}')
    _rows(manager, "rows")
    found = manager.compare_snapshots("rows", "live", rows=10)
    assert found.same, [table.rows for table in found.tables]
    schemas.run(manager.url, "UPDATE everything SET c0 = c0")
    assert manager.compare_snapshots("live", "rows").same


def test_what_is_not_of_one_kind_is_refused(manager: SnapshotManager) -> None:
    """A side of test data and one of everything have no common rows; nor have different rules."""
    _rows(manager, "rows")
    manager.create_snapshot("all")
    with pytest.raises(UsageError, match="whole database") as caught:
        manager.compare_snapshots("rows", "all")
    assert "rows" in caught.value.found
    _rows(manager, "chosen", predicates={"public.others": "id > 0"})
    with pytest.raises(UsageError, match="different rules"):
        manager.compare_snapshots("rows", "chosen")
    assert "public.others" in _told(manager.compare_snapshots("chosen", "live"))


def test_a_damaged_json_file_and_a_full_disk_are_told(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B13, FAULTS 9: before any row is compared."""
    made = _rows(manager, "rows", compression="gzip")
    monkeypatch.setattr(compare_test_rows, "_WATCH_BYTES", 0)
    with monkeypatch.context() as patched:
        patched.setattr(ReserveWatcher, "__call__", lambda _: "only 1 MB are free")
        with pytest.raises(DiskFullError, match="only 1 MB are free") as caught:
            manager.compare_snapshots("rows", "live")
        assert "TMPDIR" in caught.value.hint  # another --snapshot-dir would not help
        assert "TMPDIR" in caught.value.hint_ja
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", "/nowhere")
        with pytest.raises(AccessDeniedError, match="TMPDIR"):
            manager.compare_snapshots("rows", "live")
    content = made.path.read_bytes()
    made.path.write_bytes(content[:50] + b"\0" + content[51:])
    with pytest.raises(JSONCorruptError):
        manager.compare_snapshots("rows", "live")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_snapshot_is_compared_as_its_text_is(manager: SnapshotManager, compression: str) -> None:
    """B3, B5: with another form of the same state, and with the database."""
    made = manager.create_snapshot("packed", compression=compression)
    manager.create_snapshot("custom", format="custom")
    assert manager.compare_snapshots("packed", "custom").same
    assert manager.compare_snapshots("packed", "live").same
    schemas.run(manager.url, CHANGE)
    found = _told(manager.compare_snapshots("packed", "live"))
    assert found == {
        "public.staffs": ("changed", 2, 1, 2),
        "public.others": ("changed", 1, 0, 0),
        "public.nothing": ("same", 0, 0, 0),
    }
    content = made.path.read_bytes()
    made.path.write_bytes(content[:100] + b"\0" + content[101:])
    with pytest.raises(SnapshotCorruptError):
        manager.compare_snapshots("packed", "live")
