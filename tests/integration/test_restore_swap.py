"""Restore by swap: built beside, verified, renamed; the live database is untouched until then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import RestoreFailedError, UnsafeRestoreError
from keikaku_snapshots.snapshots import load
from keikaku_snapshots.snapshots.analyze import AnalyzeBeside, analyze
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import psycopg

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.script import Part
    from tests.conftest import MakeDatabase
    from tests.servers import Server


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


def siblings(server: Server, url: DatabaseURL) -> list[str]:
    """Databases of ours that were made for this one."""
    with server.admin() as admin:
        rows = admin.execute(
            "SELECT datname::text FROM pg_database WHERE datname LIKE 'keikaku\\_%%' AND datname LIKE %s",
            [f"%{url.database}%"],
        ).fetchall()
    return [str(row[0]) for row in rows]


def wait_until_clean(server: Server, url: DatabaseURL) -> None:
    """The server drops the old database by itself; wait for it."""
    deadline = time.monotonic() + 20
    while siblings(server, url):
        assert time.monotonic() < deadline, siblings(server, url)
        time.sleep(0.02)


def test_auto_swaps_when_nobody_is_connected_and_leaves_nothing_behind(
    server: Server, small: SnapshotManager
) -> None:
    """Design, Swap: the server drops the old database without a process of ours."""
    restored = small.restore_snapshot("small")
    assert (restored.strategy, restored.warnings) == ("swap", ())
    assert restored.reason == "cold: a template was made for the next restore; nobody else is connected"
    assert schemas.rows_of(small.url, "SELECT count(*) FROM children") == [(500,)]
    wait_until_clean(server, small.url)


def test_every_table_has_statistics_after_a_swap(database: DatabaseURL, tmp_path: Path) -> None:
    """C2: gathered while the rest is loaded; what is defined after the rows is looked at again."""
    schemas.run(
        database,
        """
        CREATE SCHEMA "Odd ""one";
        CREATE TABLE "Odd ""one"."a b" (id int PRIMARY KEY, word text);
        CREATE TABLE worded (id int PRIMARY KEY, word text, other text);
        CREATE TABLE measured (at int, value int) PARTITION BY RANGE (at);
        CREATE TABLE measured_1 PARTITION OF measured FOR VALUES FROM (0) TO (500);
        CREATE TABLE measured_2 PARTITION OF measured FOR VALUES FROM (500) TO (1000);
        CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent);
        INSERT INTO "Odd ""one"."a b" SELECT i, 'w' || i FROM generate_series(1, 300) i;
        INSERT INTO worded SELECT i, 'w' || i, 'W' || i FROM generate_series(1, 300) i;
        INSERT INTO measured SELECT i, i FROM generate_series(0, 999) i;
        INSERT INTO parent SELECT generate_series(1, 100); INSERT INTO child SELECT generate_series(1, 100);
        CREATE INDEX worded_lower ON worded (lower(word));
        CREATE STATISTICS worded_both (dependencies) ON word, other FROM worded;
        """,
    )
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        manager.restore_snapshot("small", strategy="swap")
    looked_at = (
        "SELECT DISTINCT tablename::text, inherited FROM pg_stats WHERE schemaname = ANY(%s) ORDER BY 1, 2"
    )
    with connect(database) as connection:
        assert connection.execute(looked_at, [["public", 'Odd "one']]).fetchall() == [
            ("a b", False),
            ("child", False),
            ("measured", True),
            ("measured_1", False),
            ("measured_2", False),
            ("parent", False),
            ("parent", True),
            ("worded", False),
            ("worded_lower", False),
        ]
        assert connection.execute("SELECT count(*) FROM pg_stats_ext").fetchone() == (1,)
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            " AND reltuples < 1"
        ).fetchone() == (0,)


def test_a_restore_whose_statistics_cannot_be_gathered_beside_gathers_them_at_the_end(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2: the second connection is for speed only."""
    gathered = []

    def see(connection: psycopg.Connection[tuple[object, ...]], done: Collection[int]) -> None:
        gathered.append(list(done))
        analyze(connection, done)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("keikaku_snapshots.snapshots.build_beside.analyze", see)
    small.restore_snapshot("small", strategy="swap")
    assert gathered[0], "tables were done beside the load"
    monkeypatch.setattr(AnalyzeBeside, "_analyze", fail)
    small.restore_snapshot("small", strategy="swap")
    assert gathered[1] == []
    assert schemas.rows_of(small.url, "SELECT count(DISTINCT tablename) > 0 FROM pg_stats"
                           " WHERE schemaname = 'public'") == [(True,)]  # fmt: skip


