"""Ways in which a change might escape a rewind, or a checkpoint get in the way of the application."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from psycopg.errors import FeatureNotSupported

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import SchemaDriftError
from tests.integration.test_rewind import run, state
from tests.servers import connect

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import FreshServer, MakeDatabase
    from tests.servers import Server

STYLED = """
CREATE DOMAIN day AS date; CREATE DOMAIN ratio AS float8;
CREATE TYPE span AS (at timestamptz, length interval);
CREATE TABLE t (id int PRIMARY KEY, d day, r ratio, s span);
CREATE TABLE u (d day, r ratio);
INSERT INTO t VALUES (1, '2026-04-03', 0.1234567890123456789, ('2026-04-03 10:00', '-1 mon 2 days -3 hours'));
INSERT INTO u SELECT d, r FROM t;
"""


def test_styles_of_the_application_do_not_change_what_is_kept(shared_database: DatabaseURL) -> None:
    """Domains and composites are kept as text, written and read in one style whatever the session says."""
    run(shared_database, STYLED)
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(
            shared_database,
            "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'; SET extra_float_digits = -10;"
            "UPDATE t SET id = 2; UPDATE u SET r = 2",
        )
        run(shared_database, "UPDATE u SET r = 0.1234567890123456789; UPDATE u SET d = '2026-01-01'")
        manager.rewind()
        assert state(shared_database) == before


def test_a_rewritten_column_is_noticed(shared_database: DatabaseURL) -> None:
    """ALTER COLUMN TYPE … USING rewrites rows behind the triggers and may leave the type as it was."""
    run(shared_database, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        run(shared_database, "ALTER TABLE t ALTER v TYPE text USING upper(v)")
        with pytest.raises(SchemaDriftError):
            manager.rewind()


def test_truncate_of_a_transaction_that_sees_the_past(
    fresh_server: FreshServer, make_database: MakeDatabase
) -> None:
    """TRUNCATE takes rows away that its own snapshot does not see; what could not be kept is noticed.

    On a server where nobody else is at work: any commit in between, in whatever database, is one that the
    transaction may not see.
    """
    database = make_database(fresh_server())
    run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
    )
    before = state(database)
    with SnapshotManager(database) as manager:
        manager.checkpoint()
        run(
            database,
            "BEGIN ISOLATION LEVEL REPEATABLE READ; DELETE FROM t WHERE id = 2; TRUNCATE t; COMMIT",
        )
        manager.rewind()
        assert state(database) == before
        with connect(database) as past:
            past.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            past.execute("SELECT * FROM t")
            run(database, "DELETE FROM t WHERE id = 1")
            past.execute("TRUNCATE t")
            past.execute("COMMIT")
        with pytest.raises(SchemaDriftError, match="could not be kept"):
            manager.rewind()


def test_a_publication_of_all_tables(database: DatabaseURL) -> None:
    """Our own tables are published too then; the server must not refuse to empty them."""
    run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a');"
        "CREATE PUBLICATION everything FOR ALL TABLES",
    )
    before = state(database)
    with SnapshotManager(database) as manager:
        made = manager.checkpoint()
        assert any("everything" in warning for warning in made.warnings)
        run(database, "UPDATE t SET v = 'b'")
        manager.rewind()
        assert state(database) == before
        manager.checkpoint()


def test_a_rewind_gives_way_to_row_locks(shared_database: DatabaseURL) -> None:
    """A transaction that locked a row and then writes it is never the victim of a deadlock with a rewind."""
    run(shared_database, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager, connect(shared_database) as locker:
        manager.checkpoint()
        run(shared_database, "UPDATE t SET v = 'b'")
        failed: list[Exception] = []

        def rewind() -> None:
            try:
                manager.rewind(wait_s=30)
            except Exception as error:  # noqa: BLE001 - looked at below
                failed.append(error)

        with locker.transaction():
            locker.execute("SELECT * FROM t FOR UPDATE")
            thread = threading.Thread(target=rewind)
            thread.start()
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            with connect(shared_database) as watcher:
                while thread.is_alive() and watcher.execute(waits).fetchone() == (0,):
                    pass
            locker.execute("UPDATE t SET v = 'c'")
        thread.join()
        assert failed == []
        manager.rewind()
        assert state(shared_database) == before


def test_casts_of_the_user_run_with_the_rights_of_the_writer(database: DatabaseURL) -> None:
    """A cast to text that a user made is not called by functions that run with the rights of a superuser."""
    run(
        database,
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE called (by name);"
        "CREATE FUNCTION told(mood) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.called VALUES (current_user); RETURN 'well'; END $$;"
        "CREATE CAST (mood AS text) WITH FUNCTION told(mood);"
        "CREATE TABLE t (id int PRIMARY KEY, m mood, ms mood[]);"
        "INSERT INTO t VALUES (1, 'sad', '{happy,NULL}'), (2, NULL, NULL)",
    )
    before = state(database)
    with SnapshotManager(database) as manager:
        manager.checkpoint()
        run(database, "UPDATE t SET m = 'happy', ms = NULL; DELETE FROM t WHERE id = 1; TRUNCATE t")
        with connect(database) as connection:
            assert connection.execute("SELECT * FROM called").fetchall() == []
        manager.rewind()
        assert state(database) == before


def test_a_key_with_another_collation_than_its_column(
    each_server: Server, make_database: MakeDatabase
) -> None:
    """What the index tells apart and the column does not is no key to go by."""
    url = make_database(each_server)
    try:
        run(
            url,
            "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        )
    except FeatureNotSupported:
        pytest.skip("this server was built without ICU")
    run(
        url,
        'CREATE TABLE t (v text COLLATE nocase NOT NULL, w int); CREATE UNIQUE INDEX ON t (v COLLATE "C");'
        "INSERT INTO t VALUES ('a', 1)",
    )
    before = state(url)
    with SnapshotManager(url) as manager:
        manager.checkpoint()
        run(url, "UPDATE t SET v = 'A'")
        manager.rewind()
        assert state(url) == before


def test_tables_of_extensions_are_told(database: DatabaseURL) -> None:
    """They are not watched, and the checkpoint says so."""
    run(database, "CREATE TABLE of_it (id int); ALTER EXTENSION plpgsql ADD TABLE of_it")
    with SnapshotManager(database) as manager:
        assert any("of extensions do not go back: of_it" in line for line in manager.checkpoint().warnings)


def test_a_kept_connection_that_was_ended_before_the_first_rewind(shared_database: DatabaseURL) -> None:
    """The connection of the checkpoint may be gone by then, such as after a restart: another one is made."""
    run(shared_database, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint(keep_connection=True)
        run(shared_database, "UPDATE t SET v = 'b'")
        run(
            shared_database,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        manager.rewind()
        assert state(shared_database) == before
