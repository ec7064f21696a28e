"""What happens to a checkpoint: changes of the schema, dumps, restores, crashes, other processes."""

# ruff: noqa: E501 - SQL reads better in long lines

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    AccessDeniedError,
    DatabaseInUseError,
    RefusedError,
    SchemaDriftError,
    UnsafeRestoreError,
)
from tests.integration.test_rewind import SHOP, run, state
from tests.servers import as_role, connect
from tests.waiting import until_somebody_waits

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import FreshServer, MakeDatabase
    from tests.servers import Server

RICH = (
    SHOP
    + """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE days (day date, mood mood, PRIMARY KEY (day)) PARTITION BY RANGE (day);
CREATE TABLE day1 PARTITION OF days FOR VALUES FROM ('2025-01-01') TO ('2025-02-01');
INSERT INTO days VALUES ('2025-01-02', 'sad');
CREATE INDEX by_email ON staffs (email);
ALTER TABLE staffs ADD CONSTRAINT mail CHECK (email <> 'bad') NOT VALID;
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""
)
#: What somebody may do to the schema; each is work that must succeed, and that a rewind must notice.
DDL = {
    "rename column": "ALTER TABLE staffs RENAME email TO mail; UPDATE staffs SET mail = 'x'; DELETE FROM staffs WHERE id = 1",
    "add column": "ALTER TABLE staffs ADD phone text; INSERT INTO staffs (phone) VALUES ('1'); UPDATE staffs SET phone = '2'",
    "drop column": "ALTER TABLE staffs DROP email; UPDATE staffs SET office_id = NULL",
    "change type": "ALTER TABLE staffs ALTER email TYPE varchar(50); UPDATE staffs SET email = 'y'",
    "drop key": "ALTER TABLE staffs DROP CONSTRAINT staffs_pkey; UPDATE staffs SET id = 1",
    "drop table": "DROP TABLE staffs",
    "rename table": "ALTER TABLE staffs RENAME TO people; UPDATE people SET email = 'z'; TRUNCATE people",
    "move table": "CREATE SCHEMA s; ALTER TABLE staffs SET SCHEMA s; TRUNCATE s.staffs",
    "create table": "CREATE TABLE more (a int); INSERT INTO more VALUES (1)",
    "add partition": "CREATE TABLE day2 PARTITION OF days FOR VALUES FROM ('2025-02-01') TO ('2025-03-01');"
    "INSERT INTO days VALUES ('2025-02-03', 'sad')",
    "detach partition": "ALTER TABLE days DETACH PARTITION day1; UPDATE day1 SET mood = 'happy'",
    "drop type": "ALTER TABLE days DROP mood; DROP TYPE mood",
    "new label": "ALTER TYPE mood ADD VALUE 'calm'",
    "create index": "CREATE INDEX more ON staffs (id, email)",
    "drop index": "DROP INDEX by_email",
    "function": "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
    "grant": "GRANT SELECT ON staffs TO PUBLIC",
    "comment": "COMMENT ON TABLE staffs IS 'people'",
    "comments on two columns": "COMMENT ON COLUMN staffs.id IS 'number'; COMMENT ON COLUMN staffs.email IS 'mail'",
    "validate": "ALTER TABLE staffs VALIDATE CONSTRAINT mail",
    "statistics": "ALTER TABLE staffs ALTER email SET STATISTICS 7",
    "storage": "ALTER TABLE staffs ALTER email SET STORAGE EXTERNAL",
    "default": "ALTER TABLE staffs ALTER email SET DEFAULT 'q'",
    "view": "CREATE VIEW w AS SELECT 1 AS a",
    "sequence": "ALTER SEQUENCE staffs_id_seq INCREMENT 5",
    "row security": "ALTER TABLE staffs ENABLE ROW LEVEL SECURITY",
    "policy": "CREATE POLICY p ON staffs USING (true)",
    "user trigger": "CREATE TRIGGER t BEFORE UPDATE ON staffs FOR EACH ROW EXECUTE FUNCTION"
    " suppress_redundant_updates_trigger()",
    "all triggers off and on": "ALTER TABLE staffs DISABLE TRIGGER ALL; DELETE FROM staffs;"
    "ALTER TABLE staffs ENABLE TRIGGER ALL",
    "drop schema": "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
}
#: Work that is no change of the schema.
ORDINARY = {
    "truncate": "TRUNCATE staffs",
    "vacuum full": "VACUUM FULL staffs",
    "cluster": "CLUSTER offices USING offices_pkey",
    "analyze": "ANALYZE",
    "reindex": "REINDEX TABLE staffs",
    "reindex concurrently": "REINDEX TABLE CONCURRENTLY staffs",
    "temporary table": "CREATE TEMP TABLE x (a mood); INSERT INTO x VALUES ('sad'); COMMENT ON TABLE x IS 'y'",
    "restart a sequence": "ALTER SEQUENCE staffs_id_seq RESTART",
}


def test_the_application_may_change_the_schema_and_rewind_notices(shared_database: DatabaseURL) -> None:
    """RECIPES 2.9, 2.10: nothing of ours breaks DDL or what is written after it; a rewind then refuses."""
    for name, script in DDL.items():
        run(shared_database, RICH)
        with SnapshotManager(shared_database) as manager:
            manager.checkpoint()
            run(shared_database, script)
            assert _is_refused(manager), name
        run(
            shared_database,
            "DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS s CASCADE; CREATE SCHEMA public",
        )


def test_a_schema_that_is_published_is_noticed(database: DatabaseURL) -> None:
    """RECIPES 2.9: what a publication sends is in a catalog of its own."""
    run(database, RICH + "CREATE PUBLICATION of_schemas;")
    with SnapshotManager(database) as manager:
        manager.checkpoint()
        run(database, "ALTER PUBLICATION of_schemas ADD TABLES IN SCHEMA public")
        assert _is_refused(manager)


def _is_refused(manager: SnapshotManager) -> bool:
    try:
        manager.rewind()
    except SchemaDriftError as error:
        return "since the checkpoint" in error.what
    return False


def test_ordinary_work_is_no_change_of_the_schema(shared_database: DatabaseURL) -> None:
    """RECIPES 2.9: no false alarm."""
    run(shared_database, RICH)
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        for script in ORDINARY.values():
            with connect(shared_database) as connection:
                for statement in script.split(";"):
                    connection.execute(statement.encode())
                manager.rewind()
            assert state(shared_database) == before
        run(shared_database, "GRANT SELECT ON staffs TO PUBLIC")
        assert _is_refused(manager), "a change of the schema after all that"


def test_a_refused_rewind_changes_nothing(shared_database: DatabaseURL) -> None:
    """After a change of the schema the rows stay as they are; a new checkpoint makes rewinds possible again."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "DELETE FROM staffs; ALTER TABLE offices ADD phone text")
        after = state(shared_database)
        with pytest.raises(SchemaDriftError):
            manager.rewind()
        assert state(shared_database) == after
        manager.checkpoint()
        run(shared_database, "DELETE FROM offices")
        manager.rewind()
        assert state(shared_database) == after


def test_the_difference_is_named(shared_database: DatabaseURL) -> None:
    """The error says what was changed and what to do."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "ALTER TABLE staffs ADD phone text")
        with pytest.raises(SchemaDriftError) as caught:
            manager.rewind()
    assert "new column phone text" in caught.value.found
    assert "checkpoint(snapshot=NAME)" in caught.value.hint


@pytest.mark.parametrize("role", ["postgres", "keikaku_owner"])
def test_a_changed_schema_is_restored_from_the_snapshot(
    server: Server, make_database: MakeDatabase, tmp_path: Path, role: str
) -> None:
    """C4: DDL works, is detected, restored the slow way, warned; then rewinds are quick again."""
    url = make_database(server, role)
    run(url, SHOP)
    with SnapshotManager(url, tmp_path) as manager:
        manager.create_snapshot("shop")
        before = state(url)
        manager.checkpoint(snapshot="shop")
        run(url, "ALTER TABLE staffs DROP email; DELETE FROM staffs; CREATE TABLE more (a int)")
        rewound = manager.rewind()
        assert state(url) == before
        assert rewound.path == "restored"
        assert "schema" in rewound.warnings[0]
        run(url, "DELETE FROM staffs")
        assert manager.rewind().path in {"replica", "owner"}
        assert state(url) == before


@pytest.mark.parametrize("format_name", ["plain", "custom", "directory"])
def test_snapshots_of_an_armed_database_are_clean(
    server: Server, make_database: MakeDatabase, tmp_path: Path, format_name: str
) -> None:
    """RECIPES 2.12: our own snapshots restore without our triggers, wherever."""
    source, target = make_database(server), make_database(server)
    run(source, RICH)
    with SnapshotManager(source, tmp_path) as manager:
        manager.checkpoint()
        manager.create_snapshot("shop", format=format_name)
    with SnapshotManager(target, tmp_path) as manager:
        manager.restore_snapshot("shop")
    assert state(target) == state(source)
    assert _ours(target) == []


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
@pytest.mark.parametrize("change", ["DELETE FROM staffs", "ALTER TABLE staffs DROP email"])
def test_a_restore_ends_the_checkpoint(
    server: Server, make_database: MakeDatabase, tmp_path: Path, strategy: str, change: str
) -> None:
    """A restore over an armed database is exact, and leaves nothing of ours behind."""
    url = make_database(server)
    run(url, SHOP)
    with SnapshotManager(url, tmp_path) as manager:
        manager.create_snapshot("shop")
        before = state(url)
        manager.checkpoint()
        manager.rewind()  # its connection must not be in the way of the swap
        run(url, change)
        manager.restore_snapshot("shop", strategy=strategy)
        assert state(url) == before
        assert _ours(url) == []


def _ours(url: DatabaseURL) -> list[tuple[object, ...]]:
    with connect(url) as connection:
        return connection.execute(
            "SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'keikaku%' UNION ALL "
            "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'keikaku%'"
        ).fetchall()


def test_a_crash_of_the_server_loses_no_undo(fresh_server: FreshServer) -> None:
    """RECIPES 2.2: the log is in the WAL; a lost connection is made again; emptied unlogged tables are told."""
    server = fresh_server(fsync="on")
    with server.admin() as connection:
        connection.execute("CREATE DATABASE unlogged STRATEGY file_copy")
    other = server.url.with_database("unlogged")
    run(server.url, SHOP)
    run(other, "CREATE UNLOGGED TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)")
    before = state(server.url)
    with SnapshotManager(server.url) as manager, SnapshotManager(other) as unlogged:
        unlogged.checkpoint()
        manager.checkpoint()
        manager.rewind()
        run(server.url, "SET synchronous_commit = on; DELETE FROM offices; SELECT nextval('staffs_id_seq')")
        server.kill()
        server.start()
        assert manager.rewind().tables == 2
        assert state(server.url) == before
        with pytest.raises(SchemaDriftError, match="crashed"):
            unlogged.rewind()


def test_another_process_may_rewind(shared_database: DatabaseURL) -> None:
    """The checkpoint is in the database, not in the process that made it."""
    run(shared_database, SHOP)
    before = state(shared_database)
    with SnapshotManager(shared_database) as first, SnapshotManager(shared_database) as second:
        first.checkpoint()
        run(shared_database, "DELETE FROM staffs")
        assert second.rewind().rows == 60
        assert first.rewind().rows == 0
        run(shared_database, "DELETE FROM staffs WHERE id = 1")
        second.checkpoint()  # the functions that the first has planned are the same, its log is not
        run(shared_database, "DELETE FROM staffs WHERE id = 2")
        assert first.rewind().rows == 1
    assert len(state(shared_database)["public.staffs"]) == 59  # type: ignore[arg-type]
    assert before != state(shared_database)


def test_two_rewinds_at_once_wait_for_each_other(shared_database: DatabaseURL) -> None:
    """Both end well, and the state is right after each."""
    run(shared_database, SHOP)
    before = state(shared_database)
    problems: list[BaseException] = []

    def rewind_often() -> None:
        try:
            with SnapshotManager(shared_database) as manager:
                for _ in range(20):
                    run(
                        shared_database,
                        "UPDATE staffs SET email = 'x' WHERE id < 20; INSERT INTO staffs DEFAULT VALUES",
                    )
                    manager.rewind(wait_s=20)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            problems.append(error)

    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        threads = [threading.Thread(target=rewind_often) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        manager.rewind()
    assert problems == []
    assert state(shared_database) == before


def test_a_killed_rewind_changes_nothing(shared_database: DatabaseURL) -> None:
    """It is one transaction: a rewind whose session ends half-way is repeated on a new connection."""
    run(shared_database, SHOP)
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager, connect(shared_database) as blocker:
        manager.checkpoint()
        manager.rewind()
        run(shared_database, "UPDATE offices SET name = name || '!'; DELETE FROM staffs WHERE id > 50")
        with blocker.transaction():
            blocker.execute("SELECT * FROM staffs WHERE id = 1 FOR UPDATE")
            blocker.execute("LOCK TABLE staffs IN SHARE MODE")
            results: list[object] = []
            thread = threading.Thread(target=lambda: results.append(manager.rewind(wait_s=20)))
            thread.start()
            until_somebody_waits(shared_database)
            after = state(shared_database)
            killed = blocker.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'keikaku_snapshots rewind'"
            ).fetchall()
            assert len(killed) == 1
            until_somebody_waits(shared_database)
            assert state(shared_database) == after
        thread.join()
        assert len(results) == 1
        assert state(shared_database) == before


def test_sequences_are_mended_by_the_next_rewind(shared_database: DatabaseURL) -> None:
    """RECIPES 2.11: a kill between the rows' commit and the sequences leaves gaps until the next rewind, no more."""
    run(shared_database, SHOP)
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "INSERT INTO staffs DEFAULT VALUES")
        run(shared_database, "SET session_replication_role = replica; SELECT keikaku_rewind.rewind_replica()")
        assert state(shared_database)["public.staffs"] == before["public.staffs"]
        assert state(shared_database) != before
        manager.rewind()
        assert state(shared_database) == before