def test_settings_grants_and_comment_of_the_database_survive(server: Server, small: SnapshotManager) -> None:
    """FAULTS 63, B17: a swap keeps owner, settings, grants, connection limit and comment."""
    name = small.url.database
    with server.admin() as admin:
        for statement in (
            f"ALTER DATABASE {name} SET work_mem = '5MB'",
            f"ALTER ROLE keikaku_owner IN DATABASE {name} SET search_path = 'a b', public",
            f"ALTER DATABASE {name} CONNECTION LIMIT 17",
            f"COMMENT ON DATABASE {name} IS '検証用'",
            f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {name} TO keikaku_owner",
        ):
            admin.execute(statement)
        query = """
            SELECT datdba, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), datconnlimit,
                   shobj_description(oid, 'pg_database'),
                   (SELECT array_agg(setrole || array_to_string(setconfig, ',') ORDER BY setrole)
                    FROM pg_db_role_setting WHERE setdatabase = d.oid)
            FROM pg_database d WHERE datname = %s
        """
        before = admin.execute(query, [name]).fetchone()
        small.restore_snapshot("small", strategy="swap")
        assert admin.execute(query, [name]).fetchone() == before


def test_a_swap_that_was_asked_for_ends_sessions_and_disconnect_lets_auto_do_it(
    small: SnapshotManager,
) -> None:
    """`--disconnect` allows the fast way."""
    for options in ({"strategy": "swap"}, {"disconnect": True}):
        with connect(small.url) as session:
            restored = small.restore_snapshot("small", **options)
            assert restored.strategy == "swap"
            with pytest.raises(Exception, match=r"terminat|closed"):
                session.execute("SELECT 1")


def test_a_session_that_comes_in_while_the_new_database_is_built_is_not_disconnected(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design, Swap: `auto` gives way to in_place."""
    sessions = []

    def come_in(connection: psycopg.Connection[tuple[object, ...]], done: Collection[int]) -> None:
        analyze(connection, done)
        sessions.append(connect(small.url))

    monkeypatch.setattr("keikaku_snapshots.snapshots.build_beside.analyze", come_in)
    restored = small.restore_snapshot("small")
    assert restored.strategy == "in_place"
    assert "connected while" in restored.reason
    assert sessions[0].execute("SELECT count(*) FROM children").fetchone() == (500,)
    sessions[0].close()


def test_a_replication_slot_or_prepared_transaction_is_not_lost(
    server: Server, small: SnapshotManager
) -> None:
    """FAULTS 101: looked for first; `auto` stays in place, `swap` is refused with the reason."""
    with connect(small.url) as session:
        session.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [f"slot_{small.url.database}"]
        )
    with pytest.raises(UnsafeRestoreError, match="slot_"):
        small.restore_snapshot("small", strategy="swap")
    restored = small.restore_snapshot("small")
    assert restored.strategy == "in_place"
    assert "slot" in restored.reason
    with server.admin() as admin:
        admin.execute("SELECT pg_drop_replication_slot(%s)", [f"slot_{small.url.database}"])


def test_an_error_in_the_middle_of_the_load_changes_nothing(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEERS 1, 4, FAULTS 4, 51: the scratch database goes, the live one is as it was, its sessions go on."""
    before = schemas.dump_text(server, small.url)
    copy = load.Loader._copy

    def cut(self: load.Loader, cursor: psycopg.Cursor[object], part: Part) -> None:
        copy(self, cursor, part)
        with server.admin() as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [self._connection.info.backend_pid])

    with connect(small.url) as session:
        monkeypatch.setattr(load.Loader, "_copy", cut)
        with pytest.raises(RestoreFailedError) as caught:
            small.restore_snapshot("small", strategy="swap")
        assert "復元に失敗" in str(caught.value)
        assert session.execute("SELECT count(*) FROM children").fetchone() == (300,)
    assert schemas.dump_text(server, small.url) == before
    wait_until_clean(server, small.url)


