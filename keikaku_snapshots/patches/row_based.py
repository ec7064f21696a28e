"""A batch of a `RowPatch`: rows are read and locked, `transform` says what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.errors import PatchDefinitionError
from keikaku_snapshots.patches.changes import Delete, Insert, Reject, Row, Skip, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.definition import RowPatch
    from keikaku_snapshots.patches.keyset import Key, Keyset
    from keikaku_snapshots.patches.plan import Plan
    from keikaku_snapshots.postgres.connect import Connection

#: Changes between two looks at memory and time, while Python is at work and no statement can be cancelled.
_CHECK_EVERY = 64


@dataclass(slots=True)
class Group:
    """Changes that one statement writes."""

    #: ``update``, ``insert`` or ``delete``.
    kind: str
    #: Table as the patch names it; the patch's own for updates and deletions.
    table: str
    #: Columns that get values.
    columns: tuple[str, ...]
    #: Keys of the rows; none for insertions.
    keys: list[Key] = field(default_factory=list)
    #: Values, a list for each row.
    rows: list[list[Any]] = field(default_factory=list)
    #: Place of a key in the lists above.
    places: dict[Key, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transformed:
    """What `transform` said of a batch."""

    #: Keys of the rows that were read.
    keys: list[Key]
    #: Changes in the order of their first appearance.
    groups: list[Group]
    #: Keys of rejected rows and why.
    rejects: list[tuple[Key, str]]


def read_rows(
    connection: Connection,
    patch: RowPatch,
    keyset: Keyset,
    condition: sql.Composable,
    values: dict[str, Any],
    locking: str = "",
) -> list[tuple[Key, Row]]:
    """Read the rows of a batch.

    Args:
        connection: The database.
        patch: Which columns.
        keyset: Table and key.
        condition: Which rows.
        values: Values of the condition's placeholders.
        locking: ``FOR …``.

    Returns:
        Keys and rows in the order of the key.
    """
    columns = tuple(dict.fromkeys((*keyset.columns, *patch.reads)))
    query = sql.SQL("SELECT {}, {} FROM {} WHERE {}{} {}").format(
        keyset.key_texts,
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        keyset.table,
        condition,
        keyset.order(),
        sql.SQL(locking),
    )
    width = len(keyset.columns)
    return [
        (row[:width], Row(zip(columns, row[width:], strict=True)))
        for row in connection.execute(query, values)
    ]


def transform(
    plan: Plan,
    patch: RowPatch,
    rows: list[tuple[Key, Row]],
    context: PatchContext,
    check: Callable[[], None] = lambda: None,
) -> Transformed:
    """Ask a patch what becomes of rows, and sort the answers by the statement that writes them.

    Args:
        plan: The patch's tables.
        patch: The patch.
        rows: Keys and rows of a batch.
        context: What `transform` gets.
        check: Called now and then; raises when memory or time is used up.

    Returns:
        Changes and rejects.

    Raises:
        PatchDefinitionError: It yields something else, or changes what it has not declared.
    """
    keys = {id(row): key for key, row in rows}
    groups: dict[tuple[str, str, tuple[str, ...]], Group] = {}
    updates: dict[Key, Group] = {}
    deletes: set[Key] = set()
    rejects: list[tuple[Key, str]] = []
    for number, change in enumerate(patch.transform([row for _, row in rows], context)):
        if number % _CHECK_EVERY == 0:
            check()
        if isinstance(change, Insert):
            _group(groups, "insert", change.table, change.values).rows.append(list(change.values.values()))
            continue
        key = keys.get(id(getattr(change, "row", None)))
        if key is None:
            raise _wrong(patch, f"It yields {change!r}, which belongs to no row of the batch.")
        if isinstance(change, Update):
            _update(groups, updates, patch.table, key, change.values)
        elif isinstance(change, Delete):
            _group(groups, "delete", patch.table, {}).places[key] = 0
            deletes.add(key)
        elif isinstance(change, Reject):
            rejects.append((key, change.why))
        elif not isinstance(change, Skip):
            raise _wrong(patch, f"It yields {change!r}, which is no change.")
    check()
    _check_once(patch, updates, deletes, {key for key, _ in rejects})
    for group in groups.values():
        _check_group(plan, patch, group)
        if group.kind == "update" and len(group.places) < len(group.rows):
            group.rows = [group.rows[place] for place in group.places.values()]
        group.keys = list(group.places)
    return Transformed([key for key, _ in rows], list(groups.values()), rejects)


def _group(
    groups: dict[tuple[str, str, tuple[str, ...]], Group], kind: str, table: str, values: dict[str, Any]
) -> Group:
    columns = tuple(values)
    found = groups.get((kind, table, columns))
    if found is None:
        found = groups[kind, table, columns] = Group(kind, table, columns)
    return found


def _update(
    groups: dict[tuple[str, str, tuple[str, ...]], Group],
    updates: dict[Key, Group],
    table: str,
    key: Key,
    values: dict[str, Any],
) -> None:
    before = updates.get(key)
    if before is not None:  # the row was updated before in this batch: of each column the later value counts
        values = dict(zip(before.columns, before.rows[before.places.pop(key)], strict=True)) | values
    group = updates[key] = _group(groups, "update", table, values)
    group.places[key] = len(group.rows)
    group.rows.append(list(values.values()))


def _check_once(patch: RowPatch, updates: dict[Key, Group], deletes: set[Key], rejects: set[Key]) -> None:
    """Refuse answers that contradict each other, of which one would be lost without a word."""
    twice = (updates.keys() & deletes) | (updates.keys() & rejects) | (deletes & rejects)
    if twice:
        key = ", ".join(min(twice))
        raise _wrong(
            patch, f"It says of the row {key} two of these: that it changes, is deleted, is rejected."
        )


def _check_group(plan: Plan, patch: RowPatch, group: Group) -> None:
    target = plan.target(group.table)
    if target is None:
        raise _wrong(patch, f"It inserts into {group.table}, which is not in its target_tables.")
    allowed = patch.writes if group.kind == "update" else tuple(target.columns)
    for column in group.columns:
        if column not in allowed:
            where = "its writes" if group.kind == "update" else str(target.name)
            raise _wrong(patch, f"It gives a value to column {column}, which is not in {where}.")


def _wrong(patch: RowPatch, found: str) -> PatchDefinitionError:
    return PatchDefinitionError(f"transform of data patch {patch.name!r} yields what it may not", found=found)
