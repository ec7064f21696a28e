"""How the tables of two sides differ: which columns and keys they share, then their rows."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from keikaku_snapshots.progress import Progress, ProgressCallback
from keikaku_snapshots.snapshots.compare_keys import choose_key, row_keys
from keikaku_snapshots.snapshots.compare_rows import ChangedRow, RowComparison, different_fields
from keikaku_snapshots.snapshots.comparison import RowChange, TableDifference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keikaku_snapshots.postgres.catalog import TableName
    from keikaku_snapshots.snapshots.compare_rows import Blocks
    from keikaku_snapshots.snapshots.compare_side import Side, Source


class Layout(NamedTuple):
    """What the rows of a table are compared by."""

    #: Columns that both sides have, in the order of the other side.
    columns: tuple[str, ...]
    #: Columns that only the other side has.
    added: tuple[str, ...]
    #: Columns that only the one side has.
    removed: tuple[str, ...]
    #: Columns that identify a row; empty if there are none.
    key: tuple[str, ...]


def table_differences(
    before: Side, after: Side, *, keep: int, directory: Path, progress: ProgressCallback | None = None
) -> list[TableDifference]:
    """Compare the tables of two sides one after another.

    Args:
        before: The one side.
        after: The other side.
        keep: Rows of each table that are given back.
        directory: The snapshot directory.
        progress: Told the tables compared.

    Returns:
        Every table of either side, sorted by name.
    """
    begun = time.monotonic()
    keys = row_keys(before.objects), row_keys(after.objects)
    names = sorted({*before.tables, *after.tables})
    spill = spill_directory(directory)
    found = []
    for number, name in enumerate(names, start=1):
        old, new = before.tables.get(name), after.tables.get(name)
        shape = layout(_columns(old), _columns(new), keys[0].get(name, []), keys[1].get(name, []))
        found.append(_table(name, old, new, shape, keep, spill))
        if progress is not None:
            seconds = time.monotonic() - begun
            progress(Progress("compare", number, len(names), "steps", seconds, number == len(names)))
    return found


def layout(
    before: tuple[str, ...] | None,
    after: tuple[str, ...] | None,
    keys_before: list[tuple[str, ...]],
    keys_after: list[tuple[str, ...]],
) -> Layout:
    """Find what two tables can be compared by.

    Args:
        before: Columns of the one side; None where it has no rows at all.
        after: Columns of the other side.
        keys_before: Keys of the one side, best first.
        keys_after: Keys of the other side.

    Returns:
        Columns and key.
    """
    if before is None or after is None:
        columns = after if after is not None else before or ()
        # Where neither has rows, there are no columns either.
        key = next((key for key in keys_after or keys_before if set(key) <= set(columns)), ())
        return Layout(columns, (), (), key)
    columns = tuple(column for column in after if column in before)
    key = choose_key(keys_before, keys_after)
    return Layout(
        columns,
        tuple(column for column in after if column not in before),
        tuple(column for column in before if column not in after),
        key if set(key) <= set(columns) else (),
    )


def _table(
    name: TableName,
    old: list[Source] | None,
    new: list[Source] | None,
    shape: Layout,
    keep: int,
    directory: Path | None,
) -> TableDifference:
    same = _rows_of_same_parts(old, new)
    if same is not None:
        return TableDifference(name.text, "same", same, same, 0, 0, 0, shape.key, {}, (), ())
    positions = tuple(shape.columns.index(column) for column in shape.key)
    comparison = RowComparison(positions, keep=keep, directory=directory)
    rows = comparison.run(_blocks(old, shape.columns), _blocks(new, shape.columns))
    status: Literal["same", "added", "removed", "changed"] = "same"
    if old is None or new is None:
        status = "added" if old is None else "removed"
    elif rows.added or rows.removed or rows.changed or shape.added or shape.removed:
        status = "changed"
    by_column = rows.changed_columns
    return TableDifference(
        name=name.text,
        status=status,
        rows_before=None if old is None else rows.rows_before,
        rows_after=None if new is None else rows.rows_after,
        added=rows.added,
        removed=rows.removed,
        changed=rows.changed,
        key=shape.key,
        changed_columns={shape.columns[place]: by_column[place] for place in sorted(by_column)},
        columns_added=shape.added,
        columns_removed=shape.removed,
        rows=tuple(_row(row, shape.columns, positions) for row in rows.rows),
    )


def _rows_of_same_parts(old: list[Source] | None, new: list[Source] | None) -> int | None:
    """The number of rows where both sides have the same files of a directory format: nothing is unpacked."""
    if not old or not new:
        return None
    counts = [source.rows for source in new]
    same = [(one.columns, one.sha256) for one in old] == [(one.columns, one.sha256) for one in new]
    if not same or not all(source.sha256 for source in new) or None in counts:
        return None
    return sum(count or 0 for count in counts)


def spill_directory(directory: Path) -> Path | None:
    """Where rows that do not fit in memory go: beside the snapshots, whose disk is large.

    Args:
        directory: The snapshot directory.

    Returns:
        The directory; None for the system's own place when it may not be written.
    """
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


def _columns(sources: list[Source] | None) -> tuple[str, ...] | None:
    return sources[0].columns if sources else None


def _blocks(sources: Sequence[Source] | None, columns: tuple[str, ...]) -> Blocks:
    for source in sources or ():
        yield from source.read(columns)


def _row(row: ChangedRow, columns: tuple[str, ...], key: tuple[int, ...]) -> RowChange:
    old = None if row.before is None else row_values(row.before)
    new = None if row.after is None else row_values(row.after)
    there = new if new is not None else old or []
    identity = {columns[place]: there[place] for place in key}
    if row.before is None or row.after is None:
        shown: Sequence[int] = range(len(columns))
        change: Literal["added", "removed", "changed"] = "added" if row.before is None else "removed"
    else:
        shown, change = different_fields(row.before, row.after), "changed"
    return RowChange(
        change,
        identity,
        None if old is None else {columns[place]: old[place] for place in shown},
        None if new is None else {columns[place]: new[place] for place in shown},
        row.times,
    )


_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def row_values(line: bytes) -> list[str | None]:
    r"""Read the values of a row of COPY text.

    Args:
        line: The row without its newline.

    Returns:
        Values as text, None for NULL; bytes that are no UTF-8, as a database
        without encoding may hold, are written as ``\xNN``.
    """
    return [
        None
        if part == b"\\N"
        else _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), part).decode(
            "utf-8", "backslashreplace"
        )
        for part in line.split(b"\t")
    ]
