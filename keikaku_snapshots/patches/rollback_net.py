"""What a run changed in the end, row by row: the net effect of a log, made when a rollback begins.

Inside one transaction nobody else can touch a row that the run wrote, so the
old images that are not also new ones are the first, and the new ones that are
not also old ones the last, in whatever order they were written. From one
transaction to the next an application may have changed the row: where what the
run found is not what it had left, its own earlier value is no longer the one
to go back to, and for that column the later one is.

``kind``: ``a`` the run added the row, ``r`` it removed it, ``c`` it changed it.
"""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.patches.undo_image import DIFFERS, differs, kept_image
from keikaku_snapshots.postgres.capture_net import image

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.capture import CaptureNames
    from keikaku_snapshots.postgres.capture_tables import CapturedTable
    from keikaku_snapshots.postgres.connect import Connection


def net_name(names: CaptureNames, table: CapturedTable) -> str:
    """Return the table of net effects, as SQL.

    Args:
        names: Names of the capture.
        table: The table.
    """
    return f"{names.log(table)}_net"


def has_net(connection: Connection, names: CaptureNames, table: CapturedTable) -> bool:
    """Tell whether a rollback has begun with a table.

    Args:
        connection: The database.
        names: Names of the capture.
        table: The table.
    """
    row = connection.execute(
        "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [net_name(names, table)]
    ).fetchone()
    return bool(row and row[0])


def make_net(connection: Connection, names: CaptureNames, table: CapturedTable) -> None:
    """Make the table of net effects of a log, and the log's index, in the present transaction.

    Args:
        connection: In a transaction.
        names: Names of the capture.
        table: The table.
    """
    log, net = names.log(table), net_name(names, table)
    steps, chains = f"{net}_steps", f"{net}_chains"
    for statement in (
        f"CREATE UNIQUE INDEX ON {log} (seq)",
        f"ANALYZE {log}",
        f"CREATE UNLOGGED TABLE {steps} AS {_steps(log, table)}",
        f"ANALYZE {steps}",
        f"CREATE UNLOGGED TABLE {chains} AS {_chains(log, steps, names.counter, table)}",
        _insert_composed(log, chains, table),
        f"CREATE TABLE {net} AS {_net(steps, chains, table)}",
        f"DROP TABLE {steps}, {chains}",
        f"ALTER TABLE {net} REPLICA IDENTITY FULL",
        f"CREATE UNIQUE INDEX ON {net} (kind, number)",
        f"CREATE INDEX ON {net} (state) WHERE state IS NOT NULL",
        f"ANALYZE {net}",
    ):
        connection.execute(statement.encode())


def _key(table: CapturedTable, source: str = "") -> str:
    return ", ".join(f"{source}{column.kept}" for column in table.key_columns())


def _same_key(table: CapturedTable, one: str, other: str) -> str:
    return " AND ".join(f"{one}.{column.kept} = {other}.{column.kept}" for column in table.key_columns())


def _steps(log: str, table: CapturedTable) -> str:
    """What each transaction did to each row: the entry that it found and the entry that it left."""
    key = _key(table)
    return f"""
WITH written AS MATERIALIZED (
  SELECT {key}, transaction,
         count(*) FILTER (WHERE op = '-') AS olds, count(*) FILTER (WHERE op = '+') AS news,
         min(seq) FILTER (WHERE op = '-') AS old, min(seq) FILTER (WHERE op = '+') AS new
  FROM {log} WHERE op IN ('-', '+') GROUP BY {key}, transaction),
surplus AS (
  SELECT {_key(table, "u.")}, u.transaction, min(u.seq) AS entry,
         sum(CASE u.op WHEN '-' THEN 1 ELSE -1 END) AS copies
  FROM {log} u JOIN written w ON {_same_key(table, "u", "w")} AND w.transaction = u.transaction
  WHERE w.olds > 1 OR w.news > 1
  GROUP BY {_key(table, "u.")}, u.transaction, {image(table, kept="u")})
SELECT {key}, transaction, old AS first, new AS last FROM written WHERE olds <= 1 AND news <= 1
UNION ALL
SELECT {key}, transaction, min(entry) FILTER (WHERE copies > 0), min(entry) FILTER (WHERE copies < 0)
FROM surplus WHERE copies <> 0 GROUP BY {key}, transaction
"""


def _chains(log: str, steps: str, counter: str, table: CapturedTable) -> str:
    """Rows that several transactions wrote: per column, the entry that has what to go back to."""
    key = _key(table)
    sources = ",\n".join(
        "  (array_agg(s.first ORDER BY s.step DESC) FILTER (WHERE s.step = s.start"
        f" OR {differs(column, f'p.{column.kept}', f'q.{column.kept}')}))[1] AS s_{column.kept}"
        for column in table.columns
    )
    return f"""
WITH numbered AS (
  SELECT o.*, row_number() OVER w AS step, lag(o.last) OVER w AS before
  FROM {steps} o
  JOIN (SELECT {key} FROM {steps} GROUP BY {key} HAVING count(*) > 1) m ON {_same_key(table, "o", "m")}
  WINDOW w AS (PARTITION BY {_key(table, "o.")} ORDER BY o.transaction)),
started AS (
  SELECT n.*, max(n.step) FILTER (WHERE n.step = 1 OR (n.before IS NULL) <> (n.first IS NULL))
              OVER (PARTITION BY {_key(table, "n.")}) AS start
  FROM numbered n)
SELECT {_key(table, "s.")}, (array_agg(s.first ORDER BY s.step))[1] AS first,
  (array_agg(s.last ORDER BY s.step DESC))[1] AS last, nextval('{counter}'::regclass) AS composed,
  bool_or(s.step > s.start AND p.seq IS NOT NULL AND q.seq IS NOT NULL
          AND {kept_image(table, "p")} {DIFFERS} {kept_image(table, "q")}) AS is_broken,
{sources}
FROM started s LEFT JOIN {log} p ON p.seq = s.before LEFT JOIN {log} q ON q.seq = s.first
WHERE s.step >= s.start GROUP BY {_key(table, "s.")}
"""


def _insert_composed(log: str, chains: str, table: CapturedTable) -> str:
    """Write an entry for each row whose columns go back to different entries."""
    columns = "".join(f", {column.kept}" for column in table.columns)
    values = "".join(
        f", (SELECT u.{column.kept} FROM {log} u WHERE u.seq = c.s_{column.kept})" for column in table.columns
    )
    return (
        f"INSERT INTO {log} (seq, op{columns}) SELECT c.composed, 'F'{values} FROM {chains} c"
        " WHERE c.is_broken AND c.first IS NOT NULL"
    )


def _net(steps: str, chains: str, table: CapturedTable) -> str:
    key = _key(table)
    kind = "CASE WHEN first IS NULL THEN 'a' WHEN last IS NULL THEN 'r' ELSE 'c' END::\"char\""
    return f"""
SELECT row_number() OVER (ORDER BY {key}) AS number, {kind} AS kind, first, last, is_broken,
       NULL::"char" AS state
FROM (
  SELECT {_key(table, "o.")}, o.first, o.last, false AS is_broken FROM {steps} o
  WHERE NOT EXISTS (SELECT FROM {chains} c WHERE {_same_key(table, "o", "c")})
  UNION ALL
  SELECT {_key(table, "c.")}, CASE WHEN c.is_broken AND c.first IS NOT NULL THEN c.composed ELSE c.first END,
         c.last, c.is_broken FROM {chains} c) rows
WHERE first IS NOT NULL OR last IS NOT NULL
"""