def test_no_sequence_is_behind_the_rows_when_a_rewind_is_killed(shared_database: DatabaseURL) -> None:
    """What was set back goes forward before the rows are committed: the application would meet its own numbers."""
    run(
        shared_database, SHOP + "; CREATE SEQUENCE down INCREMENT -1; SELECT nextval('down'), nextval('down')"
    )
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "TRUNCATE staffs RESTART IDENTITY; INSERT INTO staffs DEFAULT VALUES")
        run(shared_database, "SELECT setval('down', -1), nextval('offices_id_seq')")
        run(shared_database, "SET session_replication_role = replica; SELECT keikaku_rewind.rewind_replica()")
        run(shared_database, "INSERT INTO staffs DEFAULT VALUES")
        with connect(shared_database) as connection:
            assert connection.execute("SELECT nextval('down')").fetchone() == (-3,)
        assert manager.rewind().sequences == 3
        assert state(shared_database) == before
        run(shared_database, "ALTER SEQUENCE staffs_id_seq RESTART")
        assert manager.rewind().sequences == 1
        assert state(shared_database) == before


def test_a_killed_checkpoint_leaves_the_old_one(shared_database: DatabaseURL) -> None:
    """Arming is one transaction: whatever interrupts it, the earlier checkpoint still holds."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager, connect(shared_database) as blocker:
        manager.checkpoint()
        run(shared_database, "CREATE TABLE more (a int)")  # so that everything is made anew
        with blocker.transaction():
            blocker.execute("LOCK TABLE more")
            with pytest.raises(DatabaseInUseError, match="pid"):
                manager.checkpoint(wait_s=0.1)
        run(shared_database, "DROP TABLE more; DELETE FROM staffs")
        assert manager.rewind().rows == 60


def test_who_does_not_own_a_table_is_refused(server: Server, make_database: MakeDatabase) -> None:
    """The error names the tables and the grant."""
    url = make_database(server, "keikaku_owner")
    run(url, SHOP)
    run(server.url.with_database(url.database), "CREATE TABLE theirs (a int)")
    with SnapshotManager(url) as manager:
        with pytest.raises(AccessDeniedError, match=r"public\.theirs of postgres"):
            manager.checkpoint()
        assert _ours(url) == []


def test_hidden_rows_are_refused(owner_database: DatabaseURL) -> None:
    """RECIPES 2.12: FORCE ROW LEVEL SECURITY hides rows from their owner; the fix is named."""
    run(owner_database, SHOP + "ALTER TABLE staffs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    with SnapshotManager(owner_database) as manager, pytest.raises(AccessDeniedError, match="NO FORCE"):
        manager.checkpoint()


def test_a_row_that_the_server_takes_no_longer_is_told(shared_database: DatabaseURL, tmp_path: Path) -> None:
    """A NOT VALID constraint forbids what is there already: nothing is changed; a known snapshot is restored."""
    run(shared_database, SHOP + "ALTER TABLE staffs ADD CHECK (id > 1) NOT VALID")
    with SnapshotManager(shared_database, tmp_path) as manager:
        manager.checkpoint()
        run(shared_database, "DELETE FROM staffs WHERE id < 3")
        after = state(shared_database)
        with pytest.raises(UnsafeRestoreError, match="23514"):
            manager.rewind()
        assert state(shared_database) == after
        manager.drop_checkpoint()
        run(shared_database, "ALTER TABLE staffs DROP CONSTRAINT staffs_id_check")
        manager.create_snapshot("shop")
        before = state(shared_database)
        manager.checkpoint(snapshot="shop")
        run(shared_database, "ALTER TABLE staffs ADD CHECK (id > 3) NOT VALID; DELETE FROM staffs")
        assert manager.rewind().path == "restored"
        assert state(shared_database) == before


def test_a_foreign_schema_of_our_name_stays(shared_database: DatabaseURL) -> None:
    """The comment decides what is ours."""
    run(shared_database, "CREATE SCHEMA keikaku_rewind; CREATE TABLE keikaku_rewind.t (a int)")
    with SnapshotManager(shared_database) as manager:
        with pytest.raises(RefusedError, match="not ours"):
            manager.checkpoint()
        with pytest.raises(RefusedError, match="not ours"):
            manager.drop_checkpoint()


def test_plain_roles_write_under_capture(server: Server, make_database: MakeDatabase) -> None:
    """Whoever may write to a table may still, and sees nothing of ours."""
    url = make_database(server)
    run(
        url,
        SHOP
        + "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO keikaku_owner;"
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO keikaku_owner",
    )
    before = state(url)
    with SnapshotManager(url) as manager:
        manager.checkpoint()
        plain = as_role(url, "keikaku_owner")
        run(plain, "INSERT INTO offices (name) VALUES ('x'); UPDATE staffs SET email = 'y'; TRUNCATE staffs")
        with connect(plain) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM keikaku_rewind.undo_1")
        manager.rewind()
    assert state(url) == before


def test_a_prepared_transaction_is_told(shared_database: DatabaseURL) -> None:
    """Two-phase commits hold the lock of writers without a session."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "BEGIN; DELETE FROM staffs; PREPARE TRANSACTION 'rewind_test'")
        with pytest.raises(DatabaseInUseError, match="prepared transaction"):
            manager.rewind(wait_s=0.05)
        run(shared_database, "COMMIT PREPARED 'rewind_test'")
        assert manager.rewind().rows == 60


def test_a_second_checkpoint_moves_the_point(shared_database: DatabaseURL) -> None:
    """What was changed before it stays; where the schema is the same, nothing is made anew."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "DELETE FROM staffs WHERE id = 1; SELECT nextval('staffs_id_seq')")
        oid = "SELECT 'keikaku_rewind'::regnamespace::oid"
        with connect(shared_database) as connection:
            before = connection.execute(oid).fetchone()
            made = manager.checkpoint()
            assert connection.execute(oid).fetchone() == before
        there = state(shared_database)
        run(shared_database, "DELETE FROM staffs; SELECT nextval('staffs_id_seq')")
        assert manager.rewind().rows == 59
        assert state(shared_database) == there
        assert made.tables == 2
