"""Restores where roles of the snapshot are missing, or rights of the restoring role are few (B17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from keikaku_snapshots import SnapshotManager
from tests.integration import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MakeDatabase
    from tests.servers import Server


@pytest.fixture
def gone(server: Server, make_database: MakeDatabase) -> Iterator[str]:
    """A role that exists while the snapshot is made; the test drops it with `drop`."""
    name = f'Gone "{make_database(server).database}'
    with server.admin() as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    yield name
    with server.admin() as admin:
        admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


def drop(server: Server, database: str, role: str) -> None:
    """Drop a role and everything that hangs on it."""
    with server.admin(database) as admin:
        for statement in ("DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
            admin.execute(sql.SQL(statement).format(sql.Identifier(role)))


SCHEMA = """
CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2);
GRANT SELECT ON t TO "GONE" WITH GRANT OPTION;
SET ROLE "GONE"; GRANT SELECT ON t TO keikaku_owner; RESET ROLE;
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
CREATE POLICY for_both ON t AS RESTRICTIVE FOR SELECT TO "GONE", keikaku_owner USING (a > 1);
CREATE POLICY for_one ON t TO "GONE" USING (a > 0);
CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
CREATE USER MAPPING FOR "GONE" SERVER s;
"""


@pytest.mark.parametrize(
    ("strategy", "format_name"), [("in_place", "plain"), ("swap", "plain"), ("swap", "directory")]
)
def test_grants_policies_and_mappings_of_a_missing_role_are_left_out_and_named(
    server: Server, make_database: MakeDatabase, tmp_path: Path, gone: str, strategy: str, format_name: str
) -> None:
    """FAULTS 70, B17: as grantor, in a policy, in a user mapping; the rest is exact, also for a superuser."""
    url = make_database(server)
    schemas.run(url, SCHEMA.replace('"GONE"', sql.Identifier(gone).as_string()))
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("t", format=format_name)
        schemas.run(
            url, "DELETE FROM t; DROP USER MAPPING FOR " + sql.Identifier(gone).as_string() + " SERVER s"
        )
        drop(server, url.database, gone)
        restored = manager.restore_snapshot("t", strategy=strategy, on_schema_mismatch="ignore", jobs=2)
    (warning,) = restored.warnings
    for word in (gone, "grants that another role gave", "row security policy", "user mapping"):
        assert word in warning
    assert schemas.rows_of(url, "SELECT count(*) FROM t") == [(2,)]
    assert schemas.rows_of(url, "SELECT polname, polroles::regrole[]::text FROM pg_policy") == [
        ("for_both", "{keikaku_owner}")
    ]
