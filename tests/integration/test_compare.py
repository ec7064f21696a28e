"""Comparing snapshots with each other and with the live database, on real servers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    AccessDeniedError,
    DatabaseInUseError,
    NoDatabaseError,
    ParameterTypeError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
    UsageError,
)
from keikaku_snapshots.snapshots import compare_parts
from tests.integration import schemas
from tests.servers import as_role, connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.archive import Entry
    from keikaku_snapshots.snapshots.compare_rows import Blocks
    from keikaku_snapshots.snapshots.comparison import Comparison, TableDifference
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from tests.conftest import MakeDatabase
    from tests.servers import Server

STAFFS = """
CREATE TABLE staffs (id integer PRIMARY KEY, name text, note text);
INSERT INTO staffs VALUES (1, 'a', NULL), (2, 'b', ''), (3, 'c', E'tab\\there'), (10, 'd', E'back\\\\slash'),
                          (20, 'e', E'two\\nlines'), (30, 'f', E'\\\\N');
"""


@pytest.fixture
def manager(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager of an empty database."""
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as made:
        yield made


def _table(comparison: Comparison, name: str) -> TableDifference:
    return next(table for table in comparison.tables if table.name == name)


def _statuses(comparison: Comparison) -> dict[str, str]:
    return {table.name: table.status for table in comparison.tables if table.status != "same"}


@pytest.mark.parametrize("format_name", ["plain", "custom", "directory"])
def test_one_of_everything_is_the_same_and_each_damage_is_seen(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, format_name: str
) -> None:
    """B3: live against snapshot on every version; what was done to the database is what is told."""
    url = make_database(each_server)
    schemas.make_rich(each_server, url)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("rich", format=format_name)
        untouched = manager.compare_snapshots("rich", "live", rows=5)
        assert untouched.same, (untouched.schema, _statuses(untouched), untouched.sequences)
        assert sum(table.rows_before or 0 for table in untouched.tables) > 700
        manager.create_snapshot("twin", format="custom")
        assert manager.compare_snapshots("rich", "twin").same

        schemas.run(url, schemas.DAMAGE)
        damaged = manager.compare_snapshots("rich", "live", rows=3)

    assert not damaged.same
    assert damaged.schema == ()
    assert set(_statuses(damaged)) == {
        "office.audit", "office.event_notes", "office.events", "office.no_key", "office.staffs",
    }  # fmt: skip
    events = _table(damaged, "office.events")
    assert (events.rows_before, events.rows_after, events.removed) == (150, 100, 50)
    assert events.key == ("region", "id")
    assert [row.key for row in events.rows] == [{"region": "north", "id": str(i)} for i in (1, 2, 3)]
    staffs = _table(damaged, "office.staffs")
    assert (staffs.added, staffs.removed, staffs.changed) == (0, 0, 200)
    assert staffs.changed_columns == {"email": 200, "note": 150}
    assert [one.name for one in damaged.sequences] == [
        "office.audit_id_seq", "office.free_numbers", "office.staffs_id_seq",
    ]  # fmt: skip
    assert dataclasses.astuple(damaged.large_objects) == (1, 1, 1)


def test_rows_are_told_by_key_with_old_and_new_values(
    manager: SnapshotManager, database: DatabaseURL
) -> None:
    """Issue 3.5: added, removed, changed; NULL is not empty; escapes are read; numbers sort as numbers."""
    schemas.run(database, STAFFS)
    manager.create_snapshot("before")
    schemas.run(
        database,
        """
        UPDATE staffs SET note = '' WHERE id = 1; UPDATE staffs SET note = NULL, name = 'B' WHERE id = 2;
        UPDATE staffs SET note = E'other\\there' WHERE id = 3;
        DELETE FROM staffs WHERE id IN (10, 20); INSERT INTO staffs VALUES (9, E'new\\nrow\\\\', NULL);
        """,
    )

    comparison = manager.compare_snapshots("before", "live", rows=10)

    staffs = _table(comparison, "public.staffs")
    assert [(row.change, row.key["id"], row.old, row.new) for row in staffs.rows] == [
        ("changed", "1", {"note": None}, {"note": ""}),
        ("changed", "2", {"name": "b", "note": ""}, {"name": "B", "note": None}),
        ("changed", "3", {"note": "tab\there"}, {"note": "other\there"}),
        ("added", "9", None, {"id": "9", "name": "new\nrow\\", "note": None}),
        ("removed", "10", {"id": "10", "name": "d", "note": "back\\slash"}, None),
        ("removed", "20", {"id": "20", "name": "e", "note": "two\nlines"}, None),
    ]
    assert (staffs.added, staffs.removed, staffs.changed) == (1, 2, 3)
    other_way = _table(manager.compare_snapshots("live", "before"), "public.staffs")
    assert (other_way.added, other_way.removed, other_way.changed) == (2, 1, 3)
    assert (
        _table(manager.compare_snapshots("before", "live", rows=2), "public.staffs").rows == staffs.rows[:2]
    )


