"""Images of rows as SQL: what is there, what was kept, and whether two are the same to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.capture import kept_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.capture_tables import CapturedColumn, CapturedTable

#: Compares records byte by byte: -0 and 0, 1.0 and 1.00, NULL and NULL, and types that have no "=".
SAME = "OPERATOR(pg_catalog.*=)"
DIFFERS = "OPERATOR(pg_catalog.*<>)"


def _record(values: Iterable[str]) -> str:
    # Two ROW() would be compared column by column.
    return f"ROW({', '.join(values)})::record"


def row_image(table: CapturedTable, row: str) -> str:
    """Return a whole row of the table as it would be kept.

    Args:
        table: The table.
        row: Its alias.
    """
    return _record(kept_value(column, f"{row}.") for column in table.columns)


def kept_image(table: CapturedTable, kept: str) -> str:
    """Return a whole row of the log.

    Args:
        table: The table.
        kept: Alias of the log.
    """
    return _record(f"{kept}.{column.kept}" for column in table.columns)


def restored_image(table: CapturedTable, kept: str) -> str:
    """Return a whole row of the log after its way back into the table, as it would be kept then.

    Args:
        table: The table.
        kept: Alias of the log.
    """
    return _record(
        f"CASE WHEN {kept}.{column.kept} IS NOT NULL"
        f" THEN pg_catalog.concat({kept}.{column.kept}{column.cast}) END"
        if column.cast
        else f"{kept}.{column.kept}"
        for column in table.columns
    )


#: Types of which two values that are equal are the same; others are compared byte by byte, at some cost.
_PLAIN = frozenset(
    {
        "bigint", "boolean", "bytea", "date", "integer", "oid", "smallint",
        "timestamp with time zone", "timestamp without time zone", "uuid",
    }
)  # fmt: skip
#: Texts are the same when they are equal to a collation that compares bytes.
_TEXTS = frozenset({"text", "character varying"})


def same(column: CapturedColumn, one: str, other: str) -> str:
    """Return the condition that two kept values are the same to the last bit; NULL is the same as NULL.

    Args:
        column: Their column.
        one: SQL.
        other: SQL.
    """
    if column.kept_type in _PLAIN:
        return f"({one} IS NOT DISTINCT FROM {other})"
    if column.kept_type in _TEXTS:
        return f'({one} COLLATE "C" IS NOT DISTINCT FROM {other} COLLATE "C")'
    return f"({_record([one])} {SAME} {_record([other])})"


def differs(column: CapturedColumn, one: str, other: str) -> str:
    """Return the condition that two kept values are not the same.

    Args:
        column: Their column.
        one: SQL.
        other: SQL.
    """
    return f"(NOT {same(column, one, other)})"
