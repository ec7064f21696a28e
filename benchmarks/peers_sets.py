"""The two data sets of the comparison; no import of this package, the peers' environment uses them too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

#: DSLR's own published benchmark table: three numbers a row, 1 GB.
GIGABYTE_ROWS = 20_000_000
#: 100 tables and indexes, 20,000 rows, 20 MB with the catalog.
SMALL_TABLES = 100
SMALL_ROWS = 200


def small(connection: psycopg.Connection[Any]) -> None:
    """Make 100 tables with a key, an index and 200 rows each."""
    for number in range(1, SMALL_TABLES + 1):
        connection.execute(
            f"CREATE TABLE table_{number} (id int PRIMARY KEY, name text NOT NULL, note text, at timestamptz)"
        )
        connection.execute(
            f"INSERT INTO table_{number} SELECT i, 'name ' || i, repeat(md5(i::text), 10), '2025-01-31'"
            f" FROM generate_series(1, {SMALL_ROWS}) i"
        )
        connection.execute(f"CREATE INDEX ON table_{number} (name)")
    connection.commit()


def gigabyte(connection: psycopg.Connection[Any]) -> None:
    """Make DSLR's benchmark table."""
    connection.execute("CREATE TABLE numbers (a bigint, b bigint, c bigint)")
    connection.execute(
        f"INSERT INTO numbers SELECT i, i * 2, i * 3 FROM generate_series(1, {GIGABYTE_ROWS}) i"
    )
    connection.commit()