def test_values_are_given_only_when_asked_for(manager: SnapshotManager, database: DatabaseURL) -> None:
    """Rows are personal data: without rows=N there are counts and names of columns only."""
    schemas.run(database, STAFFS)
    manager.create_snapshot("before")
    schemas.run(database, "UPDATE staffs SET name = 'a secret name'")

    comparison = manager.compare_snapshots("before", "live")

    assert _table(comparison, "public.staffs").changed == 6
    assert "a secret name" not in str(comparison)


def test_a_snapshot_restored_elsewhere_in_another_time_zone_is_the_same(
    manager: SnapshotManager, server: Server, make_database: MakeDatabase, database: DatabaseURL
) -> None:
    """What a role or database prefers changes no text: zone, dates, intervals, bytea, floats."""
    schemas.run(
        database,
        f"""
        ALTER DATABASE "{database.database}" SET timezone = 'Asia/Tokyo';
        ALTER DATABASE "{database.database}" SET datestyle = 'German';
        ALTER DATABASE "{database.database}" SET intervalstyle = 'iso_8601';
        ALTER DATABASE "{database.database}" SET bytea_output = 'escape';
        ALTER DATABASE "{database.database}" SET extra_float_digits = 0;
        CREATE TABLE t (id timestamptz, d date, i interval, b bytea, f float8, r tstzrange);
        INSERT INTO t VALUES ('2024-02-29 12:00+09', '2024-02-29', '1 day 2 h', 'x\\001', 0.1::float8 * 3,
                              '[2024-01-01,2024-01-02)');
        """,
    )
    manager.create_snapshot("tokyo")
    assert manager.compare_snapshots("tokyo", "live").same
    other = make_database(server)
    with SnapshotManager(other, manager.directory, minimum_free_mb=1) as elsewhere:
        elsewhere.restore_snapshot("tokyo")
        assert elsewhere.compare_snapshots("tokyo", "live").same
        elsewhere.create_snapshot("elsewhere")
    assert manager.compare_snapshots("tokyo", "elsewhere").same


def test_the_schema_is_told_in_words_and_rows_by_the_common_columns(
    manager: SnapshotManager, database: DatabaseURL
) -> None:
    """Columns added, dropped and in another order; tables that are new or gone."""
    schemas.run(
        database, STAFFS + "CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone VALUES (1), (2);"
    )
    manager.create_snapshot("before")
    schemas.run(
        database,
        """
        CREATE TABLE staffs2 (note text, extra int DEFAULT 7, id integer, name text);
        INSERT INTO staffs2 (id, name, note) SELECT id, name, note FROM staffs;
        DROP TABLE staffs, gone; ALTER TABLE staffs2 RENAME TO staffs; ALTER TABLE staffs DROP COLUMN note;
        ALTER TABLE staffs ADD PRIMARY KEY (id); UPDATE staffs SET name = 'z' WHERE id = 30;
        CREATE TABLE come (id int); INSERT INTO come VALUES (1), (1), (2);
        """,
    )

    comparison = manager.compare_snapshots("before", "live", rows=9)

    assert _statuses(comparison) == {
        "public.come": "added", "public.gone": "removed", "public.staffs": "changed",
    }  # fmt: skip
    assert "new table public.come" in comparison.schema
    assert "table public.gone is gone" in comparison.schema
    assert any("new column extra" in line for line in comparison.schema)
    staffs = _table(comparison, "public.staffs")
    assert (staffs.columns_added, staffs.columns_removed) == (("extra",), ("note",))
    assert [(row.change, row.old, row.new) for row in staffs.rows] == [
        ("changed", {"name": "f"}, {"name": "z"})
    ]
    come, gone = _table(comparison, "public.come"), _table(comparison, "public.gone")
    assert (come.rows_before, come.rows_after, come.added, come.key) == (None, 3, 3, ())
    assert [(row.new, row.times) for row in come.rows] == [({"id": "1"}, 2), ({"id": "2"}, 1)]
    assert (gone.rows_before, gone.rows_after, gone.removed, gone.key) == (2, None, 2, ("id",))


