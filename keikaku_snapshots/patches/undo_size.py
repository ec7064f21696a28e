"""How much disk the undo of a run takes, or will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import DiskFullError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.undo import find_tables, tag
from keikaku_snapshots.postgres.capacity import free_disk_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from keikaku_snapshots.postgres.connect import Connection

#: Bytes that a kept row takes beside its values: header, number, transaction, alignment.
_ROW_BYTES: Final = 56
#: Width of a row of a table that was never analyzed, in bytes.
_USUAL_ROW_BYTES: Final = 200
#: What the log, and what a rollback makes beside it, take at most, by the bytes of the kept rows.
_ROOM: Final = 1.5


def size_bytes(connection: Connection, execution_id: UUID) -> int:
    """Return how much disk the undo of an execution takes.

    Args:
        connection: The database.
        execution_id: The execution.
    """
    row = connection.execute(
        "SELECT coalesce(sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint FROM pg_catalog.pg_class c"
        " WHERE c.relnamespace = pg_catalog.to_regnamespace(%s) AND c.relkind = 'r'"
        " AND c.relname ~ %s",
        [SCHEMA, f"^undo{tag(execution_id)}_"],
    ).fetchone()
    return int(row[0]) if row else 0


def estimate_bytes(connection: Connection, tables: Sequence[str], rows: int) -> int:
    """Estimate how much disk the undo of a run will take, its rollback included.

    Args:
        connection: The database.
        tables: Tables that it may change; the first one is the one that it walks over.
        rows: Rows that it will change there.

    Returns:
        Bytes; by the statistics of the first table where there are any, else by a usual row.
    """
    walked = find_tables(connection, tables[:1])[0]
    # Of a partitioned table the statistics are those of its partitions together.
    row = connection.execute(
        "SELECT sum(width) FROM (SELECT max(avg_width) AS width FROM pg_catalog.pg_stats"
        " WHERE schemaname = %s AND tablename = %s GROUP BY attname) known",
        [walked.name.schema, walked.name.name],
    ).fetchone()
    width = int(row[0]) if row and row[0] else _USUAL_ROW_BYTES
    return round(2 * rows * (width + _ROW_BYTES) * _ROOM)


def check_disk(connection: Connection, tables: Sequence[str], rows: int) -> int:
    """Refuse a run whose undo does not fit on the server's disk, where that is known.

    Args:
        connection: The database.
        tables: Tables that the run may change, the one that it walks over first.
        rows: Rows that it will change.

    Returns:
        The estimated size of the undo, in bytes.

    Raises:
        DiskFullError: It would not fit.
    """
    needed = estimate_bytes(connection, tables, rows)
    free = free_disk_bytes(connection)
    if free is not None and free < needed:
        raise DiskFullError(
            "the server's disk has no room for the undo of this run; nothing was changed",
            found=f"Needed for {rows:,} rows: about {needed / 1e6:,.0f} MB\nFree: {free / 1e6:,.0f} MB",
            hint="Free space on the server, drop the undo of old runs, or run the patch on fewer rows.",
            hint_ja="サーバーの空き容量を確保するか、古い実行の undo を削除してください。",
        )
    return needed
