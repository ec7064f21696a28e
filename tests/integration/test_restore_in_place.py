"""Restore in place: one transaction, all or nothing, nobody disconnected."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    DatabaseInUseError,
    RestoreFailedError,
    SnapshotCorruptError,
    UnsafeRestoreError,
)
from keikaku_snapshots.snapshots import in_place, load
from tests.integration import schemas
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.script import Part
    from tests.conftest import FreshServer, MakeDatabase
    from tests.servers import Server

SMALL = """
CREATE TABLE parents (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE children (id serial PRIMARY KEY, parent_id int NOT NULL REFERENCES parents, mood text);
INSERT INTO parents (name) SELECT 'p' || i FROM generate_series(1, 50) AS i;
INSERT INTO children (parent_id, mood) SELECT 1 + i % 50, 'm' || i FROM generate_series(1, 500) AS i;
"""
CHANGED = """
DELETE FROM children WHERE id > 300; UPDATE parents SET name = name || 'x'; SELECT nextval('parents_id_seq');
"""


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1, lock_timeout_s=0.3) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


def test_an_idle_session_stays_connected_and_its_prepared_statements_work(small: SnapshotManager) -> None:
    """In place: replacing rows keeps clients' plans; `auto` chooses it while somebody is connected."""
    with connect(small.url) as session:
        query = "SELECT p FROM parents p WHERE id = 1"
        for _ in range(10):
            session.execute(query, prepare=True)
        restored = small.restore_snapshot("small")
        assert restored.strategy == "in_place"
        assert "--disconnect" in restored.reason
        assert "1 other session is connected" in restored.reason
        assert session.execute(query, prepare=True).fetchone() == ("(1,p1)",)
        assert session.execute("SELECT count(*) FROM children").fetchone() == (500,)


def test_a_session_that_holds_a_table_is_named(server: Server, small: SnapshotManager) -> None:
    """FAULTS 6, 60: the dump's own lock_timeout = 0 does not count; who is in the way is said."""
    before = schemas.dump_text(server, small.url)
    with psycopg.connect(small.url.text, application_name="the_app") as session:
        session.execute("SELECT count(*) FROM children")
        begun = time.monotonic()
        with pytest.raises(DatabaseInUseError) as caught:
            small.restore_snapshot("small")
        assert time.monotonic() - begun < 3
        assert f"pid {session.info.backend_pid}, user postgres, application the_app" in str(caught.value)
        assert "idle in transaction" in str(caught.value)
        assert "--disconnect" in str(caught.value)
        assert caught.value.exit_code == 11
    assert schemas.dump_text(server, small.url) == before


def test_no_oid_changes_when_only_rows_are_replaced(small: SnapshotManager) -> None:
    """Design, In place: tables, types and functions stay the same objects."""
    query = "SELECT oid, relname FROM pg_class WHERE relname IN ('parents', 'children') ORDER BY 2"
    before = schemas.rows_of(small.url, query)
    small.restore_snapshot("small", strategy="in_place")
    assert schemas.rows_of(small.url, query) == before
    assert schemas.rows_of(small.url, "SELECT last_value FROM parents_id_seq") == [(50,)]


@pytest.mark.parametrize("format_name", ["plain", "custom"])
@pytest.mark.parametrize("schema_change", ["", "CREATE TABLE newer (id int)"], ids=["rows", "full"])
def test_an_error_at_the_end_leaves_everything_as_it_was(
    server: Server,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format_name: str,
    schema_change: str,
) -> None:
    """PEERS 1, FAULTS 4, 5, 100: large objects, sequences and rows alike, though the dump has a COMMIT."""
    url = make_database(server)
    schemas.make_rich(server, url)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("rich", format=format_name)
        schemas.run(url, schemas.DAMAGE + schema_change)
        before = schemas.dump_text(server, url)

        def refuse(*_: object) -> None:
            raise RestoreFailedError("counted wrong")

        monkeypatch.setattr(in_place, "compare_counts", refuse)
        monkeypatch.setattr("keikaku_snapshots.snapshots.rows_in_place.compare_counts", refuse)
        with pytest.raises(RestoreFailedError, match="counted wrong"):
            manager.restore_snapshot("rich", strategy="in_place")
        assert schemas.dump_text(server, url) == before


def test_every_step_that_fails_leaves_everything_as_it_was(
    server: Server, make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 51, 61: the session is ended at the nth statement of the script, for many n."""
    url = make_database(server)
    schemas.make_rich(server, url)
    run_part = load.Loader._statement
    count = 0

    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("rich")
        schemas.run(url, schemas.DAMAGE + "CREATE TABLE newer (id int)")
        before = schemas.dump_text(server, url)
        for stop_at in (0, 1, 15, 40, 80, 120):
            count = 0

            def fail(
                self: load.Loader, cursor: psycopg.Cursor[object], text: bytes, stop_at: int = stop_at
            ) -> None:
                nonlocal count
                if count == stop_at:
                    with server.admin() as admin:
                        admin.execute(
                            "SELECT pg_terminate_backend(%s, 5000)", [self._connection.info.backend_pid]
                        )
                count += 1
                run_part(self, cursor, text)

            monkeypatch.setattr(load.Loader, "_statement", fail)
            with pytest.raises(RestoreFailedError) as caught:
                manager.restore_snapshot("rich", strategy="in_place", on_schema_mismatch="ignore")
            assert "復元に失敗" in str(caught.value)
            assert schemas.dump_text(server, url) == before


def test_a_broken_constraint_is_named_and_its_key_stays_out_of_the_text(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2: table and constraint are in the text, the key is in a field."""
    before = schemas.dump_text(server, small.url)
    copy = load.Loader._copy

    def orphan(self: load.Loader, cursor: psycopg.Cursor[object], part: Part) -> None:
        copy(self, cursor, part)
        if b"children" in self._script.text(part):
            cursor.execute("INSERT INTO public.children (id, parent_id) VALUES (7000, 4711)")
            cursor.execute("DELETE FROM public.children WHERE id = 1")

    monkeypatch.setattr(load.Loader, "_copy", orphan)
    with pytest.raises(RestoreFailedError) as caught:
        small.restore_snapshot("small", strategy="in_place")
    text = str(caught.value)
    assert "children_parent_id_fkey" in text
    assert "children" in text
    assert "4711" not in text
    assert "4711" in caught.value.details["key"]
    assert schemas.dump_text(server, small.url) == before


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_a_cut_file_is_refused_at_any_offset(server: Server, small: SnapshotManager, strategy: str) -> None:
    """PEERS 3, FAULTS 1, 7, B13: also when size and checksum in the manifest were made to fit."""
    import dataclasses
    import hashlib

    before = schemas.dump_text(server, small.url)
    snapshot = small.get_snapshot("small")
    whole = snapshot.path.read_bytes()
    assert snapshot.manifest is not None
    offsets = [0, 1, 100, *range(300, len(whole) - 1, max(1, len(whole) // 20)), len(whole) - 1]
    for offset in offsets:
        cut = whole[:offset]
        snapshot.path.write_bytes(cut)
        fitted = dataclasses.replace(
            snapshot.manifest, size_bytes=len(cut), sha256=hashlib.sha256(cut).hexdigest()
        )
        snapshot.manifest_path.write_bytes(fitted.to_json())
        with pytest.raises(SnapshotCorruptError):
            small.restore_snapshot("small", snapshot.version, strategy=strategy)
    assert schemas.dump_text(server, small.url) == before


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_a_changed_byte_is_found_before_the_database_is_touched(
    server: Server, small: SnapshotManager, strategy: str
) -> None:
    """FAULTS 7: psql would take it."""
    before = schemas.dump_text(server, small.url)
    path = small.get_snapshot("small").path
    content = bytearray(path.read_bytes())
    place = content.index(b"\tm17\n")
    content[place + 1] = ord("M")
    path.write_bytes(content)
    with pytest.raises(SnapshotCorruptError, match="changed after it was made"):
        small.restore_snapshot("small", strategy=strategy)
    assert schemas.dump_text(server, small.url) == before


@pytest.mark.parametrize(
    "foreign",
    [
        b"\\connect postgres\n",
        b"COMMIT AND CHAIN;\n",
        b"ROLLBACK;\n",
        b"\\! touch /tmp/never\n",
        b"DO $$ BEGIN END $$;\n",
        b"CREATE DATABASE other;\n",
    ],
)
@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_what_pg_dump_never_writes_is_refused(
    server: Server, small: SnapshotManager, foreign: bytes, strategy: str
) -> None:
    """FAULTS 12, 13, 15, 16, 23: even when a manifest vouches for it."""
    import dataclasses
    import hashlib

    before = schemas.dump_text(server, small.url)
    snapshot = small.get_snapshot("small")
    assert snapshot.manifest is not None
    content = snapshot.path.read_bytes().replace(
        b"SET client_min_messages", foreign + b"SET client_min_messages"
    )
    snapshot.path.write_bytes(content)
    fitted = dataclasses.replace(
        snapshot.manifest, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    snapshot.manifest_path.write_bytes(fitted.to_json())
    with pytest.raises(SnapshotCorruptError, match="pg_dump"):
        small.restore_snapshot("small", strategy=strategy)
    assert schemas.dump_text(server, small.url) == before


def test_tables_of_another_owner_are_named_and_refused(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Design, In place: the owner of the database may not drop or fill another role's table."""
    url = make_database(server, "keikaku_owner")
    schemas.run(url, SMALL)
    with server.admin(url.database) as admin:
        admin.execute("CREATE TABLE foreigner (id int); GRANT ALL ON foreigner TO keikaku_owner")
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        before = schemas.dump_text(server, url)
        with pytest.raises(UnsafeRestoreError, match=r"table public\.foreigner of postgres"):
            manager.restore_snapshot("small")
        assert schemas.dump_text(server, url) == before


def test_too_many_tables_for_one_transaction_are_refused_beforehand(
    fresh_server: FreshServer, tmp_path: Path
) -> None:
    """Design, In place: the server's own "out of shared memory" would come half-way."""
    server = fresh_server(
        18, max_connections="12", max_locks_per_transaction="10", max_prepared_transactions="0"
    )
    with server.admin() as admin:
        admin.execute("CREATE DATABASE crowded")
    url = server.url.with_database("crowded")
    schemas.run(url, "".join(f"CREATE TABLE t{i} (id serial PRIMARY KEY, v text UNIQUE);" for i in range(15)))
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("crowded")
        schemas.run(
            url, "".join(f"CREATE TABLE u{i} (id serial PRIMARY KEY, v text UNIQUE);" for i in range(15))
        )
        with pytest.raises(UnsafeRestoreError, match="max_locks_per_transaction"):
            manager.restore_snapshot("crowded", strategy="in_place")
        assert manager.restore_snapshot("crowded", strategy="swap").strategy == "swap"
        assert schemas.rows_of(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(15,)]


def test_two_restores_of_one_database_do_not_meet(small: SnapshotManager, tmp_path: Path) -> None:
    """FAULTS 58, 59: the advisory lock of the maintenance database lets one wait for the other."""
    errors: list[BaseException] = []

    def restore(strategy: str) -> None:
        try:
            with SnapshotManager(
                small.url, small.directory, minimum_free_mb=1, lock_wait_s=30, lock_timeout_s=10
            ) as manager:
                manager.restore_snapshot("small", strategy=strategy)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    threads = [
        threading.Thread(target=restore, args=[way]) for way in ("in_place", "swap", "in_place", "swap")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert schemas.rows_of(small.url, "SELECT count(*) FROM children") == [(500,)]