def test_tables_without_a_key_compare_as_often_as_a_row_occurs(
    manager: SnapshotManager, database: DatabaseURL
) -> None:
    """A row that is there twice and then three times is one added row; unique NOT NULL columns are a key."""
    schemas.run(
        database,
        "CREATE TABLE bag (a int, b text); INSERT INTO bag VALUES (1, 'x'), (1, 'x'), (2, NULL), (3, 'y');"
        "CREATE TABLE named (v int, code text NOT NULL UNIQUE); INSERT INTO named VALUES (1, 'a'), (2, 'b');"
        "CREATE TABLE loose (v int, code text UNIQUE); INSERT INTO loose VALUES (1, NULL), (1, NULL);",
    )
    manager.create_snapshot("before")
    schemas.run(
        database,
        "INSERT INTO bag VALUES (1, 'x'), (1, 'x'), (2, ''); DELETE FROM bag WHERE a = 3;"
        "UPDATE named SET v = 3 WHERE code = 'a'; UPDATE loose SET v = 2;",
    )

    comparison = manager.compare_snapshots("before", "live", rows=9)

    bag = _table(comparison, "public.bag")
    assert (bag.added, bag.removed, bag.changed, bag.key) == (3, 1, 0, ())
    assert [(row.change, row.times, row.new or row.old) for row in bag.rows] == [
        ("added", 2, {"a": "1", "b": "x"}),
        ("added", 1, {"a": "2", "b": ""}),
        ("removed", 1, {"a": "3", "b": "y"}),
    ]
    assert _table(comparison, "public.named").rows[0].key == {"code": "a"}
    loose = _table(comparison, "public.loose")
    assert (loose.key, loose.added, loose.removed) == ((), 2, 2)


def test_rows_that_move_between_partitions_have_not_changed(
    manager: SnapshotManager, database: DatabaseURL
) -> None:
    """A partitioned table is one table: splitting its default partition changes the schema only."""
    schemas.run(
        database,
        "CREATE TABLE e (region text, id int, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);"
        "CREATE TABLE e_rest PARTITION OF e DEFAULT;"
        "INSERT INTO e SELECT r, i, 'v' FROM unnest(ARRAY['a', 'b']) r, generate_series(1, 20) i;",
    )
    manager.create_snapshot("before")
    schemas.run(
        database,
        "CREATE TABLE e_b (v text, id int NOT NULL, region text NOT NULL);"
        "INSERT INTO e_b (region, id, v) SELECT region, id, v FROM e WHERE region = 'b';"
        "DELETE FROM e WHERE region = 'b'; ALTER TABLE e ATTACH PARTITION e_b FOR VALUES IN ('b');",
    )

    comparison = manager.compare_snapshots("before", "live")

    assert _statuses(comparison) == {}
    assert "new table public.e_b" in comparison.schema
    assert not comparison.same


def test_names_versions_and_snapshots_name_a_side(manager: SnapshotManager, database: DatabaseURL) -> None:
    """A name is its newest valid version, name@version an exact one; anything else is an error."""
    schemas.run(database, STAFFS)
    old = manager.create_snapshot("app", version="first")
    schemas.run(database, "DELETE FROM staffs WHERE id = 1")
    new = manager.create_snapshot("app", version="second")

    for before, after in (("app@first", "app"), (old, new), ("app@first", "live")):
        comparison = manager.compare_snapshots(before, after)
        assert (comparison.before.version, comparison.after.name) in {
            ("first", "app"),
            ("first", database.database),
        }
        assert _table(comparison, "public.staffs").removed == 1
    assert manager.compare_snapshots("app", new).same
    with pytest.raises(SnapshotNotFoundError):
        manager.compare_snapshots("app", "missing")
    with pytest.raises(SnapshotNotFoundError):
        manager.compare_snapshots("app@third", "app")
    with pytest.raises(UsageError, match="both sides"):
        manager.compare_snapshots("live", "live")
    with pytest.raises(ParameterTypeError):
        manager.compare_snapshots("app", 7)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="negative"):
        manager.compare_snapshots("app", "live", rows=-1)
    with SnapshotManager(None, manager.directory) as files, pytest.raises(NoDatabaseError):
        files.compare_snapshots("app", "live")


def _size(path: Path) -> int:
    return path.stat().st_size


