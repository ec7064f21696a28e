"""Hostile schemas, encodings and rights come back exactly: compared by dumps that we have no part in."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import AccessDeniedError, OtherDatabaseError
from tests.integration import hostile_schemas, schemas
from tests.servers import connect

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server


def run_script(server: Server, url: DatabaseURL, script: str, encoding: str = "UTF8") -> None:
    """Run a script by psql; each statement is committed."""
    subprocess.run(
        [server.bin / "psql", "-Xqw", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"],
        input=script.encode(),
        env={
            "PGHOST": url.host,
            "PGPORT": str(url.port),
            "PGUSER": url.user,
            "PGPASSWORD": url.password or "",
            "PGDATABASE": url.database,
            "PGCLIENTENCODING": encoding,
            "LC_ALL": "C",
        },
        capture_output=True,
        timeout=60,
        check=True,
    )


def check_round_trips(
    server: Server, url: DatabaseURL, manager: SnapshotManager, damages: list[tuple[str, str, str]]
) -> None:
    """Damage and restore by name and strategy, each time the same dump."""
    before = schemas.dump_text(server, url, "--encoding=UTF8")
    for damage, name, strategy in damages:
        run_script(server, url, damage)
        restored = manager.restore_snapshot(name, strategy=strategy, on_schema_mismatch="ignore", jobs=2)
        assert (restored.strategy, restored.warnings) == (strategy, ())
        assert schemas.dump_text(server, url, "--encoding=UTF8") == before


@pytest.mark.parametrize("role", ["postgres", "keikaku_creator"])
def test_hostile_schemas_come_back_exactly(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, role: str
) -> None:
    """B2, FAULTS 28, 72: quotes in quotes, circular views, whatever can be disabled or deferred."""
    url = make_database(each_server, role)
    with each_server.admin() as admin:
        for name in (schemas.READER, schemas.WRITER):
            with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                admin.execute(f'CREATE ROLE "{name}"')
    extra = hostile_schemas.SUPERUSER if role == "postgres" else ""
    run_script(each_server, url, hostile_schemas.OWNER + hostile_schemas.ROWS + extra)
    rows, schema = hostile_schemas.DAMAGE, hostile_schemas.DAMAGE + hostile_schemas.SCHEMA_DAMAGE
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("plain")
        manager.create_snapshot("custom", format="custom", level=0)
        manager.create_snapshot("clean", clean=True)
        manager.create_snapshot("directory", format="directory", jobs=2)
        damages = [
            (rows, "plain", "in_place"),
            (rows, "custom", "in_place"),
            (schema, "clean", "in_place"),
            (schema, "custom", "in_place"),
            (schema, "clean", "swap"),
            (schema, "directory", "swap"),
            (schema, "directory", "in_place"),
        ]
        check_round_trips(each_server, url, manager, damages)


NAMES = """
CREATE SCHEMA "{0}"; CREATE TABLE "{0}"."t{0}" (id serial PRIMARY KEY, "c{0}" text DEFAULT '{0};');
INSERT INTO "{0}"."t{0}" ("c{0}") VALUES ('{0}'); CREATE MATERIALIZED VIEW "{0}"."m{0}" AS SELECT 1 AS a;
"""
DELETE = 'DELETE FROM "{0}"."t{0}";'
NEWER = 'CREATE TABLE "{0}".newer (a int);'


@pytest.mark.parametrize(("encoding", "text"), [("LATIN1", "é"), ("EUC_JP", "日本"), ("SQL_ASCII", "é")])
def test_other_encodings_come_back_exactly(
    server: Server, make_database: MakeDatabase, tmp_path: Path, encoding: str, text: str
) -> None:
    """FAULTS 73, 74: names and values of databases that are not UTF8, and standard_conforming_strings off."""
    url = make_database(server)
    with server.admin() as admin:
        admin.execute(f"DROP DATABASE {url.database}")
        admin.execute(f"CREATE DATABASE {url.database} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        admin.execute(f"ALTER DATABASE {url.database} SET standard_conforming_strings = off")
    run_script(server, url, NAMES.format(text) + r"CREATE VIEW v AS SELECT 'a\\b\'; COMMIT; --'::text AS x;")
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("h")
        manager.create_snapshot("directory", format="directory")
        both = DELETE + NEWER
        damages = [
            (DELETE.format(text), "h", "in_place"),
            (both.format(text), "h", "in_place"),
            (DELETE.format(text), "h", "swap"),
            (both.format(text), "directory", "swap"),
        ]
        check_round_trips(server, url, manager, damages)


@pytest.mark.parametrize("format_name", ["plain", "custom", "directory"])
def test_bytes_of_no_encoding_come_back_from_an_sql_ascii_database(
    server: Server, make_database: MakeDatabase, tmp_path: Path, format_name: str
) -> None:
    """An SQL_ASCII database takes any bytes; a dump in UTF8 refuses them."""
    url = make_database(server)
    with server.admin() as admin:
        admin.execute(f"DROP DATABASE {url.database}")
        admin.execute(f"CREATE DATABASE {url.database} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    run_script(
        server, url, r"CREATE TABLE t (a text); INSERT INTO t VALUES (E'\351\377'), ('é');", "SQL_ASCII"
    )
    query = "SELECT string_agg(encode(a::bytea, 'hex'), ' ' ORDER BY a) FROM t"
    before = schemas.rows_of(url, query)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("t", format=format_name)
        for damage, strategy in (("", "in_place"), ("CREATE TABLE u (a int);", "in_place"), ("", "swap")):
            run_script(server, url, "DELETE FROM t;" + damage)
            manager.restore_snapshot("t", strategy=strategy, on_schema_mismatch="ignore", jobs=2)
            assert schemas.rows_of(url, query) == before


def test_an_owner_who_may_not_fill_his_own_table_gets_it_back(
    server: Server, creator_database: DatabaseURL, tmp_path: Path
) -> None:
    """B17: an archive whose owner took INSERT from himself is made anew, its rights last."""
    url = creator_database
    schemas.run(
        url,
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1); CREATE SEQUENCE s; SELECT nextval('s');"
        "REVOKE INSERT, UPDATE, TRUNCATE ON t FROM CURRENT_USER; REVOKE UPDATE ON s FROM CURRENT_USER",
    )
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("h")
        manager.create_snapshot("directory", format="directory")
        damages = [
            ("DELETE FROM t;", "h", "in_place"),
            ("DELETE FROM t;", "h", "swap"),
            ("DELETE FROM t;", "directory", "swap"),
        ]
        check_round_trips(server, url, manager, damages)


def test_a_missing_public_schema_stays_missing_or_comes_back(database: DatabaseURL, tmp_path: Path) -> None:
    """B2: no dump says that ``public`` was dropped; the manifest does."""
    query = "SELECT nspowner::regrole::text, nspacl::text FROM pg_namespace WHERE nspname = 'public'"
    schemas.run(database, "CREATE SCHEMA s; CREATE TABLE s.t (a int)")
    with_public = schemas.rows_of(database, query)
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("with")
        schemas.run(database, "DROP SCHEMA public")
        manager.create_snapshot("without")
        for strategy in ("in_place", "swap"):
            manager.restore_snapshot("with", strategy=strategy)
            assert schemas.rows_of(database, query) == with_public
            manager.restore_snapshot("without", strategy=strategy)
            assert schemas.rows_of(database, query) == []


def test_a_snapshot_without_tables_empties_no_database_by_mistake(
    database: DatabaseURL, tmp_path: Path
) -> None:
    """B15: it says nothing of its application; meant is meant."""
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("empty")
        assert manager.restore_snapshot("empty").strategy == "swap"
        schemas.run(database, "CREATE TABLE t (a int)")
        with pytest.raises(OtherDatabaseError, match="no tables"):
            manager.restore_snapshot("empty")
        manager.restore_snapshot("empty", from_other_database=True)
        assert schemas.rows_of(database, "SELECT 1 FROM pg_class WHERE relname = 't'") == []


def test_forced_row_security_is_said_with_its_remedy(owner_database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 18: pg_dump would fail; the tables are named, and what to do."""
    schemas.run(
        owner_database,
        "CREATE TABLE t (a int); ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
    )
    with (
        SnapshotManager(owner_database, tmp_path, minimum_free_mb=1) as manager,
        pytest.raises(AccessDeniedError, match=r"public\.t") as caught,
    ):
        manager.create_snapshot("t")
    assert "NO FORCE ROW LEVEL SECURITY" in caught.value.hint
    assert "BYPASSRLS" in caught.value.hint
    with connect(owner_database) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
