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


def count_test_rows(found: Sequence[Found], marker: str) -> Steps[dict[int, int]]:
    """Count the rows that carry the marker, and refuse to delete where others hang on them.

    Args:
        found: The tables, parents first; they must be locked.
        marker: The boolean column that marks test rows.

    Returns:
        Test rows by the number of their table; tables without any are left out.

    Raises:
        RefusedError: A table without the marker has rows.
        TestDataReferencedError: Rows that would stay refer to rows that would go.
    """
    yield from _check_unmarked(found, marker)
    present = {}
    for table in found:
        if table.has_marker:
            count = yield from _marked(table, marker)
            if count:
                present[table.oid] = count
    if present:
        yield from _check_references([table for table in found if table.oid in present], found, marker)
    return present


def delete_test_rows(found: Sequence[Found], marker: str, present: dict[int, int]) -> Steps[int]:
    """Delete the rows that carry the marker, children first.

    Args:
        found: The tables, parents first.
        marker: The boolean column that marks test rows.
        present: What `count_test_rows` gave.

    Returns:
        Rows deleted.

    Raises:
        RefusedError: A trigger or rule kept some of them.
    """
    deleted = 0
    for group in _groups([table for table in reversed(found) if table.oid in present]):
        # One statement for tables that refer to each other: their keys are checked at its end.
        parts = ", ".join(
            f"gone_{number} AS (DELETE FROM {table.sql} WHERE {quote_name(marker)} RETURNING 1)"  # noqa: S608 - names are quoted
            for number, table in enumerate(group)
        )
        counts = ", ".join(f"(SELECT count(*) FROM gone_{number})" for number in range(len(group)))  # noqa: S608 - as above
        rows = yield Execute(f"WITH {parts} SELECT {counts}")
        for table, count in zip(group, rows[0], strict=True):
            yield from _check_deleted(table, marker, present[table.oid], count)
            deleted += count
    return deleted


def _groups(found: Sequence[Found]) -> list[list[Found]]:
    """Tables of one circle together, all others alone."""
    groups: list[list[Found]] = []
    for table in found:
        if table.circle and groups and groups[-1][0].circle == table.circle:
            groups[-1].append(table)
        else:
            groups.append([table])
    return groups


def _check_deleted(table: Found, marker: str, present: int, deleted: int) -> Steps[None]:
    if deleted == present:
        return
    # A trigger may have been faster with some of them; what counts is what is left.
    rows = yield from _marked(table, marker)
    if rows:
        raise RefusedError(
            f"{rows:,} of the {present:,} test rows of {table.name!r} were not deleted",
            found=f"Table: {table.schema}.{table.name}",
            hint="A BEFORE DELETE trigger keeps them: disable it, or pass clean_existing=False.",
            table=f"{table.schema}.{table.name}",
            rows=rows,
        )


def _marked(table: Found, marker: str) -> Steps[int]:
    rows = yield Execute(f"SELECT count(*) FROM {table.sql} WHERE {quote_name(marker)}")  # noqa: S608 - names are quoted
    count: int = rows[0][0]
    return count


def _check_unmarked(found: Sequence[Found], marker: str) -> Steps[None]:
    for table in found:
        if table.has_marker:
            continue
        rows = yield Execute(f"SELECT count(*) FROM {table.sql}")  # noqa: S608 - names are quoted
        if rows[0][0]:
            what = f"table {table.name!r} has rows but no column {marker!r} to tell test rows from others"
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
    # By the operators of the constraint itself: a type's own ones may not be on the search path.
    pairs = zip(key.columns, key.parent_columns, key.operators, strict=True)
    same = " AND ".join(
        f"p.{quote_name(parent)} {equals} c.{quote_name(child)}" for child, parent, equals in pairs
    )
    stays = f" AND c.{quote_name(marker)} IS NOT TRUE" if child_is_marked else ""
    where = f"p.{quote_name(marker)}{stays}"
    return f"SELECT count(*) FROM {key.child} c JOIN {key.parent} p ON {same} WHERE {where}"  # noqa: S608 - names are quoted
