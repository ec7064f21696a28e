"""Columns of a table, and which of them are its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.tables import TableName


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, in the table's order."""

    #: Name.
    name: str
    #: Type as SQL, such as "character varying(255)".
    type: str
    #: True for NOT NULL, by itself or by its domain.
    not_null: bool
    #: True if INSERT may leave it out: a default, an identity, or a domain's default.
    has_default: bool
    #: True for GENERATED ALWAYS AS (…): it cannot be written at all.
    generated: bool
    #: "always", "by default" or "".
    identity: str
    #: Name of the server's own type below all domains, such as "int4"; empty for a type of somebody else.
    base_type: str
    #: True for an array, also below a domain.
    is_array: bool


def columns(connection: Connection, table: TableName) -> list[Column]:
    """List the columns of a table in its order.

    Args:
        connection: The database.
        table: The table.

    Returns:
        Columns, the generated ones included.
    """
    rows = connection.execute(
        """
        SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull OR t.typnotnull,
               a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
               a.attgenerated <> '', a.attidentity::text, base.name, base.is_array
        FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        CROSS JOIN LATERAL (
            WITH RECURSIVE below AS (
                SELECT t.oid, t.typbasetype, t.typtype, t.typname, t.typcategory, t.typnamespace
                UNION ALL
                SELECT u.oid, u.typbasetype, u.typtype, u.typname, u.typcategory, u.typnamespace
                FROM below JOIN pg_catalog.pg_type u ON u.oid = below.typbasetype
            )
            SELECT CASE WHEN typnamespace = 'pg_catalog'::regnamespace THEN typname::text ELSE '' END AS name,
                   typcategory = 'A' AS is_array
            FROM below WHERE typtype <> 'd'
        ) base
        WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum
        """,
        (table.schema, table.name),
    ).fetchall()
    identity = {"a": "always", "d": "by default"}
    return [
        Column(name, text, not_null, has_default, generated, identity.get(letter, ""), base_type, is_array)
        for name, text, not_null, has_default, generated, letter, base_type, is_array in rows
    ]


def primary_key(connection: Connection, table: TableName) -> tuple[str, ...]:
    """List the columns of a table's primary key in its order.

    Args:
        connection: The database.
        table: The table.

    Returns:
        Columns; none without a primary key.
    """
    rows = connection.execute(
        """
        SELECT a.attname::text
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
        WHERE i.indisprimary AND n.nspname = %s AND c.relname = %s ORDER BY k.place
        """,
        (table.schema, table.name),
    ).fetchall()
    return tuple(row[0] for row in rows)
