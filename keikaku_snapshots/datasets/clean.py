"""Deleting the test rows of earlier runs, and only those.

No cascade ever decides: rows that stay and refer to a row that would go are
counted first, and then nothing is deleted at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.datasets.schema import ForeignKey, Found, foreign_keys
from keikaku_snapshots.datasets.steps import Execute, Steps, quote_name
from keikaku_snapshots.errors import RefusedError
from keikaku_snapshots.postgres.references import Counted, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence


def delete_test_rows(found: Sequence[Found], marker: str) -> Steps[int]:
    """Delete the rows that carry the marker, children first. The tables must be locked.

    Args:
        found: The tables, parents first.
        marker: The boolean column that marks test rows.

    Returns:
        Rows deleted.

    Raises:
        RefusedError: A table without the marker has rows.
        TestDataReferencedError: Rows that would stay refer to rows that would go.
    """
    yield from _check_unmarked(found, marker)
    marked = [table for table in found if table.has_marker]
    present = []
    for table in marked:
        rows = yield Execute(f"SELECT EXISTS (SELECT FROM {table.sql} WHERE {quote_name(marker)})")  # noqa: S608 - names are quoted
        if rows[0][0]:
            present.append(table)
    if not present:
        return 0
    yield from _check_references(present, found, marker)
    deleted = 0
    for table in reversed(present):
        delete = f"DELETE FROM {table.sql} WHERE {quote_name(marker)} RETURNING 1"  # noqa: S608 - names are quoted
        rows = yield Execute(f"WITH gone AS ({delete}) SELECT count(*) FROM gone")  # noqa: S608 - names are quoted
        deleted += rows[0][0]
    return deleted


def _check_unmarked(found: Sequence[Found], marker: str) -> Steps[None]:
    for table in found:
        if table.has_marker:
            continue
        rows = yield Execute(f"SELECT count(*) FROM {table.sql}")  # noqa: S608 - names are quoted
        if rows[0][0]:
            what = f"Table {table.name!r} has rows but no column {marker!r} to tell test rows from others"
            raise RefusedError(
                what,
                found=f"Table: {table.schema}.{table.name}\nRows: {rows[0][0]:,}",
                hint=f"Add the column ({marker} boolean NOT NULL DEFAULT false), empty the table, or pass "
                "clean_existing=False.",
                table=f"{table.schema}.{table.name}",
                rows=rows[0][0],
            )


def _check_references(present: Sequence[Found], found: Sequence[Found], marker: str) -> Steps[None]:
    keys = yield from foreign_keys(present)
    if not keys:
        return
    with_marker = {table.oid for table in found if table.has_marker}
    queries = [_count_query(key, marker, child_is_marked=key.child_oid in with_marker) for key in keys]
    rows = yield Execute(" UNION ALL ".join(f"SELECT ({query})" for query in queries))
    counts = [(key, row[0]) for key, row in zip(keys, rows, strict=True) if row[0]]
    if counts:
        raise refusal([Counted(key.child, key.parent, key.name, count) for key, count in counts])


def _count_query(key: ForeignKey, marker: str, *, child_is_marked: bool) -> str:
    pairs = zip(key.columns, key.parent_columns, strict=True)
    same = " AND ".join(f"c.{quote_name(child)} = p.{quote_name(parent)}" for child, parent in pairs)
    stays = f" AND c.{quote_name(marker)} IS NOT TRUE" if child_is_marked else ""
    where = f"p.{quote_name(marker)}{stays}"
    return f"SELECT count(*) FROM {key.child} c JOIN {key.parent} p ON {same} WHERE {where}"  # noqa: S608 - names are quoted