def test_wrong_counts_never_go_live(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design, Valid files: row counts are compared before the change goes live."""
    before = schemas.dump_text(server, small.url)
    copy = load.Loader._copy

    def lose(self: load.Loader, cursor: psycopg.Cursor[object], part: Part) -> None:
        copy(self, cursor, part)
        if b"children" in self._script.text(part):
            cursor.execute("DELETE FROM public.children WHERE id = 5")

    monkeypatch.setattr(load.Loader, "_copy", lose)
    for strategy in ("swap", "in_place"):
        with pytest.raises(RestoreFailedError, match=r"public\.children: 500 in the snapshot, 499 restored"):
            small.restore_snapshot("small", strategy=strategy)
    assert schemas.dump_text(server, small.url) == before


def test_a_replaced_database_is_kept_as_long_as_asked(server: Server, small: SnapshotManager) -> None:
    """keep_old_minutes: the way back is a rename."""
    with SnapshotManager(small.url, small.directory, keep_old_minutes=5, minimum_free_mb=1) as manager:
        restored = manager.restore_snapshot("small", strategy="swap")
    (kept,) = siblings(server, small.url)
    assert any(kept in warning for warning in restored.warnings)
    with server.admin(kept) as old:
        assert old.execute("SELECT count(*) FROM children").fetchone() == (300,)


def test_a_role_without_createdb_restores_in_place_and_is_told_why(
    owner_database: DatabaseURL, tmp_path: Path
) -> None:
    """A plain owner gets the same result by the other way."""
    schemas.run(owner_database, SMALL)
    with SnapshotManager(owner_database, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        schemas.run(owner_database, CHANGED)
        restored = manager.restore_snapshot("small")
        assert restored.strategy == "in_place"
        assert "may not create" in restored.reason
        assert schemas.rows_of(owner_database, "SELECT count(*) FROM children") == [(500,)]
        with pytest.raises(UnsafeRestoreError, match="CREATEDB"):
            manager.restore_snapshot("small", strategy="swap")


def test_roles_that_are_missing_or_out_of_reach_are_named_and_nobody_is_locked_out(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B17, FAULTS 70: owners and grants come back where they can; the application's role keeps its access."""
    source = make_database(server)
    gone = f"gone_{source.database}"
    with server.admin() as admin:
        admin.execute(f"CREATE ROLE {gone}")
    schemas.run(
        source,
        f"{SMALL} ALTER TABLE parents OWNER TO keikaku_owner; ALTER TABLE children OWNER TO {gone};"
        f"GRANT SELECT ON parents TO {gone}, keikaku_creator",
    )
    with SnapshotManager(source, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        manager.create_snapshot("parts", format="directory")
    schemas.run(source, f"DROP OWNED BY {gone}")
    with server.admin() as admin:
        admin.execute(f"DROP ROLE {gone}")
    for name, strategy in (("small", "swap"), ("small", "in_place"), ("parts", "swap")):
        target = make_database(server, "keikaku_creator")
        with SnapshotManager(target, tmp_path, minimum_free_mb=1) as manager:
            restored = manager.restore_snapshot(name, strategy=strategy, jobs=2)
        text = "\n".join(restored.warnings)
        assert f"role {gone} (does not exist here)" in text
        assert "role keikaku_owner" in text
        assert schemas.rows_of(
            target,
            "SELECT has_table_privilege('keikaku_owner', 'parents', 'INSERT'),"
            " pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'parents'",
        ) == [(True, "keikaku_creator")]


_KILLED = """
import os, signal, sys
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.snapshots import load
url, directory, strategy, at = sys.argv[1:]
run, count = load.Loader._copy, 0
def die(self, cursor, part):
    global count
    count += 1
    if count == int(at):
        cursor.execute("SELECT 1")
        with cursor.copy(self._script.text(part)) as copy:
            copy.write(self._script.buffer[part.data_start:part.data_end - 3])
            os.kill(os.getpid(), signal.SIGKILL)
    run(self, cursor, part)
load.Loader._copy = die
SnapshotManager(url, directory, minimum_free_mb=1).restore_snapshot("small", strategy=strategy)
"""


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_kill_9_of_this_process_in_the_middle_of_copy_changes_nothing(
    server: Server, small: SnapshotManager, strategy: str
) -> None:
    """FAULTS 2, 44: psql on a pipe committed 631 of 1000 rows here; the next command clears up."""
    before = schemas.dump_text(server, small.url)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, small.url.text, str(small.directory), strategy, "2"],
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert schemas.dump_text(server, small.url) == before
    restored = small.restore_snapshot("small", strategy="swap")
    assert restored.strategy == "swap"
    wait_until_clean(server, small.url)
