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


def value_image(column: CapturedColumn, row: str) -> str:
    """Return one value of a row as it would be kept, as a record.

    Args:
        column: The column.
        row: Alias of the table.
    """
    return _record([kept_value(column, f"{row}.")])


def kept_value_image(column: CapturedColumn, kept: str) -> str:
    """Return one kept value as a record.

    Args:
        column: The column.
        kept: Alias of the log.
    """
    return _record([f"{kept}.{column.kept}"])
