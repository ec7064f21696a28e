"""What Alembic recorded in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.postgres.filters import USER_SCHEMA

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection


def alembic_heads(connection: Connection) -> list[str]:
    """Read the revisions that Alembic recorded, in whatever schema.

    Args:
        connection: The database.

    Returns:
        Revisions, sorted; empty without an ``alembic_version`` table.
    """
    places = connection.execute(
        f"""
        SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_attribute a
          ON a.attrelid = c.oid AND a.attname = 'version_num' AND NOT a.attisdropped
        WHERE c.relname = 'alembic_version' AND c.relkind IN ('r', 'p') AND {USER_SCHEMA} ORDER BY 1
        """  # noqa: S608 - constants of this package
    ).fetchall()
    heads: set[str] = set()
    for (schema,) in places:
        statement = sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(schema, "alembic_version"))
        heads.update(str(row[0]) for row in connection.execute(statement).fetchall())
    return sorted(heads)