def test_equal_parts_of_directories_are_not_unpacked(
    manager: SnapshotManager, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B11: two snapshots that share most of their parts are compared by what they do not share."""
    schemas.run(
        database, STAFFS + "CREATE TABLE still (n int); INSERT INTO still SELECT generate_series(1, 7)"
    )
    for version in ("one", "two"):
        manager.create_snapshot("app", version=version, format="directory")
        schemas.run(database, "UPDATE staffs SET name = 'other' WHERE id = 1")
    read: list[str] = []

    def remembered(opened: OpenSnapshot, entry: Entry, name: str) -> Blocks:
        read.append(entry.tag)
        return part_rows(opened, entry, name)

    part_rows = compare_parts.part_rows
    monkeypatch.setattr(compare_parts, "part_rows", remembered)
    one, two = (manager.get_snapshot("app", version) for version in ("one", "two"))
    found = manager.compare_snapshots(one, two)

    assert read == ["staffs", "staffs"]
    assert {table.name: (table.rows_before, table.changed) for table in found.tables} == {
        "public.staffs": (found.tables[0].rows_before, 1),
        "public.still": (7, 0),
    }


@pytest.mark.parametrize("format_name", ["plain", "custom", "directory"])
def test_a_damaged_file_is_refused(manager: SnapshotManager, database: DatabaseURL, format_name: str) -> None:
    """B13: the checksum is compared first, on either side."""
    schemas.run(database, STAFFS)
    manager.create_snapshot("whole")
    snapshot = manager.create_snapshot("bad", format=format_name)
    damaged = max(snapshot.path.iterdir(), key=_size) if format_name == "directory" else snapshot.path
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.chmod(0o600)
    damaged.write_bytes(content)

    for sides in (("bad", "live"), ("whole", "bad")):
        with pytest.raises(SnapshotCorruptError):
            manager.compare_snapshots(*sides)


def test_rows_that_row_security_hides_are_an_error_not_a_difference(
    owner_database: DatabaseURL, server: Server, tmp_path: Path
) -> None:
    """FAULTS 18: a reader who sees only some rows is refused."""
    schemas.run(
        owner_database,
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);"
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id = 1);"
        "GRANT SELECT ON t TO keikaku_creator;",
    )
    with SnapshotManager(owner_database, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("t")
        assert manager.compare_snapshots("t", "live").same
    with (
        SnapshotManager(as_role(owner_database, "keikaku_creator"), tmp_path) as reader,
        pytest.raises(AccessDeniedError),
    ):
        reader.compare_snapshots("t", "live")


def test_snapshots_of_different_major_versions_compare_by_names_and_types(
    server: Server, each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Definitions are worded differently by each version; rows are not."""
    for place, name in ((each_server, "old"), (server, "new")):
        url = make_database(place)
        schemas.run(url, STAFFS + "CREATE VIEW named AS SELECT id FROM staffs;")
        with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
            manager.create_snapshot(name)

    comparison = SnapshotManager(None, tmp_path).compare_snapshots("old", "new")

    assert comparison.same


def test_large_tables_go_over_temporary_files_and_leave_none(
    manager: SnapshotManager, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is flat: what does not fit is spread by key, with the same result."""
    schemas.run(
        database,
        "CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT i, repeat('x', i % 50) "
        "FROM generate_series(1, 20000) i;",
    )
    manager.create_snapshot("before")
    schemas.run(
        database,
        "UPDATE big SET v = 'changed' WHERE id % 100 = 0; DELETE FROM big WHERE id % 1000 = 1;"
        "INSERT INTO big VALUES (30000, 'new');",
    )
    in_memory = _table(manager.compare_snapshots("before", "live", rows=50), "public.big")
    monkeypatch.setattr("keikaku_snapshots.snapshots.compare_rows.MEMORY_BYTES", 200_000)

    on_disk = _table(manager.compare_snapshots("before", "live", rows=50), "public.big")

    assert on_disk == in_memory
    assert (on_disk.added, on_disk.removed, on_disk.changed) == (1, 20, 200)
    left = {path.name for path in manager.directory.iterdir() if not path.name.startswith("before")}
    assert left <= {".locks", "audit.log"}


def test_a_session_that_alters_a_table_is_named(manager: SnapshotManager, database: DatabaseURL) -> None:
    """FAULTS 61: comparing waits a moment for the lock, then says who holds it."""
    schemas.run(database, STAFFS)
    manager.create_snapshot("before")
    with (
        SnapshotManager(database, manager.directory, lock_timeout_s=0.1) as hasty,
        connect(database) as other,
        other.transaction(),
    ):
        other.execute("ALTER TABLE staffs ADD COLUMN later integer")
        pid = other.info.backend_pid
        with pytest.raises(DatabaseInUseError) as caught:
            hasty.compare_snapshots("before", "live")

    assert f"pid {pid}," in caught.value.found
    assert "compare again" in caught.value.hint
